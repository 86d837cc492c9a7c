"""Default learning rates of the baselines: factors of one start, on several tasks and backbones.

    python benchmarks/baseline_rates.py --data-dir DIR [--backbones encoder,smollm2,t5] [--tasks a,b] [--methods a,b]
                                        [--factors 0.1,0.3,1,3,10,30] [--seeds 0] [--steps 150] [--batch 16]
                                        [--results build/baseline_rates/results.jsonl] [--table]
                                        [--into docs/defaults.md] [--quick]

Each run trains with the rates of `STARTS` times a factor, the head's too, on rows of the official training split, and
is scored once, after its last step, on other rows of that split: no row is among those that a table shows. Training
rows that contain a held-out row, or are a part of one, are left out. A result is a line of the file; what is in the
file is not done again, so that the same command goes on where it was interrupted.

--table trains nothing, and prints the file's results as the tables of docs/defaults.md; with --into they stand between
the two marks of a page, too.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from backbones import KNOWN
from common import numbers, parse, parser
from report import table, write_between

from softprompts.experiments.run_record import Run
from softprompts.experiments.workbench import Workbench
from softprompts.methods import make_config
from softprompts.tasks import Example, load_task
from softprompts.tasks.data import Data
from softprompts.training import TrainConfig

START, END = "<!-- rates: made by benchmarks/baseline_rates.py -->", "<!-- end of rates -->"
HEAD = 1e-2
STARTS = {
    "head-only": {"head": HEAD},
    "lora": {"lora": 5e-3, "head": HEAD},
    "bitfit": {"biases": 3e-3, "head": HEAD},
    "adapter": {"adapter": 3e-3, "head": HEAD},
    "full": {"backbone": 1e-4, "head": HEAD},
}
TASKS = ("reviews", "glue/sst2", "glue/stsb")
KINDS = {"glue/stsb": "regression"}
LABELS = ("negative", "positive")


def main() -> None:
    arguments = parser(__doc__, rounds=1)
    arguments.add_argument("--data-dir", type=Path)
    arguments.add_argument("--backbones", type=words, default=["encoder"])
    arguments.add_argument("--tasks", type=words, default=list(TASKS))
    arguments.add_argument("--methods", type=words, default=list(STARTS))
    arguments.add_argument("--factors", type=lambda text: [float(part) for part in words(text)], default=[0.3, 1, 3])
    arguments.add_argument("--seeds", type=numbers, default=[0])
    arguments.add_argument("--steps", type=int, default=150)
    arguments.add_argument("--batch", type=int, default=16)
    arguments.add_argument("--max-length", type=int, default=64)
    arguments.add_argument("--held-out", type=int, default=400)
    arguments.add_argument("--results", type=Path, default=Path("build/baseline_rates/results.jsonl"))
    arguments.add_argument("--table", action="store_true")
    arguments.add_argument("--into", type=Path)
    options = parse(arguments, steps=10, held_out=50, methods=["head-only", "lora"], tasks=["reviews"])
    if options.table:
        results = list(known(options.results))
        text = f"{carried(results)}\n\n{tables(results)}"
        print(text)
        if options.into is not None:
            write_between(options.into, START, END, text)
        return
    for backbone in options.backbones:
        for task in options.tasks:
            search(backbone, task, options)


def words(text: str) -> list[str]:
    """An option like a,b."""
    return text.split(",")


def search(backbone: str, task: str, options: argparse.Namespace) -> None:
    """Trains what the file of results lacks of a backbone and a task."""
    wanted = [
        {"backbone": backbone, "task": task, "method": method, "factor": factor, "seed": seed}
        for method in options.methods
        for seed in options.seeds
        for factor in options.factors
    ]
    done = {key(result) for result in known(options.results)}
    missing = [each for each in wanted if key(each) not in done]
    if not missing:
        return
    bench = Workbench(KNOWN[backbone](), data(task, options), max_length=options.max_length)
    for each in missing:
        if each["method"] == "head-only" and bench.kind != "encoder":  # a language model has no head
            continue
        rates = {name: rate * each["factor"] for name, rate in STARTS[each["method"]].items()}
        if bench.kind != "encoder":
            del rates["head"]
        budget = {"max_steps": options.steps, "batch_size": options.batch, "eval_every": options.steps}
        training = TrainConfig(**budget, learning_rates=rates, seed=each["seed"])
        began = time.process_time()
        run = Run(make_config(each["method"]), training)
        ((_, result),) = bench.run_all([run], root=options.results.parent / "runs", progress=False)
        metric = bench.task.metrics[0]
        score = None if result is None else result["metrics"].get(metric)
        seconds = round(time.process_time() - began, 1)
        line = {**each, "rates": rates, "steps": options.steps, "batch": options.batch, "metric": metric}
        line["held_out"] = options.held_out
        with options.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "score": score, "seconds": seconds}) + "\n")
        print(f"{backbone} {task} {each['method']} x{each['factor']:g} seed {each['seed']}: {score} ({seconds} s)")


def key(result: dict[str, Any]) -> tuple[Any, ...]:
    """What a result is of."""
    return tuple(result[name] for name in ("backbone", "task", "method", "factor", "seed"))


def known(file: Path) -> Iterator[dict[str, Any]]:
    """The results in a file."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return map(json.loads, lines)


