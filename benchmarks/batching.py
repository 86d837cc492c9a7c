"""An epoch in batches of rows of similar length beside an epoch with every row padded to the limit, on real texts.

    python benchmarks/batching.py [--data-dir DIR] [--tasks reviews,...] [--batch 16] [--sample 40] [--limit 256]
                                  [--rounds 3] [--quick] [--json FILE]

- bucketed: the library's `length_bucketed_batches`, each batch padded to its longest row.
- shuffled: batches of random rows, each padded to its longest row; what padding by batch alone would give.
- padded: the same batches, every row padded to --limit tokens, as many training scripts do.

A step of prefix tuning (collate, forward, backward, update) on one model, the three variants in turn, batch after
batch. Each variant runs --sample batches that stand for its epoch: of all its batches in the order of their width,
evenly spaced ones. One round is one run through the sample; its mean step times the number of batches is the epoch. The
ratio is the median over rounds of (epoch of the variant / epoch of "bucketed"). "tokens" counts real ones as a share of
all that the epoch passes through the model, and is exact.

The reviews are packaged; --data-dir (a folder with glue/... and super_glue/...) adds BoolQ and CoLA.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from common import Inputs, config, cycle, fresh, interleave, parse, parser, report, sample, summary, trainer
from transformers import AutoTokenizer

import softprompts as sp
from softprompts.backbones.packaged import resolve_model
from softprompts.tasks import collate, encode_examples, length_bucketed_batches, load_task, padding_id

LOCAL = ("super_glue/boolq", "glue/cola")  # tasks that need --data-dir


def main() -> None:
    arguments = parser(__doc__, rounds=3, warmup=2)
    arguments.add_argument("--data-dir", type=Path)
    arguments.add_argument("--tasks", type=lambda text: text.split(","))
    arguments.add_argument("--batch", type=int, default=16)
    arguments.add_argument("--sample", type=int, default=40)
    arguments.add_argument("--limit", type=int, default=256)
    options = parse(arguments, rounds=2, sample=10)

    tokenizer = AutoTokenizer.from_pretrained(resolve_model(options.model))
    step = trainer(sp.attach(fresh(options.model), config("prefix-tuning"), seed=0))
    rows, lines = [], []
    for name in options.tasks or ["reviews", *(LOCAL if options.data_dir else ())]:
        task = load_task(name, options.data_dir)
        features = encode_examples(task.train, task, tokenizer, "encoder", options.limit).features
        for row in measure(options, step, features, padding_id(tokenizer)):
            rows.append({"task": name, "rows": len(features), **row})
            lines.append(
                (
                    name,
                    row["variant"],
                    f"{row['width']:.0f}",
                    f"{100 * row['real']:.0f} %",
                    f"{1000 * row['median_seconds'] / row['batches']:.0f}",
                    f"{row['median_seconds']:.0f}",
                    f"{row['ratio']:.2f}",
                )
            )
    report(
        options,
        f"prefix-tuning, batches of {options.batch}, {options.model}",
        ["task", "batches", "width", "tokens", "ms/step", "s/epoch", "ratio"],
        lines,
        rows,
    )


def measure(options: Any, step: Any, features: list[dict[str, Any]], pad_id: int) -> list[dict[str, Any]]:
    """One epoch's time and share of real tokens for each variant."""
    lengths = [len(row["input_ids"]) for row in features]
    bucketed = length_bucketed_batches(lengths, options.batch, seed=0, epoch=0)
    order = random.Random(0).sample(range(len(features)), len(features))
    shuffled = [order[at : at + options.batch] for at in range(0, len(order), options.batch)]

    def take(width: int | None) -> Any:
        return lambda indices: step(padded(collate([features[i] for i in indices], pad_id), pad_id, width))

    kinds = {"bucketed": (bucketed, None), "shuffled": (shuffled, None), "padded": (shuffled, options.limit)}
    size = min(options.sample, len(bucketed))
    calls = {name: cycle(take(width), sample(lengths, batches, size)) for name, (batches, width) in kinds.items()}
    times = interleave(calls, options.rounds * size, options.warmup, f"{len(features)} rows")
    epochs = {
        name: [sum(taken[at : at + size]) / size * len(bucketed) for at in range(0, len(taken), size)]
        for name, taken in times.items()
    }
    rows = []
    for name, (batches, width) in kinds.items():
        widths = [width or max(lengths[i] for i in indices) for indices in batches]
        tokens = sum(width * len(indices) for width, indices in zip(widths, batches, strict=True))
        rows.append(
            {
                "variant": name,
                "batches": len(batches),
                "width": sum(widths) / len(widths),
                "real": sum(lengths) / tokens,
                **summary(epochs[name], epochs["bucketed"]),
            }
        )
    return rows


def padded(inputs: Inputs, pad_id: int, width: int | None) -> Inputs:
    """Rows filled up to some width."""
    missing = 0 if width is None else width - inputs["input_ids"].shape[1]
    if not missing:
        return inputs
    return {
        name: tensor if name == "labels" else F.pad(tensor, (0, missing), value=pad_id if name == "input_ids" else 0)
        for name, tensor in inputs.items()
    }


if __name__ == "__main__":
    main()
