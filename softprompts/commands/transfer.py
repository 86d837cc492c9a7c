"""``softprompts transfer``."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Annotated, Any

from softprompts.commands import options
from softprompts.commands.messages import hint_when_interrupted, run_counter
from softprompts.commands.options import DATA, METHOD, MODEL, option
from softprompts.commands.parsing import listed, whole_numbers
from softprompts.commands.terminal import number_table, out
from softprompts.tasks.data import MAX_LENGTH, Data
from softprompts.training.config import TrainConfig

_DATA_OPTIONS = options.Options(
    Data, panel=DATA, without=tuple({each.name for each in fields(Data)} - {"data_dir", "max_validation"})
)
_TRAINING_OPTIONS = replace(
    options.TRAINING_OPTIONS.drop("epochs", "gradient_accumulation_steps", "eval_every", "patience", "seed"),
    # The steps count, but ids of runs are made of the epochs too.
    defaults={**options.TRAINING_OPTIONS.defaults, "max_steps": 60, "epochs": 1, "batch_size": 16},
    helps={**options.TRAINING_OPTIONS.helps, "max_steps": "Number of updates."},
)


@options.with_imports
@options.with_options
def transfer(
    *,
    sources: options.Sources,
    tasks_: Annotated[str, option(DATA, "Target tasks, separated by commas.", "--tasks")] = "reviews",
    shots: Annotated[
        str, option(DATA, "Numbers of training rows, by commas; 0: the source's prompt and head as they are.")
    ] = "0,16",
    data: Annotated[Data, _DATA_OPTIONS],
    model: Annotated[
        str | None, option(MODEL, "Backbone; default: the one that the first source names.", "--model -m")
    ] = None,
    max_length: Annotated[int, option(MODEL, "Most tokens of an input, the prompt not counted.", min=4)] = MAX_LENGTH,
    length: Annotated[
        int | None, option(METHOD, "Tokens of the tuned prompts; default: as the longest source.", min=1)
    ] = None,
    training: Annotated[TrainConfig, _TRAINING_OPTIONS],
    seeds: options.Seeds = "0,1,2",
    lanes: options.Lanes = None,
    out_: options.Out = "runs",
    report: options.Report = None,
) -> None:
    """Measure what saved prompts are worth on other tasks: tuned on a few rows, or as they are."""
    from softprompts.experiments.transfer import transfer as run_transfer
    from softprompts.experiments.transfer import write_report
    from softprompts.methods.sources import saved_config

    counts = whole_numbers("--shots", shots)
    numbers = whole_numbers("--seeds", seeds)
    targets = [replace(data, task=name) for name in listed("--tasks", tasks_)]
    folder = options.report_folder(report, out_, "transfer")
    backbone = model or str(saved_config(sources[0])["backbone"].get("name") or "")
    bench = options.open_workbench(options.ModelSettings(name=backbone, max_length=max_length), targets[0], training)
    show_run = run_counter((len(sources) + 1) * len(targets) * len(numbers) * sum(count > 0 for count in counts))

    def end(source: str, target: str, count: int, result: dict[str, Any]) -> None:
        show_run(f"{source} to {target} with {count} rows", result)

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
    columns = ["source", *(target.name for target in matrices.targets)]
    for count in matrices.shots:
        out.print(number_table(columns, matrices.lines(count), ["source"], matrices.title(count)))
    out.print(matrices.note())
    out.print("written: " + ", ".join(map(str, written)), soft_wrap=True)
