"""Methods that are in no installed package: imported from a file (or by a module's name) that the user gives.

What such a file says decides the numbers of runs, so its hash is part of their ids, and saved prompts name the file.
Files that it imports itself are not looked at.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from softprompts.errors import SoftPromptError, first_line
from softprompts.methods.registry import methods, restore
from softprompts.storage.names import JOINT


@dataclass(frozen=True)
class Source:
    """The file that a method was imported from, and the sha256 of what was in it."""

    file: Path
    sha256: str

    def to_dict(self) -> dict[str, str]:
        """As saved prompts name it: of a file elsewhere only its name, as prompts are published."""
        inside = self.file.is_relative_to(Path.cwd())
        return {"file": str(self.file.relative_to(Path.cwd()) if inside else self.file.name), "sha256": self.sha256}


_SOURCES: dict[str, Source] = {}  # by method
_GIVEN: list[str] = []  # what was imported, as another process imports it too


def import_methods(given: str) -> list[str]:
    """Imports what registers methods of the user's own.

    Args:
        given: a Python file (its name ends in ``.py``), or the name of a module that Python finds from here.

    Returns:
        The names of the methods that are registered there.

    Raises:
        SoftPromptError: there is no such file or module, it fails, registers nothing, or takes the name of a module or
            of another method; what it had registered until then is forgotten.
    """
    before, modules = methods(), set(sys.modules)
    is_file = given.endswith(".py")
    try:
        module = _from_file(given) if is_file else _by_name(given)
        now = methods()
        replaced = [name for name, config in before.items() if now[name] is not config]
        if replaced:
            raise SoftPromptError(f"{given}: the method name '{replaced[0]}' is taken already; register another one")
        own = [name for name, config in now.items() if name not in before or config.__module__ == module.__name__]
        if not own:
            raise SoftPromptError(f"{given} registers no method: put @softprompts.register('NAME') on its config")
    except BaseException:
        restore(before)
        for name in [name for name in sys.modules if name not in modules and not name.startswith("softprompts.")]:
            del sys.modules[name]
        raise
    for name in own:
        file = Path(getattr(sys.modules.get(now[name].__module__, module), "__file__", None) or given).resolve()
        _SOURCES[name] = Source(file, hashlib.sha256(file.read_bytes()).hexdigest())
    again = str(Path(given).resolve()) if is_file else given
    if again not in _GIVEN:
        _GIVEN.append(again)
    return own


def imported() -> list[str]:
    """What `import_methods` was given in this process, files by their whole paths, so that workers import it too."""
    return list(_GIVEN)


def sources_of(method: str) -> dict[str, Source]:
    """The files that a method, or the parts of a composition, were imported from; without those of packages."""
    return {name: _SOURCES[name] for name in method.split(JOINT) if name in _SOURCES}


def require_imported(method: str, recorded: Any, where: str) -> None:
    """Looks whether the methods of a saved prompt that came from files are there.

    Args:
        method: its method, or the parts of a composition.
        recorded: by method, what `Source.to_dict` said when it was saved; None for methods of packages.
        where: the prompt; begins errors.

    Raises:
        SoftPromptError: a method is not there; the file to import is named.
    """
    known, recorded = methods(), recorded if isinstance(recorded, Mapping) else {}
    for name in method.split(JOINT):
        source = recorded.get(name)
        if not isinstance(source, Mapping):
            continue
        if name not in known:
            raise SoftPromptError(
                f"{where}: its method '{name}' is in a file of its own: give --import {source.get('file')} "
                "(in Python: import it before)"
            )
        if name in _SOURCES and _SOURCES[name].sha256 != source.get("sha256"):
            warnings.warn(
                f"{where}: {_SOURCES[name].file.name} has changed since this prompt was saved, and so may its outputs",
                stacklevel=3,
            )


def _from_file(given: str) -> ModuleType:
    file = Path(given).resolve()
    name = file.stem.replace(".", "_")
    if not file.is_file():
        raise SoftPromptError(f"{given}: there is no such file")
    there = sys.modules.get(name)
    if there is not None and getattr(there, "__file__", None) == str(file):
        return there
    if there is not None or _found_elsewhere(name, file):
        raise SoftPromptError(f"{given}: a module is called '{name}' already; give the file another name")
    if str(file.parent) not in sys.path:  # as of a script: files beside it can be imported, and pickles find it again
        sys.path.append(str(file.parent))
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # its name ends in .py
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _translated(error, given, file) from error
    return module


def _found_elsewhere(name: str, file: Path) -> bool:
    """Whether ``import name`` would find another file."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() != file


def _by_name(given: str) -> ModuleType:
    if not all(part.isidentifier() for part in given.split(".")):
        raise SoftPromptError(f"'{given}' is neither a Python file (.py) nor a name of a module")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(given)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{given}.".startswith(f"{error.name}."):
            raise SoftPromptError(f"{given}: there is no such module; the name of a file ends in .py") from error
        raise _translated(error, given, None) from error


def _translated(error: BaseException, given: str, file: Path | None) -> SoftPromptError:
    """What went wrong in a module, with the line of its file."""
    if isinstance(error, SoftPromptError):
        return SoftPromptError(f"{given}: {error}")
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if file is not None and Path(frame.filename).resolve() == file]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    where = given if line is None else f"{given}, line {line}"
    return SoftPromptError(f"{where}: {type(error).__name__}: {first_line(error)}")
