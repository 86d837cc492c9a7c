"""The shape of a recipe's YAML: pydantic models of what stands where, and errors that name the place.

Null and empty values count as left out. Mappings of settings, in which null is a value, are kept as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Strict,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from softprompts.errors import nearest
from softprompts.validation import complaint

# What a figure may say besides its kind and title, by kind.
FIGURES: Mapping[str, tuple[str, ...]] = {
    "sweep": ("x", "y", "rows", "columns", "models", "facets"),
    "curves": ("rows", "tasks", "models"),
    "parameters": ("rows", "columns", "models"),
    "cost": ("rows", "tasks", "models"),
    "analysis": ("what", "rows", "tasks", "models"),
}
_NEEDED = {"sweep": "x", "analysis": "what"}

T = TypeVar("T")
SpecT = TypeVar("SpecT", bound="Spec")
Several = Annotated[tuple[T, ...], Strict(False)]  # a list becomes a tuple
Names = Several[str]
Sentences = Several[Annotated[str, Field(min_length=1)]]
Settings = dict[str, JsonValue]
Count = Annotated[int, Field(ge=1)]


def as_list(value: Any) -> list[Any]:
    """One value or several as a list."""
    return list(value) if isinstance(value, list | tuple) else [value]


# One value or several.
Values = Annotated[Several[JsonValue], Field(min_length=1), BeforeValidator(as_list)]


def _short_form(kind: Any, key: str, wanted: str) -> BeforeValidator:
    """Lets a value of a kind stand for the mapping that has it under a key."""

    def mapping_of(value: Any) -> Any:
        if not isinstance(value, kind | Mapping | Spec):
            raise PydanticCustomError("shape", wanted)  # type: ignore[arg-type]
        return {key: value} if isinstance(value, kind) else value

    return BeforeValidator(mapping_of)


# Chooses a branch by the shape that was written, so that errors are about that shape.
_ListOrMapping = Discriminator(
    lambda value: "mapping" if isinstance(value, Mapping) else "list" if isinstance(value, list | tuple) else None,
    custom_error_type="shape",
    custom_error_message="a list or a mapping",
)


class Spec(BaseModel):
    """A mapping of a recipe with known keys."""

    model_config = ConfigDict(strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        foreign = next((key for key in value if key not in cls.model_fields), None)
        if foreign is not None:
            raise ValueError(f"has no key '{foreign}'; {nearest(str(foreign), cls.model_fields)}")
        return {key: part for key, part in value.items() if part not in (None, {}, [], ())}


class Layer(Spec):
    """What decides a run: of a row, or of a row on one task or model.

    Attributes:
        settings: of the method.
        training: what it changes of the recipe's training.
        data: what it changes of the recipe's data.
        choose: by setting ("training.learning_rate"), values of which the best by validation is taken, for every task
            and model on its own.
        differences: in which settings it differs from the published row, a sentence each.
    """

    settings: Settings = {}
    training: Settings = {}
    data: Settings = {}
    choose: dict[str, Several[JsonValue]] = {}
    differences: Sentences = ()


class ModelLayer(Layer):
    """What a row changes on one model, and there on single tasks."""

    tasks: dict[str, Layer] = {}


class RowFields(Layer):
    """What a row of the file and the lines of the table that it stands for have in common.

    Attributes:
        name: without the values of its grid.
        method: its name, or several joined by "+".
        tasks: by task, what else is changed there.
        only_tasks: names of the tasks it is run on; empty for all.
        sources: by setting of the method, names of sources.
        group: heading above it.
        baseline: the other rows' deltas are against this one.
    """

    name: str
    method: str
    tasks: dict[str, Layer] = {}
    only_tasks: Names = ()
    sources: Annotated[dict[str, str | Names], _short_form(list, "sources", "a list or a mapping")] = {}
    group: str | None = None
    baseline: bool = False

    @property
    def source_names(self) -> list[str]:
        """The sources that it starts from."""
        return [name for value in self.sources.values() for name in as_list(value)]


class RowSpec(RowFields):
    """A row of the file.

    Attributes:
        label: pattern of the lines' labels, with the names of settings in braces.
        models: names of the models it is run on, or by model what is different there.
        grid: settings with one or several values; of several grids, each has combinations of its own.
        published: pattern of the lines' names in the published table.
    """

    label: str | None = None
    models: Annotated[
        Annotated[Names, Tag("list")] | Annotated[dict[str, ModelLayer], Tag("mapping")], _ListOrMapping
    ] = ()
    grid: Annotated[Several[dict[str, Values]], BeforeValidator(as_list)] = ({},)
    published: str | None = None


class TaskSpec(Spec):
    """A task of the recipe: its name in `softprompts.tasks`, and what is different for it."""

    task: str
    data: Settings = {}
    training: Settings = {}
    max_length: Count | None = None
    differences: Sentences = ()


class ColumnSpec(Spec):
    """A column of the table: the score of a task (None: the one of the column's name) by a metric (None: the main)."""

    task: str | None = None
    metric: str | None = None


class SourceSpec(Spec):
    """A run whose prompt others start from."""

    task: str
    method: str
    settings: Settings = {}
    training: Settings = {}
    data: Settings = {}


class FigureSpec(Spec):
    """A figure of the report; docs/benchmarks.md explains its keys, `FIGURES` says which kind has which."""

    kind: Literal["sweep", "curves", "parameters", "cost", "analysis"]
    title: str | None = None
    x: str | None = None
    y: Literal["score", "seconds", "memory", "parameters"] = "score"
    what: str | None = None
    facets: bool | None = None
    rows: Names | None = None
    tasks: Names | None = None
    columns: Names | None = None
    models: Names | None = None

    @model_validator(mode="before")
    @classmethod
    def _keys_of_kind(cls, value: Any) -> Any:
        kind = value.get("kind") if isinstance(value, Mapping) else None
        if isinstance(kind, str) and kind in FIGURES:
            keys = ("kind", "title", *FIGURES[kind])
            foreign = next((key for key in value if key not in keys), None)
            if foreign is not None:
                raise ValueError(f"(of kind '{kind}') has no key '{foreign}'; {nearest(str(foreign), keys)}")
            if kind in _NEEDED and not value.get(_NEEDED[kind]):
                raise ValueError(f"(of kind '{kind}') needs '{_NEEDED[kind]}'")
        return value


class CostSpec(Spec):
    """How many steps are timed, and how many go before them."""

    steps: Count = 100
    warmup_steps: Count = 20


Seeds = Several[Annotated[int, Field(ge=0)]]


class SearchSpec(Spec):
    """A search of the factor of all learning rates, for every row and task on its own.

    Attributes:
        factors: to begin with.
        seeds: of the runs of each factor, not those of the table.
        extend: how many factors, half a decade apart, are tried beyond an edge that wins.
    """

    factors: Annotated[Several[Annotated[float, Field(gt=0)]], Field(min_length=2)] = (0.1, 0.3, 1.0, 3.0, 10.0)
    seeds: Annotated[Seeds, Field(min_length=1)] = (1000, 1001)
    extend: Annotated[int, Field(ge=0)] = 2


class MoreSeedsSpec(Spec):
    """Seeds that are added where those of the recipe leave it open whether a row differs from the baseline.

    Attributes:
        to: number of seeds then.
        effect: where the mean difference is larger than so many points and its interval contains zero.
    """

    to: Count
    effect: Annotated[float, Field(ge=0)] = 0.5


class ClaimSpec(Spec):
    """A statement that a study decides: one row is better than another.

    Attributes:
        says: the statement.
        better: label of the row that is said to be better.
        than: label of the other one.
    """

    says: Annotated[str, Field(min_length=1)]
    better: str
    than: str


class RecipeFields(Spec):
    """What a recipe's file and the recipe that is made of it have in common.

    Attributes:
        title: of the table.
        about: a sentence or two.
        paper: the paper whose table or figure it is.
        shows: which table or figure of the paper.
        published: name of the table of published numbers.
        measure: "score", or "cost": seconds and memory of training steps.
        table: "scores", or "standardized": one score over all tasks (see `softprompts.bench.significance`).
        models: hub id, folder or packaged name by short name.
        seeds: of every cell.
        max_length: most tokens of an input.
        evaluate: whether validation rows are scored while training, see `softprompts.experiments.workbench.Workbench`.
        quantize: keep the backbones in few bits, see `softprompts.experiments.workbench.Workbench`; None: as they come.
        search: what is searched before the runs of the table; None: nothing.
        more_seeds: where seeds are added; None: nowhere.
        claims: the statements that a study decides, see `softprompts.bench.verdicts`.
        results: folder of results of runs, ``<name>/<run id>/result.json``, that are done with them; beside the recipe.
        data: fields of `Data` for all.
        training: fields of `TrainConfig` for all.
        tasks: the tasks by name.
        sources: runs whose prompts others start from, by name.
        figures: what to draw.
        cost: steps that are timed, and before that warm up.
        averages: the tasks of each average by its name; empty: one average over all.
        differences: in which settings all rows differ from the published ones, a sentence each.
        unstated: what the paper does not say, and what is taken here, a phrase each.
    """

    title: str
    about: str = ""
    paper: Literal["multi-mask", "ept", "selective-prefix", "superpos"] | None = None
    shows: str | None = None
    published: str | None = None
    measure: Literal["score", "cost"] = "score"
    table: Literal["scores", "standardized"] = "scores"
    models: dict[str, str]
    seeds: Seeds = (0,)
    max_length: Count = 256
    evaluate: bool = True
    quantize: Literal["nf4", "fp4", "int8", "torchao-int8"] | None = None
    search: SearchSpec | None = None
    more_seeds: MoreSeedsSpec | None = None
    claims: Several[ClaimSpec] = ()
    results: str | None = None
    data: Settings = {}
    training: Settings = {}
    tasks: dict[str, Annotated[TaskSpec, _short_form(str, "task", "text or a mapping")]]
    sources: dict[str, SourceSpec] = {}
    figures: Several[FigureSpec] = ()
    cost: CostSpec = CostSpec()
    averages: dict[str, Names] = {}
    differences: Sentences = ()
    unstated: Sentences = ()

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("must be different: a seed is named twice")
        return seeds


Columns = dict[str, Annotated[ColumnSpec, _short_form(str | None, "metric", "text or a mapping")]]


class RecipeSpec(RecipeFields):
    """A recipe with one scale laid over it.

    Attributes:
        rows: see `RowSpec`.
        columns: the scores shown; empty: the main metric of each task.
    """

    rows: Several[RowSpec]
    columns: Columns = {}


class Overlay(RecipeFields):
    """What is different at a scale, or for once.

    Attributes:
        rows: rows in place of the recipe's, or what is different in a row by its name (`EVERY`: in all).
        columns: see `RecipeSpec`.
        only_rows: names of the rows that are kept.
        only_tasks: names of the tasks that are kept.
    """

    rows: Annotated[
        Annotated[Several[RowSpec], Tag("list")] | Annotated[dict[str, RowSpec], Tag("mapping")], _ListOrMapping
    ] = ()
    columns: Columns = {}
    only_rows: Names = ()
    only_tasks: Names = ()


class RecipeFile(RecipeSpec):
    """A recipe as it is written, with its scales."""

    scales: dict[Literal["tiny", "small", "gpu"], Overlay] = {}


def checked(model: type[SpecT], plain: Any, where: str | Path) -> SpecT:
    """The values of a mapping.

    Args:
        model: what is expected.
        plain: what was read.
        where: the file, which begins an error.

    Raises:
        SoftPromptError: a value cannot be used, or one is missing.
    """
    try:
        return model.model_validate(plain)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise complaint(first, str(where), place_of(first["loc"], plain)) from None


def check_part(model: type[Spec], plain: Any, where: str | Path) -> None:
    """Checks a mapping that is a part of a whole: missing values are in another part, null takes a key out.

    Raises:
        SoftPromptError: a value cannot be used.
    """
    try:
        model.model_validate(plain)
    except ValidationError as error:
        for one in error.errors(include_url=False):
            if one["type"] != "missing" and one["input"] is not None:
                raise complaint(one, str(where), place_of(one["loc"], plain)) from None


def place_of(location: tuple[int | str, ...], plain: Any) -> str:
    """Where in a file a value stands, for people: "rows[Prefix].settings"; items go by their names if they have some.

    Args:
        location: pydantic's; parts that name a branch of the schema, not a place in the file, are skipped.
        plain: the file's values.
    """
    place = ""
    for number, part in enumerate(location, start=1):
        if isinstance(plain, list | tuple) and isinstance(part, int):
            plain = plain[part]
            name = plain.get("name") if isinstance(plain, Mapping) else None
            place += f"[{part if name is None else name}]"
        elif isinstance(plain, Mapping) and part in plain:
            plain = plain[part]
            place += f".{part}"
        elif number == len(location) and isinstance(plain, Mapping) and part != "[key]":  # a missing one
            place += f".{part}"
    return place.removeprefix(".")
