"""``softprompts train``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table

from softprompts.commands import options
from softprompts.commands.messages import hint_when_interrupted, show_cut_rows, show_workbench
from softprompts.commands.method_settings import method_config
from softprompts.commands.options import METHOD, OUTPUT, option
from softprompts.commands.parsing import pairs
from softprompts.commands.terminal import err, out
from softprompts.errors import SoftPromptError
from softprompts.tasks.data import Data
from softprompts.training.config import TrainConfig


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
    training: Annotated[TrainConfig, options.TRAINING_OPTIONS],
    out_: options.Out = "runs",
    folder: Annotated[str | None, option(OUTPUT, "Run folder in place of the one named by the settings.")] = None,
    resume: Annotated[bool, option(OUTPUT, "Go on with an unfinished run.", "--resume")] = False,
    tracker: options.Tracker = None,
) -> None:
    """Train one prompt and leave a run folder."""
    from softprompts.training.progress import check_trackers

    check_trackers(tracker)
    config = method_config(method, pairs(set_))
    bench = options.open_workbench(model, data, training)
    bench.check(config, training, root=out_, folder=folder, resume=resume)
    if resume and folder is None:
        _say_what_differs(bench.resolved(config, training), out_)
    show_workbench(bench)
    show_cut_rows(bench, [config])
    with hint_when_interrupted("give the same command and --resume to go on"):
        path, result = bench.run(config, training, root=out_, folder=folder, resume=resume, trackers=tracker)
    _show_result(path, result)


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
