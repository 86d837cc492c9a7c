"""Messages about runs on stderr: before they start, as each ends, and when they are interrupted."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from softprompts.commands.terminal import err
from softprompts.storage.names import JOINT
from softprompts.training.result import LateInterrupt

if TYPE_CHECKING:
    from softprompts.experiments.run_record import Run
    from softprompts.experiments.workbench import Workbench
    from softprompts.methods.contract import MethodConfig
    from softprompts.training.config import TrainConfig


def show_workbench(bench: Workbench) -> None:
    """Prints the task with its rows, and the model."""
    task = bench.task
    reads = "" if bench.data.task is not None else f"; reads {', '.join(task.form.fields)}"
    sizes = f"{len(task.train):,} train, {len(task.validation):,} validation"
    sizes += f", {len(task.test):,} test" if task.test else ""
    balance = ", ".join(f"{name} {count:,}" for name, count in task.balance().items())
    err.print(f"{task.name}: {sizes} rows" + (f" ({balance})" if balance else "") + reads, soft_wrap=True)
    frozen = sum(p.numel() for p in bench.model.parameters())
    err.print(f"{bench.name}: {frozen:,} frozen parameters, {bench.kind}", soft_wrap=True)


def show_doubts(bench: Workbench, configs: Sequence[MethodConfig], training: TrainConfig) -> None:
    """Prints what looks like a mistake in rows and rates, each once."""
    from softprompts.experiments.outlook import mistakes

    for line in mistakes(bench, configs, training):
        err.print(f"note: {line}", soft_wrap=True)


def show_exports(bench: Workbench, config: MethodConfig) -> None:
    """Prints what the prompt can be exported as, once it is trained."""
    from softprompts.experiments.outlook import exports
    from softprompts.model.exports import exports_line

    hint = f" (why: softprompts methods {config.method} --model {bench.name})" if JOINT not in config.method else ""
    err.print(exports_line(config.method, exports(bench, config), hint), soft_wrap=True)


def show_cut_rows(bench: Workbench, configs: Sequence[MethodConfig]) -> None:
    """Encodes all rows, and prints how many were too long and had to be cut."""
    with err.status("encoding the rows"):
        lines = {bench.room(config): bench.say_cut(config) for config in configs}
    for _, line in sorted(lines.items()):
        if line:
            err.print(line, soft_wrap=True)


def run_counter(total: int) -> Callable[[Run | str, dict[str, Any]], None]:
    """A function that counts ``total`` runs, and prints how each has ended: the run or its label, and its result."""
    numbers = itertools.count(1)

    def show(run: Run | str, result: dict[str, Any]) -> None:
        label = run if isinstance(run, str) else run.method.method
        metrics = result["test_metrics"] or result["metrics"]
        scores = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if value is not None)
        time = f"{result['seconds']:.0f} s" + (f", beside {result['lanes'] - 1} more" if result["lanes"] > 1 else "")
        constant = next(iter((result.get("constant_scores") or {}).values()), None)
        scores += f"; one answer for all rows: {constant:.4f}" if scores and constant is not None else ""
        outcome = scores or result["stop_reason"]
        err.print(f"[{next(numbers)}/{total}] {label}, seed {result['seed']}: {outcome} ({time})", soft_wrap=True)
        if result["message"]:
            err.print(result["message"], soft_wrap=True)

    return show


@contextlib.contextmanager
def hint_when_interrupted(hint: str = "the same command goes on from there") -> Iterator[None]:
    """After an interruption, prints where it was and how to go on."""
    try:
        yield
    except LateInterrupt as stop:
        err.print(f"interrupted, when {stop}", soft_wrap=True)
        raise
    except KeyboardInterrupt as stop:
        err.print(f"{stop}; {hint}" if str(stop) else "interrupted", soft_wrap=True)
        raise
