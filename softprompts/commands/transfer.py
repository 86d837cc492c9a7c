"""``softprompts transfer``."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Annotated, Any

import typer

from softprompts.commands.messages import hint_when_interrupted, run_counter
from softprompts.commands.options import (
    DATA,
    METHOD,
    MODEL,
    OUTPUT,
    TRAINING_OPTIONS,
    Lanes,
    MaxLength,
    Options,
    Out,
    Seeds,
    open_workbench,
    report_folder,
    with_options,
)
from softprompts.commands.parsing import listed, whole_numbers
from softprompts.commands.terminal import out, plain_table
from softprompts.tasks.data import MAX_LENGTH, Data
from softprompts.training.config import TrainConfig

_DATA_OPTIONS = Options(
    Data, panel=DATA, without=tuple({each.name for each in fields(Data)} - {"data_dir", "max_validation"})
)
_TRAINING_OPTIONS = replace(
    TRAINING_OPTIONS,
    without=(*TRAINING_OPTIONS.without, "epochs", "gradient_accumulation_steps", "eval_every", "patience", "seed"),
    # The steps count, but ids of runs are made of the epochs too.
    defaults={**TRAINING_OPTIONS.defaults, "max_steps": 60, "epochs": 1, "batch_size": 16},
)


@with_options
def transfer(
    *,
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Run folders, prompt folders or hub ids.")],
    tasks_: Annotated[
        str, typer.Option("--tasks", help="Target tasks, separated by commas.", rich_help_panel=DATA)
    ] = "reviews",
    shots: Annotated[
        str,
        typer.Option(
            help="Numbers of training rows, by commas; 0: the source's prompt and head as they are.",
            rich_help_panel=DATA,
        ),
    ] = "0,16",
    data: Annotated[Data, _DATA_OPTIONS],
    length: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens of the tuned prompts; default: as the longest source.", rich_help_panel=METHOD
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="Backbone; default: the one that the first source names.", rich_help_panel=MODEL
        ),
    ] = None,
    max_length: MaxLength = MAX_LENGTH,
    training: Annotated[TrainConfig, _TRAINING_OPTIONS],
    seeds: Seeds = "0,1,2",
    lanes: Lanes = None,
    out_: Out = "runs",
    report: Annotated[
        str | None, typer.Option(help="Folder for the tables; default: <out>/transfer.", rich_help_panel=OUTPUT)
    ] = None,
) -> None:
    """Measure what saved prompts are worth on other tasks: tuned on a few rows, or as they are."""
    from softprompts.experiments.transfer import transfer as run_transfer
    from softprompts.experiments.transfer import write_report
    from softprompts.methods.sources import described

    counts = whole_numbers("--shots", shots)
    numbers = whole_numbers("--seeds", seeds)
    targets = [replace(data, task=name) for name in listed("--tasks", tasks_)]
    folder = report_folder(report, out_, "transfer")
    backbone = model or str(described(sources[0])["backbone"].get("name") or "")
    bench = open_workbench(backbone, targets[0], max_length, training)
    show_run = run_counter((len(sources) + 1) * len(targets) * len(numbers) * sum(count > 0 for count in counts))

    def end(source: str, target: str, count: int, result: dict[str, Any]) -> None:
        show_run(f"{source} to {target} with {count} rows", result["seed"], result)

    with hint_when_interrupted():
        matrices = run_transfer(
            bench,
            sources,
            targets,
            training,
            shots=counts,
            seeds=numbers,
            length=length,
            root=out_,
            lanes=lanes,
            on_result=end,
        )
    if out.quiet:  # the main process writes
        return
    written = write_report(matrices, folder)
    for count in matrices.shots:
        table = plain_table(matrices.title(count))
        table.add_column("source")
        for target in matrices.targets:
            width = max(len(matrices.cell(source, target, count)) for source in matrices.sources)
            table.add_column(target.name, justify="right", min_width=width)
        for line in matrices.lines(count):
            table.add_row(*line)
        out.print(table)
    out.print(matrices.note())
    out.print("written: " + ", ".join(map(str, written)), soft_wrap=True)
