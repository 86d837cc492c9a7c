"""Files of a run's settings, as every run leaves one (run.yaml), read for ``train --config``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from softprompts.errors import SoftPromptError, first_line, nearest
from softprompts.storage import run_folder
from softprompts.storage.runs import located

if TYPE_CHECKING:
    from softprompts.methods.contract import MethodConfig

_KEYS = ("model", "data", "method", "settings", "training", "evaluate", "start")


@dataclass(frozen=True)
class RunFile:
    """What such a file says.

    Attributes:
        path: the file.
        groups: by the name of a group ("model", "data", "training"), its settings by the names of their fields.
        method: name of the method; None: it names none.
        settings: of the method, by name.
        evaluate: whether validation rows are scored while training.
        start: the prompt that the run goes on from; None: it starts anew.
    """

    path: Path
    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    method: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    evaluate: bool = True
    start: str | None = None

    def method_config(self) -> MethodConfig | None:
        """The method's config; None where the file names no method.

        Raises:
            SoftPromptError: unknown method or setting, or a value out of range.
        """
        from softprompts.methods import make_config

        if self.method is None:
            return None
        try:
            return make_config(self.method, **self.settings)
        except SoftPromptError as error:
            raise SoftPromptError(f"{self.path}: {error}") from error


def read_run_file(source: str, classes: Mapping[str, Any], flags: Mapping[str, Mapping[str, str]]) -> RunFile:
    """Reads a file of settings.

    Args:
        source: the file; or a run by its folder or name, whose own file is read.
        classes: the settings class of each group.
        flags: for each group, the fields by the names of their flags, for hints.

    Raises:
        SoftPromptError: no such file, no YAML, an unknown key, or a value that is none for its key; names the file.
    """
    path = Path(located(source))
    path = path / run_folder.SETTINGS if path.is_dir() else path
    said = _read(path)
    if "form" in said and "rows" in said:
        raise SoftPromptError(f"{path} is the record of a run; its settings are in the {run_folder.SETTINGS} beside it")
    for key in said:
        if key not in _KEYS:
            raise SoftPromptError(f"{path}: there is no '{key}'; {nearest(str(key), _KEYS)}")
    model = said.get("model")
    groups = {name: said.get(name) or {} for name in classes} | (
        {"model": {"name": model}} if isinstance(model, str) else {}
    )
    for name, cls in classes.items():
        _check(path, name, groups[name], cls, flags[name])
    method, settings, evaluate = said.get("method"), said.get("settings") or {}, said.get("evaluate", True)
    if not isinstance(method, str | None) or not isinstance(settings, Mapping) or not isinstance(evaluate, bool):
        raise SoftPromptError(
            f"{path}: method is a name, settings a mapping of names to values, evaluate true or false"
        )
    if settings and method is None:
        raise SoftPromptError(f"{path}: settings are those of a method: give the method too")
    start = said.get("start")
    if not isinstance(start, str | None):
        raise SoftPromptError(f"{path}: start is the folder or hub id of a prompt")
    return RunFile(path, groups, method, settings, evaluate, start)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise SoftPromptError(f"--config {path}: no such file")
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f" line {mark.line + 1}:"
        raise SoftPromptError(
            f"{path}:{line} no YAML ({getattr(error, 'problem', None) or first_line(error)})"
        ) from error
    if not isinstance(said, dict):
        raise SoftPromptError(f"{path}: no settings of a run, but {type(said).__name__}")
    return said


def _check(path: Path, group: str, values: Any, cls: Any, flags: Mapping[str, str]) -> None:
    """Makes sure that the values of a group are settings, each for itself."""
    if not isinstance(values, Mapping):
        raise SoftPromptError(f"{path}: {group} must be a mapping of names to values")
    names = [each.name for each in fields(cls)]
    for key in values:
        if key not in names:
            hint = f"did you mean '{flags[key]}'?" if key in flags else nearest(str(key), names)
            raise SoftPromptError(f"{path}: {group} has no setting '{key}'; {hint}")
    try:
        cls(**values)
    except SoftPromptError as error:
        raise SoftPromptError(f"{path}: {error}") from error
