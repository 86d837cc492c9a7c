"""Recipes as YAML files: the recipe, a scale laid over it, and what is wrong with it, told in a line.

A recipe is written for the paper's own models and budgets; under ``scales`` it says what is different at ``small`` and
``tiny``: a mapping that is laid over the recipe key by key (null takes a key out; all but mappings is replaced, and so
are ``models`` and ``columns``). ``rows`` there is a mapping from a row's name to what is different in it, or a list in
place of the whole list; ``only_rows`` and ``only_tasks`` keep some.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from softprompts.backbones.quantized import BACKENDS
from softprompts.bench.published import published
from softprompts.bench.recipe import (
    COSTS,
    MEASURES,
    PAPER,
    PAPERS,
    SCALES,
    TABLES,
    Column,
    Entry,
    Recipe,
    Row,
    as_list,
    as_text,
    last_part,
    overlaid,
    source_names,
)
from softprompts.bench.recipe_schema import (
    _KEYS,
    _ROW,
    _ROW_LAYERS,
    _SHAPED,
    _SOURCE,
    EVERY,
    FIGURES,
    _mapping,
    _one_of,
    _sequence,
    _shaped,
    _strict,
)
from softprompts.errors import SoftPromptError, nearest, require_whole
from softprompts.methods import make_config
from softprompts.tasks.catalog import task_metrics
from softprompts.tasks.data import Data
from softprompts.tasks.yaml_tasks import is_declaration

_WHOLE = ("models", "columns")  # of which an overlay has all or nothing
_PLACES = ("task", "data_dir", "train", "validation", "test", "few_shot_seed")  # of Data, that a recipe does not set
_COST = {"steps": 100, "warmup_steps": 20}


def recipes_folder() -> Path:
    """Where the recipes that come with the package lie: in it, or beside it in a checkout."""
    inside = Path(__file__).resolve().parent.parent / "recipes"
    return inside if inside.is_dir() else inside.parent.parent / "recipes"


def recipe_names() -> list[str]:
    """The recipes that come with the package, as `load_recipe` takes them."""
    folder = recipes_folder()
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def load_recipe(source: str | Path, scale: str | None = None, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Reads a recipe.

    Args:
        source: one of `recipe_names`, or a YAML file.
        scale: one of `SCALES`; None: the only one that the recipe has.
        changes: laid over the recipe as a scale is; its numbers no longer count as the paper's setting.

    Raises:
        SoftPromptError: there is no such recipe, or something in it cannot be used; file and place are named.
    """
    path = _find(source)
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SoftPromptError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    except yaml.YAMLError as error:
        raise SoftPromptError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(plain, dict):
        raise SoftPromptError(f"{path}: a recipe is a mapping with title, models, tasks and rows")
    scales = plain.get("scales") or {}
    if not isinstance(scales, dict) or not all(isinstance(value, dict) for value in scales.values()):
        raise SoftPromptError(f"{path}: scales maps tiny and small to what is different there")
    for name in scales:
        if name not in SCALES or name == PAPER:
            raise SoftPromptError(f"{path}: unknown scale '{name}'; known: tiny, small (paper is the recipe as it is)")
    there = [name for name in SCALES if name in scales or name == PAPER]
    if scale is None and len(there) > 1:
        raise SoftPromptError(f"{path.stem}: say at which scale (--scale): {', '.join(there)}")
    scale = scale or PAPER
    if scale not in SCALES:
        raise SoftPromptError(f"unknown scale '{scale}'; {nearest(scale, SCALES)}")
    if scale not in there:
        raise SoftPromptError(f"{path}: has no scale '{scale}'; it has {', '.join(there)}")
    base = {key: value for key, value in plain.items() if key != "scales"}
    _strict(plain, _KEYS, path, "the recipe")
    _shaped(base, _SHAPED, path, "")
    for key in ("tasks", "rows"):
        if not base.get(key):
            raise SoftPromptError(f"{path}: '{key}' is missing")
    base = _located(base, path.parent)
    _known_names(base, [base, *scales.values(), changes or {}], path)
    if scale != PAPER:
        _shaped(scales[scale], _SHAPED, path, f"scales.{scale}")
        base = _scaled(base, _located(dict(scales[scale]), path.parent), path)
    if changes:
        _shaped(changes, _SHAPED, path, "")
        base = _scaled(base, _located(dict(changes), Path()), path)
    folder = recipes_folder().resolve()
    inside = path.resolve().is_relative_to(folder)
    name = path.resolve().relative_to(folder).with_suffix("").as_posix() if inside else path.stem
    variant = hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:6] if changes else ""
    same = scale == PAPER and not changes
    shown = scale if scales else ""
    return read_recipe(base, name=name, scale=shown, same_setting=same, path=path, variant=variant)


