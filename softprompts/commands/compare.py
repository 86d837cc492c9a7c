"""``softprompts compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from softprompts.commands import options
from softprompts.commands.messages import hint_when_interrupted, run_counter, show_cut_rows, show_workbench
from softprompts.commands.method_settings import method_configs
from softprompts.commands.parsing import listed, pairs, whole_numbers
from softprompts.commands.terminal import number_table, out
from softprompts.tasks.data import Data
from softprompts.training.config import TrainConfig

if TYPE_CHECKING:
    from softprompts.experiments.compare import Comparison


@options.with_imports
@options.with_options
def compare(
    *,
    data: Annotated[Data, options.DATA_OPTIONS],
    model: Annotated[options.ModelSettings, options.MODEL_OPTIONS],
    methods_: options.Methods = "head-only,prompt-tuning,superpos,prefix-tuning,multi-mask,selective-prefix",
    set_: options.Set = None,
    training: Annotated[TrainConfig, options.TRAINING_OPTIONS.drop("seed")],
    seeds: options.Seeds = "0,1,2",
    lanes: options.Lanes = None,
    out_: options.Out = "runs",
    report: options.Report = None,
    tracker: options.Tracker = None,
) -> None:
    """Train several methods with several seeds; end in a table. Finished runs are not done again."""
    from softprompts.experiments.compare import compare as run_all
    from softprompts.training.progress import check_trackers

    check_trackers(tracker)
    configs = list(method_configs(listed("--methods", methods_), pairs(set_)).values())
    numbers = whole_numbers("--seeds", seeds)
    folder = options.report_folder(report, out_, "compare")
    bench = options.open_workbench(model, data, training)

    def start() -> None:
        show_workbench(bench)
        show_cut_rows(bench, configs)

    with hint_when_interrupted():
        comparison = run_all(
            bench,
            [(config, training) for config in configs],
            numbers,
            root=out_,
            lanes=lanes,
            trackers=tracker,
            on_start=start,
            on_result=run_counter(len(configs) * len(numbers)),
        )
    show_comparison(comparison, folder)


def show_comparison(comparison: Comparison, folder: Path) -> None:
    """Prints a comparison's table, and writes table and plot into a folder."""
    from softprompts.experiments.compare import COLUMNS, write_report

    if out.quiet:  # the main process writes
        return
    best = comparison.rows.index(comparison.best) if comparison.best is not None else None
    rows = [comparison.cells(row) for row in comparison.rows]
    table = number_table(COLUMNS, rows, COLUMNS[:1], f"{comparison.model} on {comparison.task}", best)
    written = write_report(comparison, folder)
    out.print(table)
    out.print(comparison.note())
    for line in comparison.idle():
        out.print(line, soft_wrap=True)
    out.print("written: " + ", ".join(str(path) for path in written), soft_wrap=True)
    if len(written) < 3 and comparison.best is not None:
        out.print("no picture: pip install matplotlib")
