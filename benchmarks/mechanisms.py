"""Made tasks: each mechanism on, off and disconnected, over five seeds.

    python benchmarks/mechanisms.py [--tasks multi-mask,ept] [--search] [--results build/mechanisms.json]
                                    [--into docs/defaults.md]

The tasks are those of tests/mechanisms (tests/helpers/made_tasks.py), and so are the rates. With ``--search``, where
another rate might make up for a mechanism, each form tries three rates and keeps the one with the best mean on
validation rows (name other results then); scores are of test rows. What is done already is not done again. ``--into``
writes the tables between the two marks of a page.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

import made
import made_tasks
from report import table, write_between

from softprompts.storage.files import write_json_atomic

START, END = "<!-- made tasks: made by benchmarks/mechanisms.py -->", "<!-- end of made tasks -->"
COLUMNS = ("on", "off", "disconnected")


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--tasks", type=lambda text: text.split(","), default=list(made_tasks.MADE))
    arguments.add_argument("--search", action="store_true")
    arguments.add_argument("--results", type=Path, default=Path("build/mechanisms.json"))
    arguments.add_argument("--into", type=Path)
    options = arguments.parse_args()
    torch.set_num_threads(1)

    results = json.loads(options.results.read_text(encoding="utf-8")) if options.results.is_file() else {}
    for name in options.tasks:
        for arm in made_tasks.MADE[name].arms:
            if arm not in results.setdefault(name, {}):
                results[name][arm] = measured(name, arm, options.search)
                options.results.parent.mkdir(parents=True, exist_ok=True)
                write_json_atomic(options.results, results)
                print(f"{name}, {arm}: {results[name][arm]['score']}", flush=True)
    text = page(results)
    print(text)
    if options.into is not None:
        write_between(options.into, START, END, text)


def measured(name: str, arm: str, search: bool) -> dict[str, Any]:
    """How an arm of a task did; each on its own model, since arms do not depend on each other's company."""
    task = made_tasks.MADE[name]
    outcome = made.outcomes(task, task.search if search else (1.0,), [arm])[arm]
    parameters = sum(p.numel() for p in outcome.prompts[0].method.parameters() if p.requires_grad)
    return {
        "score": str(outcome),
        "scores": outcome.scores,
        "rate": outcome.rate,
        "parameters": parameters,
        **{key: round(value(outcome), 2) for key, value in task.also.items()},
    }


def page(results: dict[str, Any]) -> str:
    """The tables: one line a task, then one line for each further form."""
    lines, further = [], []
    for name in (task for task in made_tasks.MADE if task in results):
        arms = results[name]
        lines.append([name, made_tasks.MADE[name].title, *(cell(arms.get(arm)) for arm in COLUMNS)])
        further += [[name, arm, cell(arms[arm]), str(arms[arm]["parameters"])] for arm in arms if arm not in COLUMNS]
    return "\n".join(
        [table(["method", "task", *COLUMNS], lines), "", table(["method", "form", "score", "trained numbers"], further)]
    )


def cell(result: dict[str, Any] | None) -> str:
    """Score, and what else was measured."""
    if result is None:
        return "-"
    known = {"score", "scores", "rate", "parameters"}
    return ", ".join(
        [
            result["score"],
            *(f"{name} {value:.2f}".replace("|", "\\|") for name, value in result.items() if name not in known),
        ]
    )


if __name__ == "__main__":
    main()
