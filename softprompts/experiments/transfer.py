"""How well prompts of some tasks serve others: every source on every target, with a few examples or none."""

from __future__ import annotations

import functools
import itertools
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from softprompts.errors import SoftPromptError, require_whole
from softprompts.experiments.compare import mean_and_spread, score_of
from softprompts.experiments.run_record import Run
from softprompts.experiments.workbench import Workbench
from softprompts.methods import MethodConfig, PromptTuningConfig, SPoTConfig
from softprompts.methods import sources as saved
from softprompts.model.saving import identity
from softprompts.storage.files import write_text_atomic
from softprompts.storage.saved_prompt import prompt_folder
from softprompts.storage.tables import csv_text, markdown_table
from softprompts.tasks.data import Data
from softprompts.training import TrainConfig

NONE = "no source"  # the row of prompts that start from the vocabulary


@dataclass(frozen=True)
class Target:
    """A task that prompts were moved to; its metric is computed on so many rows, ``held_out``: of the test."""

    name: str
    metric: str
    rows: int
    held_out: bool


@dataclass(frozen=True)
class Transfer:
    """The result of `transfer`.

    Attributes:
        model: name of the backbone.
        sources: a short name for each source, after `NONE`, the prompts that start from the vocabulary.
        targets: the tasks.
        shots: numbers of training rows; 0: the source's prompt as it is, with its head.
        seeds: of the rows drawn and of the training.
        steps: updates of a run.
        scores: by source, target's name and shots, the main metric of each seed; empty where nothing could be
            measured. Without training rows there is one score.
    """

    model: str
    sources: tuple[str, ...]
    targets: tuple[Target, ...]
    shots: tuple[int, ...]
    seeds: tuple[int, ...]
    steps: int
    scores: dict[tuple[str, str, int], tuple[float, ...]]

    def cell(self, source: str, target: Target, shots: int) -> str:
        """Mean x 100, with the standard deviation where there are several seeds."""
        scores = self.scores.get((source, target.name, shots))
        return mean_and_spread(scores) if scores else "-"

    def best(self, target: Target, shots: int) -> str | None:
        """The source with the highest mean on a target; None where nothing was measured."""
        of_source = {source: self.scores.get((source, target.name, shots)) for source in self.sources}
        means = {source: statistics.fmean(scores) for source, scores in of_source.items() if scores}
        return max(means, key=means.__getitem__) if means else None

    def lines(self, shots: int) -> list[list[str]]:
        """The matrix as text: a row for each source, with its name first, and a column for each target."""
        return [[source, *(self.cell(source, target, shots) for target in self.targets)] for source in self.sources]

    def title(self, shots: int) -> str:
        """The title of a matrix."""
        return "no training rows" if shots == 0 else f"{shots} training row{'s' if shots > 1 else ''}"

    def note(self) -> str:
        """The caption of the matrices."""
        scored = ", ".join(
            f"{target.metric} on {target.rows:,} {'test' if target.held_out else 'validation'} rows of {target.name}"
            for target in self.targets
        )
        text = f"{self.model}, prompts of one task (row) on another (column). Scores x 100: {scored}."
        if any(self.shots):
            text += (
                f" With training rows: prompt tuning of {self.steps} steps that starts from the source ({NONE}: from "
                "the vocabulary) with a fresh head, scored after the last step; "
            )
            seeds = len(self.seeds)
            text += f"mean ± standard deviation over {seeds} seeds." if seeds > 1 else "one seed."
        if 0 in self.shots:
            text += " Without: the source's prompt and head as they are, where the tasks have the same labels."
        return text

    def markdown(self) -> str:
        """The matrices as Markdown, the best source of each target in bold."""
        parts = []
        for shots in self.shots:
            rows = [list(cells) for cells in self.lines(shots)]
            for source, cells in zip(self.sources, rows, strict=True):
                for place, target in enumerate(self.targets, start=1):
                    if self.best(target, shots) == source:
                        cells[place] = f"**{cells[place]}**"
            table = markdown_table(["source", *(target.name for target in self.targets)], rows, "lr")
            title = self.title(shots)
            parts.append(f"{title[0].upper()}{title[1:]}:\n\n{table}\n")
        return "\n".join(parts) + f"\n{self.note()}\n"

    def csv(self) -> str:
        """A line for each source, target and number of training rows, for programs."""
        lines = []
        for shots, target, source in itertools.product(self.shots, self.targets, self.sources):
            scores = self.scores.get((source, target.name, shots), ())
            shown = f"{statistics.fmean(scores):.6f}" if scores else "", " ".join(f"{score:.6f}" for score in scores)
            lines.append([source, target.name, shots, target.metric, *shown])
        return csv_text(["source", "target", "shots", "metric", "mean", "scores"], lines)


