"""Run folders: ``runs/<id>/`` with config.yaml, metrics.jsonl, checkpoint/, prompt/ and, once done, result.json.

run.yaml has the settings with which ``train --config`` makes the run again.

The id is a hash of the run's settings, so that the same settings find the run that they made before.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from softprompts.errors import SoftPromptError, shown
from softprompts.storage.files import read_json, require_folder, write_text_atomic
from softprompts.storage.names import PROMPT as PROMPT

CONFIG = "config.yaml"
SETTINGS = "run.yaml"
METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint"
RESULT = "result.json"
DIVERGED = "non-finite loss"  # the stop_reason of a run that broke off


def run_id(config: Mapping[str, Any]) -> str:
    """A short hash of a resolved configuration: the same for equal settings in any order.

    Raises:
        SoftPromptError: the configuration holds something that JSON has no word for.
    """
    try:
        text = json.dumps(_canonical(config), sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SoftPromptError(f"a run's configuration must be plain JSON values: {error}") from None
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _canonical(value: Any) -> Any:
    """The value with one spelling of what YAML and Python write differently: 1.0 and 1, tuples and lists."""
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def is_done(folder: str | Path) -> bool:
    """Whether a run has finished: its result is written last."""
    return (Path(folder) / RESULT).is_file()


def load_result(folder: str | Path) -> dict[str, Any]:
    """The result of a finished run.

    Raises:
        SoftPromptError: there is none.
    """
    if not is_done(folder):
        raise SoftPromptError(f"{folder} holds no finished run ({RESULT} is missing)")
    return read_json(Path(folder) / RESULT)


def load_config(folder: str | Path) -> dict[str, Any]:
    """The configuration a run folder was made for.

    Raises:
        SoftPromptError: there is none.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise SoftPromptError(f"{folder} is not a run folder ({CONFIG} is missing)")
    try:
        config = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise SoftPromptError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise SoftPromptError(f"{path} holds no configuration")
    return config


def open_run(
    root: str | Path,
    config: Mapping[str, Any],
    *,
    resume: bool = False,
    reuse: bool = False,
    folder: str | Path | None = None,
) -> Path:
    """Makes, or finds again, the folder of the run with this configuration.

    Args:
        root: where run folders live, usually "runs".
        config: the resolved configuration, all that is needed to repeat the run.
        resume: go on with an unfinished run that is already there.
        reuse: an already finished run is fine (see `is_done`).
        folder: a folder of the caller's choice in place of ``root/<id>``.

    Returns:
        The folder; it holds config.yaml.

    Raises:
        SoftPromptError: the folder holds a finished run without ``reuse``, an unfinished one without ``resume``, or
            something else.
    """
    identity = run_id(config)
    path = Path(folder) if folder is not None else Path(root) / identity
    require_folder(path, "the run")
    if path.is_dir() and any(not entry.name.startswith(".") for entry in path.iterdir()):
        if run_id(load_config(path)) != identity:
            differ = "; ".join(differences(load_config(path), config)[:3])
            raise SoftPromptError(f"{path} holds a run with other settings ({differ}); choose a new folder")
        if is_done(path):
            if not reuse:
                raise SoftPromptError(f"{path} holds this run, finished; read its {RESULT} or choose a new folder")
        elif not resume:
            raise SoftPromptError(f"{path} holds this run, unfinished; go on with --resume or choose a new folder")
        return path
    plain = json.loads(json.dumps(config))
    write_text_atomic(path / CONFIG, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
    return path


def require_unfinished(root: str | Path, config: Mapping[str, Any], folder: str | Path | None = None) -> None:
    """Makes sure that there is something to resume: a folder with a run of this configuration, finished or not.

    Raises:
        SoftPromptError: there is none; says in which settings the nearest unfinished run differs.
    """
    path = Path(root) / run_id(config) if folder is None else Path(folder)
    if (path / CONFIG).is_file():
        return
    if folder is not None:
        raise SoftPromptError(f"nothing to resume: {folder} holds no run; leave --resume out to start one")
    near = nearest_unfinished(root, config)
    if near is None:
        raise SoftPromptError(f"nothing to resume: no unfinished run in {root}; leave --resume out to start one")
    other, differ = near
    more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
    raise SoftPromptError(
        f"nothing to resume: no run in {root} has these settings; {other} is unfinished and differs: "
        f"{'; '.join(differ[:3])}{more}; give its settings, or leave --resume out to start a new run"
    )


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What two configurations differ in: "training.learning_rate is 0.1 there, 0.2 here"."""
    ours, theirs = _flat(json.loads(json.dumps(here))), _flat(there)
    keys = [key for key in {**theirs, **ours} if _canonical(theirs.get(key)) != _canonical(ours.get(key))]
    return [f"{key} is {_said(theirs.get(key))} there, {_said(ours.get(key))} here" for key in keys]


def _said(value: Any) -> str:
    return "not set" if value is None else shown(value)


def _flat(config: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    """The settings by their path."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        inner = isinstance(value, Mapping)
        flat.update(_flat(value, f"{within}{key}.") if inner else {f"{within}{key}": value})
    return flat


def nearest_unfinished(root: str | Path, config: Mapping[str, Any]) -> tuple[Path, list[str]] | None:
    """The unfinished run in a folder that differs in the fewest settings, and these; None where there is none."""
    near = []
    for path in sorted(file.parent for file in Path(root).glob(f"*/{CONFIG}") if not is_done(file.parent)):
        with contextlib.suppress(SoftPromptError):  # a damaged one is nobody's
            near.append((path, differences(load_config(path), config)))
    return min(near, key=lambda each: len(each[1]), default=None)


def append_metrics(folder: str | Path, record: Mapping[str, Any]) -> None:
    """Adds a line to metrics.jsonl."""
    with open(Path(folder) / METRICS, "a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def load_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line that a crash cut short is left out."""
    path = Path(folder) / METRICS
    records: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def cut_metrics(folder: str | Path, step: int) -> None:
    """Drops the lines after ``step``, those a resumed run is going to write again."""
    path = Path(folder) / METRICS
    if path.is_file():
        kept = [record for record in load_metrics(folder) if record["step"] <= step]
        write_text_atomic(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))
