"""Defaults of the prefix methods: where a prefix starts, what a router sees, and how strong the selective loss is.

    python benchmarks/starts.py STUDIES --data-dir DIR [--backbones encoder,smollm2,t5] [--tasks a,b] [--variants a,b]
                                      [--factors 0.3,1,3] [--seeds 0] [--steps 150] [--batch 16] [--together 3]
                                      [--results build/starts/results.jsonl] [--table]

A study (STUDIES: one or several, as a,b) compares variants of a method; a factor multiplies the rate of the prefix. As
in `baseline_rates`, runs learn on rows of the official training split and are scored on other rows of it, after their
last step. A result is a line of the file, with the vitals of the run; what is in the file is not done again.

--table trains nothing, and prints the file's results as the tables of docs/defaults.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backbones import KNOWN
from baseline_rates import data, known, words
from common import numbers, parse, parser
from report import table

from softprompts.experiments.run_record import Run
from softprompts.experiments.workbench import Workbench
from softprompts.methods import make_config
from softprompts.training import TrainConfig

TEXT = "Classify this text as negative or positive: "


@dataclass(frozen=True)
class Variant:
    """Settings of a method to compare, and rates that are not its defaults.

    Attributes:
        method: its name.
        settings: its settings.
        rates: rates by component.
    """

    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)


NORMAL = {"init": "normal", "init_std": 0.5}
RAW = {"router_input": "raw", "mask_mean": 2.5, "mask_std": 0.5}
SEEING = {"router_input": "standardised"}
# Each study's first variant is how it was before.
STUDIES: dict[str, dict[str, Variant]] = {
    "start": {
        "normal": Variant("prefix-tuning", NORMAL),
        "vocabulary": Variant("prefix-tuning", {"init": "vocabulary"}),
        "text": Variant("prefix-tuning", {"init": "text", "init_text": TEXT}),
    },
    "router": {
        "raw": Variant("multi-mask", {**NORMAL, **RAW}),
        "input": Variant("multi-mask", {**NORMAL, **SEEING, "mask_mean": 2.5, "mask_std": 0.5}),
        "masks 1": Variant("multi-mask", {**NORMAL, **SEEING, "mask_mean": 1.0, "mask_std": 1.0}),
        "masks 0": Variant("multi-mask", {**NORMAL, **SEEING, "mask_mean": 0.0, "mask_std": 1.0}),
    },
    "gates": {
        "before": Variant("multi-mask", {**NORMAL, **RAW}, {"router": 1e-3}),
        "masks 1": Variant("multi-mask", {**NORMAL, **SEEING, "mask_mean": 1.0, "mask_std": 1.0}),
        "masks 2": Variant("multi-mask", {**NORMAL, **SEEING, "mask_mean": 2.0, "mask_std": 1.0}),
        "masks 2.5 wide": Variant("multi-mask", {**NORMAL, **SEEING, "mask_mean": 2.5, "mask_std": 1.5}),
        "masks 3 wide": Variant("multi-mask", {**NORMAL, **SEEING, "mask_mean": 3.0, "mask_std": 1.5}),
    },
    "selective": {
        "0.0001": Variant("selective-prefix", {**NORMAL, "selective_loss": 1e-4}),
        "0.001": Variant("selective-prefix", {**NORMAL, "selective_loss": 1e-3}),
        "0.01": Variant("selective-prefix", {**NORMAL, "selective_loss": 1e-2}),
        "0.03": Variant("selective-prefix", {**NORMAL, "selective_loss": 3e-2}),
        "0.001 vocabulary": Variant("selective-prefix", {"init": "vocabulary", "selective_loss": 1e-3}),
    },
}


def main() -> None:
    arguments = parser(__doc__, rounds=1)
    arguments.add_argument("studies", type=words)
    arguments.add_argument("--data-dir", type=Path)
    arguments.add_argument("--backbones", type=words, default=["encoder"])
    arguments.add_argument("--tasks", type=words, default=["reviews", "glue/sst2"])
    arguments.add_argument("--variants", type=words)
    arguments.add_argument("--factors", type=lambda text: [float(part) for part in words(text)], default=[1.0])
    arguments.add_argument("--seeds", type=numbers, default=[0])
    arguments.add_argument("--steps", type=int, default=150)
    arguments.add_argument("--batch", type=int, default=16)
    arguments.add_argument("--max-length", type=int, default=64)
    arguments.add_argument("--held-out", type=int, default=400)
    arguments.add_argument("--together", type=int, default=3, help="runs that share passes")
    arguments.add_argument("--results", type=Path, default=Path("build/starts/results.jsonl"))
    arguments.add_argument("--table", action="store_true")
    options = parse(arguments, steps=10, held_out=50, tasks=["reviews"])
    if options.table:
        for study in options.studies:
            print(f"{study}:\n\n{tables(study, list(known(options.results)))}")
        return
    for backbone, task in itertools.product(options.backbones, options.tasks):
        bench = Workbench(KNOWN[backbone](), data(task, options), max_length=options.max_length)
        for study in options.studies:
            compare(study, backbone, task, bench, options)


def compare(study: str, backbone: str, task: str, bench: Workbench, options: argparse.Namespace) -> None:
    """Trains what the file of results lacks of a study on a backbone and a task."""
    variants = [name for name in STUDIES[study] if name in (options.variants or STUDIES[study])]
    common = {"study": study, "backbone": backbone, "task": task, "steps": options.steps}
    wanted = [
        {**common, "batch": options.batch, "seed": seed, "factor": factor, "variant": variant}
        for seed, factor, variant in itertools.product(options.seeds, options.factors, variants)
    ]
    done = [key(result) for result in known(options.results)]
    missing = [each for each in wanted if key(each) not in done]
    for start in range(0, len(missing), options.together):
        some = missing[start : start + options.together]
        began = time.process_time()
        runs = [run_of(each, bench) for each in some]
        root = options.results.parent / "runs"
        results = bench.run_all(runs, root=root, lanes=len(runs), progress=False)
        seconds = round((time.process_time() - began) / len(some), 1)
        for each, (_, result) in zip(some, results, strict=True):
            metrics, vitals = ({}, {}) if result is None else (result["metrics"], result["vitals"])
            score = metrics.get(bench.task.metrics[0])
            with options.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**each, "score": score, "seconds": seconds, "vitals": vitals}) + "\n")
            print(*each.values(), score, f"({seconds} s)", flush=True)


def run_of(wanted: dict[str, Any], bench: Workbench) -> Run:
    """The run of a result."""
    variant = STUDIES[wanted["study"]][wanted["variant"]]
    rates = {"prefix": 3e-2, **variant.rates}
    rates["prefix"] *= wanted["factor"]
    budget = {"max_steps": wanted["steps"], "batch_size": wanted["batch"], "eval_every": wanted["steps"]}
    training = TrainConfig(**budget, learning_rates=rates, seed=wanted["seed"])
    return Run(make_config(variant.method, **variant.settings), training)


def key(result: dict[str, Any]) -> tuple[Any, ...]:
    """What a result is of."""
    names = ("study", "backbone", "task", "steps", "batch", "seed", "factor", "variant")
    return tuple(result[name] for name in names)


def tables(study: str, results: Sequence[dict[str, Any]]) -> str:
    """A line for a backbone, task and number of steps; of each variant the mean over seeds at its best factor."""
    own = [result for result in results if result["study"] == study]
    variants = [name for name in STUDIES[study] if any(result["variant"] == name for result in own)]
    lines = []
    for place in dict.fromkeys((result["backbone"], result["task"], result["steps"]) for result in own):
        here = [result for result in own if (result["backbone"], result["task"], result["steps"]) == place]
        cells = [cell([result for result in here if result["variant"] == name]) for name in variants]
        lines.append([*map(str, place), *cells])
    return table(["backbone", "task", "steps", *variants], lines)


def cell(results: Sequence[dict[str, Any]]) -> str:
    """The best mean of those with the most seeds: score, factor, seeds."""
    by_factor = {factor: [r for r in results if r["factor"] == factor] for factor in {r["factor"] for r in results}}
    if not by_factor:
        return ""
    most = max(map(len, by_factor.values()))
    means = {f: statistics.fmean(r["score"] or 0.0 for r in rs) for f, rs in by_factor.items() if len(rs) == most}
    best = max(means, key=lambda factor: (means[factor], factor == 1.0))
    return f"{100 * means[best]:.1f} (x{best:g}, {most})"


if __name__ == "__main__":
    main()
