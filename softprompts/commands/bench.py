"""``softprompts bench`` and its verbs."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column, Table

from softprompts.commands.messages import hint_when_interrupted
from softprompts.commands.options import with_imports
from softprompts.commands.parsing import whole_numbers
from softprompts.commands.terminal import err, number_table, out, plain_table
from softprompts.errors import SoftPromptError

bench = typer.Typer(help="Run the grid of a paper's table or figure, and read what came of it.")

Name = Annotated[str, typer.Argument(metavar="RECIPE", help="One of 'softprompts bench list', or a YAML file.")]
Scale = Annotated[
    str | None,
    typer.Option(
        help="tiny or small (the packaged encoder, minutes), gpu (the paper's models, some of its tasks and seeds), or "
        "paper (as the paper has it)."
    ),
]
Out = Annotated[str, typer.Option("--out", "-o", help="Where run folders go; tables go to bench/ in it.")]
Report = Annotated[
    str | None, typer.Option(help="Folder for tables and report; default: <out>/bench/<recipe>-<scale>.")
]
QUIET = 30  # seconds between two lines of progress where the output is no terminal


@bench.command("list")
def list_recipes() -> None:
    """List the recipes: tables and figures of the papers, and how many runs they are at each scale."""
    from softprompts.bench.recipe import SCALES
    from softprompts.bench.recipe_file import load_recipe, recipe_names

    table = Table(Column("recipe", no_wrap=True), "what it is", box=box.SIMPLE_HEAD)
    for scale in SCALES:
        table.add_column(f"{scale} runs", justify="right")
    for name in recipe_names():
        title, counts = "", []
        for scale in SCALES:
            try:
                recipe = load_recipe(name, scale)
            except SoftPromptError:
                counts.append("-")
            else:
                title = title or recipe.title
                counts.append(f"{recipe.runs:,}")
        table.add_row(name, title, *counts)
    out.print(table)
    out.print("Run one: softprompts bench run RECIPE --scale tiny")


@bench.command()
@with_imports
def run(
    recipe: Name,
    scale: Scale = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder with a local copy of the tasks' data.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Another backbone for all rows.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Other seeds, separated by commas.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Another value of the recipe: training.max_steps=50, max_length=128."),
    ] = None,
    engine: Annotated[str, typer.Option(help="local, or ray (a cluster's address in RAY_ADDRESS).")] = "local",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes; default: one for each GPU, or else core.")
    ] = None,
    lanes: Annotated[
        int | None, typer.Option(min=1, help="Runs that share each pass of the model; default: 8.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="GPUs (processes) that train a run together.")] = 1,
    out_: Out = "runs",
    report: Report = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how many runs, steps and hours it takes, by steps measured here.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print what --dry-run finds as JSON.")] = False,
) -> None:
    """Train what has no result yet, then write tables and report. The same command goes on after an interruption."""
    from softprompts.bench.recipe_file import load_recipe
    from softprompts.bench.runner import bench_folder, check_engine, run_recipe

    if json_ and not dry_run:
        raise SoftPromptError("--json goes with --dry-run")
    changes = _changes(set_, model, seeds)
    wanted = load_recipe(recipe, scale, changes)
    if dry_run:
        check_engine(engine, processes)
        _show_estimate(wanted, out_, data_dir, lanes, as_json=json_)
        return
    folder = Path(report) if report is not None else bench_folder(out_, wanted.name, wanted.scale, wanted.variant)
    display = _ProgressDisplay(wanted.title + (f" ({wanted.scale})" if wanted.scale else ""))
    with hint_when_interrupted(), display:
        state = run_recipe(
            wanted,
            root=out_,
            folder=folder,
            data_dir=data_dir,
            engine=engine,
            workers=workers,
            lanes=lanes,
            processes=processes,
            on_start=display.show_total,
            on_change=display.show_ended,
        )
    # Where all have failed there is nothing to write, and why they have is what matters.
    with contextlib.suppress(SoftPromptError) if state.failed else contextlib.nullcontext():
        _write(folder, out_)
    if state.failed:
        run_, why = next(iter(state.failed.items()))
        waiting = f" ({state.waiting} more start from them)" if state.waiting else ""
        raise SoftPromptError(
            f"{len(state.failed)} of {state.total} runs failed{waiting}, the first one ({run_}): {why}; "
            f"see {folder / 'failures'} "
            "and give the same command to try them again"
        )


@bench.command()
@with_imports
def show(
    recipe: Name,
    scale: Scale = None,
    data_dir: Annotated[str | None, typer.Option(help="Folder with a local copy of the tasks' data.")] = None,
    out_: Out = "runs",
) -> None:
    """Show what a recipe is: its rows, tasks and data, runs, and hours as far as results tell. Nothing is trained."""
    from softprompts.bench.overview import overview
    from softprompts.bench.recipe_file import load_recipe

    wanted = load_recipe(recipe, scale)
    with err.status("looking at the data"):
        found = overview(wanted, out_, data_dir)
    facts = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 2))
    facts.add_row("recipe", f"{wanted.name}{f', scale {wanted.scale}' if wanted.scale else ''}: {wanted.title}")
    if wanted.about:
        facts.add_row("about", wanted.about)
    facts.add_row("models", ", ".join(f"{name} ({place})" for name, place in wanted.models.items()))
    methods = dict.fromkeys(f"{row.label} ({row.method})" for row in wanted.rows)
    facts.add_row("rows", ", ".join(methods))
    for name, task in found.tasks.items():
        place = Path(task).name if Path(task).is_absolute() else task
        facts.add_row(f"task {name}", f"{place}: {'not ' * (task in found.missing)}there")
    seeds = f"{len(wanted.seeds)} seed{'s' if len(wanted.seeds) > 1 else ''}"
    facts.add_row("runs", f"{found.runs:,} ({seeds}), {found.done:,} done")
    if found.steps is not None:
        facts.add_row("steps", f"{found.steps:,}")
    facts.add_row("hours", _hours(found))
    out.print(facts)
    for why in list(found.missing.values())[:1]:
        out.print(why, soft_wrap=True)
    command = " ".join(part for part in ("softprompts bench run", recipe, f"--scale {scale}" if scale else "") if part)
    out.print(f"Run it: {command}" if not found.missing else f"Run it with its data: {command} --data-dir FOLDER")


def _hours(found: Any) -> str:
    """How long all runs take one after the other, by those that are done."""
    if found.seconds is None:
        return "not known before a run is done; 'bench run --dry-run' measures steps"
    share = f", by {100 * found.known:.0f} % of them" if found.known < 1 else ""
    return f"about {_time(found.seconds)} for all runs, as long as those that are done took{share}"


@bench.command()
@with_imports
def status(recipe: Name, scale: Scale = None, out_: Out = "runs", report: Report = None) -> None:
    """Show how far a bench is."""
    from softprompts.bench.runner import read_state

    state = read_state(_folder(recipe, scale, out_, report), out_)
    out.print(_progress(state))
    for run_, why in state.failed.items():
        out.print(f"  failed: {run_}: {why}", soft_wrap=True)


@bench.command("report")
@with_imports
def write(recipe: Name, scale: Scale = None, out_: Out = "runs", report: Report = None) -> None:
    """Write tables and report of what is there by now; nothing is trained."""
    _write(_folder(recipe, scale, out_, report), out_)


@bench.command()
@with_imports
def collect(
    recipe: Name,
    scale: Scale = None,
    out_: Out = "runs",
    report: Report = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Delete checkpoints and prompts of runs whose results are kept.")
    ] = False,
) -> None:
    """Copy results into the folder that the recipe names in 'results'; a later bench takes them up from there."""
    from softprompts.bench.plan import keep_results

    written = keep_results(_folder(recipe, scale, out_, report), out_, prune)
    where = f" in {written[0].parent.parent}" if written else ""
    out.print(f"{len(written):,} more results are kept{where}", soft_wrap=True)


@bench.command("published")
def show_published(
    table: Annotated[str | None, typer.Argument(help="One of the tables, such as multi-mask/table-1.")] = None,
) -> None:
    """Show a table of a paper; or all of them as Markdown, averages recomputed."""
    from softprompts.bench.published import published, published_tables
    from softprompts.bench.reprint import reprint

    if table is not None:
        _print_table(reprint(published(table)))
    else:
        print("\n\n".join(reprint(published(name)).markdown() for name in published_tables()), end="")


def _print_table(table: Any) -> None:
    heads, lines = table.text()
    shown = plain_table(table.title)
    shown.title_justify = "left"
    for index, head in enumerate(heads):
        shown.add_column(head, justify="right" if index else "left", overflow="fold")
    for line in lines:
        shown.add_row(*line)
    out.print(shown)
    for note in table.all_notes():
        out.print(note, soft_wrap=True)


def _show_estimate(recipe: Any, root: str, data_dir: str | None, lanes: int | None, *, as_json: bool) -> None:
    """Prints what a recipe takes: JSON, or a line for each kind of run and the sums."""
    from softprompts.bench.estimate import MEASURED, estimate

    with err.status("planning") as status:

        def show(kind: Any) -> None:
            status.update(f"measuring {kind.method} on {kind.task}, {kind.model}")

        found = estimate(recipe, root=root, data_dir=data_dir, lanes=lanes, on_measure=show)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
        return
    lines = [
        (
            kind.model, kind.task, kind.method, f"{kind.batch}", f"{kind.length}", f"{kind.runs:,}", f"{kind.steps:,}",
            "-" if kind.seconds_per_step is None else f"{kind.seconds_per_step:.3g}{'*' * kind.assumed}",
            "-" if kind.hours is None else f"{kind.hours:.2f}",
        )
        for kind in found.kinds
    ]  # fmt: skip
    if lines:
        columns = ("model", "task", "method", "rows", "tokens", "runs", "steps", "s/step", "hours")
        out.print(number_table(columns, lines, columns[:3], recipe.title))
    for note in found.notes:
        out.print(note, soft_wrap=True)
    waiting = f", {found.waiting:,} that start from sources or follow a search planned later" if found.waiting else ""
    counts = f"{found.runs:,} runs, {found.done:,} done; {found.jobs:,} jobs{waiting}; {found.steps:,} steps"
    out.print(counts, soft_wrap=True)
    if found.hours is None:
        out.print("hours are not known: not every step could be measured here", soft_wrap=True)
    elif lines:
        out.print(
            f"about {_time(found.hours * 3600)} of one worker on {found.device}, by {MEASURED['steps']} steps of each "
            "line, every batch padded to the task's longest row. Evaluations come on top; runs that share passes take "
            "less." + (" *: not measured, the dearest step on the model." if found.waiting else ""),
            soft_wrap=True,
        )


def _folder(recipe: str, scale: str | None, root: str, report: str | None) -> Path:
    from softprompts.bench.recipe_file import load_recipe
    from softprompts.bench.runner import bench_folder

    if report is not None:
        return Path(report)
    wanted = load_recipe(recipe, scale)
    return bench_folder(root, wanted.name, wanted.scale)


def _changes(set_: list[str] | None, model: str | None, seeds: str | None) -> dict[str, Any]:
    """The changes of a recipe that options ask for, as an overlay."""
    changes: dict[str, Any] = {}
    for pair in set_ or []:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise SoftPromptError(f"--set {pair}: write NAME=VALUE")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        *parents, last = key.split(".")
        level = changes
        for parent in parents:
            level = level.setdefault(parent, {})
            if not isinstance(level, dict):
                raise SoftPromptError(f"--set {pair}: '{parent}' is set as a whole already")
        level[last] = value
    if seeds is not None:
        changes["seeds"] = whole_numbers("--seeds", seeds)
    if model is not None:
        changes["models"] = {Path(model).resolve().name if Path(model).is_dir() else Path(model).name: model}
        rows = changes.setdefault("rows", {})
        if not isinstance(rows, dict):
            raise SoftPromptError("--model and --set rows=... do not go together; set single rows: rows.NAME.KEY=VALUE")
        rows["*"] = {**rows.get("*", {}), "models": None}
    return changes


def _write(folder: Path, root: str) -> None:
    from softprompts.bench.report import REPORT, write_outputs

    tables, files = write_outputs(folder, root)
    for table in tables:
        _print_table(table)
    report = next(path for path in files if path.name == REPORT)
    out.print(f"report: {report}; tables and figures beside it, {len(files)} files in all", soft_wrap=True)


def _progress(state: Any) -> str:
    """How far a bench is, in a line."""
    parts = [f"{state.done} of {state.total} runs done"]
    parts += [f"{state.running} running"] if state.running else []
    parts += [f"{state.waiting} waiting for a source or a search"] if state.waiting else []
    parts += [f"{len(state.failed)} failed"] if state.failed else []
    if state.seconds_left is not None and state.done < state.total:
        parts.append(f"about {_time(state.seconds_left)} left")
    return ", ".join(parts)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class _ProgressDisplay(Progress):
    """Progress: a bar on a terminal, else a line for each run that has ended."""

    def __init__(self, title: str) -> None:
        columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}")
        super().__init__(*columns, console=err, disable=not err.is_terminal)
        self._title, self._printed_at = title, time.monotonic()

    def show_total(self, state: Any) -> None:
        """Shows how many runs there are."""
        done = f", {state.done:,} of them done already" if state.done else ""
        err.print(f"{self._title}: {state.total:,} runs{done}", soft_wrap=True)
        self._task = self.add_task("starting", total=state.total, completed=state.done)

    def show_ended(self, state: Any, fresh: list[Any]) -> None:
        """Shows the runs that have ended since the last call."""
        self.update(self._task, completed=state.done, total=state.total, description=_progress(state))
        first = state.done - len(fresh)
        for count, run in enumerate(fresh, start=1):
            err.print(f"[{first + count}/{state.total}] {run.cell}", soft_wrap=True)
        if not err.is_terminal and (fresh or time.monotonic() - self._printed_at > QUIET):
            self._printed_at = time.monotonic()
            err.print(f"  {_progress(state)}", soft_wrap=True)
