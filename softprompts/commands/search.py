"""``softprompts search``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softprompts.commands.messages import describe, tell_cut, telling_how_to_go_on
from softprompts.commands.method_settings import method_config, settings_of
from softprompts.commands.options import (
    Lanes,
    Out,
    Tracker,
    TrainingOptions,
    WorkbenchOptions,
    grouped,
    report_folder,
)
from softprompts.commands.parsing import listed, pairs, value_of
from softprompts.commands.terminal import err, out, plain_table
from softprompts.errors import SoftPromptError
from softprompts.storage.names import JOINT

if TYPE_CHECKING:
    from softprompts.experiments.leaderboard import Leaderboard
    from softprompts.methods.contract import MethodConfig


@dataclass(frozen=True, kw_only=True)
class _WorkbenchOptions(WorkbenchOptions):
    few_shot: int | None = field(init=False, default=None)
    few_shot_seed: int = field(init=False, default=0)
    few_shot_protocol: str = field(init=False, default="even")


@dataclass(frozen=True, kw_only=True)
class _TrainingOptions(TrainingOptions):
    steps: int | None = field(init=False, default=None)  # the verb has its own
    epochs: int = field(init=False, default=1)
    lr: Annotated[
        float | None, typer.Option("--lr", help="A fixed learning rate of every method's main component.")
    ] = None
    eval_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between evaluations; default: those before the first cut.")
    ] = None
    patience: int | None = field(init=False, default=None)
    seed: int = field(init=False, default=0)  # the verb has its own


@grouped
def search(
    *,
    methods_: Annotated[str, typer.Option("--methods", help="Names, separated by commas.")] = "prefix-tuning",
    space: Annotated[
        list[str] | None,
        typer.Option(
            help="What to search, of all methods that have it or of one: learning_rate=log:1e-3:1e-1, "
            "init_std=uniform:0.1:1, multi-mask.num_masks=2,4,8, seed=0,1,2. Default: each method's own."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A fixed setting of all methods that have it, or of one: multi-mask.num_masks=2."),
    ] = None,
    trials: Annotated[int, typer.Option(help="Configurations to start.")] = 16,
    eta: Annotated[int, typer.Option(help="At each rung one in so many goes on.")] = 2,
    steps: Annotated[int, typer.Option(help="Updates of a configuration that is never cut.")] = 300,
    min_steps: Annotated[int, typer.Option(help="Least updates before the first cut.")] = 20,
    sampler: Annotated[str, typer.Option(help="tpe (learns from scores) or random.")] = "tpe",
    generation: Annotated[
        int | None, typer.Option(help="Configurations proposed at once; default: a quarter, but 4 to 16.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what is proposed, and of the runs.")] = 0,
    keep_cut: Annotated[bool, typer.Option("--keep-cut", help="Keep the checkpoints of runs that were cut.")] = False,
    source: _WorkbenchOptions,
    training: _TrainingOptions,
    lanes: Lanes = None,
    out_: Out = "runs",
    report: Annotated[
        str | None, typer.Option(help="Folder for leaderboard and best prompt; default: <out>/search.")
    ] = None,
    tracker: Tracker = None,
) -> None:
    """Search settings: start many configurations, cut the worse half at every rung, train the last to the end.

    With a linear schedule the rates of a run follow its full budget, so what is cut early has seen high rates only.
    """
    from softprompts.experiments.leaderboard import check_report
    from softprompts.experiments.search import load_optuna, rungs
    from softprompts.experiments.search import search as find
    from softprompts.training.progress import check_trackers

    load_optuna()
    check_trackers(tracker)
    rungs(steps, trials, eta, min_steps, training.eval_every)  # what cannot be is said before a model is loaded
    names = listed("--methods", methods_)
    settings = pairs(set_)
    configs = {name: method_config(name, settings_of(name, settings, names)) for name in names}
    fixed = {name: _chosen(configs[name], settings_of(name, settings, names)) for name in names}
    searched = {key: _searched(key, value, names) for key, value in pairs(space, "--space").items()}
    train_config = dataclasses.replace(training.to_config(), max_steps=steps, seed=seed)
    folder = report_folder(report, out_, "search")
    check_report(folder)
    bench = source.to_workbench(training.backbone_dropout)

    describe(bench)
    tell_cut(bench, list(configs.values()))
    with telling_how_to_go_on("the same command goes on from there"):
        found = find(
            bench,
            fixed,
            train_config,
            space=searched,
            trials=trials,
            eta=eta,
            min_steps=min_steps,
            generation=generation,
            sampler=sampler,
            root=out_,
            report=folder,
            lanes=lanes,
            keep_cut=keep_cut,
            trackers=tracker,
            tell=lambda line: err.print(line, soft_wrap=True),
        )
    _show_leaderboard(found, folder, out_)


def _chosen(config: MethodConfig, settings: dict[str, str]) -> dict[str, Any]:
    """The settings that were given, as the config took them."""
    return {key: config.setting(key) for key in settings}


def _searched(key: str, text: str, names: list[str]) -> Any:
    """What --space says of a setting: a span, or values to choose from."""
    from softprompts.methods import methods as known
    from softprompts.methods.about import Span
    from softprompts.training import TrainConfig

    first, dot, rest = key.partition(".")
    name = rest if dot and first in names else key
    homes: list[Any] = [TrainConfig, *(known()[part] for method in names for part in method.split(JOINT))]
    type_ = next((str(f.type) for home in homes for f in dataclasses.fields(home) if f.name == name), "")
    kind, colon, bounds = text.partition(":")
    if colon and kind in ("log", "uniform"):
        ends = [value_of(part) for part in bounds.split(":")]
        if len(ends) != 2 or any(isinstance(end, bool) or not isinstance(end, int | float) for end in ends):
            raise SoftPromptError(f"--space {key}={text}: write {kind}:LOW:HIGH with two numbers")
        return Span(ends[0], ends[1], log=kind == "log")
    if "tuple" in type_:  # whose values have commas of their own
        with contextlib.suppress(ValueError):
            return list(json.loads(f"[{text}]"))
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise SoftPromptError(f"--space {key}={text}: write VALUE,VALUE,... or log:LOW:HIGH or uniform:LOW:HIGH")
    return [value_of(part, type_) for part in parts]


def _show_leaderboard(found: Leaderboard, folder: Path, root: str) -> None:
    from softprompts.experiments.leaderboard import BEST, RECORDS

    table = plain_table(f"{found.model} on {found.task}")
    rows = [found.cells(entry, full=False) for entry in found.entries]
    for index, name in enumerate(found.columns(full=False)):
        words = name in ("method", "settings")
        # In a narrow terminal headers and settings may wrap, numbers and single settings may not.
        parts = [cells[index].split() if name == "settings" else [cells[index]] for cells in rows]
        width = max(len(part) for line in parts for part in line)
        table.add_column(name, justify="left" if words else "right", min_width=width)
    for entry, cells in zip(found.entries, rows, strict=True):
        table.add_row(*cells, style="bold" if entry is found.best else None)
    out.print(table)
    out.print(found.note())
    written = [folder / name for name in RECORDS]
    best = found.best
    if best is None:
        out.print("written: " + ", ".join(map(str, written)), soft_wrap=True)
        raise SoftPromptError(
            "no configuration reached its end; search lower learning rates (--space learning_rate=...)"
        )
    out.print(f"best: {best}", soft_wrap=True)
    out.print(f"its run: {Path(root) / best.run}; its prompt: {folder / BEST}", soft_wrap=True)
    out.print("written: " + ", ".join(map(str, written)), soft_wrap=True)
    out.print(f'try it: softprompts predict {folder / BEST} "..."', soft_wrap=True)
