"""``softprompts compare``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softprompts.commands.messages import (
    describe,
    tell_cut,
    tell_run,
    telling_how_to_go_on,
)
from softprompts.commands.method_settings import method_config, settings_of
from softprompts.commands.options import (
    Lanes,
    Out,
    Tracker,
    TrainingOptions,
    WorkbenchOptions,
    grouped,
    report_folder,
)
from softprompts.commands.parsing import listed, pairs, whole
from softprompts.commands.terminal import out, plain_table

if TYPE_CHECKING:
    from softprompts.experiments.compare import Comparison


@dataclass(frozen=True, kw_only=True)
class _TrainingOptions(TrainingOptions):
    seed: int = field(init=False, default=0)  # each of --seeds in its place


@grouped
def compare(
    *,
    methods_: Annotated[str, typer.Option("--methods", help="Names, separated by commas.")] = (
        "head-only,prompt-tuning,superpos,prefix-tuning,multi-mask,selective-prefix"
    ),
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of all methods that have it, or of one: multi-mask.num_masks=2."),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Separated by commas.")] = "0,1,2",
    source: WorkbenchOptions,
    training: _TrainingOptions,
    lanes: Lanes = None,
    out_: Out = "runs",
    report: Annotated[str | None, typer.Option(help="Folder for table and plot; default: <out>/compare.")] = None,
    tracker: Tracker = None,
) -> None:
    """Train several methods with several seeds; end in a table. Finished runs are not done again."""
    from softprompts.experiments.compare import compare as run_all
    from softprompts.storage.files import require_folder
    from softprompts.training.progress import check_trackers

    check_trackers(tracker)
    names = listed("--methods", methods_)
    settings = pairs(set_)
    configs = [method_config(name, settings_of(name, settings, names)) for name in names]
    train_config = training.to_config()
    numbers = [whole("--seeds", part) for part in listed("--seeds", seeds)]
    folder = report_folder(report, out_, "compare")
    require_folder(folder, "the report")  # before anything trains for minutes
    bench = source.to_workbench(training.backbone_dropout)
    total, count = len(configs) * len(numbers), 0

    def start() -> None:
        describe(bench)
        tell_cut(bench, configs)

    def tell(config: Any, number: int, result: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        tell_run(count, total, config.method, number, result)

    with telling_how_to_go_on("the same command goes on from there"):
        comparison = run_all(
            bench,
            [(config, train_config) for config in configs],
            numbers,
            root=out_,
            lanes=lanes,
            trackers=tracker,
            on_start=start,
            on_result=tell,
        )
    show_comparison(comparison, folder)


def show_comparison(comparison: Comparison, folder: Path) -> None:
    """Prints a comparison's table, and writes table and plot into a folder."""
    from softprompts.experiments.compare import COLUMNS, write_report

    if out.quiet:  # the main process writes
        return
    table = plain_table(f"{comparison.model} on {comparison.task}")
    rows = [comparison.cells(row) for row in comparison.rows]
    for index, name in enumerate(COLUMNS):
        # In a narrow terminal headers may wrap, numbers may not.
        width = max(len(cells[index]) for cells in rows)
        table.add_column(name, justify="left" if index == 0 else "right", min_width=width)
    for row, cells in zip(comparison.rows, rows, strict=True):
        table.add_row(*cells, style="bold" if row is comparison.best else None)
    written = write_report(comparison, folder)
    out.print(table)
    out.print(comparison.note())
    out.print("written: " + ", ".join(str(path) for path in written), soft_wrap=True)
    if len(written) < 3 and comparison.best is not None:
        out.print("no picture: pip install matplotlib")
