"""Real scores on the papers' tasks: a trained head alone and a prefix on the packaged encoder, and the best constant.

    python benchmarks/task_scores.py --data-dir DIR [--tasks a,b] [--methods head-only,prefix-tuning] [--steps 400]
                                     [--runs build/task_scores] [--out docs/task_scores.md] [--quick]

Official training and validation rows, methods at their defaults, one seed, as many steps for every task; scored once,
after the last step, on all validation rows. The constant is the best one: the label that scores highest on the
validation rows if given to all of them; no entity at all for tagging; 0 for correlations. What is done already is not
done again: the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import parse, parser, show
from report import table

import softprompts as sp
from softprompts.experiments.run_record import Run
from softprompts.experiments.workbench import Workbench
from softprompts.storage.files import write_json_atomic
from softprompts.tasks import Task
from softprompts.tasks.data import Data
from softprompts.tasks.metrics import compute
from softprompts.training import TrainConfig

TASKS = (
    "glue/sst2", "glue/cola", "glue/mrpc", "glue/stsb", "glue/rte", "super_glue/cb", "super_glue/wic",
    "super_glue/copa", "super_glue/boolq", "ner/conll2004",
)  # fmt: skip


def main() -> None:
    arguments = parser(__doc__, rounds=1)
    arguments.add_argument("--data-dir", type=Path, required=True)
    arguments.add_argument("--tasks", type=lambda text: text.split(","), default=list(TASKS))
    arguments.add_argument("--methods", type=lambda text: text.split(","), default=["head-only", "prefix-tuning"])
    arguments.add_argument("--steps", type=int, default=400)
    arguments.add_argument("--batch", type=int, default=16)
    arguments.add_argument("--max-length", type=int, default=192)
    arguments.add_argument("--max-train", type=int)
    arguments.add_argument("--max-validation", type=int)
    arguments.add_argument("--runs", type=Path, default=Path("build/task_scores"))
    arguments.add_argument("--out", type=Path)
    options = parse(arguments, steps=10, max_train=200, max_validation=50, max_length=64)

    lines = []
    for name in options.tasks:
        lines.append(measured(name, options))
        print(": ".join([name, str(lines[-1][1:])]), flush=True)
    columns = ["task", "metric", "train", "validation", "constant", *options.methods, "CPU seconds"]
    show("tasks", columns, lines)
    print(f"{sum(int(line[-1]) for line in lines) / 60:.0f} CPU minutes in all")
    if options.out is not None:
        options.out.write_text(page(columns, lines, options), encoding="utf-8")
        print(f"{options.out} written")


def measured(name: str, options: argparse.Namespace) -> list[str]:
    """A line of the table."""
    began = time.process_time()
    limits = {"max_train": options.max_train, "max_validation": options.max_validation}
    data = Data(task=name, data_dir=str(options.data_dir), **limits)
    bench = Workbench(options.model, data, max_length=options.max_length)
    training = TrainConfig(max_steps=options.steps, batch_size=options.batch, eval_every=options.steps)
    scores = []
    for method in options.methods:
        ((_, result),) = bench.run_all([Run(sp.make_config(method), training)], root=options.runs)
        scores.append(None if result is None else result["metrics"][bench.task.metrics[0]])
    rows = [f"{len(bench.task.train):,}", f"{len(bench.task.validation):,}"]
    cells = ["-" if score is None else f"{100 * score:.1f}" for score in scores]
    seconds = taken(name, time.process_time() - began, options.runs / "seconds.json")
    return [name, bench.task.metrics[0], *rows, f"{100 * constant(bench.task):.1f}", *cells, f"{seconds:.0f}"]


def taken(name: str, seconds: float, file: Path) -> float:
    """The time that a task took when its runs were made, which this may not have been."""
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    known.setdefault(name, round(seconds))
    write_json_atomic(file, known)
    return float(known[name])


def constant(task: Task) -> float:
    """The main metric of the best constant prediction."""
    labels: Sequence[Any] = [row.label for row in task.validation]
    if task.kind not in ("classification", "choice"):
        return 0.0
    return max(compute(task.metrics[:1], [label] * len(labels), labels)[task.metrics[0]] for label in set(labels))


def page(columns: Sequence[str], lines: Sequence[Sequence[str]], options: argparse.Namespace) -> str:
    """docs/task_scores.md."""
    about = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2]
    command = f"python benchmarks/task_scores.py --data-dir DIR --steps {options.steps} --batch {options.batch}"
    command += f" --threads {options.threads}"
    notes = (
        "Scores in % of each task's main metric. Seconds are of a CPU core, for both runs, with loading and scoring. "
        f"{sum(int(line[-1]) for line in lines) / 60:.0f} minutes in all. Rows are cut at {options.max_length} tokens."
    )
    return "\n".join(
        ["# Scores on the papers' tasks\n", f"Made by `{command}`.\n", about, table(columns, lines), f"{notes}\n"]
    )


if __name__ == "__main__":
    main()
