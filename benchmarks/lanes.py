"""K training runs in shared passes beside the same K runs one after another: time and memory.

    python benchmarks/lanes.py [--lanes 1,2,4,8,16] [--batch 4,8,16] [--method prefix-tuning] [--tokens 28]
                               [--spread 7] [--steps 4] [--rounds 8] [--no-memory] [--quick] [--json FILE]

Both go through `softprompts.training.loop.train` on one backbone with all K prompts attached: "shared" gives it all K
lanes at once, "serial" gives it each lane in turn. A round trains every lane for --steps steps in each of the two ways;
the time is that which the loop itself counts as spent in steps (draw and collate the rows, forward, backward, clip,
update), per "all K lanes took one step". The ratio is the median over rounds of (serial / shared), so 2.0 means that
sharing the pass does the same in half the time.

All lanes have the same random rows of --tokens tokens, give or take --spread, each in its own order and batches
(bucketed by length), as seeds of one task do. A shared pass is padded to its longest row; lengths come in like order
for all seeds, so that this costs little. "width" is the mean width of a batch, serial and shared.

Memory is the peak of the resident memory that the loop reports, each variant in a process of its own; behind the plus
sign what training added to what the process held before (interpreter, libraries, model, prompts).
"""

from __future__ import annotations

import random
import statistics
from typing import Any

import psutil
from common import config, fresh, in_new_process, interleave, numbers, parse, parser, prepare, report, summary

import softprompts as sp
from softprompts.training.config import TrainConfig
from softprompts.training.lane import Lane
from softprompts.training.loop import train

PAD = 0


def main() -> None:
    arguments = parser(__doc__, rounds=8, warmup=1)
    arguments.add_argument("--lanes", type=numbers, default=[1, 2, 4, 8, 16])
    arguments.add_argument("--batch", type=numbers, default=[4, 8, 16])
    arguments.add_argument("--method", default="prefix-tuning")
    arguments.add_argument("--tokens", type=int, default=28)
    arguments.add_argument("--spread", type=int, default=7)
    arguments.add_argument("--steps", type=int, default=4)
    arguments.add_argument("--no-memory", dest="memory", action="store_false")
    options = parse(arguments, rounds=3, lanes=[1, 4, 16], batch=[8])

    rows, lines = [], []
    for size in options.batch:
        for count in options.lanes:
            row = measure(options, count, size)
            rows.append(row)
            lines.append(
                (
                    str(size),
                    str(count),
                    f"{1000 * row['serial_seconds']:.0f}",
                    f"{1000 * row['shared_seconds']:.0f}",
                    f"{row['ratio']:.2f}",
                    f"{row['serial_width']:.0f} / {row['shared_width']:.0f}",
                    *(
                        f"{row[f'{how}_peak'] / 1e6:.0f} +{row[f'{how}_added'] / 1e6:.0f}" if options.memory else "-"
                        for how in ("serial", "shared")
                    ),
                )
            )
    report(
        options,
        f"{options.method}, rows of {options.tokens} ± {options.spread} tokens, {options.model}",
        ["batch", "K", "ms serial", "ms shared", "ratio", "width", "MB serial", "MB shared"],
        lines,
        rows,
    )


def measure(options: Any, count: int, size: int) -> dict[str, Any]:
    """Times and memory of K lanes with some batch size."""
    model = attached(options.model, options.method, count)
    data = [lane_rows(options, size)] * count

    def run(shared: bool) -> float:
        return sum(trained(model, data, size, options.steps, shared)[0]) / options.steps

    times = interleave(
        {"serial": lambda: run(False), "shared": lambda: run(True)},
        options.rounds,
        options.warmup,
        f"K = {count}, batch {size}",
    )
    widths = [
        [max(len(row["input_ids"]) for row in rows[0]) for rows in draws(lane, options.steps)]
        for lane in lanes(data, size, options.steps)
    ]
    compared = summary(times["serial"], times["shared"])
    row: dict[str, Any] = {
        "batch": size,
        "lanes": count,
        "serial_seconds": compared.pop("median_seconds"),
        "shared_seconds": statistics.median(times["shared"]),
        **compared,
        "serial_width": statistics.mean(width for lane in widths for width in lane),
        "shared_width": statistics.mean(max(step) for step in zip(*widths, strict=True)),
    }
    if options.memory:
        for name, shared in (("serial", False), ("shared", True)):
            peak, before = in_new_process(memory, options, data, size, shared)
            row |= {f"{name}_peak": peak, f"{name}_added": peak - before}
    return row


def attached(path: str, method: str, count: int) -> Any:
    """The backbone with a prompt for each lane."""
    model = sp.attach(fresh(path))
    for number in range(count):
        model.add_prompt(f"lane{number}", config(method), seed=number)
    return model


def lane_rows(options: Any, size: int) -> list[dict[str, Any]]:
    """Random rows for an epoch of which a lane sees the first steps."""
    chance = random.Random(0)
    rows = []
    for _ in range(size * max(50, options.steps)):
        length = options.tokens + chance.randint(-options.spread, options.spread)
        rows.append({"input_ids": chance.choices(range(1000, 20000), k=length), "label": chance.randrange(2)})
    return rows


def lanes(data: list[list[dict[str, Any]]], size: int, steps: int) -> list[Lane]:
    """New runs of so many steps; the loop takes each `Lane` once."""
    return [
        Lane(f"lane{number}", TrainConfig(max_steps=steps, batch_size=size, seed=number), rows)
        for number, rows in enumerate(data)
    ]


def draws(lane: Lane, steps: int) -> list[list[list[Any]]]:
    """What a lane will see in each step."""
    drawn = []
    for lane.step in range(steps):
        drawn.append(lane.next_batches())
    return drawn


def trained(
    model: Any, data: list[list[dict[str, Any]]], size: int, steps: int, shared: bool
) -> tuple[list[float], int]:
    """Trains all lanes: seconds spent in the steps of each call of the loop, and the peak memory of all."""
    runs = lanes(data, size, steps)
    seconds, peaks = [], []
    for group in [runs] if shared else [[lane] for lane in runs]:
        results = train(model, group, pad_id=PAD, progress=False)
        # Lanes that share a pass are given its time in equal shares.
        seconds.append(sum(lane.step_seconds for lane in group))
        peaks += [result.peak_memory for result in results]
    return seconds, max(peaks)


def memory(options: Any, data: list[list[dict[str, Any]]], size: int, shared: bool) -> tuple[int, int]:
    """In a process of its own: peak resident memory, and what was held before, in bytes."""
    prepare(options.threads)
    model = attached(options.model, options.method, len(data))
    before = psutil.Process().memory_info().rss
    return trained(model, data, size, options.steps, shared)[1], before


if __name__ == "__main__":
    main()
