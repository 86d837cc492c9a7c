"""A recipe: a grid of runs (methods x tasks x settings x seeds x models), and what decides each of them.

`softprompts.bench.recipe_file` makes it from a YAML file; docs/benchmarks.md explains every key.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from softprompts.tasks.data import Data
from softprompts.training import TrainConfig

SCALES = ("tiny", "small", "paper")
PAPER = "paper"  # the recipe as it is written
PAPERS = ("multi-mask", "ept", "selective-prefix", "superpos")
MEASURES = ("score", "cost")
TABLES = ("scores", "standardized")
LAYERS = ("settings", "training", "data")  # what a row, a task and a source may each say
COSTS = ("seconds_per_100_steps", "peak_memory")  # what a cost run measures, in place of a task's metrics


@dataclass(frozen=True)
class Row:
    """A line of the table: a method at fixed settings, what its grid says spelled out.

    Attributes:
        label: no other row has it on the same model.
        name: the same without the grid's values.
        method: its name, or several joined by "+".
        settings: of the method.
        training: what it changes of the recipe's training.
        data: what it changes of the recipe's data.
        choose: by setting ("training.learning_rate"), values of which the best by validation is taken, for every task
            and model on its own.
        grid: what its grid set, by setting.
        values: the same by the setting's last name.
        tasks: by task, what else is changed there ("settings", "training", "data", "choose").
        by_model: the same by model.
        models: names of the models it is run on.
        only_tasks: names of the tasks it is run on; empty for all.
        sources: by setting of the method, names of sources.
        published: its name in the published table; "{model}" in it stands for the model's name.
        group: heading above it.
        baseline: the other rows' deltas are against this one.
    """

    label: str
    name: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    choose: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    grid: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    by_model: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    only_tasks: tuple[str, ...] = ()
    sources: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    published: str | None = None
    group: str | None = None
    baseline: bool = False


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
        name: its heading, and its name in the published table.
        task: name of the recipe's entry.
        metric: one of the task's metrics.
    """

    name: str
    task: str
    metric: str


@dataclass(frozen=True)
class Entry:
    """A task of the recipe: its name in `softprompts.tasks`, and what is different for it."""

    task: str
    data: Mapping[str, Any]
    training: Mapping[str, Any]
    max_length: int | None = None


@dataclass(frozen=True)
class Cell:
    """One run of the grid.

    Attributes:
        row: its row; for a source, one of its own.
        task: name of the recipe's entry.
        model: its short name.
        seed: of initialisation, data order and what the method draws (and of few-shot rows).
        choice: its value of each setting in the row's ``choose``.
        source: name of the source that it trains; None for a run of the table.
    """

    row: Row
    task: str
    model: str
    seed: int
    choice: Mapping[str, Any] = field(default_factory=dict)
    source: str | None = None

    def __str__(self) -> str:
        chosen = "".join(f", {last_part(name)} {as_text(value)}" for name, value in self.choice.items())
        return f"{self.row.label} on {self.task}, {self.model}, seed {self.seed}{chosen}"