def read_recipe(
    plain: Mapping[str, Any],
    *,
    name: str,
    scale: str = PAPER,
    same_setting: bool = False,
    path: Path | None = None,
    variant: str = "",
) -> Recipe:
    """A recipe from plain values, scales laid over already.

    Raises:
        SoftPromptError: something in it cannot be used.
    """
    where = path or Path(name)
    _shaped(plain, _SHAPED, where, "")
    _strict(plain, [key for key in _KEYS if key != "scales"], where, "the recipe")
    for key in ("title", "models", "tasks", "rows"):
        if not plain.get(key):
            raise SoftPromptError(f"{where}: '{key}' is missing")
    models = _mapping(plain, "models", where)
    tasks = {label: _entry(label, value, where) for label, value in _mapping(plain, "tasks", where).items()}
    sources = {label: _source(label, value, where) for label, value in _mapping(plain, "sources", where).items()}
    rows = tuple(
        row for value in _sequence(plain, "rows", where) for row in _rows(value, models, tasks, sources, where)
    )
    measure = _one_of(plain, "measure", MEASURES, where) or "score"
    recipe = Recipe(
        name=name,
        title=str(plain["title"]),
        about=" ".join(str(plain.get("about", "")).split()),
        paper=_one_of(plain, "paper", PAPERS, where),
        shows=plain.get("shows"),
        published=plain.get("published"),
        scale=scale,
        measure=measure,
        table=_one_of(plain, "table", TABLES, where) or "scores",
        models={str(label): str(value) for label, value in models.items()},
        rows=rows,
        columns=_columns(plain, tasks, where, measure),
        tasks=tasks,
        seeds=tuple(_sequence(plain, "seeds", where) or (0,)),
        max_length=plain.get("max_length", 256),
        evaluate=bool(plain.get("evaluate", True)),
        quantize=_one_of(plain, "quantize", tuple(BACKENDS), where),
        data=_mapping(plain, "data", where),
        training=_mapping(plain, "training", where),
        sources=sources,
        figures=tuple(_figure(value, where) for value in _sequence(plain, "figures", where)),
        cost={**_COST, **_mapping(plain, "cost", where)},
        same_setting=same_setting,
        plain=plain,
        variant=variant,
    )
    _check(recipe, where)
    return recipe


