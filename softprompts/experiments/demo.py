"""The demo: six ways to tune one frozen, packaged encoder on real film reviews, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from softprompts.backbones import packaged
from softprompts.experiments.compare import Comparison, compare
from softprompts.experiments.workbench import Workbench
from softprompts.methods import (
    HeadOnlyConfig,
    MethodConfig,
    MultiMaskConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    SelectivePrefixConfig,
    SuperPosConfig,
)
from softprompts.tasks.data import Data
from softprompts.training import TrainConfig

METHODS: tuple[MethodConfig, ...] = (
    HeadOnlyConfig(),
    PromptTuningConfig(),
    SuperPosConfig(),
    PrefixTuningConfig(),
    MultiMaskConfig(),
    SelectivePrefixConfig(),
)
# One budget for all: the last prompt is scored once, on rows that nothing was chosen by.
TRAINING = TrainConfig(max_steps=150, batch_size=16, eval_batch_size=64)


def run_demo(
    root: str | Path,
    seeds: Iterable[int],
    *,
    lanes: int | None = None,
    on_load: Callable[[Workbench], None] | None = None,
    on_result: Callable[[MethodConfig, int, dict[str, Any]], None] | None = None,
    command: str | None = None,
) -> Comparison:
    """Runs the demo.

    Args:
        root: where run folders go.
        seeds: which seeds.
        lanes: runs that share a pass; None: as many as there is memory for.
        on_load: called with the workbench once it is loaded.
        on_result: called after each run with its method, seed and result.
        command: see `Workbench`.
    """
    bench = Workbench(packaged.DEFAULT_MODEL, Data(task="reviews"), evaluate=False, command=command)
    if on_load is not None:
        on_load(bench)
    return compare(
        bench, [(method, TRAINING) for method in METHODS], list(seeds), root=root, lanes=lanes, on_result=on_result
    )