def transfer(
    workbench: Workbench,
    sources: Sequence[str],
    targets: Sequence[Data],
    training: TrainConfig,
    *,
    shots: Sequence[int] = (0, 16),
    seeds: Sequence[int] = (0, 1, 2),
    length: int | None = None,
    root: str | Path = "runs",
    lanes: int | None = None,
    progress: bool = True,
    on_result: Callable[[str, str, int, dict[str, Any]], None] | None = None,
) -> Transfer:
    """Measures every source on every target; what is done already is not done again.

    Args:
        workbench: the backbone; its task may be any.
        sources: folders of saved prompts that come down to input tokens, or run folders, or hub ids.
        targets: the tasks, without ``few_shot``.
        training: how a prompt is tuned on the few rows; it is scored after the last step.
        shots: numbers of training rows in all; 0 for the source as it is.
        seeds: each draws other training rows, and a head and an order of its own.
        length: tokens of the tuned prompts; None: as many as the longest source has.
        root: where run folders live.
        lanes: runs that share a pass of the backbone; None: as many as there is memory for.
        progress: show progress bars on a terminal.
        on_result: called with source, target, shots and result after each run.

    Raises:
        SoftPromptError: a source or a target cannot be used; said before anything is trained.
        KeyboardInterrupt: interrupted; the same call goes on where it was.
    """
    if not sources or not targets or not shots:
        raise SoftPromptError("transfer: name at least one source, one target and one number of shots")
    for count in shots:
        require_whole("transfer", "shots", count, 0)
    if any(shots) and not seeds:
        raise SoftPromptError("transfer: name at least one seed")
    if training.max_steps is None:
        raise SoftPromptError("transfer: say how many steps a prompt is tuned for (max_steps)")
    paths = [str(path) for path in sources]
    if len(set(paths)) < len(paths):
        raise SoftPromptError("transfer: a source is named twice")
    longest = max(map(len, saved.load_tokens("transfer", paths, identity(workbench.model)["hidden_size"])))
    names = _names(paths)
    # Scored once, after the last step: choosing the step by many rows would not be learning from few.
    training = replace(training, eval_every=training.max_steps, patience=None)

    methods: list[MethodConfig] = [PromptTuningConfig(num_virtual_tokens=length or longest)]
    methods += [SPoTConfig(num_virtual_tokens=length or longest, sources=(path,)) for path in paths]
    labels = {method.files(): name for method, name in zip(methods, (NONE, *names), strict=True)}
    benches = [workbench.on(replace(data, few_shot=None)) for data in targets]
    if len({target.task.name for target in benches}) < len(benches):
        raise SoftPromptError("transfer: a target is named twice")
    few_shot = {
        (target.task.name, count, seed): target.on(replace(target.data, few_shot=count, few_shot_seed=seed))
        for target in benches
        for count in shots
        for seed in seeds
        if count
    }
    for target in few_shot.values():  # all of them, before the first one trains
        for method in methods:
            target.check(method, training, root=root, resume=True, reuse=True)

    scores: dict[tuple[str, str, int], tuple[float, ...]] = {}

    def report(target: str, count: int, run: Run, result: dict[str, Any]) -> None:
        if on_result is not None:
            on_result(labels[run.method.files()], target, count, result)

    for target in benches if 0 in shots else []:
        for name, path in zip(names, paths, strict=True):
            scores[name, target.task.name, 0] = _unchanged_score(target, path)
    for (task, count, seed), target in few_shot.items():
        ended = target.run_all(
            [Run(method, replace(training, seed=seed)) for method in methods],
            root=root,
            lanes=lanes,
            progress=progress,
            on_result=functools.partial(report, task, count),
        )
        for name, (_, result) in zip((NONE, *names), ended, strict=True):
            score = None if result is None else score_of(result, target.task.metrics[0])
            if score is not None:
                scores[name, task, count] = (*scores.get((name, task, count), ()), score)
    tasks = [target.task for target in benches]
    columns = tuple(Target(t.name, t.metrics[0], len(t.test or t.validation), bool(t.test)) for t in tasks)
    return Transfer(
        workbench.name, (NONE, *names), columns, tuple(shots), tuple(seeds), training.max_steps or 0, scores
    )


def _unchanged_score(workbench: Workbench, path: str) -> tuple[float, ...]:
    """The score of a source's prompt and head; nothing where the head answers with other labels."""
    config = saved.saved_config(path)
    if workbench.kind == "encoder":
        form = (config.get("metadata") or {}).get("task_form") or {}
        kind, answers = form.get("kind", "classification"), form.get("labels", config["labels"])
        if kind != workbench.task.kind or answers != list(workbench.task.label_names):
            return ()
    name = "unchanged"
    workbench.model.load_prompt(prompt_folder(path), name)
    try:
        (metrics,) = workbench.score([name])
    finally:
        workbench.model.forget_prompt(name)
    return () if metrics is None else (metrics[workbench.task.metrics[0]],)


def _names(paths: Sequence[str]) -> tuple[str, ...]:
    """A short name for each source: its task, with its folder where that does not tell them apart."""
    tasks = [saved.name_of(path) for path in paths]
    names = tasks
    for namer in (lambda path: Path(path).name, str):
        counts = Counter(names)
        names = [
            f"{task} ({namer(path)})" if counts[name] > 1 or name == NONE else name
            for name, task, path in zip(names, tasks, paths, strict=True)
        ]
    return tuple(names)


def write_report(matrices: Transfer, folder: str | Path) -> list[Path]:
    """Writes the matrices as Markdown and CSV; returns what was written."""
    written = [Path(folder) / "transfer.md", Path(folder) / "transfer.csv"]
    write_text_atomic(written[0], matrices.markdown())
    write_text_atomic(written[1], matrices.csv())
    return written