@dataclass(frozen=True)
class Recipe:
    """A recipe at one scale.

    Attributes:
        name: where it lies among the recipes, "multi-mask/table-1"; or its file's name.
        title: of the table.
        about: a sentence or two.
        paper: one of `PAPERS`, or None.
        shows: which table or figure of the paper.
        published: name of the table of published numbers, or None.
        scale: one of `SCALES`; "" where the recipe has only one.
        measure: "score", or "cost": seconds and memory of training steps.
        table: "scores", or "standardized": one score over all tasks (see `softprompts.bench.significance`).
        models: hub id, folder or packaged name by short name.
        rows: the lines.
        columns: the scores shown.
        tasks: the tasks by name.
        seeds: of every cell.
        max_length: most tokens of an input.
        evaluate: whether validation rows are scored while training, see `softprompts.experiments.workbench.Workbench`.
        quantize: keep the backbones in few bits, see `softprompts.experiments.workbench.Workbench`; None: as they come.
        data: fields of `Data` for all.
        training: fields of `TrainConfig` for all.
        sources: runs whose prompts others start from.
        figures: what to draw, see docs/benchmarks.md.
        cost: steps that are timed, and before that warm up.
        same_setting: whether its numbers may be set beside the published ones as equals.
        variant: a short hash of what was changed for once, "" where nothing was.
        plain: all of it as plain values, from which `read_recipe` makes it again.
    """

    name: str
    title: str
    about: str
    paper: str | None
    shows: str | None
    published: str | None
    scale: str
    measure: str
    table: str
    models: Mapping[str, str]
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    tasks: Mapping[str, Entry]
    seeds: tuple[int, ...]
    max_length: int
    evaluate: bool
    quantize: str | None
    data: Mapping[str, Any]
    training: Mapping[str, Any]
    sources: Mapping[str, Mapping[str, Any]]
    figures: tuple[Mapping[str, Any], ...]
    cost: Mapping[str, int]
    same_setting: bool
    plain: Mapping[str, Any]
    variant: str = ""

    def cells(self) -> list[Cell]:
        """Every run of the grid, those of a task and model together, seed by seed."""
        found = []
        for model, task in itertools.product(self.models, self.tasks):
            for seed in self.seeds:
                for row in self.rows:
                    if model in row.models and (not row.only_tasks or task in row.only_tasks):
                        choose = self._choices(row, model, task)
                        for values in itertools.product(*choose.values()):
                            found.append(Cell(row, task, model, seed, dict(zip(choose, values, strict=True))))
        return found

    def source_cells(self) -> list[Cell]:
        """The runs whose prompts others start from: those that are needed, on the models where they are."""
        needed = {(model, name) for row in self.rows for model in row.models for name in source_names(row.sources)}
        cells = []
        for name, source in self.sources.items():
            layers: dict[str, Any] = {layer: source.get(layer) or {} for layer in LAYERS}
            row = Row(f"source {name}", f"source {name}", source["method"], **layers)
            cells += [Cell(row, name, model, 0, source=name) for model in self.models if (model, name) in needed]
        return cells

    def data_of(self, cell: Cell, data_dir: str | None = None) -> Data:
        """Where the rows of a cell come from."""
        name, layers = self.layers(cell, "data")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in layers.items()}
        if values.get("few_shot") is not None:
            values["few_shot_seed"] = cell.seed
        return Data(task=name, data_dir=data_dir, **values)

    def length_of(self, cell: Cell) -> int:
        """Most tokens of an input."""
        own = None if cell.source is not None else self.tasks[cell.task].max_length
        return own or self.max_length

    def training_of(self, cell: Cell) -> TrainConfig:
        """How a cell trains."""
        return TrainConfig.from_dict({**self.layers(cell, "training")[1], "seed": cell.seed})

    def settings_of(self, cell: Cell, prompts: Mapping[str, str]) -> dict[str, Any]:
        """The method's settings in a cell.

        Args:
            cell: the run.
            prompts: folder of each source's prompt.
        """
        settings = dict(self.layers(cell, "settings")[1])
        for name, source in cell.row.sources.items():
            settings[name] = prompts[source] if isinstance(source, str) else [prompts[one] for one in source]
        return settings

    def layers(self, cell: Cell, kind: str) -> tuple[str, dict[str, Any]]:
        """The task's name in `softprompts.tasks`, and what decides a cell's settings, training or data, merged."""
        row = cell.row
        everyone = {"training": self.training, "data": self.data}.get(kind, {})
        own = getattr(row, kind)
        if cell.source is not None:
            # Few rows are for the targets: a source is trained on all that it has.
            shared = {key: value for key, value in everyone.items() if key != "few_shot"}
            return self.sources[cell.source]["task"], merged(shared, own)
        entry = self.tasks[cell.task]
        by_model = row.by_model.get(cell.model, {})
        places = (row.tasks.get(cell.task, {}), by_model, by_model.get("tasks", {}).get(cell.task, {}))
        said = merged(
            everyone, {} if kind == "settings" else getattr(entry, kind), own, *(p.get(kind, {}) for p in places)
        )
        # What the grid set stands whatever else is said: the row's label says so.
        return entry.task, merged(said, of_kind(kind, cell.row.grid), of_kind(kind, cell.choice))

    def _choices(self, row: Row, model: str, task: str) -> dict[str, tuple[Any, ...]]:
        by_model = row.by_model.get(model, {})
        layers = (row.tasks.get(task, {}), by_model, by_model.get("tasks", {}).get(task, {}))
        found = {**row.choose}
        for layer in layers:
            found.update(layer.get("choose", {}))
        return {name: tuple(values) for name, values in found.items()}


def overlaid(base: Mapping[str, Any], over: Mapping[str, Any], whole: Sequence[str] = ()) -> dict[str, Any]:
    """A mapping with another laid over it, key by key; None takes a key out; ``whole`` keys are replaced."""
    result = dict(base)
    for key, value in over.items():
        there = result.get(key)
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping) and key not in whole:
            result[key] = overlaid(there if isinstance(there, Mapping) else {}, value)
        else:
            result[key] = value
    return result


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """What the layers of a cell come to, the later ones on top; here None is a value ("alpha: null" is no mask)."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            there = result.get(key)
            if isinstance(value, Mapping) and isinstance(there, Mapping):
                value = merged(there, value)
            result[key] = value
    return result


def of_kind(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Of settings by their full names ("training.learning_rates.router"), those of a kind, nested."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        first, dot, rest = name.partition(".")
        own, rest = (first, rest) if dot and first in ("training", "data") else ("settings", name)
        if own == kind:
            *parents, last = rest.split(".")
            place = nested
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = value
    return nested


def source_names(sources: Mapping[str, Any]) -> list[str]:
    """The sources that a row names."""
    return [name for value in sources.values() for name in as_list(value)]


def as_list(value: Any) -> list[Any]:
    """A value that may be one or several, as several."""
    return list(value) if isinstance(value, list | tuple) else [value]


def last_part(name: str) -> str:
    """The last part of a setting's full name."""
    return name.rpartition(".")[2]


def as_text(value: Any) -> str:
    """A setting's value in a label."""
    return f"{value:g}" if isinstance(value, float) else str(value)
