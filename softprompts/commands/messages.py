"""What is said of runs: before they start, as each ends, and when they are interrupted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from softprompts.commands.terminal import err

if TYPE_CHECKING:
    from softprompts.experiments.workbench import Workbench
    from softprompts.methods.contract import MethodConfig


def describe(bench: Workbench) -> None:
    """Says what is trained on what."""
    task = bench.task
    reads = "" if bench.data.task is not None else f"; reads {', '.join(task.form.fields)}"
    sizes = f"{len(task.train):,} train, {len(task.validation):,} validation"
    sizes += f", {len(task.test):,} test" if task.test else ""
    balance = ", ".join(f"{name} {count:,}" for name, count in task.balance().items())
    err.print(f"{task.name}: {sizes} rows" + (f" ({balance})" if balance else "") + reads, soft_wrap=True)
    frozen = sum(p.numel() for p in bench.model.parameters())
    err.print(f"{bench.name}: {frozen:,} frozen parameters, {bench.kind}", soft_wrap=True)


def tell_cut(bench: Workbench, configs: Sequence[MethodConfig]) -> None:
    """Encodes all rows and says which were too long."""
    with err.status("encoding the rows"):
        said = {bench.room(config): bench.say_cut(config) for config in configs}
    for _, line in sorted(said.items()):
        if line:
            err.print(line, soft_wrap=True)


def tell_run(count: int, total: int, method: str, seed: int, result: dict[str, Any]) -> None:
    """Says how a run has ended."""
    metrics = result["test_metrics"] or result["metrics"]
    scores = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if value is not None)
    what = scores or result["stop_reason"]
    time = f"{result['seconds']:.0f} s" + (f", beside {result['lanes'] - 1} more" if result["lanes"] > 1 else "")
    err.print(f"[{count}/{total}] {method}, seed {seed}: {what} ({time})", soft_wrap=True)
    if result["message"]:
        err.print(result["message"], soft_wrap=True)


@contextlib.contextmanager
def telling_how_to_go_on(how: str) -> Iterator[None]:
    """After an interruption, says how to go on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        err.print(f"{stop}; {how}" if str(stop) else "interrupted", soft_wrap=True)
        raise
