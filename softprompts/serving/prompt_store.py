"""Finds the files of prompts by name in a folder, and never outside of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from softprompts.errors import SoftPromptError
from softprompts.serving.errors import RequestError
from softprompts.storage.saved_prompt import CONFIG_FILE, PROMPT, TENSOR_FILE, read_config

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_RUN = "config.yaml"


class PromptStore:
    """A folder whose sub-folders are saved prompts or run folders; a folder that is a prompt itself is refused."""

    def __init__(self, folder: str | Path):
        path = Path(folder)
        if not path.is_dir():
            raise SoftPromptError(f"--prompts {folder}: no such folder")
        if (path / CONFIG_FILE).is_file():
            raise SoftPromptError(f"--prompts {folder} is itself a saved prompt; name the folder that it is in")
        self.root = path.resolve()

    def names(self) -> list[str]:
        """Names of all sub-folders that look like a saved prompt or a run."""
        return [path.name for path in sorted(self.root.iterdir()) if re.fullmatch(NAME, path.name) and _is_prompt(path)]

    def folder(self, name: str) -> Path:
        """The folder of a prompt's files.

        Raises:
            RequestError: no valid name, no such prompt, or a link that leads out of the store.
        """
        if not re.fullmatch(NAME, name):
            raise RequestError("a prompt's name has letters, digits, '.', '_' and '-' only, and begins with neither")
        try:
            folder = self._inside(self.root / name, name)
            if not folder.is_dir() or folder == self.root:
                raise RequestError(f"there is no prompt '{name}' in the prompts folder", 404)
            if not (folder / CONFIG_FILE).is_file() and (folder / PROMPT / CONFIG_FILE).is_file():
                folder = self._inside(folder / PROMPT, name)
            if not (folder / CONFIG_FILE).is_file():
                raise RequestError(f"'{name}' holds no saved prompt: {CONFIG_FILE} is missing", 404)
            for file in (CONFIG_FILE, TENSOR_FILE):
                self._inside(folder / file, name)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise RequestError(f"the files of '{name}' cannot be read ({reason})", 409) from error
        return folder

    def stamp(self, folder: Path) -> tuple[tuple[int, int, int], ...]:
        """The state of a prompt's files; another one after they have changed."""
        states = [(folder / file).stat() for file in (CONFIG_FILE, TENSOR_FILE) if (folder / file).exists()]
        return tuple((state.st_mtime_ns, state.st_size, state.st_ino) for state in states)

    def backbones(self) -> Iterator[str]:
        """The backbones that the readable prompts name."""
        for name in self.names():
            try:
                backbone = read_config(self.folder(name))[0]["backbone"].get("name")
            except SoftPromptError:
                continue
            if isinstance(backbone, str) and backbone:
                yield backbone

    def _inside(self, path: Path, name: str) -> Path:
        """The path without links, which must be in the store."""
        try:
            real = path.resolve()
        except RuntimeError as error:  # links in a circle
            raise RequestError(f"the files of '{name}' cannot be found", 409) from error
        if not real.is_relative_to(self.root):
            raise RequestError(f"'{name}' leads out of the prompts folder by a link; copy it there instead", 409)
        return real


def _is_prompt(path: Path) -> bool:
    files = (path / CONFIG_FILE, path / PROMPT / CONFIG_FILE, path / _RUN)
    try:
        return path.is_dir() and any(file.is_file() for file in files)
    except OSError:  # `PromptStore.folder` reports that the folder cannot be read
        return True
