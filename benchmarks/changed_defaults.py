"""Defaults of the demo's methods that changed, before and after, paired by seed.

    python benchmarks/changed_defaults.py --data-dir DIR [--methods a,b] [--tasks reviews,SST-2]
                                           [--seeds 0,1,2] [--steps 150] [--root build/changed]
                                           [--table] [--into docs/defaults.md]

On the film reviews and on SST-2 (split by "dept": validation rows come from the training split, the official
validation set is the test), 16 rows a step. Each run is scored once, after its last step, on the test rows. Finished
runs are kept below --root and not done again. --table trains nothing: what was not done stands empty. --into writes the
table between the two marks of a page.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import numbers, parse, parser
from report import table, write_between

from softprompts.backbones.packaged import DEFAULT_MODEL
from softprompts.bench.significance import paired_difference
from softprompts.experiments.run_record import Run
from softprompts.experiments.workbench import Workbench
from softprompts.methods import make_config
from softprompts.storage import run_folder
from softprompts.tasks.data import Data
from softprompts.training import TrainConfig

START, END = "<!-- before and after: made by benchmarks/changed_defaults.py -->", "<!-- end of before and after -->"


@dataclass(frozen=True)
class Before:
    """What was the default of a method: settings, and learning rates by component."""

    settings: dict[str, Any] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)


BEFORE = {
    "head-only": Before(rates={"head": 1e-2}),
    "multi-mask": Before({"router_input": "raw", "mask_mean": 2.5, "mask_std": 0.5}, {"router": 1e-3}),
    "selective-prefix": Before({"selective_loss": 1e-4}),
    "superpos": Before(rates={"embeddings": 3e-3, "weights": 1e-2}),
}


def main() -> None:
    arguments = parser(__doc__, rounds=1)
    arguments.add_argument("--data-dir")
    arguments.add_argument("--methods", type=lambda text: text.split(","), default=list(BEFORE))
    arguments.add_argument("--tasks", type=lambda text: text.split(","), default=["reviews", "SST-2"])
    arguments.add_argument("--seeds", type=numbers, default=[0, 1, 2, 3, 4])
    arguments.add_argument("--steps", type=int, default=150)
    arguments.add_argument("--root", type=Path, default=Path("build/changed"))
    arguments.add_argument("--table", action="store_true")
    arguments.add_argument("--into", type=Path)
    options = parse(arguments, steps=5, seeds=[0, 1])
    tasks = {"reviews": Data(task="reviews"), "SST-2": Data(task="glue/sst2", split="dept", data_dir=options.data_dir)}
    lines: dict[str, list[str]] = {method: [method] for method in options.methods}
    pairs: dict[str, tuple[dict[Any, float], dict[Any, float]]] = {method: ({}, {}) for method in options.methods}
    for name, data in ((name, tasks[name]) for name in options.tasks):
        bench = Workbench(DEFAULT_MODEL, data, max_length=64, evaluate=False)
        for method in options.methods:
            before, after = (scores(bench, method, kind, options) for kind in (BEFORE[method], Before()))
            lines[method] += [cell(list(before.values())), cell(list(after.values()))]
            for seed in before.keys() & after.keys():
                pairs[method][0][name, seed], pairs[method][1][name, seed] = before[seed], after[seed]
    for method, (before, after) in pairs.items():
        lines[method] += [difference(after, before), str(len(after) or "")]
    heads = [f"{name}, {when}" for name in options.tasks for when in ("before", "after")]
    text = table(["method", *heads, "difference (95 % interval)", "pairs"], list(lines.values()))
    print(text)
    if options.into is not None:
        write_between(options.into, START, END, text)


def scores(bench: Workbench, method: str, kind: Before, options: argparse.Namespace) -> dict[int, float]:
    """Test scores in % by seed; with --table of those that are done."""
    config = make_config(method, **kind.settings)
    budget = {"max_steps": options.steps, "batch_size": 16, "eval_batch_size": 64, "learning_rates": kind.rates}
    runs = {seed: Run(config, TrainConfig(**budget, seed=seed)) for seed in options.seeds}
    if options.table:
        runs = {seed: run for seed, run in runs.items() if run_folder.is_done(bench.folder_of(run, options.root))}
    results = bench.run_all(list(runs.values()), root=options.root, lanes=len(runs) or None, progress=False)
    found = {}
    for seed, (_, result) in zip(runs, results, strict=True):
        assert result is not None
        found[seed] = 100 * result["test_metrics"][bench.task.metrics[0]]
        when = "before" if kind.settings or kind.rates else "after"
        print(method, when, bench.task.name, seed, f"{found[seed]:.1f}", flush=True)
    return found


def difference(after: dict[Any, float], before: dict[Any, float]) -> str:
    """The mean difference of pairs, and its interval."""
    if not after:
        return ""
    found = paired_difference(after, before)
    interval = "" if found.low is None or found.high is None else f" ({found.low:+.1f} to {found.high:+.1f})"
    return f"{found.mean or 0.0:+.1f}{interval}"


def cell(values: list[float]) -> str:
    """Mean and standard deviation; empty where nothing is there."""
    return "" if not values else f"{statistics.fmean(values):.1f} ± {statistics.pstdev(values):.1f}"


if __name__ == "__main__":
    main()
