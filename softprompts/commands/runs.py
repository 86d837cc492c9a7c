"""``softprompts runs``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from softprompts.commands.terminal import err, number_table, out
from softprompts.storage.runs import RUNS, ListedRun, best_runs, list_runs


def runs(
    root: Annotated[str, typer.Option("--out", "-o", help="Folder of the runs, as 'train' has it.")] = RUNS,
    best: Annotated[bool, typer.Option("--best", help="Of each task, only the run with the highest score.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All that is listed of each as JSON.")] = False,
) -> None:
    """List runs, the newest first: names that other verbs take, methods, tasks, scores, dates, sizes of prompts."""
    found, damaged = list_runs(root)
    shown = best_runs(found) if best else found
    if as_json:
        print(json.dumps([asdict(run) for run in shown], indent=2, ensure_ascii=False))
    elif shown:
        rows = [
            [run.name, run.method, run.task, _score(run), run.date[:16].replace("T", " "), _size(run)] for run in shown
        ]
        out.print(
            number_table(("name", "method", "task", "score", "date", "size"), rows, ("name", "method", "task", "score"))
        )
    else:
        out.print(f"no {'run with a score' if found else 'runs'} in {root}", soft_wrap=True)
    for sentence in damaged:
        err.print(f"left out: {sentence}", soft_wrap=True)


def _score(run: ListedRun) -> str:
    if run.score is None:
        return "-" if run.state == "finished" else run.state
    return f"{run.score:.4f} {run.metric} ({run.split})"


def _size(run: ListedRun) -> str:
    return f"{run.size / 1e3:,.0f} kB" if run.size else "-"
