"""The demo: six ways to tune one frozen, packaged encoder on real film reviews, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from softprompts.backbones import packaged
from softprompts.experiments.compare import Comparison, compare
from softprompts.experiments.run_record import Run
from softprompts.experiments.workbench import Workbench
from softprompts.methods.compose import make_config
from softprompts.tasks.data import Data
from softprompts.training import TrainConfig

METHODS = ("head-only", "prompt-tuning", "superpos", "prefix-tuning", "multi-mask", "selective-prefix")
# One budget for all: the last prompt is scored once, on rows that nothing was chosen by.
TRAINING = TrainConfig(max_steps=150, batch_size=16, eval_batch_size=64)


def run_demo(
    root: str | Path,
    seeds: Iterable[int],
    *,
    lanes: int | None = None,
    on_load: Callable[[Workbench], None] | None = None,
    on_result: Callable[[Run, dict[str, Any]], None] | None = None,
    command: str | None = None,
) -> Comparison:
    """Runs the demo; ``on_load`` is called with the workbench once it is loaded. For the rest see `compare`."""
    bench = Workbench(packaged.DEFAULT_MODEL, Data(task="reviews"), evaluate=False, command=command)
    if on_load is not None:
        on_load(bench)
    methods = [(make_config(name), TRAINING) for name in METHODS]
    return compare(bench, methods, list(seeds), root=root, lanes=lanes, on_result=on_result)
