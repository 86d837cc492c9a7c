"""Writes files and folders whole or not at all: a crash leaves the old content or the new one, never a part."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from softprompts.errors import SoftPromptError, first_line


def write_atomic(path: str | Path, content: bytes | Callable[[IO[bytes]], Any]) -> None:
    """Writes a file, so that a reader sees the old content or the new one at any time.

    Args:
        path: the file; its folder is made when it is missing.
        content: the bytes, or a function that writes them to the open binary file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        # Opened as any new file, so that it gets the permissions of one.
        with open(temporary, "xb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text_atomic(path: str | Path, text: str) -> None:
    """`write_atomic` for a text."""
    write_atomic(path, text.encode())


def write_json_atomic(path: str | Path, value: Any) -> None:
    """`write_atomic` for a JSON value."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
        SoftPromptError: it is no JSON, or holds something else.
        OSError: it cannot be read.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SoftPromptError(f"{path} is not valid JSON ({first_line(error)}): the file is damaged") from error
    if not isinstance(value, dict):
        raise SoftPromptError(f"{path} holds no settings but a JSON {type(value).__name__}: it was edited")
    return value


def replace_folder(source: str | Path, target: str | Path) -> None:
    """Makes ``target`` a copy of ``source``; readers see it with all of its old files or all of the new ones.

    An old folder is moved away just before the new one takes its place; a crash between the two moves leaves none.
    """
    with new_folder(Path(target), replace=True) as temporary:
        shutil.copytree(source, temporary, copy_function=shutil.copyfile, dirs_exist_ok=True)


def require_folder(folder: str | Path, what: str) -> None:
    """Makes sure that a folder is there or can be made.

    Raises:
        SoftPromptError: something else is there; says by ``what`` what the folder is for, such as "the report".
    """
    if Path(folder).exists() and not Path(folder).is_dir():
        raise SoftPromptError(f"{folder} is a file; name a folder for {what}")


def require_new_folder(folder: str | Path) -> Path:
    """Makes sure that a folder is empty or not there yet, so that writing it loses nothing; returns its path.

    Raises:
        SoftPromptError: there is a file, or a folder with something in it.
    """
    folder = Path(folder)
    if folder.is_dir():
        if any(folder.iterdir()):
            raise SoftPromptError(f"{folder} is there already and not empty: name a new folder")
    elif folder.exists() or folder.is_symlink():
        raise SoftPromptError(f"{folder} is a file; name a folder")
    return folder


@contextlib.contextmanager
def new_folder(folder: Path, replace: bool = False) -> Iterator[Path]:
    """A folder to write into under a temporary name: it gets its name at the end, and is removed after an error.

    Args:
        folder: its name; nothing is there yet, or an empty folder.
        replace: it takes the place of a folder with something in it.

    Yields:
        The folder under its temporary name.
    """
    folder = folder.resolve()  # "." has a name too
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = temporary_beside(folder), temporary_beside(folder)
    try:
        temporary.mkdir()
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        if replace and folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    sync_folder(folder.parent)


def write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Writes a folder's files in this order; a folder that is not there yet appears with all of them."""
    with contextlib.nullcontext(folder) if folder.exists() else new_folder(folder) as place:
        for name, content in contents.items():
            write_atomic(place / name, content)


def temporary_beside(path: Path) -> Path:
    """A hidden name that nobody else uses, in the same folder: a rename is atomic only within one file system."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def sync_folder(folder: Path) -> None:
    """Puts renames within a folder on disk; a renamed file is there after a power cut only once its folder is."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def default_cache_dir() -> Path:
    """``$SOFTPROMPTS_CACHE``, or ``softprompts`` in ``$XDG_CACHE_HOME``, or in ``~/.cache``.

    "off" in the first of them turns off what can be done without; what is fetched is kept all the same.
    """
    folder = os.environ.get("SOFTPROMPTS_CACHE", "").strip()
    if folder.lower() not in ("", "off"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "softprompts"
