"""Writes docs/performance.md, with a picture for each benchmark, from the JSON files that the benchmarks left.

    python benchmarks/report.py FOLDER [--out docs/performance.md]

FOLDER holds files as --json writes them, one for each benchmark and named as it likes; those that are missing are left
out. Every number of the text comes from these files. Pictures go into a folder beside the text, named like it.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import plots

from softprompts.storage.tables import markdown_table

Rows = list[dict[str, Any]]
Section = Callable[[Rows, dict[str, Any]], str]

INTRODUCTION = """# Performance

What the benchmarks in `benchmarks/` measured. This page is written by `benchmarks/report.py` (`make bench` runs all of
them and writes it anew); each benchmark explains in its first lines what exactly it does. Variants of one benchmark
take turns, in one process or, where whole commands are compared, one after another: ratios say more than seconds.

The line below each table says when it was measured. Defaults that changed after that day (see the changelog and
[how they were chosen](defaults.md)) are not in it.
"""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs" / "performance.md")
    options = arguments.parse_args()
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(options.folder.glob("*.json"))]
    by_name = {data["benchmark"]: data for data in results}
    if not set(by_name) & set(SECTIONS):
        raise SystemExit(f"{options.folder}: no benchmark's JSON file is there")

    pictures = options.out.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    parts = [INTRODUCTION]
    for name, (title, about, section) in SECTIONS.items():
        if name not in by_name:
            continue
        data = by_name[name]
        picture = pictures / f"{name}.png"
        getattr(plots, name)(data, picture)
        parts += [
            f"## {title}\n\n{about}\n\n![{title}]({pictures.name}/{picture.name})\n",
            section(data["rows"], data["options"]),
            f"{signature(data)}\n",
        ]
    options.out.write_text("\n".join(parts), encoding="utf-8")
    print(f"{options.out} written from {', '.join(name for name in SECTIONS if name in by_name)}")


def signature(data: dict[str, Any]) -> str:
    """When, by what, and on what it was measured."""
    here = data["machine"]
    cores = f"{here['cores'] or here['logical_cores']} cores"
    if here["logical_cores"] != here["cores"]:
        cores += f" ({here['logical_cores']} logical)"
    threads = f"{here['threads']} thread{'s' * (here['threads'] != 1)}"
    return (
        f"`{data['command']}`, {data['date']}; {here['processor']}, {cores}, {threads}, "
        f"{here['memory_gb']} GB, {here['system']}; Python {here['python']}, torch {here['torch']}, transformers "
        f"{here['transformers']}, PEFT {here['peft']}, softprompts {here['softprompts']}."
    )


def table(columns: Sequence[str], lines: Iterable[Sequence[str]], words: int = 1) -> str:
    """Markdown; the first ``words`` columns are text, the rest numbers."""
    return markdown_table(columns, lines, "l" * words + "r") + "\n"


def write_between(page: Path, start: str, end: str, text: str) -> None:
    """Writes a text between two marks of a page, in place of what stands there.

    Raises:
        SystemExit: a mark is not in the page.
    """
    before, first, rest = page.read_text(encoding="utf-8").partition(start)
    _, last, after = rest.partition(end)
    if not (first and last):
        raise SystemExit(f"{page} lacks a mark: {start} or {end}")
    page.write_text(f"{before}{start}\n\n{text.strip()}\n\n{end}{after}", encoding="utf-8")


def ms(seconds: float) -> str:
    milliseconds = 1000 * seconds
    return f"{milliseconds:.0f}" if milliseconds >= 10 else f"{milliseconds:.2g}"


# --- one function for each benchmark ------------------------------------------------------------------------------


def time_to_accuracy(rows: Rows, options: dict[str, Any]) -> str:
    parts = []
    for row in rows:
        sides = list(row["one"])
        lines = []
        for what, taken in row["seconds"].items():
            seconds = [f"{statistics.median(taken[side]):.1f}" if side in taken else "-" for side in sides]
            ratios = [f"{row['ratios'][what][side]:.2f}" if side in taken else "-" for side in sides if side != "ours"]
            lines.append((what.replace("all seeds", f"{options['seeds']} seeds"), *seconds, *ratios))
        used = {side: many["runs"][0]["rate"] for side, many in row["many"].items()}
        best = {side: max(scores, key=lambda one: one["mean"])["rate"] for side, scores in row["search"].items()}
        ends = ", ".join(
            f"{side} {100 * accuracy['last']:.1f} % at the end and {100 * accuracy['best']:.1f} % at best"
            for side, accuracy in row["accuracy"].items()
        )
        parts += [
            f"**{row['task']}**: seconds until {100 * row['level']:.1f} % of held-out rows are right (always the "
            f"commonest label: {100 * row['majority']:.1f} %), the most that every run reached; their mean: until "
            f"the mean over seeds is {100 * row['mean_level']:.1f} %.\n",
            table(["", *sides, *(f"{side} / ours" for side in sides if side != "ours")], lines),
            f"Mean over seeds: {ends}. Rates used: ours {used['ours']:g} (the default), PEFT {used['PEFT']:g}; the "
            "search, on other rows and with another seed, scored:\n",
            table(
                ["rate", *row["search"]],
                [
                    (f"{tried[0]['rate']:g}", *(f"{100 * one['mean']:.1f}" for one in tried))
                    for tried in zip(*row["search"].values(), strict=True)
                ],
            ),
            f"Best by it: {', '.join(f'{side} {rate:g}' for side, rate in best.items())}.\n",
        ]
    return "\n".join(parts)


def step(rows: Any, options: dict[str, Any]) -> str:
    return table(
        ["one step of", "ms", "/ inference forward", "quartiles", "/ prefix-tuning"],
        [
            (
                name,
                ms(row["median_seconds"]),
                f"{row['ratio']:.2f}",
                f"{row['ratio_q1']:.2f} to {row['ratio_q3']:.2f}",
                f"{row['to_prefix']:.2f}",
            )
            for name, row in rows.items()
        ],
    )


def lanes(rows: Rows, options: dict[str, Any]) -> str:
    memory = "serial_peak" in rows[0]
    return table(
        ["batch of a lane", "lanes", "ms serial", "ms shared", "serial / shared", *["MB serial", "MB shared"] * memory],
        [
            (
                str(row["batch"]),
                str(row["lanes"]),
                ms(row["serial_seconds"]),
                ms(row["shared_seconds"]),
                f"{row['ratio']:.2f}",
                *(f"{row[f'{how}_peak'] / 1e6:.0f}" for how in ("serial", "shared") if memory),
            )
            for row in rows
        ],
        words=0,
    )


def batching(rows: Rows, options: dict[str, Any]) -> str:
    return table(
        ["task", "batches", "mean width", "real tokens", "ms/step", "s/epoch", "/ bucketed"],
        [
            (
                row["task"],
                row["variant"],
                f"{row['width']:.0f}",
                f"{100 * row['real']:.0f} %",
                ms(row["median_seconds"] / row["batches"]),
                f"{row['median_seconds']:.0f}",
                f"{row['ratio']:.2f}",
            )
            for row in rows
        ],
        words=2,
    )


def mixed(rows: Rows, options: dict[str, Any]) -> str:
    passes = [row for row in rows if "variant" in row]
    counts = list(dict.fromkeys(row["rows"] for row in passes))
    by_variant = {(row["rows"], row["variant"]): row for row in passes}
    names = list(dict.fromkeys(row["variant"] for row in passes))
    speed = table(
        ["", *(f"{what} ({count} rows)" for count in counts for what in ("rows/s", "/ one prompt"))],
        [
            (
                name,
                *(
                    cell
                    for count in counts
                    for row in [by_variant[count, name]]
                    for cell in (f"{row['rows_per_second']:.0f}", f"{row['ratio']:.2f}")
                ),
            )
            for name in names
        ],
    )
    idle = [row for row in rows if "method" in row]
    memory = table(
        ["method", "ms to load", "ms to forget", "kB of files", "kB of tensors", "kB resident"],
        [
            (
                row["method"],
                ms(row["load_seconds"]),
                ms(row["forget_seconds"]),
                *(f"{row[f'{what}_bytes'] / 1e3:.0f}" for what in ("file", "tensor", "resident")),
            )
            for row in idle
        ],
    )
    return f"{speed}\nOne of {idle[0]['idle']} idle prompts, loaded from its files and forgotten again:\n\n{memory}"


def scaling(rows: Rows, options: dict[str, Any]) -> str:
    parts = []
    for sweep in dict.fromkeys(row["sweep"] for row in rows):
        points = [row for row in rows if row["sweep"] == sweep]
        claim = sweep == "ept claim"
        yardstick = "prompt tuning with the longer prompt" if claim else "the inference forward"
        title = "EPT's claim, on real batches" if claim else sweep.capitalize()
        variants = list(dict.fromkeys(row["variant"] for row in points))
        cells = {
            (row["x"], row["variant"]): (
                f"{ms(row['median_seconds'])} ({row['ratio']:.2f}), {row['peak_bytes'] / 1e6:.0f}"
            )
            for row in points
        }
        parts += [
            f"**{title}**: ms (as a ratio to {yardstick}), MB of tensors at the peak\n",
            table(
                ["task" if claim else sweep, *variants],
                [
                    (str(x), *(cells.get((x, name), "-") for name in variants))
                    for x in dict.fromkeys(row["x"] for row in points)
                ],
                words=int(claim),
            ),
        ]
    return "\n".join(parts)


def serving(rows: Rows, options: dict[str, Any]) -> str:
    said = f"{options['prompts']} prompts, {options['requests']:,} requests in each of {options['rounds']} rounds"
    return f"{said}; every answer equal to that of the row alone.\n\n" + table(
        ["", "clients", "requests/s", "/ one by one", "server's CPU ms a request", "p50 ms", "p95 ms"],
        [
            (
                row["variant"],
                str(row["clients"]),
                f"{row['requests_per_second']:.0f}",
                f"{row['ratio']:.2f}",
                *(ms(row[f"{what}_seconds"]) for what in ("cpu", "p50", "p95")),
            )
            for row in rows
        ],
    )


SECTIONS: dict[str, tuple[str, str, Callable[[Any, dict[str, Any]], str]]] = {
    "time_to_accuracy": (
        "Time to the same accuracy",
        "Whole commands: this library at its defaults beside PEFT's prefix tuning under HF Trainer, with the same "
        "backbone, rows, batch size, steps and evaluations, from the start of the process on. Seeds of ours share the "
        "passes of one command; PEFT's follow each other in one process, each stopped when it is there. Trainer's "
        '"grouped" batches are rows of similar length.',
        time_to_accuracy,
    ),
    "step": (
        "One training step",
        "Forward, backward and update on the same batch, as a ratio to the bare backbone's inference forward. What "
        "trains anything below the first layer needs at least a forward and a backward through activations. It can "
        "take less than twice the forward all the same: a classifier's last layer is computed at the position that is "
        "read, and on AMD processors with AVX-512 frozen layers run through oneDNN instead of MKL "
        "(`SOFTPROMPTS_ONEDNN=0` switches that off).",
        step,
    ),
    "lanes": (
        "Runs in shared passes",
        "Several runs on one backbone, each with rows, prompt and optimizer of its own: all in shared passes (lanes) "
        "beside one after another. Times are for one step of every run.",
        lanes,
    ),
    "batching": (
        "Batches of rows of similar length",
        "An epoch of prefix tuning on real texts with batches by length, with random batches padded to their longest "
        "row, and with every row padded to the limit.",
        batching,
    ),
    "mixed": (
        "Many prompts in one batch",
        "Inference where every row may have another prompt, beside a batch with one prompt for all rows, and beside "
        'one small batch for each prompt, which is what PEFT needs. "Sorted" is two passes, one of them for the rows '
        "with input prompts.",
        mixed,
    ),
    "serving": (
        "Serving",
        "`softprompts serve` asked by many clients at once, beside one client that asks one thing at a time; "
        "prompts of five methods on four tasks, one row a request, client and server on the same cores.",
        serving,
    ),
    "scaling": (
        "What grows with what",
        "A training step while one thing grows. Memory counts the tensors that the step itself allocates, exactly.",
        scaling,
    ),
}


if __name__ == "__main__":
    main()
