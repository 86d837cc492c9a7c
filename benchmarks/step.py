"""One training step of every method beside PEFT's and full fine-tuning, as a ratio to the inference forward.

    python benchmarks/step.py [--rounds 30] [--batch 32] [--tokens 48] [--no-memory] [--quick] [--json FILE]

All variants run in one process, one step each in turn, round after round, so that a machine that slows down slows all
of them. A ratio is the median over rounds of (time of the step / time of the forward of the same round). A step is
forward, backward, and the update by AdamW. One forward and one backward through activations are 2.0 forwards; less is
possible where the last layer is computed only at the position that the head reads.

PEFT trains with the dropout of its frozen backbone, as documented. Beside that stand variants in which only this
differs: their backbone is in evaluation mode. "bf16" is what `TrainConfig.bf16` does.

Memory is what a few steps add to the resident memory of a process that holds model and prompt already, at its peak;
each variant has a process of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from common import (
    LENGTH,
    Inputs,
    batch,
    config,
    fresh,
    in_new_process,
    interleave,
    parse,
    parser,
    prepare,
    relative,
    report,
    summary,
    trainer,
)

import softprompts as sp
from softprompts.training.memory import PeakMemory
from softprompts.training.pass_size import precision

METHODS = ("prefix-tuning", "multi-mask", "selective-prefix", "prompt-tuning", "superpos", "ept", "head-only")
STEPS = 3  # with memory

Variant = tuple[Any, Callable[[], None]]  # a model, and a step of it


def main() -> None:
    arguments = parser(__doc__, rounds=30, warmup=3)
    arguments.add_argument("--batch", type=int, default=32)
    arguments.add_argument("--tokens", type=int, default=48)
    arguments.add_argument("--no-memory", dest="memory", action="store_false")
    options = parse(arguments, rounds=5, warmup=1, memory=False)

    made_of = variants(options)
    times = interleave({name: make()[1] for name, make in made_of.items()}, options.rounds, options.warmup)
    rows = {name: summary(taken, times["inference forward"]) for name, taken in times.items()}
    for name, row in rows.items():
        row["to_prefix"] = relative(times[name], times["prefix-tuning"])
        row["to_prompt"] = relative(times[name], times["prompt-tuning"])
        if options.memory:
            row["added_memory"] = in_new_process(memory, options, name)
    report(
        options,
        f"{options.batch} x {options.tokens} tokens, {options.model}",
        ["variant", "ms", "/ forward", "/ prefix-tuning", "/ prompt-tuning", "MB added"],
        [
            (
                name,
                f"{1000 * row['median_seconds']:.0f}",
                f"{row['ratio']:.2f}",
                f"{row['to_prefix']:.3f}",
                f"{row['to_prompt']:.3f}",
                f"{row['added_memory'] / 1e6:.0f}" if options.memory else "-",
            )
            for name, row in rows.items()
        ],
        rows,
    )


def variants(options: Any) -> dict[str, Callable[[], Variant]]:
    """What makes each of the variants."""
    path, inputs = options.model, batch(options.batch, options.tokens)
    return {**forwards(path, inputs), **ours(path, inputs), **theirs(path, inputs)}


def memory(options: Any, name: str) -> int:
    """In a process of its own: resident memory that a few steps of a variant add, in bytes."""
    prepare(options.threads)
    model, run = variants(options)[name]()
    for tensor in [*model.parameters(), *model.buffers()]:  # weights are read from their file when first touched
        tensor.sum()
    peak = PeakMemory(torch.device("cpu"))
    before = psutil.Process().memory_info().rss
    for _ in range(STEPS):
        run()
    return peak.read() - before


def step(model: Any, inputs: Inputs) -> Variant:
    return model, functools.partial(trainer(model), inputs)


def forwards(path: str, inputs: Inputs) -> dict[str, Callable[[], Variant]]:
    """The yardstick, and the same over as many more tokens as an input prompt adds."""
    rows, tokens = inputs["input_ids"].shape

    def forward(given: Inputs) -> Variant:
        model = fresh(path).eval()

        def run() -> None:
            with torch.no_grad():
                model(**given)

        return model, run

    return {
        "inference forward": lambda: forward(inputs),
        f"forward over {tokens}+{LENGTH}": lambda: forward(batch(rows, tokens + LENGTH)),
    }


def ours(path: str, inputs: Inputs) -> dict[str, Callable[[], Variant]]:
    def make(name: str) -> Variant:
        return step(sp.attach(fresh(path), config(name)), inputs)

    def make_half(name: str) -> Variant:
        model, run = make(name)

        def run_half() -> None:
            with precision(Accelerator(), bf16=True, columns=inputs["input_ids"].shape[1]):
                run()

        return model, run_half

    half = {f"{name}, bf16": functools.partial(make_half, name) for name in METHODS[:4]}
    return {**{name: functools.partial(make, name) for name in METHODS}, **half}


def theirs(path: str, inputs: Inputs) -> dict[str, Callable[[], Variant]]:
    import peft

    kind = peft.TaskType.SEQ_CLS
    configs = {
        "PEFT prefix tuning": peft.PrefixTuningConfig(task_type=kind, num_virtual_tokens=LENGTH),
        "PEFT prompt tuning": peft.PromptTuningConfig(task_type=kind, num_virtual_tokens=LENGTH),
        "PEFT LoRA": peft.LoraConfig(task_type=kind, r=8, target_modules=["query", "value"]),
    }

    def make(name: str, dropout: bool) -> Variant:
        variant = step(peft.get_peft_model(fresh(path), configs[name]), inputs)
        if not dropout:
            variant[0].get_base_model().eval()
        return variant

    return {
        **{name: functools.partial(make, name, True) for name in configs},
        **{f"{name}, no backbone dropout": functools.partial(make, name, False) for name in configs},
        "full fine-tuning": lambda: step(fresh(path), inputs),
    }


if __name__ == "__main__":
    main()
