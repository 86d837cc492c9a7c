"""``softprompts train``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from softprompts.commands import options
from softprompts.commands.evaluate import show_summary, write_report
from softprompts.commands.messages import (
    hint_when_interrupted,
    show_cut_rows,
    show_doubts,
    show_exports,
    show_workbench,
)
from softprompts.commands.method_settings import changed_config, method_config
from softprompts.commands.options import METHOD, OUTPUT, option
from softprompts.commands.parsing import pairs
from softprompts.commands.run_file import RunFile
from softprompts.commands.terminal import err, out
from softprompts.errors import SoftPromptError
from softprompts.storage.run_folder import load_result
from softprompts.storage.runs import check_free, check_name, located
from softprompts.tasks.data import Data
from softprompts.training.config import TrainConfig
from softprompts.training.result import LateInterrupt

if TYPE_CHECKING:
    from softprompts.experiments.run_record import Run
    from softprompts.experiments.warm_start import WarmStart
    from softprompts.experiments.workbench import Workbench
    from softprompts.methods.contract import MethodConfig


@options.with_imports
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
    config: Annotated[RunFile | None, options.CONFIG] = None,
    out_: options.Out = "runs",
    run_name: Annotated[
        str | None,
        option(
            OUTPUT, "Of the run's folder in --out, and of its prompt; other verbs take it. Default: an id.", "--name"
        ),
    ] = None,
    folder: Annotated[str | None, option(OUTPUT, "Run folder in place of one in --out.")] = None,
    resume: Annotated[bool, option(OUTPUT, "Go on with an unfinished run.", "--resume")] = False,
    dry_run: Annotated[
        bool, option(OUTPUT, "Only say what the run would take, by some steps; nothing is kept of them.", "--dry-run")
    ] = False,
    no_report: Annotated[
        bool, option(OUTPUT, "Leave out the report of what the prompt gets right and wrong.", "--no-report")
    ] = False,
    tracker: options.Tracker = None,
    context: typer.Context,
) -> None:
    """Train one prompt and leave a run folder."""
    from softprompts.experiments.run_record import Run
    from softprompts.training.lane import checkpoint_step
    from softprompts.training.progress import check_trackers

    check_trackers(tracker)
    if run_name is not None:
        folder = _named_folder(out_, run_name, folder, resume)
    start, from_ = None, from_ or (None if config is None else config.start)
    if from_ is None:
        method_settings = method_config(method, pairs(set_), _stored_method(config, method))
    else:
        if config is None and not options.typed(context, "task", "train"):
            raise SoftPromptError("--from: name the rows to go on with (--data or --task)")  # not the packaged reviews
        start = _start(from_)
        if options.typed(context, "method") and method != start.method.method:
            raise SoftPromptError(
                f"--from {from_} is a prompt of {start.method.method}: --method {method} cannot go on from it"
            )
        model = _model_of(start, model, context)
        method_settings = changed_config(_stored_method(config, start.method.method) or start.method, pairs(set_))
    bench = options.open_workbench(model, data, training, config is None or config.evaluate, start)
    bench.check(method_settings, training, root=out_, folder=folder, resume=resume)
    show_workbench(bench)
    show_exports(bench, method_settings)
    show_doubts(bench, [method_settings], training)
    show_cut_rows(bench, [method_settings])
    run = Run(method_settings, training)
    path = Path(folder) if folder is not None else bench.folder_of(run, out_)
    if dry_run:
        _show_estimate(bench, run, path)
        return
    if resume:
        err.print(f"{path} goes on from step {checkpoint_step(path)}", soft_wrap=True)
    report = not no_report and not out.quiet  # the main process writes
    with hint_when_interrupted("give the same command and --resume to go on"):
        try:
            _, result = bench.run(
                method_settings, training, root=out_, folder=folder, name=run_name, resume=resume, trackers=tracker
            )
        except LateInterrupt:
            _show_result(bench, path, load_result(path), report=False)
            raise
    _show_result(bench, path, result, report)


def _start(source: str) -> WarmStart:
    """The prompt of --from, a run's name, a folder or a hub id."""
    from softprompts.experiments.warm_start import WarmStart

    return WarmStart.read(source)


def _model_of(start: WarmStart, model: options.ModelSettings, context: typer.Context) -> options.ModelSettings:
    """The settings of the model, of which those that were not typed are those of the prompt of --from."""
    given = {
        name: getattr(start, of)
        for name, of in (("name", "model"), ("quantize", "quantize"))
        if not options.typed(context, name)
    }
    return replace(model, **given)


def _show_result(bench: Workbench, path: Path, result: dict[str, Any], report: bool) -> None:
    """Prints what came out of a run; with ``report``, what its prompt gets right and wrong, and writes that down."""
    from softprompts.experiments.run_record import no_better_than_one_answer

    _show_scores(result)
    reported = report and _report(bench, path)
    balance = bench.task.balance("test" if bench.task.test else "validation")
    says = no_better_than_one_answer(result, max(balance, key=lambda name: balance[name], default=""))
    _show_run(path, result, says, hint=not reported)


