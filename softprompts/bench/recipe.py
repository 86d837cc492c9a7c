"""A recipe: a grid of runs (methods x tasks x settings x seeds x models), and the settings of each run.

`softprompts.bench.recipe_file` makes it from a YAML file; docs/benchmarks.md explains every key.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from softprompts.bench.recipe_schema import Layer, ModelLayer, RecipeFields, RowFields
from softprompts.tasks.data import Data
from softprompts.training import TrainConfig

SCALES = ("tiny", "small", "gpu", "paper")
PAPER = "paper"  # the recipe as it is written
ELSEWHERE = ("tiny", "small")  # scales on models that no paper has: what is said of its settings is of no use there
ADDED = ("differences", "unstated")  # lists that a scale adds to
FACTOR = "training.learning_rate_factor"  # what a search chooses
COSTS = ("seconds_per_100_steps", "peak_memory")  # what a cost run measures, in place of a task's metrics


class RecipeRow(RowFields):
    """A line of the table: a method at fixed settings, with one combination of its grid's values.

    Attributes:
        label: no other row has it on the same model.
        combination: the values that its grid sets, by setting ("training.learning_rate").
        models: names of the models it is run on.
        by_model: by model, what is changed there.
        published: its name in the published table; "{model}" in it stands for the model's name.
    """

    label: str
    combination: Mapping[str, Any] = {}
    models: tuple[str, ...] = ()
    by_model: Mapping[str, ModelLayer] = {}
    published: str | None = None

    @property
    def values(self) -> dict[str, Any]:
        """The grid's values by the setting's last name."""
        return {last_part(name): value for name, value in self.combination.items()}

    def changes(self, task: str, model: str) -> tuple[Layer, Layer, Layer]:
        """What is changed on a task, on a model, and on both; the later wins."""
        by_model = self.by_model.get(model, ModelLayer())
        return self.tasks.get(task, Layer()), by_model, by_model.tasks.get(task, Layer())


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
class Cell:
    """One run of the grid.

    Attributes:
        row: its row; for a source, one of its own.
        task: name of the recipe's entry.
        model: its short name.
        seed: of initialisation, data order and what the method draws (and of few-shot rows).
        choice: its value of each setting in the row's ``choose``.
        source: name of the source that it trains; None for a run of the table.
        search: round of the search that it belongs to, from 0; None for a run of the table.
    """

    row: RecipeRow
    task: str
    model: str
    seed: int
    choice: Mapping[str, Any] = field(default_factory=dict)
    source: str | None = None
    search: int | None = None

    def __str__(self) -> str:
        choice = "".join(f", {last_part(name)} {as_text(value)}" for name, value in self.choice.items())
        return f"{self.row.label} on {self.task}, {self.model}, seed {self.seed}{choice}"


class Recipe(RecipeFields):
    """A recipe at one scale.

    Attributes:
        name: where it lies among the recipes, "multi-mask/table-1"; or its file's name.
        rows: the lines of the table.
        columns: the scores shown.
        scale: one of `SCALES`; "" where the recipe has only one.
        same_setting: whether its numbers may be set beside the published ones as equals.
        variant: a short hash of what was changed for once, "" where nothing was.
        plain: all of it as plain values, from which `softprompts.bench.recipe_file.read_recipe` makes it again.
    """

    name: str
    rows: tuple[RecipeRow, ...]
    columns: tuple[Column, ...]
    scale: str
    same_setting: bool
    variant: str = ""
    plain: Mapping[str, Any]

    def rows_by_model(self) -> Iterator[tuple[RecipeRow, str]]:
        """The rows with the models that they are run on, model by model."""
        return ((row, model) for model in self.models for row in self.rows if model in row.models)

    def cells(self) -> list[Cell]:
        """Every run of the grid, model by model, task by task, seed by seed."""
        cells = []
        for model, task, seed, row in itertools.product(self.models, self.tasks, self.seeds, self.rows):
            if model in row.models and (not row.only_tasks or task in row.only_tasks):
                choose = dict(row.choose)
                for layer in row.changes(task, model):
                    choose.update(layer.choose)
                for values in itertools.product(*choose.values()):
                    cells.append(Cell(row, task, model, seed, dict(zip(choose, values, strict=True))))
        return cells

    @property
    def runs(self) -> int:
        """Number of runs, without those that results may ask for."""
        searched = 0 if self.search is None else len(self.search.factors) * len(self.search.seeds)
        return len(self.cells()) + len(self.source_cells()) + searched * len(self.places())

    def places(self) -> list[Cell]:
        """Of every row, task and model (and choice) the run with the first seed."""
        return [cell for cell in self.cells() if cell.seed == self.seeds[0]]

    def search_cells(self, place: Cell, factors: Sequence[float], turn: int = 0) -> list[Cell]:
        """The runs of a search with these factors, in one of its rounds."""
        seeds = () if self.search is None else self.search.seeds
        return [replace(place, seed=seed, choice={FACTOR: factor}, search=turn) for factor in factors for seed in seeds]

    def source_cells(self) -> list[Cell]:
        """The runs of the sources that rows name, on the models of these rows."""
        needed = {(model, name) for row in self.rows for model in row.models for name in row.source_names}
        cells = []
        for name, source in self.sources.items():
            layers = {layer: getattr(source, layer) for layer in ("settings", "training", "data")}
            row = RecipeRow(label=f"source {name}", name=f"source {name}", method=source.method, **layers)
            cells += [Cell(row, name, model, 0, source=name) for model in self.models if (model, name) in needed]
        return cells

    def differences_of(self, row: RecipeRow, task: str, model: str) -> tuple[str, ...]:
        """In which settings a row on a task and a model differs from the published one, but for ``differences``."""
        if self.scale in ELSEWHERE:
            return ()
        layers = (self.tasks[task], row, *row.changes(task, model))
        return tuple(dict.fromkeys(sentence for layer in layers for sentence in layer.differences))

    def data_of(self, cell: Cell, data_dir: str | None = None) -> Data:
        """Where the rows of a cell come from."""
        name, layers = self.layers(cell, "data")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in layers.items()}
        if values.get("few_shot") is not None:
            values["few_shot_seed"] = cell.seed
        if cell.search is not None:  # nothing is chosen on rows that are shown
            values["max_test"] = 0
        return Data(task=name, data_dir=data_dir, **values)

    def length_of(self, cell: Cell) -> int:
        """Most tokens of an input."""
        of_task = None if cell.source is not None else self.tasks[cell.task].max_length
        return of_task or self.max_length

    def training_of(self, cell: Cell) -> TrainConfig:
        """How a cell trains."""
        training = TrainConfig.from_dict({**self.layers(cell, "training")[1], "seed": cell.seed})
        # Where the table has the last prompt, a search scores that too.
        last_only = cell.search is not None and not self.evaluate
        return replace(training, eval_every=training.max_steps) if last_only else training

    def evaluates(self, cell: Cell) -> bool:
        """Whether a cell is scored on validation rows while it trains."""
        return self.evaluate or cell.search is not None

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
        """The task's name in `softprompts.tasks`, and a cell's settings, training or data, merged from all layers."""
        row = cell.row
        everyone: Mapping[str, Any] = {"training": self.training, "data": self.data}.get(kind, {})
        if cell.source is not None:
            # Few-shot training is for the targets: a source is trained on all of its rows.
            shared = {key: value for key, value in everyone.items() if key != "few_shot"}
            return self.sources[cell.source].task, merged(shared, getattr(row, kind))
        task = self.tasks[cell.task]
        of_task = {"training": task.training, "data": task.data}.get(kind, {})
        changes = (getattr(layer, kind) for layer in row.changes(cell.task, cell.model))
        # The grid's values stand whatever else is written: the row's label names them.
        grid = (of_kind(kind, values) for values in (row.combination, cell.choice))
        return task.task, merged(everyone, of_task, getattr(row, kind), *changes, *grid)


def overlaid(
    base: Mapping[str, Any], over: Mapping[str, Any], whole: Sequence[str] = (), *, null_removes: bool = True
) -> dict[str, Any]:
    """A mapping with another laid over it, key by key.

    Args:
        base: below.
        over: on top.
        whole: keys whose mappings are replaced, not overlaid.
        null_removes: whether None removes a key; else it is a value ("alpha: null" is no mask).
    """
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        if value is None and null_removes:
            result.pop(key, None)
        elif key in ADDED and isinstance(below, list):
            result[key] = [*below, *value]
        elif isinstance(value, Mapping) and key not in whole:
            result[key] = overlaid(below if isinstance(below, Mapping) else {}, value, null_removes=null_removes)
        else:
            result[key] = value
    return result


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """The layers of a cell laid over each other, the later ones on top."""
    return functools.reduce(lambda base, over: overlaid(base, over, null_removes=False), layers, {})


def of_kind(kind: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a kind among settings by their full names ("training.learning_rates.router"), as nested mappings."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        first, dot, rest = name.partition(".")
        kind_of_name, rest = (first, rest) if dot and first in ("training", "data") else ("settings", name)
        if kind_of_name == kind:
            *parents, last = rest.split(".")
            place = nested
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = value
    return nested


def last_part(name: str) -> str:
    """The last part of a setting's full name."""
    return name.rpartition(".")[2]


def as_text(value: Any) -> str:
    """A setting's value in a label."""
    return f"{value:g}" if isinstance(value, float) else str(value)
