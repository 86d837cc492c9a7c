"""Time and memory of a training step against length of prompt and text, number of masks, and number of lanes.

    python benchmarks/scaling.py [--data-dir DIR] [--rows 16] [--tokens 32] [--lengths 1,5,10,20,50,100]
                                 [--masks 1,2,4,8,16] [--texts 16,32,...,512] [--lanes 1,2,4,8,16] [--rounds 6]
                                 [--quick] [--json FILE]

Five sweeps, in each of which one thing grows and the rest stays (--rows of --tokens tokens, prompts of 10):

- prompt length, for methods with prefixes and with input prompts;
- masks of a multi-mask prefix, beside a plain prefix;
- text length, as far as the backbone's positions go: input prompts take some of them;
- lanes: prompts that share a pass, each with --lane-rows rows of its own;
- EPT's claim that it trains faster with 60 tokens than prompt tuning with 100: both on the same real batches of RTE and
  SST-2 (--data-dir), bucketed, --sample of them that stand for the epoch as in batching.py. Here a time is the mean
  step over the sample, and the ratio is to prompt tuning; the paper's figures come to 0.86 of its time.

All variants of a sweep take turns in one process. Times are medians over rounds; a ratio is the median over rounds of
(step / inference forward of the bare backbone over the same rows). Memory is the peak of what one step allocates for
tensors on top of what was there before it, from the profiler's record of every allocation: exact, the same every time,
and without the allocator's own reserve. Scratch space inside matrix kernels is not seen.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler is chatty, and reads this when torch is loaded

import torch
from common import (
    LENGTH,
    Inputs,
    batch,
    config,
    cycle,
    finish,
    fresh,
    interleave,
    numbers,
    parse,
    parser,
    sample,
    show,
    summary,
    trainer,
)
from torch.profiler import ProfilerActivity, profile
from transformers import AutoTokenizer

import softprompts as sp
from softprompts.backbones.packaged import resolve_model
from softprompts.tasks import collate, encode_examples, length_bucketed_batches, load_task, padding_id

METHODS = ("prefix-tuning", "multi-mask", "selective-prefix", "prompt-tuning", "ept")
CLAIM = ("glue/rte", "glue/sst2")
FORWARD = "inference forward"

Row = dict[str, Any]


def main() -> None:
    arguments = parser(__doc__, rounds=6, warmup=1)
    arguments.add_argument("--data-dir", type=Path)
    arguments.add_argument("--rows", type=int, default=16)
    arguments.add_argument("--tokens", type=int, default=32)
    arguments.add_argument("--lengths", type=numbers, default=[1, 5, 10, 20, 50, 100])
    arguments.add_argument("--masks", type=numbers, default=[1, 2, 4, 8, 16])
    arguments.add_argument("--texts", type=numbers, default=[16, 32, 64, 128, 256, 512])
    arguments.add_argument("--text-rows", type=int, default=8)
    arguments.add_argument("--lanes", type=numbers, default=[1, 2, 4, 8, 16])
    arguments.add_argument("--lane-rows", type=int, default=4)
    arguments.add_argument("--sample", type=int, default=12)
    options = parse(arguments, rounds=2, lengths=[1, 100], masks=[1, 16], texts=[16, 512], lanes=[1, 16], sample=3)

    rows: list[Row] = []
    for sweep, points in sweeps(options).items():
        made_rows = [
            {"sweep": sweep, "x": x, **row}
            for x, variants, inputs in points
            for row in measure(options, f"{sweep}: {x}", variants, inputs)
        ]
        rows += made_rows
        tell(sweep, made_rows)
    if options.data_dir is not None:
        claims = [row for name in CLAIM for row in claim(options, name)]
        rows += claims
        show(
            f"EPT with 60 tokens beside prompt tuning with 100, batches of {options.rows}",
            ["task", "variant", "ms/step", "/ prompt tuning", "quartiles", "MB"],
            [
                (
                    row["x"],
                    row["variant"],
                    f"{1000 * row['median_seconds']:.0f}",
                    f"{row['ratio']:.3f}",
                    f"{row['ratio_q1']:.3f}-{row['ratio_q3']:.3f}",
                    f"{row['peak_bytes'] / 1e6:.0f}",
                )
                for row in claims
            ],
        )
    finish(options, rows)


Variants = dict[str, Any]  # models by name, and the prompt of each row where they have several
Point = tuple[int, Variants, Inputs]


def sweeps(options: Any) -> dict[str, Iterator[Point]]:
    """The points of each sweep, built when their turn comes."""
    path, rows, tokens = options.model, options.rows, options.tokens
    limit = fresh(path).config.max_position_embeddings

    def attached(settings: sp.MethodConfig) -> Any:
        return sp.attach(fresh(path), settings, seed=0)

    def of_length(length: int) -> Variants:
        return {name: attached(config(name, length)) for name in METHODS}

    def of_masks(count: int) -> Variants:
        masked = sp.make_config("multi-mask", num_virtual_tokens=LENGTH, num_masks=count)
        return {"multi-mask": attached(masked), "prefix-tuning": attached(config("prefix-tuning"))}

    def of_text(length: int) -> Variants:
        configs = {name: config(name) for name in METHODS}
        return {name: attached(one) for name, one in configs.items() if not one.uses_tokens or length + LENGTH <= limit}

    def of_lanes(count: int) -> Variants:
        models = {}
        for name in ("prefix-tuning", "selective-prefix", "prompt-tuning"):
            models[name] = sp.attach(fresh(path))
            for number in range(count):
                models[name].add_prompt(f"lane{number}", config(name), seed=number)
        return models

    def lanes(count: int) -> Inputs:
        return {**batch(count * options.lane_rows, tokens), "prompt_names": lane_names(options, count)}

    return {
        "prompt length": ((x, of_length(x), batch(rows, tokens)) for x in options.lengths),
        "masks": ((x, of_masks(x), batch(rows, tokens)) for x in options.masks),
        "text length": ((x, of_text(x), batch(options.text_rows, x)) for x in options.texts),
        "lanes": ((x, of_lanes(x), lanes(x)) for x in options.lanes),
    }


def lane_names(options: Any, count: int) -> Any:
    """The lane of each row."""
    return [f"lane{number}" for number in range(count) for _ in range(options.lane_rows)]


def measure(options: Any, what: str, variants: Variants, inputs: Any) -> list[Row]:
    """A step of each variant, and the forward that it is compared with."""
    bare = fresh(options.model).eval()
    plain = {name: value for name, value in inputs.items() if name not in ("prompt_names", "labels")}

    def forward() -> None:
        with torch.no_grad():
            bare(**plain)

    def stepper(model: Any) -> Callable[[], None]:
        step = trainer(model)
        return lambda: step(inputs)

    calls = {FORWARD: forward, **{name: stepper(model) for name, model in variants.items()}}
    times = interleave(calls, options.rounds, options.warmup, what)
    return [
        {"variant": name, **summary(taken, times[FORWARD]), "peak_bytes": peak(calls[name])}
        for name, taken in times.items()
    ]


def peak(call: Callable[[], Any]) -> int:
    """Most bytes of tensors that a call holds at once, on top of what there was before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    sizes = [event.nbytes() for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(0, *itertools.accumulate(sizes))


def tell(sweep: str, rows: list[Row]) -> None:
    """Prints a sweep: milliseconds, ratio to the forward, and MB."""
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    cells = {
        (
            row["x"],
            row["variant"],
        ): f"{1000 * row['median_seconds']:.0f} ({row['ratio']:.2f}) {row['peak_bytes'] / 1e6:.0f}"
        for row in rows
    }
    show(
        f"{sweep}: ms (/ forward) MB",
        [sweep, *variants],
        [(str(x), *(cells.get((x, name), "-") for name in variants)) for x in dict.fromkeys(row["x"] for row in rows)],
    )


def claim(options: Any, task_name: str) -> list[Row]:
    """EPT with 60 tokens and prompt tuning with 100 over the same sample of an epoch's batches."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(options.model))
    task = load_task(task_name, options.data_dir)
    limit = fresh(options.model).config.max_position_embeddings - 100
    features = encode_examples(task.train, task, tokenizer, "encoder", min(256, limit)).features
    lengths = [len(row["input_ids"]) for row in features]
    size = min(options.sample, len(lengths) // options.rows)
    chosen = sample(lengths, length_bucketed_batches(lengths, options.rows, seed=0, epoch=0), size)
    batches = [collate([features[i] for i in indices], padding_id(tokenizer)) for indices in chosen]
    steps = {
        f"{name} {length}": trainer(sp.attach(fresh(options.model), config(name, length), seed=0))
        for name, length in (("prompt-tuning", 100), ("ept", 60), ("prompt-tuning", 60))
    }
    calls = {name: cycle(step, batches) for name, step in steps.items()}
    times = interleave(calls, max(2, options.rounds // 2) * size, options.warmup, task_name)
    means = {
        name: [sum(taken[at : at + size]) / size for at in range(0, len(taken), size)] for name, taken in times.items()
    }
    widest = max(batches, key=lambda inputs: inputs["input_ids"].shape[1])
    return [
        {
            "sweep": "ept claim",
            "x": task_name,
            "variant": name,
            **summary(taken, means["prompt-tuning 100"]),
            "peak_bytes": peak(lambda step=steps[name]: step(widest)),
        }
        for name, taken in means.items()
    ]


if __name__ == "__main__":
    main()
