"""What the benchmarks share: options, models, the interleaved timing loop, tables and JSON."""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import multiprocessing
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

import softprompts as sp
from softprompts.backbones.packaged import DEFAULT_MODEL, resolve_model
from softprompts.tasks import Example

LENGTH = 10  # tokens of a prompt

Inputs = dict[str, torch.Tensor]
Batches = list[list[int]]
ResultT = TypeVar("ResultT")


def parser(description: str, rounds: int, warmup: int | None = None) -> argparse.ArgumentParser:
    """The options that every benchmark has; those that start whole commands have no rounds to warm up."""
    arguments = argparse.ArgumentParser(description=description.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=rounds)
    if warmup is not None:
        arguments.add_argument("--warmup", type=int, default=warmup)
    arguments.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments.add_argument("--model", default=DEFAULT_MODEL)
    arguments.add_argument("--json", type=Path)
    arguments.add_argument("--quick", action="store_true", help="other defaults: a try of about a minute")
    return arguments


def parse(arguments: argparse.ArgumentParser, **quick: Any) -> argparse.Namespace:
    """Reads the command line and prepares torch; ``quick`` are the defaults under --quick."""
    if arguments.parse_args().quick:
        arguments.set_defaults(**quick)
    options = arguments.parse_args()
    prepare(options.threads)
    return options


def prepare(threads: int) -> None:
    """Settings of a process that measures."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    torch.manual_seed(0)


def numbers(text: str) -> list[int]:
    """An option like 1,2,4."""
    return [int(part) for part in text.split(",")]


def write_texts(path: Path, examples: Sequence[Example]) -> None:
    """A JSONL file of single labelled texts."""
    rows = (json.dumps({"text": example.text, "label": example.label}) + "\n" for example in examples)
    path.write_text("".join(rows), encoding="utf-8")


def commonest(path: Path) -> float:
    """The share of the commonest label in such a file."""
    labels = [json.loads(row)["label"] for row in path.read_text(encoding="utf-8").splitlines()]
    return max(map(labels.count, set(labels))) / len(labels)


# --- models and rows ----------------------------------------------------------------------------------------------


def fresh(model: str) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(resolve_model(model), num_labels=2)


def config(method: str, length: int = LENGTH) -> sp.MethodConfig:
    """A method with prompts of some length; the baseline without a prompt has none."""
    return sp.make_config(method) if method == "head-only" else sp.make_config(method, num_virtual_tokens=length)


def batch(rows: int, tokens: int) -> Inputs:
    """Random words; rows end at different places, as real ones do."""
    ids = torch.randint(1000, 20000, (rows, tokens))
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, tokens - row % max(1, tokens // 4) :] = 0
    mask[0] = 1
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.randint(0, 2, (rows,))}


def sample(lengths: Sequence[int], batches: Batches, size: int) -> Batches:
    """Evenly spaced batches of all in the order of their width, in random order."""
    by_width = sorted(batches, key=lambda indices: max(lengths[i] for i in indices))
    chosen = [by_width[int((place + 0.5) * len(batches) / size)] for place in range(size)]
    return random.Random(0).sample(chosen, size)


def trainer(model: Any) -> Callable[[Inputs], None]:
    """Takes a training step of whatever the model trains."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step(inputs: Inputs) -> None:
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


# --- times --------------------------------------------------------------------------------------------------------


def interleave(
    variants: Mapping[str, Callable[[], float | None]], rounds: int, warmup: int, what: str = "rounds"
) -> dict[str, list[float]]:
    """Seconds of every variant, round by round.

    All run in this process, one after another in each round, so that a machine that slows down slows all of them. A
    variant that returns a number has taken its own time.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in track(range(warmup + rounds), what, console=Console(stderr=True), transient=True):
        for name, run in variants.items():
            start = time.perf_counter()
            seconds = run()
            if number >= warmup:
                times[name].append(time.perf_counter() - start if seconds is None else seconds)
    return times


def relative(mine: Sequence[float], others: Sequence[float]) -> float:
    """Median of the ratios round by round."""
    return statistics.median(a / b for a, b in zip(mine, others, strict=True))


def summary(taken: list[float], base: list[float]) -> dict[str, float]:
    """Median seconds, and the median of the ratios round by round with its quartiles."""
    ratios = [mine / other for mine, other in zip(taken, base, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {"median_seconds": statistics.median(taken), "ratio": middle, "ratio_q1": low, "ratio_q3": high}


# --- memory -------------------------------------------------------------------------------------------------------


def in_new_process(measure: Callable[..., ResultT], *arguments: Any) -> ResultT:
    """What a function returns in a process of its own, whose memory holds nothing that was made before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measure, *arguments).result()


# --- reports ------------------------------------------------------------------------------------------------------


def report(
    options: argparse.Namespace, title: str, columns: Sequence[str], lines: Sequence[Sequence[str]], rows: Any
) -> None:
    """Prints a table of lines and, with --json, writes the numbers behind it."""
    show(title, columns, lines)
    finish(options, rows)


def show(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Prints a table."""
    table = Table(*columns, title=title)
    for line in lines:
        table.add_row(*line)
    Console().print(table)


def finish(options: argparse.Namespace, rows: Any) -> None:
    """Says how it was measured and, with --json, writes the numbers with all that a report needs."""
    here = machine()
    Console().print(f"medians of {options.rounds} interleaved rounds; {here}", highlight=False)
    if options.json is None:
        return
    places = {name: None for name, value in vars(options).items() if isinstance(value, Path)}
    written = {
        "benchmark": Path(sys.argv[0]).stem,
        "command": command(sys.argv),
        "date": datetime.date.today().isoformat(),
        "options": vars(options) | places,
        "machine": here,
        "rows": rows,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


def command(arguments: Sequence[str]) -> str:
    """The command line as a reader of the report would type it: with no folders of this machine."""
    words = ["python", f"benchmarks/{Path(arguments[0]).name}"]
    rest = iter(arguments[1:])
    for word in rest:
        name, _, value = word.partition("=")
        if name in ("--json", "--data-dir"):
            if not value:
                next(rest)
            words += ["--data-dir", "DIR"] if name == "--data-dir" else []
        else:
            words.append(word)
    return " ".join(words)


def machine() -> dict[str, Any]:
    """What the numbers were measured on and with."""
    return {
        "processor": processor(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "transformers", "peft")},
        "softprompts": sp.__version__,
    }


def processor() -> str:
    """The processor's name, which only Linux keeps where Python does not look."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def cycle(step: Callable[[Any], None], given: Sequence[Any]) -> Callable[[], None]:
    """Takes the step with the next of some things each time, over and over."""
    endless = itertools.cycle(given)
    return lambda: step(next(endless))
