"""``softprompts transfer``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from softprompts.commands.messages import tell_run, telling_how_to_go_on
from softprompts.commands.options import (
    BatchSize,
    DataDir,
    Lanes,
    MaxLength,
    MaxValidation,
    Out,
    TrainingOptions,
    grouped,
    report_folder,
)
from softprompts.commands.parsing import listed, whole
from softprompts.commands.terminal import err, out, plain_table


@dataclass(frozen=True, kw_only=True)
class _TrainingOptions(TrainingOptions):
    steps: Annotated[int, typer.Option(min=1, help="Number of updates.")] = 60
    epochs: int = field(init=False, default=1)
    batch_size: BatchSize = 16
    accumulate: int = field(init=False, default=1)
    eval_every: int | None = field(init=False, default=None)
    patience: int | None = field(init=False, default=None)
    seed: int = field(init=False, default=0)  # each of --seeds in its place
    compile_: bool = field(init=False, default=False)


@grouped
def transfer(
    *,
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Run folders, prompt folders or hub ids.")],
    tasks_: Annotated[str, typer.Option("--tasks", help="Target tasks, separated by commas.")] = "reviews",
    shots: Annotated[
        str, typer.Option(help="Numbers of training rows, by commas; 0: the source's prompt and head as they are.")
    ] = "0,16",
    seeds: Annotated[str, typer.Option(help="Of the rows drawn and the training; separated by commas.")] = "0,1,2",
    length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of the tuned prompts; default: as the longest source.")
    ] = None,
    data_dir: DataDir = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Backbone; default: the one that the first source names.")
    ] = None,
    max_validation: MaxValidation = None,
    max_length: MaxLength = 256,
    training: _TrainingOptions,
    lanes: Lanes = None,
    out_: Out = "runs",
    report: Annotated[str | None, typer.Option(help="Folder for the tables; default: <out>/transfer.")] = None,
) -> None:
    """Measure what saved prompts are worth on other tasks: tuned on a few rows, or as they are."""
    from softprompts.experiments.transfer import transfer as measure
    from softprompts.experiments.transfer import write_report
    from softprompts.experiments.workbench import Workbench
    from softprompts.methods.sources import saved_config
    from softprompts.processes import synchronized
    from softprompts.storage.files import require_folder
    from softprompts.tasks.data import Data

    train_config = training.to_config()
    counts = [whole("--shots", part) for part in listed("--shots", shots)]
    numbers = [whole("--seeds", part) for part in listed("--seeds", seeds)]
    targets = [Data(task=name, data_dir=data_dir, max_validation=max_validation) for name in listed("--tasks", tasks_)]
    folder = report_folder(report, out_, "transfer")
    require_folder(folder, "the report")  # before anything trains for minutes
    name = model or str(saved_config(sources[0])["backbone"].get("name") or "")
    with err.status("loading data and model"), synchronized():
        bench = Workbench(name, targets[0], max_length, training.backbone_dropout)
    done = 0
    total = (len(sources) + 1) * len(targets) * len(numbers) * sum(count > 0 for count in counts)

    def tell(source: str, target: str, count: int, result: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        tell_run(done, total, f"{source} to {target} with {count} rows", result["seed"], result)

    with telling_how_to_go_on("the same command goes on from there"):
        found = measure(
            bench,
            sources,
            targets,
            train_config,
            shots=counts,
            seeds=numbers,
            length=length,
            root=out_,
            lanes=lanes,
            on_result=tell,
        )
    if out.quiet:  # the main process writes
        return
    written = write_report(found, folder)
    for count in found.shots:
        table = plain_table(found.title(count))
        table.add_column("source")
        for target in found.targets:
            width = max(len(found.cell(source, target, count)) for source in found.sources)
            table.add_column(target.name, justify="right", min_width=width)
        for line in found.lines(count):
            table.add_row(*line)
        out.print(table)
    out.print(found.note())
    out.print("written: " + ", ".join(map(str, written)), soft_wrap=True)
