"""One training step of every method beside PEFT's and full fine-tuning, as a ratio to the inference forward.

    python benchmarks/step.py [--rounds 30] [--batch 32] [--tokens 48] [--json FILE]

All variants run in one process, one step each in turn, round after round, so that a machine that slows down slows all
of them. A ratio is the median over rounds of (time of the step / time of the forward of the same round). A step is
forward, backward, and the update by AdamW. The floor of any method that trains something below the first layer is 2.0:
one forward, and one backward through activations.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

import softprompts as sp
from softprompts.packaged import DEFAULT_MODEL, resolve_model

LENGTH = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    path = resolve_model(options.model)
    inputs = batch(options.batch, options.tokens)
    variants = {**forwards(path, inputs), **ours(path, inputs), **theirs(path, inputs)}
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in track(range(options.warmup + options.rounds), "rounds", console=Console(stderr=True)):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            if number >= options.warmup:
                times[name].append(time.perf_counter() - start)

    base = times["inference forward"]
    rows = {name: summary(taken, base) for name, taken in times.items()}
    plain = times["prefix-tuning"]
    console = Console()
    table = Table(
        "variant",
        "ms",
        "/ forward",
        "/ prefix-tuning",
        title=f"{options.batch} x {options.tokens} tokens, {options.model}",
    )
    for name, row in rows.items():
        relative = statistics.median(mine / other for mine, other in zip(times[name], plain, strict=True))
        rows[name]["to_prefix"] = relative
        table.add_row(name, f"{1000 * row['median_seconds']:.0f}", f"{row['ratio']:.2f}", f"{relative:.3f}")
    console.print(table)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    console.print(f"medians of {options.rounds} interleaved rounds; {machine}", highlight=False)
    if options.json is not None:
        options.json.write_text(
            json.dumps({"options": vars(options) | {"json": None}, "machine": machine, "rows": rows})
        )


def summary(taken: list[float], base: list[float]) -> dict[str, float]:
    """Median seconds, and the median of the ratios round by round with its quartiles."""
    ratios = [mine / other for mine, other in zip(taken, base, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"median_seconds": statistics.median(taken), "ratio": middle, "ratio_q1": low, "ratio_q3": high}


def batch(rows: int, tokens: int) -> dict[str, torch.Tensor]:
    """Random words; rows end at different places, as real ones do."""
    ids = torch.randint(1000, 20000, (rows, tokens))
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, tokens - row % max(1, tokens // 4) :] = 0
    mask[0] = 1
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.randint(0, 2, (rows,))}


def fresh(path: str) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(path, num_labels=2)


def step(model: Any, inputs: dict[str, torch.Tensor]) -> Callable[[], None]:
    """A training step of whatever the model trains."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def run() -> None:
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def forwards(path: str, inputs: dict[str, torch.Tensor]) -> dict[str, Callable[[], None]]:
    """The yardstick, and the same over as many more tokens as an input prompt adds."""
    model = fresh(path).eval()
    rows, tokens = inputs["input_ids"].shape
    longer = batch(rows, tokens + LENGTH)

    def forward(given: dict[str, torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                model(**given)

        return run

    return {"inference forward": forward(inputs), f"forward over {tokens}+{LENGTH}": forward(longer)}


def ours(path: str, inputs: dict[str, torch.Tensor]) -> dict[str, Callable[[], None]]:
    configs: dict[str, sp.MethodConfig] = {
        "prefix-tuning": sp.PrefixTuningConfig(num_virtual_tokens=LENGTH),
        "multi-mask": sp.MultiMaskConfig(num_virtual_tokens=LENGTH),
        "selective-prefix": sp.SelectivePrefixConfig(num_virtual_tokens=LENGTH),
        "prompt-tuning": sp.PromptTuningConfig(num_virtual_tokens=LENGTH),
        "superpos": sp.SuperPosConfig(num_virtual_tokens=LENGTH),
        "ept": sp.EPTConfig(num_virtual_tokens=LENGTH),
        "head-only": sp.HeadOnlyConfig(),
    }
    return {name: step(sp.attach(fresh(path), config), inputs) for name, config in configs.items()}


def theirs(path: str, inputs: dict[str, torch.Tensor]) -> dict[str, Callable[[], None]]:
    import peft

    kind = peft.TaskType.SEQ_CLS
    configs = {
        "PEFT prefix tuning": peft.PrefixTuningConfig(task_type=kind, num_virtual_tokens=LENGTH),
        "PEFT prompt tuning": peft.PromptTuningConfig(task_type=kind, num_virtual_tokens=LENGTH),
        "PEFT LoRA": peft.LoraConfig(task_type=kind, r=8, target_modules=["query", "value"]),
    }
    steps = {name: step(peft.get_peft_model(fresh(path), config), inputs) for name, config in configs.items()}
    return {**steps, "full fine-tuning": step(fresh(path), inputs)}


if __name__ == "__main__":
    main()
