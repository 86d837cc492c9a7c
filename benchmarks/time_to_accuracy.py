"""Whole command against whole command: seconds until held-out accuracy is as good, ours beside PEFT under HF Trainer.

    python benchmarks/time_to_accuracy.py [--data-dir DIR] [--tasks reviews,...] [--steps 120] [--every 20]
                                          [--batch 16] [--seeds 5] [--rates 0.01,...] [--rounds 2] [--quick]
                                          [--json FILE]

Two commands tune a prefix of --tokens on the same backbone, with the same rows, batch size, number of steps, and
evaluations: `commands/ours.py`, this library at its defaults (rows in batches of similar length, no dropout in the
backbone), and `commands/peft_trainer.py`, PEFT's prefix tuning under HF Trainer at its defaults with dynamic padding;
"grouped" is the latter with Trainer's sampling by length, in the first round only. Each is a process of its own, timed
from before it starts: imports, loading, and encoding of the rows count. Seeds of ours are lanes of shared passes in one
command; seeds of PEFT's follow each other in one process, which imports and encodes once.

First, both sides try --rates with another seed, on other rows of the training split; a rate's score is the accuracy's
mean over the run's evaluations (half as many), which rates how soon and how far. In what is timed PEFT takes the best
rate, and ours its default, whatever the search says. The search itself is not charged to anybody.

The accuracy to reach is the highest one that every timed run reached at some evaluation; no other choice enters it. The
time of a run is that of its first evaluation with at least this accuracy. For all seeds: ours when the last lane is
there; PEFT's as if each run had been stopped at the very evaluation that reached it. The slowest of few seeds is a
matter of luck, so there is also the time until the mean over the seeds, evaluation by evaluation, is as good as the
best of the side that comes less far. "to the end" is the whole command with all steps. Commands take turns, round by
round, each round with a seed of its own; a ratio is the median over rounds.

The reviews are packaged; --data-dir (a folder with glue/...) adds SST-2.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from common import LENGTH, commonest, finish, parse, parser, relative, show, write_texts
from rich.console import Console

import softprompts
from softprompts.backbones.packaged import resolve_model
from softprompts.tasks import load_task

COMMANDS = {"ours": "ours.py", "PEFT": "peft_trainer.py", "PEFT, grouped": "peft_trainer.py"}
RATES = (1e-2, 3e-2, 1e-1)  # below, PEFT hardly learns in so few steps
SEARCH_SEED = 1000  # none that is timed
MAX_LENGTH, EVAL_BATCH = 256, 64

Run = dict[str, Any]


def main() -> None:
    arguments = parser(__doc__, rounds=2)
    arguments.add_argument("--data-dir", type=Path)
    arguments.add_argument("--tasks", type=lambda text: text.split(","))
    arguments.add_argument("--tokens", type=int, default=LENGTH)
    arguments.add_argument("--steps", type=int, default=120)
    arguments.add_argument("--every", type=int, default=20)
    arguments.add_argument("--batch", type=int, default=16)
    arguments.add_argument("--train-rows", type=int, default=4000)
    arguments.add_argument("--eval-rows", type=int, default=256)
    arguments.add_argument("--seeds", type=int, default=5)
    arguments.add_argument("--rates", type=lambda text: [float(part) for part in text.split(",")], default=[*RATES])
    options = parse(arguments, rounds=1, steps=20, every=10, train_rows=400, eval_rows=60, seeds=2, rates=[0.01, 0.03])

    rows = []
    for name in options.tasks or ["reviews", *(["glue/sst2"] if options.data_dir else [])]:
        rows.append(measure(options, name))
        tell(rows[-1])
    finish(options, rows)


def measure(options: Any, name: str) -> dict[str, Any]:
    """The search, the timed commands, and what they come to."""
    with tempfile.TemporaryDirectory() as folder:
        other, timed = write_rows(options, name, Path(folder))
        tried = [{"seed": SEARCH_SEED, "rate": rate} for rate in options.rates]
        seldom = 2 * options.every
        search = {side: score(run(options, side, other, tried, seldom)["runs"]) for side in ("ours", "PEFT")}
        rates = {side: None if side == "ours" else best(search["PEFT"]) for side in COMMANDS}

        def start(side: str, seeds: Iterable[int]) -> Run:
            return run(options, side, timed, [{"seed": seed, "rate": rates[side]} for seed in seeds])

        one: dict[str, list[Run]] = {side: [] for side in COMMANDS}
        for number in range(options.rounds):
            for side in COMMANDS:
                if number == 0 or side != "PEFT, grouped":
                    one[side].append(start(side, [number]))
        many = {side: start(side, range(options.seeds)) for side in ("ours", "PEFT")}
        majority = commonest(Path(timed["validation"]))
    return {"task": name, "majority": majority, "search": search, "one": one, "many": many, **compared(one, many)}


# --- commands -----------------------------------------------------------------------------------------------------


def write_rows(options: Any, name: str, folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Files of rows for the search, and others for what is timed."""
    task = load_task(name, options.data_dir)
    train = random.Random("train rows").sample(task.train, len(task.train))
    held_out = random.Random("held-out rows").sample(task.test or task.validation, len(task.test or task.validation))
    size, few = options.train_rows, options.eval_rows
    if len(train) < 2 * size + few or len(held_out) < few:
        raise SystemExit(f"{name}: too few rows for twice {size} and {few} to evaluate on; lower --train-rows")
    parts = {
        "search-train": train[size : 2 * size],
        "search-validation": train[2 * size : 2 * size + few],
        "timed-train": train[:size],
        "timed-validation": held_out[:few],
    }
    for part, examples in parts.items():
        write_texts(folder / f"{part}.jsonl", examples)
    search, timed = (
        {split: str(folder / f"{kind}-{split}.jsonl") for split in ("train", "validation")}
        for kind in ("search", "timed")
    )
    return search, timed