def data(task: str, options: argparse.Namespace) -> Data:
    """Training rows and held-out rows of a task's training split, as files."""
    folder = options.results.parent / f"{task.replace('/', '-')}-{options.held_out}"
    files = {"train": folder / "train.jsonl", "validation": folder / "held-out.jsonl"}
    if not files["validation"].is_file():
        folder.mkdir(parents=True, exist_ok=True)
        rows = load_task(task, options.data_dir).train
        held_out = random.Random("held out").sample(rows, options.held_out)
        taken = [" ".join(text(row).lower().split()) for row in held_out]
        train = [row for row in rows if apart(" ".join(text(row).lower().split()), taken)]
        write(files["train"], train)
        write(files["validation"], held_out)
    scored = KINDS.get(task) == "regression"
    more: dict[str, Any] = (
        {"kind": "regression", "text": "text", "text_pair": "text_pair"} if scored else {"labels": LABELS}
    )
    return Data(train=str(files["train"]), validation=str(files["validation"]), **more)


def text(row: Example) -> str:
    return " / ".join(row.fields.values())


def apart(one: str, others: Iterable[str]) -> bool:
    """Whether a text and others are no parts of each other."""
    return not any(one in other or other in one for other in others)


def write(path: Path, rows: Sequence[Example]) -> None:
    """A JSONL file of labelled texts or pairs of texts."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            texts = dict(zip(("text", "text_pair"), row.fields.values(), strict=False))
            file.write(json.dumps({**texts, "label": row.label}) + "\n")


def carried(results: Sequence[dict[str, Any]]) -> str:
    """How far the search was carried."""
    places = {(result["backbone"], result["task"]) for result in results}
    by_method = ", ".join(f"{method} {count}" for method, count in Counter(r["method"] for r in results).most_common())
    by_backbone = ", ".join(
        f"{backbone} {count}" for backbone, count in Counter(r["backbone"] for r in results).items()
    )
    seeds = len({result["seed"] for result in results})
    return (
        f"{len(results)} runs of {seeds} seed{'s' * (seeds != 1)} ({by_method}; by backbone: {by_backbone}), on "
        f"{len(places)} of {len(KNOWN) * len(TASKS)} pairs of a backbone and a task. The head's rate moves with the "
        "factor."
    )


def tables(results: Sequence[dict[str, Any]]) -> str:
    """A table for each method: a line for a task and backbone, a column for a factor; the best of a line in bold."""
    parts = []
    for method in STARTS:
        own = [result for result in results if result["method"] == method]
        factors = sorted({result["factor"] for result in own})
        lines = []
        for backbone, task in dict.fromkeys((result["backbone"], result["task"]) for result in own):
            of = [result for result in own if (result["backbone"], result["task"]) == (backbone, task)]
            means = [mean([result["score"] for result in of if result["factor"] == factor]) for factor in factors]
            best = max((each for each in means if each is not None), default=None)
            cells = ["" if each is None else f"{100 * each:.1f}" for each in means]
            marked = [f"**{cell}**" if each == best else cell for cell, each in zip(cells, means, strict=True)]
            seeds = len({result["seed"] for result in of})
            sizes = f"{of[0]['steps']} x {of[0]['batch']}", str(of[0]["held_out"])
            lines.append([backbone, task, of[0]["metric"], *sizes, str(seeds), *marked])
        if lines:
            start = ", ".join(f"{name} {rate:g}" for name, rate in STARTS[method].items())
            head = [
                "backbone",
                "task",
                "metric",
                "steps",
                "rows scored",
                "seeds",
                *(f"x{factor:g}" for factor in factors),
            ]
            parts.append(f"`{method}`, x1 is {start}:\n\n{table(head, lines)}")
    return "\n".join(parts)


def mean(scores: Sequence[float | None]) -> float | None:
    """The mean; a run that diverged counts 0, and nothing without runs."""
    return statistics.fmean(score or 0.0 for score in scores) if scores else None


if __name__ == "__main__":
    main()
