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
    tell: Callable[..., None],
    describe: Callable[[Workbench], None],
) -> Comparison:
    """Runs the demo.

    Args:
        root: where run folders go.
        seeds: which seeds.
        lanes: runs that share a pass; None: as many as there is memory for.
        tell: called after each run with its number, their number, method, seed and result.
        describe: called with the loaded bench.
    """
    bench = Workbench(packaged.DEFAULT_MODEL, Data(task="reviews"), evaluate=False)
    describe(bench)
    numbers = list(seeds)
    count = 0

    def on_result(method: MethodConfig, seed: int, result: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        tell(count, len(METHODS) * len(numbers), method.method, seed, result)

    return compare(
        bench, [(method, TRAINING) for method in METHODS], numbers, root=root, lanes=lanes, on_result=on_result
    )
