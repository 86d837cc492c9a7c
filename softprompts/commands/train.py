"""``softprompts train``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from softprompts.commands import options
from softprompts.commands.messages import hint_when_interrupted, show_cut_rows, show_workbench
from softprompts.commands.method_settings import changed_config, method_config
from softprompts.commands.options import METHOD, OUTPUT, option
from softprompts.commands.parsing import pairs
from softprompts.commands.terminal import err, out
from softprompts.errors import SoftPromptError
from softprompts.tasks.data import Data
from softprompts.training.config import TrainConfig

if TYPE_CHECKING:
    from softprompts.experiments.warm_start import WarmStart


@options.with_options
def train(
    *,
    data: Annotated[Data, options.DATA_OPTIONS],
    model: Annotated[options.ModelSettings, options.MODEL_OPTIONS],
    method: Annotated[
        str, option(METHOD, "See 'softprompts methods'; several in one: ept+multi-mask.", "--method")
    ] = "prefix-tuning",
    set_: options.Set = None,
    from_: Annotated[
        str | None,
        option(METHOD, "Go on from this trained prompt, with its method, settings and model.", "--from"),
    ] = None,
    training: Annotated[TrainConfig, options.TRAINING_OPTIONS],
    out_: options.Out = "runs",
    folder: Annotated[str | None, option(OUTPUT, "Run folder in place of the one named by the settings.")] = None,
    resume: Annotated[bool, option(OUTPUT, "Go on with an unfinished run.", "--resume")] = False,
    tracker: options.Tracker = None,
    context: typer.Context,
) -> None:
    """Train one prompt and leave a run folder."""
    from softprompts.training.progress import check_trackers

    check_trackers(tracker)
    start = None
    if from_ is None:
        config = method_config(method, pairs(set_))
    else:
        start = _start(from_, context)
        model = _model_of(start, model, context)
        config = changed_config(start.method, pairs(set_))
        if options.typed(context, "method") and method != config.method:
            raise SoftPromptError(
                f"--from {from_} is a prompt of {config.method}: --method {method} cannot go on from it"
            )
    bench = options.open_workbench(model, data, training, start)
    bench.check(config, training, root=out_, folder=folder, resume=resume)
    if resume and folder is None:
        _say_what_differs(bench.resolved(config, training), out_)
    show_workbench(bench)
    show_cut_rows(bench, [config])
    with hint_when_interrupted("give the same command and --resume to go on"):
        path, result = bench.run(config, training, root=out_, folder=folder, resume=resume, trackers=tracker)
    _show_result(path, result)


def _start(source: str, context: typer.Context) -> WarmStart:
    """The prompt of --from; refuses to go on without rows, which would be the packaged reviews."""
    from softprompts.experiments.warm_start import WarmStart

    if not options.typed(context, "task", "train"):
        raise SoftPromptError("--from: name the rows to go on with (--data or --task)")
    return WarmStart.read(source)


def _model_of(start: WarmStart, model: options.ModelSettings, context: typer.Context) -> options.ModelSettings:
    """The settings of the model, of which those that were not typed are those of the prompt of --from."""
    given = {
        name: getattr(start, of)
        for name, of in (("name", "model"), ("quantize", "quantize"))
        if not options.typed(context, name)
    }
    return replace(model, **given)


def _say_what_differs(settings: dict[str, Any], root: str) -> None:
    """Says why there is nothing to go on with, where a run of almost the same settings is unfinished."""
    from softprompts.storage import run_folder

    near = run_folder.nearest_unfinished(root, settings)
    if (Path(root) / run_folder.run_id(settings)).is_dir() or near is None:
        return
    path, differ = near
    more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
    err.print(
        f"--resume: no run with these settings in {root}, a new one starts; {path} is unfinished and differs: "
        f"{'; '.join(differ[:3])}{more}",
        soft_wrap=True,
    )


def _show_result(path: Path, result: dict[str, Any]) -> None:
    from softprompts.storage.run_folder import DIVERGED

    if result["message"]:
        err.print(result["message"], soft_wrap=True)
    table = Table("split", *result["metrics"])
    for split in ("metrics", "test_metrics"):
        if result[split]:
            name = "validation" if split == "metrics" else "test"
            cells = ["-" if v is None else f"{v:.4f}" for v in result[split].values()]
            table.add_row(f"{name} ({result['eval_rows' if split == 'metrics' else 'test_rows']:,})", *cells)
    if constant := result.get("constant_scores"):
        cells = [f"{constant[name]:.4f}" if name in constant else "-" for name in result["metrics"]]
        table.add_row("one answer for all rows", *cells)
    out.print(table)
    speed = 100 * result["step_seconds"] / max(1, result["steps"])
    out.print(
        f"best step {result['best_step']} of {result['steps']}; {result['trained_parameters']:,} trained parameters; "
        f"{speed:.1f} s/100 steps; peak memory {result['peak_memory'] / 1e9:.2f} GB",
        highlight=False,
    )
    for sentence in result.get("idle", []):
        out.print(f"idle: {sentence}", soft_wrap=True)
    out.print(f"run folder: {path}", soft_wrap=True)
    out.print(f"try it: softprompts predict {path} {_texts_for(result['task'], result['task_form'])}", soft_wrap=True)
    out.print(f"what it gets wrong: softprompts evaluate {path}", soft_wrap=True)
    if result["stop_reason"] == DIVERGED:
        raise SoftPromptError("the run did not reach its end; a lower learning rate (--lr) may help")


def _texts_for(task: str, form: Mapping[str, Any]) -> str:
    """The arguments of `predict` for a row of a task."""
    from softprompts.tasks.catalog import SPECS

    fields = form["fields"]
    if task in SPECS and SPECS[task].prepare is not None and len(fields) > 2:
        return "--file ROWS.jsonl"  # its fields are made of the columns of such rows
    if len(fields) > 2:
        return " ".join(f'--field {name}="..."' for name in fields)
    return '"..."' + ' --text-pair "..."' * (len(fields) - 1)
