"""All methods and baselines on SST-2: the same rows, steps and search of rates for each.

    python benchmarks/every_method.py --data-dir DIR [--methods a,b] [--steps 250] [--batch 16] [--seeds 3]
                                      [--rounds 3] [--runs build/every_method] [--out docs/comparison.md] [--quick]

4,000 training sentences, the full validation set of 872, the packaged encoder. Each method tries its default learning
rate and --factors of it (other components and the head keep their ratio to the main one) with one seed, scored on 872
other sentences of the training split; the best factor, of equal ones the nearest to 1, then trains with --seeds other
seeds. Each run is scored once, after its last step: nothing is chosen by the rows that the table shows.

Methods that need source prompts get prompts of --sources (prompt tuning, as many steps). Runs of a method share passes.
Seconds are of --timed-steps steps of a run that trains alone: all methods in turn, --rounds times over, the median.
What is done already is not done again: the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common import commonest, parse, parser, show, write_texts
from report import table

import softprompts as sp
from softprompts.experiments.run_record import Run
from softprompts.experiments.workbench import Workbench
from softprompts.methods import MethodConfig, make_config
from softprompts.tasks import load_task
from softprompts.tasks.data import Data
from softprompts.training import TrainConfig

TRAIN, OTHERS = 4000, 872
SEARCH_SEED = 1000  # none of those that the table shows
COMPOSED = ("superpos+multi-mask", "ept+selective-prefix", "multi-mask+selective-prefix", "prefix-tuning+lora")
NEED_SOURCES = ("spot", "attempt")
LEFT_OUT = ("folded", "intrinsic")  # what folding leaves; a method that wants a hundred trained prompts to start from


@dataclass(frozen=True)
class Entry:
    """A line of the table."""

    method: str
    factor: float
    rate: float
    searched: Mapping[float, float]
    scores: Sequence[float]
    trained: int
    total: int
    seconds: float = 0.0  # of 100 steps

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.scores)


def main() -> None:
    arguments = parser(__doc__, rounds=3)
    arguments.add_argument("--data-dir", type=Path, required=True)
    arguments.add_argument("--methods", type=lambda text: text.split(","))
    arguments.add_argument("--steps", type=int, default=250)
    arguments.add_argument("--batch", type=int, default=16)
    arguments.add_argument("--train-rows", type=int, default=TRAIN)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument(
        "--factors", type=lambda text: [float(part) for part in text.split(",")], default=[0.3, 1.0, 3.0]
    )
    arguments.add_argument("--timed-steps", type=int, default=20)
    arguments.add_argument(
        "--sources", type=lambda text: text.split(","), default=["reviews", "glue/cola", "glue/mrpc"]
    )
    arguments.add_argument("--runs", type=Path, default=Path("build/every_method"))
    arguments.add_argument("--out", type=Path)
    small = {"steps": 10, "seeds": 2, "train_rows": 200, "rounds": 1, "timed_steps": 5}
    options = parse(arguments, **small, methods=["head-only", "prefix-tuning"])

    rows = write_rows(options)
    search = Workbench(options.model, Data(train=rows["train"], validation=rows["others"]), max_length=128)
    final = Workbench(options.model, Data(train=rows["train"], validation=rows["validation"]), max_length=128)
    training = TrainConfig(max_steps=options.steps, batch_size=options.batch, eval_every=options.steps)
    entries = []
    methods = configs(options)
    for method in methods:
        entry = measured(method, training, search, final, options)
        print(f"{entry.method}: {cells(entry)[1:-1]}", flush=True)
        entries.append(entry)
    seconds = timed(methods, rows, options)
    entries = [replace(entry, seconds=100 * each) for entry, each in zip(entries, seconds, strict=True)]
    entries.sort(key=lambda entry: -entry.mean)
    show("SST-2", COLUMNS, map(cells, entries))
    if options.out is not None:
        options.out.write_text(page(entries, stuck(entries, rows["validation"]), options), encoding="utf-8")
        print(f"{options.out} written")


def write_rows(options: argparse.Namespace) -> dict[str, str]:
    """Files of rows: to train on, to search on, to show."""
    task = load_task("glue/sst2", options.data_dir)
    shuffled = random.Random("rows").sample(task.train, len(task.train))
    parts = {
        "train": shuffled[: options.train_rows],
        "others": shuffled[options.train_rows : options.train_rows + OTHERS],
        "validation": task.test or task.validation,
    }
    options.runs.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, examples in parts.items():
        files[name] = str(options.runs / f"{name}.jsonl")
        write_texts(Path(files[name]), examples)
    return files


def configs(options: argparse.Namespace) -> list[MethodConfig]:
    """Every method that can be trained, at its defaults, and some compositions."""
    names = options.methods or [*sorted(name for name in sp.methods() if name not in LEFT_OUT), *COMPOSED]
    needed = [name for name in names if name in NEED_SOURCES]
    sources = source_prompts(options) if needed else ()
    return [make_config(name, **({"sources": sources} if name in NEED_SOURCES else {})) for name in names]


def source_prompts(options: argparse.Namespace) -> tuple[str, ...]:
    """Folders of prompts trained on other tasks."""
    folders = []
    training = TrainConfig(max_steps=options.steps, batch_size=options.batch, seed=SEARCH_SEED)
    for task in options.sources:
        bench = Workbench(options.model, Data(task=task, data_dir=str(options.data_dir)), max_length=128)
        ((path, _),) = bench.run_all([Run(sp.PromptTuningConfig(), training)], root=options.runs)
        folders.append(str(path / "prompt"))
    return tuple(folders)


def measured(
    method: MethodConfig, training: TrainConfig, search: Workbench, final: Workbench, options: argparse.Namespace
) -> Entry:
    """The search of the rate, and the runs that the table shows."""
    defaults, trained = search.outline(method, training)
    rate = next(iter(defaults.values()))

    def at(factor: float, seed: int) -> Run:
        return Run(method, replace(training, seed=seed, learning_rate=factor * rate))

    tried = search.run_all([at(factor, SEARCH_SEED) for factor in options.factors], root=options.runs)
    searched = {factor: score(result) for factor, (_, result) in zip(options.factors, tried, strict=True)}
    factor = max(searched, key=lambda factor: (searched[factor], -abs(factor - 1)))
    runs = final.run_all([at(factor, seed) for seed in range(options.seeds)], root=options.runs)
    results = [result for _, result in runs if result is not None]
    return Entry(
        method=method.method,
        factor=factor,
        rate=factor * rate,
        searched=searched,
        scores=[score(result) for result in results],
        trained=trained,
        total=results[0]["backbone_parameters"],
    )


def timed(methods: Sequence[MethodConfig], rows: Mapping[str, str], options: argparse.Namespace) -> list[float]:
    """Seconds of a step of each method, trained alone; the methods take turns, so that a slow minute hits all."""
    data = Data(train=rows["train"], validation=rows["others"], max_validation=options.batch)
    bench = Workbench(options.model, data, max_length=128)
    rounds: list[list[float]] = []
    for seed in range(options.rounds):
        training = TrainConfig(max_steps=options.timed_steps, batch_size=options.batch, seed=SEARCH_SEED + seed)
        runs = [bench.run_all([Run(method, training)], root=options.runs)[0][1] for method in methods]
        rounds.append([run["step_seconds"] / max(1, run["steps"]) if run else float("nan") for run in runs])
    return [statistics.median(each) for each in zip(*rounds, strict=True)]


def score(result: dict[str, Any] | None) -> float:
    """Accuracy after the last step; 0 for a run that diverged."""
    return 0.0 if result is None else float(result["metrics"].get("accuracy") or 0.0)


COLUMNS = ["method", "accuracy", "trained", "% of model", "rate", "s/100 steps"]


def cells(entry: Entry) -> list[str]:
    spread = f" ± {100 * statistics.stdev(entry.scores):.1f}" if len(entry.scores) > 1 else ""
    return [
        entry.method,
        f"{100 * entry.mean:.1f}{spread}",
        f"{entry.trained:,}",
        f"{100 * entry.trained / entry.total:.3f}",
        f"{entry.rate:.2g}",
        f"{entry.seconds:.1f}",
    ]


def stuck(entries: Sequence[Entry], file: str) -> str:
    """Which runs learned nothing: those that score what the commonest label does."""
    least = commonest(Path(file))
    counts = {entry.method: sum(score <= least + 0.005 for score in entry.scores) for entry in entries}
    stuck = ", ".join(f"{method} ({count} of {len(entries[0].scores)})" for method, count in counts.items() if count)
    return f"Seeds that stayed at the commonest label ({100 * least:.1f}): {stuck or 'none'}."


def page(entries: Sequence[Entry], about_seeds: str, options: argparse.Namespace) -> str:
    """docs/comparison.md."""
    about = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2]
    command = f"python benchmarks/every_method.py --data-dir DIR --steps {options.steps} --batch {options.batch}"
    head = [*COLUMNS, *(f"search x{factor:g}" for factor in options.factors)]
    lines = [
        [*cells(entry), *(f"{100 * entry.searched[factor]:.1f}" for factor in options.factors)] for entry in entries
    ]
    notes = (
        f"Accuracy in % on the validation set, mean and standard deviation over {options.seeds} seeds. Last columns: "
        "the search, accuracy on other rows at the default rate times the factor."
    )
    return "\n".join(
        [
            "# Every method on SST-2\n",
            f"Made by `{command}`.\n",
            about,
            table(head, lines),
            f"{notes}\n",
            f"{about_seeds}\n",
        ]
    )


if __name__ == "__main__":
    main()
