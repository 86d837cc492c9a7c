"""The prompts of a folder by name: which there are, and the way to their files, which never leads out of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from softprompts.errors import SoftPromptError
from softprompts.serving.errors import ConflictError, RequestError, UnknownError
from softprompts.storage.saved_prompt import (
    CONFIG_FILE,
    PROMPT,
    TENSOR_FILE,
    read_config,
)

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_RUN = "config.yaml"


class Store:
    """A folder of saved prompts, a sub-folder each; run folders are such too.

    Args:
        folder: the folder.

    Raises:
        SoftPromptError: no such folder, or a single prompt.
    """

    def __init__(self, folder: str | Path):
        path = Path(folder)
        if not path.is_dir():
            raise SoftPromptError(f"--prompts {folder}: no such folder")
        if (path / CONFIG_FILE).is_file():
            raise SoftPromptError(f"--prompts {folder} is itself a saved prompt; name the folder that it is in")
        self.root = path.resolve()

    def names(self) -> list[str]:
        """Those of all sub-folders that look like a saved prompt or a run."""
        found = []
        for path in sorted(self.root.iterdir()):
            if re.fullmatch(NAME, path.name) and self._holds(path):
                found.append(path.name)
        return found

    def _holds(self, path: Path) -> bool:
        inside = (path / CONFIG_FILE, path / PROMPT / CONFIG_FILE, path / _RUN)
        try:
            return path.is_dir() and any(file.is_file() for file in inside)
        except OSError:  # `folder` tells that it may not be looked into
            return True

    def folder(self, name: str) -> Path:
        """Where a prompt's files are.

        Raises:
            RequestError: no such name, no such prompt, or a way out of the folder.
        """
        if not re.fullmatch(NAME, name):
            raise RequestError("a prompt's name has letters, digits, '.', '_' and '-' only, and begins with neither")
        try:
            return self._folder(name)
        except OSError as error:
            raise ConflictError(
                f"the files of '{name}' cannot be read ({error.strerror or type(error).__name__})"
            ) from error

    def _folder(self, name: str) -> Path:
        place = self._within(self.root / name, name)
        if not place.is_dir() or place == self.root:
            raise UnknownError(f"there is no prompt '{name}' in the prompts folder")
        if not (place / CONFIG_FILE).is_file() and (place / PROMPT / CONFIG_FILE).is_file():
            place = self._within(place / PROMPT, name)
        if not (place / CONFIG_FILE).is_file():
            raise UnknownError(f"'{name}' holds no saved prompt: {CONFIG_FILE} is missing")
        for file in (CONFIG_FILE, TENSOR_FILE):
            self._within(place / file, name)
        return place

    def stamp(self, folder: Path) -> tuple[tuple[int, int, int], ...]:
        """Tells files from what was there before."""
        states = [(folder / file).stat() for file in (CONFIG_FILE, TENSOR_FILE) if (folder / file).exists()]
        return tuple((state.st_mtime_ns, state.st_size, state.st_ino) for state in states)

    def backbones(self) -> Iterator[str]:
        """The backbone that each readable prompt names."""
        for name in self.names():
            try:
                backbone = read_config(self.folder(name))[0]["backbone"].get("name")
            except SoftPromptError:
                continue
            if isinstance(backbone, str) and backbone:
                yield backbone

    def _within(self, path: Path, name: str) -> Path:
        try:
            real = path.resolve()
        except (OSError, RuntimeError) as error:  # a ring of links
            raise ConflictError(f"the files of '{name}' cannot be found") from error
        if not real.is_relative_to(self.root):
            raise ConflictError(f"'{name}' leads out of the prompts folder by a link; copy it there instead")
        return real
