"""Runs by name, and the list of those in a folder. A run's name is that of its folder."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from softprompts.errors import SoftPromptError, nearest
from softprompts.storage import run_folder
from softprompts.storage.names import ADAPTER_CONFIG, CONFIG_FILE, PROMPT

RUNS = "runs"  # the folder that runs go to, where no other is named, and that names are looked up in
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", re.ASCII)
_ID = re.compile(r"[0-9a-f]{12}")  # what `run_folder.run_id` gives


@dataclass(frozen=True)
class ListedRun:
    """A run as a list of runs shows it.

    Attributes:
        name: of its folder.
        folder: the folder.
        method: the method's name.
        task: the task's name.
        model: the backbone's name.
        seed: of the training.
        state: "finished", "unfinished", or "diverged" where it broke off.
        metric: name of the main metric; None where there is no score.
        score: on the test rows where there are some, else the best on the validation rows; None where there is none.
        split: the rows of the score: "test" or "validation".
        scored: what identifies these rows.
        date: when it ended, or was begun where it has not, as ISO 8601.
        size: bytes of the saved prompt; 0 without one.
    """

    name: str
    folder: str
    method: str
    task: str
    model: str
    seed: int | None
    state: str
    metric: str | None
    score: float | None
    split: str
    scored: str
    date: str
    size: int


def check_name(name: str) -> None:
    """Raises a `SoftPromptError` unless runs, and the prompts in them, can be called so."""
    if not _NAME.fullmatch(name):
        raise SoftPromptError(
            f"--name {name}: a name has letters, digits, '_' and '-', begins with a letter or a digit, and is at most "
            "100 long"
        )
    if _ID.fullmatch(name):
        raise SoftPromptError(f"--name {name}: this could be a run's id; choose a name that says what it is for")


def check_free(folder: Path, resume: bool) -> None:
    """Raises a `SoftPromptError` where a new run cannot have the name of this folder; ``resume`` takes up its run."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    name = f"--name {folder.name}"
    if not (folder / run_folder.CONFIG).is_file():
        raise SoftPromptError(f"{name}: {folder} is there already and holds no run; choose another name")
    if run_folder.is_done(folder):
        raise SoftPromptError(f"{name}: taken by the finished run in {folder}; choose another name")
    if not resume:
        raise SoftPromptError(
            f"{name}: taken by the unfinished run in {folder}; go on with it by --resume, or choose another name"
        )


def located(source: str | Path) -> str | Path:
    """Where a run is that may be named: the folder in ``runs`` that has this name; else ``source`` as it is.

    A run or prompt folder of this path goes first.
    """
    named = Path(RUNS) / source
    return named if _NAME.fullmatch(str(source)) and not _holds(Path(source)) and _holds(named) else source


def near(name: str) -> str:
    """The end of an error about a run that is not there: the run whose name is nearest; empty where there is none."""
    names = [path.name for path in Path(RUNS).glob("*") if _holds(path)]
    hint = nearest(name, names)
    return f"; {hint}" if hint.startswith("did you mean") else ""


def _holds(folder: Path) -> bool:
    """Whether a folder is that of a run or of a saved prompt."""
    files = (run_folder.CONFIG, CONFIG_FILE, ADAPTER_CONFIG, f"{PROMPT}/{CONFIG_FILE}")
    return any((folder / file).is_file() for file in files)


def list_runs(root: str | Path = RUNS) -> tuple[list[ListedRun], list[str]]:
    """The runs in a folder, the newest first, and a sentence on each folder whose run cannot be read.

    Raises:
        SoftPromptError: there is no such folder.
    """
    if not Path(root).is_dir():
        raise SoftPromptError(f"{root}: no such folder; runs go to '{RUNS}', or where --out says")
    runs, damaged = [], []
    for file in sorted(Path(root).glob(f"*/{run_folder.CONFIG}")):
        try:
            runs.append(_listed(file.parent))
        except (SoftPromptError, OSError) as error:
            damaged.append(str(error))
    return sorted(runs, key=lambda run: (run.date, run.name), reverse=True), damaged


def best_runs(runs: Sequence[ListedRun]) -> list[ListedRun]:
    """The run with the highest score of each task; scores on other rows, or of another metric, are not compared."""
    best: dict[tuple[Any, ...], ListedRun] = {}
    for run in runs:
        key = run.task, run.metric, run.split, run.scored
        if run.score is not None and (key not in best or run.score > (best[key].score or 0.0)):
            best[key] = run
    return sorted(best.values(), key=lambda run: (run.task, run.split, run.date))


def _listed(folder: Path) -> ListedRun:
    config = run_folder.load_config(folder)
    result = run_folder.load_result(folder) if run_folder.is_done(folder) else {}
    split = "test" if result.get("test_rows") else "validation"
    scores = result.get("test_metrics" if split == "test" else "metrics") or {}
    metric, score = next(iter(scores.items()), (None, None))
    rows = (result.get("splits") or {}).get(split) or {}
    training = config.get("training") or {}
    end = folder / (run_folder.RESULT if result else run_folder.CONFIG)
    state = "diverged" if result.get("stop_reason") == run_folder.DIVERGED else "finished" if result else "unfinished"
    size = 0
    with contextlib.suppress(OSError):
        size = sum(file.stat().st_size for file in (folder / PROMPT).iterdir())
    return ListedRun(
        name=folder.name,
        folder=str(folder),
        method=str(config.get("method", "")),
        task=str(config.get("task", "")),
        model=str(config.get("model", "")),
        seed=training.get("seed"),
        state=state,
        metric=metric if score is not None else None,
        score=score,
        split=split,
        scored=str(rows.get("sha256") or config.get("rows", "")),
        date=datetime.fromtimestamp(end.stat().st_mtime).astimezone().isoformat(timespec="seconds"),
        size=size,
    )