def _report(bench: Workbench, path: Path) -> bool:
    """Prints in short what the prompt gets right and wrong, and writes it into the run folder; whether it could."""
    from softprompts.experiments.run_errors import run_errors

    errors, (_, rows_of) = run_errors(bench, path), bench.task.scored_rows()
    if errors is None:
        return False
    show_summary(errors, rows_of)
    out.print(f"report: {write_report(path, errors, path.name, rows_of)}", soft_wrap=True)
    return True


def _show_estimate(bench: Workbench, run: Run, folder: str | Path) -> None:
    """Prints what a run is going to take, measured here."""
    from softprompts.experiments.run_estimate import estimate_run
    from softprompts.training.progress import duration

    _, trained = bench.outline(run.method, run.training)
    with err.status("measuring some steps"):
        found = estimate_run(bench, run)
    total = trained + sum(parameter.numel() for parameter in bench.model.parameters())
    out.print(f"trained: {trained:,} numbers, {100 * trained / total:.3f} % of all", highlight=False)
    out.print(f"steps: {found.steps:,} of {_rows_of_step(run)} rows; {found.evaluations:,} evaluations")
    times = f"{found.step_seconds:.2g} s a step, {found.evaluation_seconds:.2g} s an evaluation"
    out.print(
        f"time: about {duration(found.seconds)} ({times}; by {found.measured} steps on this machine)", soft_wrap=True
    )
    out.print(f"memory: about {found.peak_memory / 1e9:.2f} GB at the peak, the model included", soft_wrap=True)
    out.print(f"nothing is written; the run would go to {folder}", soft_wrap=True)


def _rows_of_step(run: Run) -> int:
    return run.training.batch_size * run.training.gradient_accumulation_steps


def _stored_method(file: RunFile | None, method: str) -> MethodConfig | None:
    """The method's config in a file of settings; says where that is of another method, whose settings are left out."""
    if file is None or file.method is None:
        return None
    if file.method != method:
        err.print(f"--method {method}: the settings of {file.method} in {file.path} are left out", soft_wrap=True)
        return None
    return file.method_config()


def _named_folder(root: str, name: str, folder: str | None, resume: bool) -> str:
    """The folder of a run of this name; raises a `SoftPromptError` where it cannot have the name."""
    if folder is not None:
        raise SoftPromptError("--name names a folder in --out: leave --folder out")
    check_name(name)
    check_free(Path(root) / name, resume)
    return str(Path(root) / name)


def _show_scores(result: dict[str, Any]) -> None:
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
    _show_decision(result)


def _show_run(path: Path, result: dict[str, Any], says: str, hint: bool) -> None:
    """Prints what the run took and where it is, and a sentence on it; with ``hint``, how to look at what is wrong."""
    from softprompts.storage.run_folder import DIVERGED

    speed = 100 * result["step_seconds"] / max(1, result["steps"])
    out.print(
        f"best step {result['best_step']} of {result['steps']}; {result['trained_parameters']:,} trained parameters; "
        f"{speed:.1f} s/100 steps; peak memory {result['peak_memory'] / 1e9:.2f} GB",
        highlight=False,
    )
    for sentence in result.get("idle", []):
        out.print(f"idle: {sentence}", soft_wrap=True)
    out.print(f"run folder: {path}", soft_wrap=True)
    run = path.name if located(path.name) == path else path
    out.print(f"try it: softprompts predict {run} {_texts_for(result['task'], result['task_form'])}", soft_wrap=True)
    if hint:
        out.print(f"what it gets wrong: softprompts evaluate {run}", soft_wrap=True)
    if says:
        out.print(says, soft_wrap=True)
    if result["stop_reason"] == DIVERGED:
        raise SoftPromptError("the run did not reach its end; a lower learning rate (--lr) may help")


def _show_decision(result: dict[str, Any]) -> None:
    """Says which temperature and thresholds a run was left with, and how rows come out that did not choose them."""
    decision = result.get("decision") or {}
    lines = []
    if decision.get("calibrate"):
        lines.append(f"temperature {decision['temperature']:.3f}")
    if thresholds := decision.get("thresholds"):
        labels = result["task_form"]["labels"]
        named = zip(labels if len(thresholds) > 1 else labels[1:], thresholds, strict=True)
        lines.append("threshold " + ", ".join(f"{name} {value:.3f}" for name, value in named))
    if lines:
        out.print("; ".join(lines), soft_wrap=True, highlight=False)
    for split in ("validation", "test"):
        if said := decision.get(split):
            numbers = ", ".join(f"{name} {value:.4f}" for name, value in said["metrics"].items())
            error = said["calibration_error"]
            if decision["calibrate"]:
                numbers += f"; calibration error {error['before']:.4f} before, {error['after']:.4f} after"
            rows = "validation, each row by what the others chose" if split == "validation" else "test"
            out.print(f"{rows}: {numbers}", soft_wrap=True, highlight=False)


def _texts_for(task: str, form: Mapping[str, Any]) -> str:
    """The arguments of `predict` for a row of a task."""
    from softprompts.tasks.catalog import SPECS

    fields = form["fields"]
    if task in SPECS and SPECS[task].prepare is not None and len(fields) > 2:
        return "--file ROWS.jsonl"  # its fields are made of the columns of such rows
    if len(fields) > 2:
        return " ".join(f'--field {name}="..."' for name in fields)
    return '"..."' + ' --text-pair "..."' * (len(fields) - 1)
