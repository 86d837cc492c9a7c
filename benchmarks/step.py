"""One training step of every method beside PEFT's and full fine-tuning, as a ratio to the inference forward.

    python benchmarks/step.py [--rounds 30] [--batch 32] [--tokens 48] [--quick] [--json FILE]

All variants run in one process, one step each in turn, round after round, so that a machine that slows down slows all
of them. A ratio is the median over rounds of (time of the step / time of the forward of the same round). A step is
forward, backward, and the update by AdamW. The floor of any method that trains something below the first layer is 2.0:
one forward, and one backward through activations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from common import LENGTH, Inputs, batch, config, fresh, interleave, parse, parser, relative, report, summary, trainer

import softprompts as sp

METHODS = ("prefix-tuning", "multi-mask", "selective-prefix", "prompt-tuning", "superpos", "ept", "head-only")


def main() -> None:
    made = parser(__doc__, rounds=30, warmup=3)
    made.add_argument("--batch", type=int, default=32)
    made.add_argument("--tokens", type=int, default=48)
    options = parse(made, rounds=5, warmup=1)

    inputs = batch(options.batch, options.tokens)
    path = options.model
    times = interleave(
        {**forwards(path, inputs), **ours(path, inputs), **theirs(path, inputs)}, options.rounds, options.warmup
    )
    rows = {name: summary(taken, times["inference forward"]) for name, taken in times.items()}
    for name, row in rows.items():
        row["to_prefix"] = relative(times[name], times["prefix-tuning"])
    report(
        options,
        f"{options.batch} x {options.tokens} tokens, {options.model}",
        ["variant", "ms", "/ forward", "/ prefix-tuning"],
        [
            (name, f"{1000 * row['median_seconds']:.0f}", f"{row['ratio']:.2f}", f"{row['to_prefix']:.3f}")
            for name, row in rows.items()
        ],
        rows,
    )


def step(model: Any, inputs: Inputs) -> Callable[[], None]:
    return functools.partial(trainer(model), inputs)


def forwards(path: str, inputs: Inputs) -> dict[str, Callable[[], None]]:
    """The yardstick, and the same over as many more tokens as an input prompt adds."""
    model = fresh(path).eval()
    rows, tokens = inputs["input_ids"].shape
    longer = batch(rows, tokens + LENGTH)

    def forward(given: Inputs) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                model(**given)

        return run

    return {"inference forward": forward(inputs), f"forward over {tokens}+{LENGTH}": forward(longer)}


def ours(path: str, inputs: Inputs) -> dict[str, Callable[[], None]]:
    return {name: step(sp.attach(fresh(path), config(name)), inputs) for name in METHODS}


def theirs(path: str, inputs: Inputs) -> dict[str, Callable[[], None]]:
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
