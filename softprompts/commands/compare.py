"""``softprompts compare``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from softprompts.commands import options
from softprompts.commands.messages import hint_when_interrupted, run_counter, show_cut_rows, show_doubts, show_workbench
from softprompts.commands.method_settings import method_configs
from softprompts.commands.options import OUTPUT, option
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
    latex: Annotated[
        bool, option(OUTPUT, "Also the table as LaTeX, with what is told apart by paired tests over seeds.", "--latex")
    ] = False,
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
        show_doubts(bench, configs, training)
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
    show_comparison(comparison, folder, latex)


def show_comparison(comparison: Comparison, folder: Path, latex: bool = False) -> None:
    """Prints a comparison's table, and writes table and plot into a folder; with ``latex`` table.tex too."""
    from softprompts.experiments.compare import write_report

    if out.quiet:  # the main process writes
        return
    best = comparison.rows.index(comparison.best) if comparison.best is not None else None
    columns, title = comparison.columns, f"{comparison.model} on {comparison.task}"
    table = number_table(columns, comparison.lines, columns[:1], title, best)
    written = write_report(comparison, folder)
    out.print(table)
    out.print(comparison.note())
    for line in comparison.idle():
        out.print(line, soft_wrap=True)
    pictured = len(written) == 3
    if latex:
        from softprompts.bench.comparison_table import differences_in_words, write_latex

        for line in differences_in_words(comparison):
            out.print(line, soft_wrap=True)
        written.append(write_latex(comparison, folder / "table.tex"))
    out.print("runs, seed by seed:")
    for line in comparison.where():
        out.print(f"  {line}", soft_wrap=True)
    out.print("written: " + ", ".join(str(path) for path in written), soft_wrap=True)
    if not pictured and comparison.best is not None:
        out.print("no picture: pip install matplotlib")