def run(options: Any, side: str, rows: dict[str, str], runs: Sequence[dict[str, Any]], every: int | None = None) -> Run:
    """One command with some runs: their learning curves, and the seconds that the whole of it took."""
    script = Path(__file__).parent / "commands" / COMMANDS[side]
    with tempfile.TemporaryDirectory() as folder:
        job, out, log = (Path(folder) / name for name in ("job.json", "out.json", "log"))
        settings = {
            "model": resolve_model(options.model),
            "num_virtual_tokens": options.tokens,
            "max_length": MAX_LENGTH,
            "steps": options.steps,
            "every": every or options.every,
            "batch": options.batch,
            "eval_batch": EVAL_BATCH,
            "grouped": side == "PEFT, grouped",
            "runs": list(runs),
            **rows,
            "out": str(out),
        }
        # The same package as here, wherever Python found it; the folder takes what Trainer may write.
        places = [str(Path(softprompts.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(options.threads),
            "PYTHONPATH": os.pathsep.join(places),
        }
        status = Console(stderr=True).status(f"{side}: {len(runs)} runs of {options.steps} steps")
        with status, log.open("w") as output:
            began = time.time()
            job.write_text(json.dumps({**settings, "began": began}))
            code = subprocess.run(
                [sys.executable, str(script), str(job)], cwd=folder, env=environment, stdout=output, stderr=output
            ).returncode
            seconds = time.time() - began
        if code:
            raise SystemExit(f"{script.name} failed:\n{log.read_text()[-2000:]}")
        return {**json.loads(out.read_text()), "seconds": seconds}


# --- what they come to --------------------------------------------------------------------------------------------


def score(runs: Sequence[Run]) -> list[dict[str, float]]:
    """How good each rate is."""
    return [
        {
            "rate": one["rate"],
            "mean": statistics.mean(point["accuracy"] for point in one["curve"]),
            "best": highest(one),
        }
        for one in runs
    ]


def best(scores: Sequence[dict[str, float]]) -> float:
    return max(scores, key=lambda row: row["mean"])["rate"]


def highest(one: Run) -> float:
    return max(point["accuracy"] for point in one["curve"])


def reached(one: Run, level: float) -> float:
    """Seconds at the first evaluation with this accuracy."""
    return next(point["seconds"] for point in one["curve"] if point["accuracy"] >= level)


def mean_curve(runs: Sequence[Run]) -> list[float]:
    """The mean accuracy of some runs at each evaluation."""
    return [
        statistics.mean(points) for points in zip(*([p["accuracy"] for p in run["curve"]] for run in runs), strict=True)
    ]


def compared(one: dict[str, list[Run]], many: dict[str, Run]) -> dict[str, Any]:
    """The level, and the seconds to it and to the end, for one run and for all seeds."""
    singles = {side: [command["runs"][0] for command in commands] for side, commands in one.items()}
    lanes, serial = many["ours"]["runs"], many["PEFT"]["runs"]
    level = min(map(highest, itertools.chain(*singles.values(), lanes, serial)))
    curves = {side: mean_curve(many[side]["runs"]) for side in many}
    mean_level = min(map(max, curves.values()))
    place = {side: next(i for i, mean in enumerate(curve) if mean >= mean_level) for side, curve in curves.items()}
    seconds: dict[str, dict[str, list[float]]] = {
        "one run": {side: [reached(run, level) for run in runs] for side, runs in singles.items()},
        "one run, to the end": {side: [command["seconds"] for command in commands] for side, commands in one.items()},
        "all seeds": {
            "ours": [max(reached(lane, level) for lane in lanes)],
            "PEFT": [serial[0]["began"] + sum(reached(run, level) - run["began"] for run in serial)],
        },
        "all seeds, their mean": {
            "ours": [max(lane["curve"][place["ours"]]["seconds"] for lane in lanes)],
            "PEFT": [serial[0]["began"] + sum(run["curve"][place["PEFT"]]["seconds"] - run["began"] for run in serial)],
        },
        "all seeds, to the end": {side: [command["seconds"]] for side, command in many.items()},
    }
    return {
        "level": level,
        "mean_level": mean_level,
        "seconds": seconds,
        "ratios": {
            what: {side: relative(taken, sides["ours"][: len(taken)]) for side, taken in sides.items()}
            for what, sides in seconds.items()
        },
        "accuracy": {
            side: {
                "last": statistics.mean(run["curve"][-1]["accuracy"] for run in many[side]["runs"]),
                "best": statistics.mean(map(highest, many[side]["runs"])),
            }
            for side in many
        },
    }


def tell(row: dict[str, Any]) -> None:
    """Prints a task's tables."""
    search = row["search"]
    show(
        f"{row['task']}: rates tried on other rows, accuracy in % (mean over evaluations / best)",
        ["rate", *search],
        [
            (f"{tried[0]['rate']:g}", *(f"{100 * one['mean']:.1f} / {100 * one['best']:.1f}" for one in tried))
            for tried in zip(*search.values(), strict=True)
        ],
    )
    used = {side: many["runs"][0]["rate"] for side, many in row["many"].items()}
    print(f"rates used: {used}; best by the search: { {side: best(scores) for side, scores in search.items()} }")
    lines = []
    for what, sides in row["seconds"].items():
        cells = [f"{statistics.median(sides[side]):.1f}" if side in sides else "-" for side in COMMANDS]
        ratios = [f"{row['ratios'][what][side]:.2f}" if side in sides else "-" for side in COMMANDS if side != "ours"]
        lines.append((what, *cells, *ratios))
    guessing = f"the commonest label: {100 * row['majority']:.1f} %"
    show(
        f"{row['task']}: seconds to {100 * row['level']:.1f} % on held-out rows ({guessing})",
        ["", *COMMANDS, "PEFT / ours", "grouped / ours"],
        lines,
    )
    print(f"their mean: seconds to {100 * row['mean_level']:.1f} %")
    for side, accuracy in row["accuracy"].items():
        print(f"{side}: mean over seeds {100 * accuracy['last']:.1f} % at the end, {100 * accuracy['best']:.1f} % best")


if __name__ == "__main__":
    main()
