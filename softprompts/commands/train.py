"""``softprompts train``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from softprompts.commands.messages import describe, tell_cut, telling_how_to_go_on
from softprompts.commands.method_settings import method_config
from softprompts.commands.options import (
    Out,
    Tracker,
    TrainingOptions,
    WorkbenchOptions,
    grouped,
)
from softprompts.commands.parsing import pairs
from softprompts.commands.terminal import err, out
from softprompts.errors import SoftPromptError


@grouped
def train(
    *,
    method: Annotated[
        str, typer.Option("--method", help="See 'softprompts methods'; several in one: ept+multi-mask.")
    ] = "prefix-tuning",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the method: num_masks=4; of one of several: multi-mask.num_masks=4."),
    ] = None,
    source: WorkbenchOptions,
    training: TrainingOptions,
    out_: Out = "runs",
    folder: Annotated[str | None, typer.Option(help="Run folder in place of the one named by the settings.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run.")] = False,
    tracker: Tracker = None,
) -> None:
    """Train one prompt and leave a run folder."""
    from softprompts.training.progress import check_trackers

    check_trackers(tracker)
    config = method_config(method, pairs(set_))
    train_config = training.to_config()
    bench = source.to_workbench(training.backbone_dropout)
    bench.check(config, train_config, root=out_, folder=folder, resume=resume)
    describe(bench)
    tell_cut(bench, [config])
    with telling_how_to_go_on("give the same command and --resume to go on"):
        path, result = bench.run(config, train_config, root=out_, folder=folder, resume=resume, trackers=tracker)
    _report_run(path, result)


def _report_run(path: Path, result: dict[str, Any]) -> None:
    from softprompts.storage.run_folder import DIVERGED

    if result["message"]:
        err.print(result["message"], soft_wrap=True)
    table = Table("split", *result["metrics"])
    for split in ("metrics", "test_metrics"):
        if result[split]:
            name = "validation" if split == "metrics" else "test"
            cells = ["-" if v is None else f"{v:.4f}" for v in result[split].values()]
            table.add_row(f"{name} ({result['eval_rows' if split == 'metrics' else 'test_rows']:,})", *cells)
    out.print(table)
    speed = 100 * result["step_seconds"] / max(1, result["steps"])
    out.print(
        f"best step {result['best_step']} of {result['steps']}; {result['trained_parameters']:,} trained parameters; "
        f"{speed:.1f} s/100 steps; peak memory {result['peak_memory'] / 1e9:.2f} GB",
        highlight=False,
    )
    out.print(f"run folder: {path}", soft_wrap=True)
    out.print(f"try it: softprompts predict {path} {_texts_for(result['task'], result['task_form'])}", soft_wrap=True)
    if result["stop_reason"] == DIVERGED:
        raise SoftPromptError("the run did not reach its end; a lower learning rate (--lr) may help")


def _texts_for(task: str, form: Mapping[str, Any]) -> str:
    """How `predict` is given what a task reads."""
    from softprompts.tasks.catalog import SPECS

    fields = form["fields"]
    if task in SPECS and SPECS[task].prepare is not None and len(fields) > 2:
        return "--file ROWS.jsonl"  # its fields are made of the columns of such rows
    if len(fields) > 2:
        return " ".join(f'--field {name}="..."' for name in fields)
    return '"..."' + ' --text-pair "..."' * (len(fields) - 1)