def _known_names(base: Mapping[str, Any], layers: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Refuses rows that speak of a task or a model that is there at no scale: a scale may leave some out."""
    for key in ("tasks", "models"):
        known = [str(name) for layer in layers for name in layer.get(key) or ()]
        for row in base["rows"]:
            for name in row.get(key) or ():
                if name not in known:
                    what = f"row '{row.get('name')}' speaks of the {key[:-1]} '{name}'"
                    raise SoftPromptError(f"{path}: {what}; {nearest(str(name), known)}")


def _find(source: str | Path) -> Path:
    path = Path(source).expanduser()
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            inside = recipes_folder().parent / path  # "recipes/quick.yaml" from any folder
            if not inside.is_file():
                raise SoftPromptError(f"no such recipe: {path}")
            return inside
        return path
    known = recipe_names()
    if str(source) not in known:
        raise SoftPromptError(f"unknown recipe '{source}'; {nearest(str(source), known)}")
    return recipes_folder() / f"{source}.yaml"


def _located(plain: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A recipe whose own tasks (YAML files) are named by absolute paths, beside the recipe where they lie there."""

    def found(name: Any) -> Any:
        beside = folder / str(name)
        return str(beside.resolve()) if is_declaration(str(name)) and beside.is_file() else name

    for key in ("tasks", "sources"):
        if isinstance(plain.get(key), Mapping):
            plain[key] = {
                label: {**value, "task": found(value["task"])}
                if isinstance(value, Mapping) and "task" in value
                else found(value)
                for label, value in plain[key].items()
            }
    return plain


def _scaled(base: Mapping[str, Any], over: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A recipe with a scale laid over it."""
    extra = ("only_rows", "only_tasks")
    _strict(over, [*(key for key in _KEYS if key != "scales"), *extra], path, "the scale")
    over = dict(over)
    only = {key: over.pop(key, None) for key in extra}
    rows = over.pop("rows", None)
    result = overlaid(base, over, _WHOLE)
    if isinstance(rows, Mapping):
        names = [name for row in base["rows"] for name in _called(row)]
        foreign = next((name for name in rows if name not in (*names, EVERY)), None)
        if foreign is not None:
            raise SoftPromptError(f"{path}: the scale changes the row '{foreign}'; {nearest(str(foreign), names)}")
        result["rows"] = []
        for row in base["rows"]:
            for name in (EVERY, *_called(row)):
                row = overlaid(row, rows.get(name) or {}, _WHOLE)
            result["rows"].append(row)
    elif rows is not None:
        result["rows"] = rows
    if only["only_rows"] is not None:
        result["rows"] = _kept(result["rows"], only["only_rows"], _called, path)
    if only["only_tasks"] is not None:
        kept = _kept(list(result["tasks"]), only["only_tasks"], lambda name: [name], path)
        result["tasks"] = {name: result["tasks"][name] for name in kept}
        if result.get("columns"):
            result["columns"] = {
                name: column
                for name, column in result["columns"].items()
                if (column.get("task", name) if isinstance(column, Mapping) else name) in kept
            }
    if only["only_rows"] is not None or only["only_tasks"] is not None or "models" in over:
        result["figures"] = _figures_left(result, base)
    return result


def _figures_left(recipe: Mapping[str, Any], before: Mapping[str, Any]) -> list[Any]:
    """The figures of a recipe without the rows, tasks and models that they name and a scale has left out."""

    def names(of: Mapping[str, Any]) -> dict[str, set[str]]:
        rows = {name for row in of["rows"] for name in _called(row)}
        columns = {*(of.get("columns") or ()), *of["tasks"]}
        return {"rows": rows, "tasks": set(of["tasks"]), "models": set(of.get("models") or ()), "columns": columns}

    there = names(recipe)
    gone = {key: values - there[key] for key, values in names(before).items()}
    left = []
    for figure in recipe.get("figures") or ():
        kept = {key: [one for one in figure[key] if one not in gone[key]] for key in gone if key in figure}
        if all(kept.values()):
            left.append({**figure, **kept})
    return left


def _called(row: Mapping[str, Any]) -> list[str]:
    """What an overlay may call a row: its name, or its label as it is written."""
    return [str(row[key]) for key in ("name", "label") if row.get(key)]


def _kept(items: Sequence[Any], names: Sequence[str], called: Callable[[Any], list[str]], path: Path) -> list[Any]:
    there = [name for item in items for name in called(item)]
    foreign = next((name for name in names if name not in there), None)
    if foreign is not None:
        raise SoftPromptError(f"{path}: the scale keeps '{foreign}'; {nearest(str(foreign), there)}")
    return [item for item in items if set(called(item)) & set(names)]


def _rows(
    plain: Any, models: Mapping[str, Any], tasks: Mapping[str, Any], sources: Mapping[str, Any], where: Path
) -> list[Row]:
    """The lines that a row of the recipe stands for: one, or one for each combination of its grid."""
    if not isinstance(plain, Mapping) or not plain.get("name") or not plain.get("method"):
        raise SoftPromptError(f"{where}: every row needs a name and a method, and this one is {plain!r}")
    name = str(plain["name"])
    here = f"row '{name}'"
    _strict(plain, _ROW, where, here)
    wanted = plain.get("models")
    by_model = wanted if isinstance(wanted, Mapping) else {}
    on = [model for model in models if not isinstance(wanted, list) or model in wanted]
    for model in wanted or ():
        if model not in models and not by_model:
            raise SoftPromptError(f"{where}: {here} is for the model '{model}'; {nearest(str(model), models)}")
    for layer in by_model.values():
        _strict(layer, [*_ROW_LAYERS, "tasks"], where, f"{here}, models")
    own = {layer: _mapping(plain, layer, where) for layer in _ROW_LAYERS}
    by_task = _mapping(plain, "tasks", where)
    for task, layer in [
        *by_task.items(),
        *(pair for one in by_model.values() for pair in (one.get("tasks") or {}).items()),
    ]:
        _strict(layer, _ROW_LAYERS, where, f"{here}, task '{task}'")
    named = plain.get("sources") or {}
    named = {"sources": named} if isinstance(named, list) else named
    for source in source_names(named):
        if source not in sources:
            raise SoftPromptError(f"{where}: {here} starts from '{source}'; {nearest(source, sources)}")
    only = _sequence(plain, "only_tasks", where)
    foreign = next((str(task) for task in (*only, *by_task) if task not in tasks), None)
    if foreign is not None and foreign in only:
        raise SoftPromptError(f"{where}: {here} is for the task '{foreign}'; {nearest(foreign, tasks)}")
    lines = []
    for set_ in _combinations(plain.get("grid") or {}, where, here):
        short = {last_part(key): value for key, value in set_.items()}
        filled = {"name": name, "model": "{model}", **short}
        told = ", ".join(f"{key}={as_text(value)}" for key, value in short.items())
        label = _filled(plain.get("label"), {"name": name, **short}, where, here) or (
            f"{name} ({told})" if told else name
        )
        lines.append(
            Row(
                label=label,
                name=name,
                method=str(plain["method"]),
                **own,
                grid=set_,
                values=short,
                tasks=by_task,
                by_model=by_model,
                models=tuple(on),
                only_tasks=tuple(only),
                sources={key: value if isinstance(value, str) else tuple(value) for key, value in named.items()},
                published=_filled(plain.get("published"), filled, where, here),
                group=plain.get("group"),
                baseline=bool(plain.get("baseline", False)),
            )
        )
    return lines


def _combinations(grid: Any, where: Path, here: str) -> list[dict[str, Any]]:
    """What a grid sets: each combination of its values; of a list of grids, those of each."""
    found = []
    for part in grid if isinstance(grid, list) else [grid]:
        if not isinstance(part, Mapping):
            raise SoftPromptError(f"{where}: {here}: a grid maps settings to values, and {part!r} does not")
        nothing = next((name for name, value in part.items() if value in ([], ())), None)
        if nothing is not None:
            raise SoftPromptError(f"{where}: {here}: its grid has no values for '{nothing}'")
        values = itertools.product(*(as_list(value) for value in part.values()))
        found += [dict(zip(part, combination, strict=True)) for combination in values]
    return found


def _filled(text: Any, values: Mapping[str, Any], where: Path, here: str) -> str | None:
    """A label with the grid's values in it."""
    if text is None:
        return None
    try:
        wanted = [name for _, name, _, _ in string.Formatter().parse(str(text)) if name is not None]
    except ValueError as error:
        raise SoftPromptError(f"{where}: {here}: '{text}': {error}") from None
    foreign = next((name for name in wanted if name not in values), None)
    if foreign is not None:
        raise SoftPromptError(
            f"{where}: {here}: '{text}' has {{{foreign}}}, which its grid does not; {nearest(foreign, values)}"
        )
    return str(text).format(**{key: as_text(value) for key, value in values.items()})


def _columns(plain: Mapping[str, Any], tasks: Mapping[str, Entry], where: Path, measure: str) -> tuple[Column, ...]:
    """The columns that are said, else one for each task."""
    said = _mapping(plain, "columns", where)
    columns = []
    for name, value in (said or {task: {} for task in tasks}).items():
        value = {"metric": value} if isinstance(value, str) else value or {}
        _strict(value, ("task", "metric"), where, f"column '{name}'")
        task = str(value.get("task", name))
        if task not in tasks:
            raise SoftPromptError(f"{where}: column '{name}' is of the task '{task}'; {nearest(task, tasks)}")
        template = tasks[task].data.get("template") or (plain.get("data") or {}).get("template")
        try:
            metrics = task_metrics(tasks[task].task, template)
        except SoftPromptError as error:
            raise SoftPromptError(f"{where}: task '{task}': {error}") from None
        metrics = COSTS if measure == "cost" else metrics
        metric = str(value.get("metric", metrics[0]))
        if metric not in metrics:
            raise SoftPromptError(
                f"{where}: column '{name}': {tasks[task].task} has no '{metric}'; {nearest(metric, metrics)}"
            )
        columns.append(Column(str(name), task, metric))
    return tuple(columns)


def _entry(label: str, value: Any, where: Path) -> Entry:
    value = {"task": value} if isinstance(value, str) else value
    if not isinstance(value, Mapping) or not value.get("task"):
        raise SoftPromptError(f"{where}: task '{label}' needs a name among the tasks, such as {{task: glue/rte}}")
    _strict(value, ("task", "data", "training", "max_length"), where, f"task '{label}'")
    name = str(value["task"])
    return Entry(name, value.get("data") or {}, value.get("training") or {}, value.get("max_length"))


def _source(label: str, value: Any, where: Path) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not value.get("task") or not value.get("method"):
        raise SoftPromptError(f"{where}: source '{label}' needs a task and a method")
    _strict(value, _SOURCE, where, f"source '{label}'")
    return value


def _figure(value: Any, where: Path) -> Mapping[str, Any]:
    kinds = ", ".join(FIGURES)
    if not isinstance(value, Mapping) or value.get("kind") not in FIGURES:
        raise SoftPromptError(f"{where}: a figure has a kind, one of {kinds}; this one is {value!r}")
    _strict(value, ("kind", "title", *FIGURES[value["kind"]]), where, f"a figure of kind '{value['kind']}'")
    return value


def _check(recipe: Recipe, where: Path) -> None:
    """Makes sure that every cell can be set up, as far as can be told without models and data."""
    twice = [(row.label, model) for row in recipe.rows for model in row.models]
    seen: set[tuple[str, str]] = set()
    for pair in twice:
        if pair in seen:
            raise SoftPromptError(f"{where}: two rows are called '{pair[0]}'; give them labels of their own")
        seen.add(pair)
    known = {f.name for f in dataclasses.fields(Data)} - set(_PLACES)
    for length in (recipe.max_length, *(entry.max_length for entry in recipe.tasks.values())):
        if length is not None:
            require_whole(str(where), "max_length", length, 1)
    for key, number in recipe.cost.items():
        require_whole(str(where), f"cost.{key}", number, 1)
    for seed in recipe.seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise SoftPromptError(f"{where}: seeds are whole numbers of at least 0, not {seed!r}")
    if len(set(recipe.seeds)) < len(recipe.seeds):
        raise SoftPromptError(f"{where}: a seed is named twice")
    for model in recipe.models:
        if not any(model in row.models for row in recipe.rows):
            raise SoftPromptError(f"{where}: no row is run on the model '{model}'")
    if recipe.published is not None:
        try:
            reference = published(recipe.published)
            for row in recipe.rows:
                for model in row.models if row.published is not None else ():
                    reference.row_of(str(row.published), model)
        except SoftPromptError as error:
            raise SoftPromptError(f"{where}: {error}") from None
    for figure in recipe.figures:
        known_names = {
            "rows": {name for row in recipe.rows for name in (row.name, row.label)},
            "tasks": set(recipe.tasks),
            "models": set(recipe.models),
            "columns": {name for column in recipe.columns for name in (column.name, column.task)},
        }
        for key, names in known_names.items():
            foreign_name = next((str(one) for one in figure.get(key) or () if one not in names), None)
            if foreign_name is not None:
                what = f"a figure of kind '{figure['kind']}' is of the {key[:-1]} '{foreign_name}'"
                raise SoftPromptError(f"{where}: {what}; {nearest(foreign_name, names)}")
    if not recipe.evaluate and any(cell.choice for cell in recipe.cells()):
        raise SoftPromptError(f"{where}: rows choose by validation, which 'evaluate: false' leaves out")
    prompts = {name: f"source-{name}" for name in recipe.sources}
    for cell in (*recipe.source_cells(), *recipe.cells()):
        try:
            name, data = recipe.layers(cell, "data")
            task_metrics(name, data.get("template"))
            foreign = next((key for key in data if key not in known), None)
            if foreign is not None:
                raise SoftPromptError(f"data has no setting '{foreign}' in a recipe; {nearest(foreign, known)}")
            recipe.data_of(cell)
            recipe.training_of(cell)
            make_config(cell.row.method, **recipe.settings_of(cell, prompts))
        except SoftPromptError as error:
            raise SoftPromptError(f"{where}: {cell}: {error}") from None
