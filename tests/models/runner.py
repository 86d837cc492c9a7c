"""Runs all checks of many model classes, in processes of their own, and keeps each cell as a line of JSON."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.models.factory import classes
from tests.models.oracles import Cell, cells, checks_of

FAILED = ("WRONG", "crash")
SECONDS = 60  # that one class may take
Key = tuple[str, str, str]


def read(path: Path) -> dict[Key, Cell]:
    """The cells in a file, by type, class and check; the last of each counts."""
    found: dict[Key, Cell] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            row = json.loads(line)
            key = row.pop("type"), row.pop("class"), row.pop("check")
            found[key] = Cell(**row)
    return found


def write(path: Path, model_type: str, name: str, check: str, cell: Cell) -> None:
    """Adds a cell to a file."""
    row = {"type": model_type, "class": name, "check": check, **asdict(cell)}
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def open_checks(model_type: str, name: str, known: dict[Key, Cell], failed: bool) -> set[str] | None:
    """The checks of a class that are still to be run; None for all."""
    build = known.get((model_type, name, "build"))
    every = checks_of(classes()[model_type][name])
    if build is None or (failed and build.verdict == "not built"):
        return None
    if build.verdict == "not built":
        return set()
    if not failed:
        return {check for check in every if (model_type, name, check) not in known}
    return {check for check in every if getattr(known.get((model_type, name, check)), "verdict", "crash") in FAILED}


def run(path: Path, types: Sequence[str], workers: int = 1, failed: bool = False) -> None:
    """Runs what is missing in ``path`` (or, with ``failed``, what failed there) for these model types."""
    torch.set_num_threads(1)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = read(path)
    jobs: list[tuple[str, list[tuple[str, set[str] | None]]]] = []
    for model_type in types:
        todo = [(name, open_checks(model_type, name, known, failed)) for name in classes()[model_type]]
        todo = [(name, checks) for name, checks in todo if checks is None or checks]
        if todo:
            jobs.append((model_type, todo))
    context = multiprocessing.get_context("fork")
    running: list[tuple[Any, str, list[tuple[str, set[str] | None]], float]] = []
    while jobs or running:
        while jobs and len(running) < workers:
            model_type, todo = jobs.pop(0)
            process = context.Process(target=_work, args=(path, model_type, todo))
            process.start()
            running.append((process, model_type, todo, time.monotonic() + SECONDS * len(todo)))
        time.sleep(0.05)
        for entry in list(running):
            process, model_type, todo, until = entry
            if process.is_alive() and time.monotonic() < until:
                continue
            late = process.is_alive()
            if late:
                process.kill()
            process.join()
            running.remove(entry)
            if process.exitcode:
                why = f"no answer within {SECONDS} s" if late else f"the process died ({process.exitcode})"
                rest = _after_crash(path, model_type, todo, why)
                if rest:
                    jobs.insert(0, (model_type, rest))


def _after_crash(path: Path, model_type: str, todo: list[tuple[str, set[str] | None]], why: str) -> Any:
    """Notes a crash at the check that was under way; returns what is left of the work."""
    started = Path(f"{path}.{model_type}").read_text().splitlines()
    name = started[0].split("\t")[0]
    done = {line.split("\t")[1] for line in started if line.startswith(f"{name}\t")}
    index = [entry[0] for entry in todo].index(name)
    every = ["build", *checks_of(classes()[model_type][name])]
    checks = todo[index][1]
    left = [check for check in every if check not in done and (checks is None or check in checks or check == "build")]
    if left:
        write(path, model_type, name, left[0], Cell("crash" if left[0] != "build" else "not built", None, why))
    rest = set(left[1:]) if left and left[0] != "build" else set()
    return [*([(name, rest)] if rest else []), *todo[index + 1 :]]


def _work(path: Path, model_type: str, todo: list[tuple[str, set[str] | None]]) -> None:
    """What a process does: all classes of a type."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    log = Path(f"{path}.{model_type}")
    for name, checks in todo:
        log.write_text(f"{name}\t\n")
        for check, cell in cells(model_type, name, checks):
            write(path, model_type, name, check, cell)
            with log.open("a") as file:
                file.write(f"{name}\t{check}\n")
    log.unlink(missing_ok=True)
    os._exit(0)
