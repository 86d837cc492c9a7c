"""``softprompts search``."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from softprompts.commands import options
from softprompts.commands.messages import hint_when_interrupted, show_cut_rows, show_doubts, show_workbench
from softprompts.commands.method_settings import method_configs, settings_of
from softprompts.commands.options import METHOD, OUTPUT, TRAINING, option
from softprompts.commands.parsing import kinds_of, listed, pairs, value_of
from softprompts.commands.terminal import err, number_table, out
from softprompts.errors import SoftPromptError
from softprompts.storage.names import JOINT
from softprompts.tasks.data import Data
from softprompts.training.config import TrainConfig

if TYPE_CHECKING:
    from softprompts.experiments.leaderboard import Leaderboard

_TRAINING_OPTIONS = replace(
    options.TRAINING_OPTIONS.drop("max_steps", "epochs", "patience", "seed"),
    defaults={**options.TRAINING_OPTIONS.defaults, "epochs": 1},  # the steps count, but ids of runs are made of it
    helps={
        **options.TRAINING_OPTIONS.helps,
        "learning_rate": "A fixed learning rate of every method's main component.",
        "eval_every": "Updates between evaluations; default: those before the first cut.",
    },
)


@options.with_imports
@options.with_options
def search(
    *,
    data: Annotated[Data, options.DATA_OPTIONS.drop("few_shot", "few_shot_seed", "few_shot_protocol")],
    model: Annotated[options.ModelSettings, options.MODEL_OPTIONS],
    methods_: options.Methods = "prefix-tuning",
    set_: options.Set = None,
    space: Annotated[
        list[str] | None,
        option(
            METHOD,
            "What to search, of all methods that have it or of one: learning_rate=log:1e-3:1e-1, "
            "init_std=uniform:0.1:1, multi-mask.num_masks=2,4,8, seed=0,1,2. Default: each method's own.",
        ),
    ] = None,
    trials: Annotated[int, option(TRAINING, "Configurations to start.")] = 16,
    eta: Annotated[int, option(TRAINING, "At each rung one in so many goes on.")] = 2,
    steps: Annotated[int, option(TRAINING, "Updates of a configuration that is never cut.")] = 300,
    min_steps: Annotated[int, option(TRAINING, "Least updates before the first cut.")] = 20,
    sampler: Annotated[str, option(TRAINING, "tpe (learns from scores) or random.")] = "tpe",
    generation: Annotated[
        int | None, option(TRAINING, "Configurations proposed at once; default: a quarter, but 4 to 16.")
    ] = None,
    seed: Annotated[int, option(TRAINING, "Of what is proposed, and of the runs.", min=0)] = 0,
    training: Annotated[TrainConfig, _TRAINING_OPTIONS],
    lanes: options.Lanes = None,
    out_: options.Out = "runs",
    report: options.Report = None,
    keep_cut: Annotated[bool, option(OUTPUT, "Keep the checkpoints of runs that were cut.", "--keep-cut")] = False,
    tracker: options.Tracker = None,
) -> None:
    """Search settings: start many configurations, cut the worse half at every rung, train the last to the end.

    With a linear schedule the rates of a run follow its full budget, so what is cut early has seen high rates only.
    """
    from softprompts.experiments.leaderboard import check_report
    from softprompts.experiments.search import load_optuna, rungs
    from softprompts.experiments.search import search as run_search
    from softprompts.training.progress import check_trackers

    load_optuna()
    check_trackers(tracker)
    rungs(steps, trials, eta, min_steps, training.eval_every)  # raises before a model is loaded
    names = listed("--methods", methods_)
    settings = pairs(set_)
    configs = method_configs(names, settings)
    fixed = {
        name: {key: config.setting(key) for key in settings_of(name, settings, names)}
        for name, config in configs.items()
    }
    searched = {key: _searched(key, value, names) for key, value in pairs(space, "--space").items()}
    folder = options.report_folder(report, out_, "search")
    check_report(folder)
    bench = options.open_workbench(model, data, training)

    def start() -> None:
        show_workbench(bench)
        show_doubts(bench, list(configs.values()), training)
        show_cut_rows(bench, list(configs.values()))

    with hint_when_interrupted():
        leaderboard = run_search(
            bench,
            fixed,
            replace(training, max_steps=steps, seed=seed),
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
            on_start=start,
        )
    _show_leaderboard(leaderboard, folder, out_)


def _searched(key: str, text: str, names: list[str]) -> Any:
    """A span or the values to choose from, from the text of --space for a setting."""
    from softprompts.methods import methods as known
    from softprompts.methods.about import Span

    first, dot, rest = key.partition(".")
    name = rest if dot and first in names else key
    classes: list[Any] = [TrainConfig, *(known()[part] for method in names for part in method.split(JOINT))]
    type_ = next((types[name] for types in map(get_type_hints, classes) if name in types), None)
    kind, colon, bounds = text.partition(":")
    if colon and kind in ("log", "uniform"):
        ends = [value_of(part) for part in bounds.split(":")]
        if len(ends) != 2 or any(isinstance(end, bool) or not isinstance(end, int | float) for end in ends):
            raise SoftPromptError(f"--space {key}={text}: write {kind}:LOW:HIGH with two numbers")
        return Span(ends[0], ends[1], log=kind == "log")
    if tuple in kinds_of(type_):  # whose values have commas of their own
        with contextlib.suppress(ValueError):
            return list(json.loads(f"[{text}]"))
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise SoftPromptError(f"--space {key}={text}: write VALUE,VALUE,... or log:LOW:HIGH or uniform:LOW:HIGH")
    return [value_of(part, type_) for part in parts]


def _show_leaderboard(leaderboard: Leaderboard, folder: Path, root: str) -> None:
    from softprompts.experiments.leaderboard import BEST, RECORDS

    best = leaderboard.best
    rows = [leaderboard.cells(entry, full=False) for entry in leaderboard.entries]
    place = leaderboard.entries.index(best) if best is not None else None
    title = f"{leaderboard.model} on {leaderboard.task}"
    table = number_table(leaderboard.columns(full=False), rows, ("method", "settings"), title, place)
    out.print(table)
    out.print(leaderboard.note())
    if best is not None:
        out.print(f"best: {best}", soft_wrap=True)
        out.print(f"its run: {Path(root) / best.run}; its prompt: {folder / BEST}", soft_wrap=True)
    out.print("written: " + ", ".join(str(folder / name) for name in RECORDS), soft_wrap=True)
    if best is None:
        raise SoftPromptError(
            "no configuration reached its end; search lower learning rates (--space learning_rate=...)"
        )
    out.print(f'try it: softprompts predict {folder / BEST} "..."', soft_wrap=True)
