"""Reads recipes from YAML files, lays a scale over them, and checks that every run can be set up.

A recipe has the paper's own models and budgets; ``scales`` has what is different at ``gpu``, ``small`` and ``tiny``:
a mapping that is laid over the recipe key by key. Null removes a key; ``models``, ``columns`` and all values but
mappings are replaced; lines of ``differences`` and ``unstated`` are added. ``rows`` in a scale is a mapping from a
row's name to its changes, or a list in place of the recipe's list; ``only_rows`` and ``only_tasks`` keep some.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import string
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from softprompts.bench.published import published
from softprompts.bench.recipe import COSTS, PAPER, SCALES, Column, Recipe, RecipeRow, as_text, last_part, overlaid
from softprompts.bench.recipe_schema import ColumnSpec, Overlay, RecipeFile, RecipeSpec, RowSpec, check_part, checked
from softprompts.errors import SoftPromptError, nearest
from softprompts.methods import make_config
from softprompts.tasks.catalog import task_metrics
from softprompts.tasks.data import Data
from softprompts.tasks.yaml_tasks import is_declaration

EVERY = "*"  # a name for all rows in an overlay
_WHOLE = ("models", "columns")  # an overlay replaces them as a whole
_PLACES = ("task", "data_dir", "train", "validation", "test", "few_shot_seed")  # of Data, not for recipes


def recipes_folder() -> Path:
    """The folder of the recipes that come with the package: in it, or beside it in a checkout."""
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
        scale: one of `SCALES`; None: the only one that the recipe has, or, where it is of no paper, none: the recipe as
            it is written.
        changes: laid over the recipe as a scale is; its numbers no longer count as the paper's setting.

    Raises:
        SoftPromptError: there is no such recipe, or a value in it cannot be used; file and place are named.
    """
    path = _find(source)
    plain = _read(path)
    check_part(RecipeFile, plain, path)
    base = {key: value for key, value in plain.items() if key != "scales"}
    scales = {name: overlay or {} for name, overlay in (plain.get("scales") or {}).items()}
    known = [name for name in SCALES if name in scales or name == PAPER]
    of_paper = plain.get("paper") is not None
    if scale is None and len(known) > 1 and of_paper:
        raise SoftPromptError(f"{path.stem}: say at which scale (--scale): {', '.join(known)}")
    scale = scale or PAPER
    if scale not in SCALES:
        raise SoftPromptError(f"unknown scale '{scale}'; {nearest(scale, SCALES)}")
    if scale not in known:
        raise SoftPromptError(f"{path}: has no scale '{scale}'; it has {', '.join(known)}")
    for key in ("tasks", "rows"):
        if not base.get(key):
            raise SoftPromptError(f"{path}: {key} is missing")
    base = _located(base, path.parent)
    _known_names(base, [base, *scales.values(), changes or {}], path)
    if scale != PAPER:
        base = _overlay(base, _located(scales[scale], path.parent), path)
    if changes:
        check_part(Overlay, changes, path)
        base = _overlay(base, _located(changes, Path()), path)
    folder = recipes_folder().resolve()
    inside = path.resolve().is_relative_to(folder)
    name = path.resolve().relative_to(folder).with_suffix("").as_posix() if inside else path.stem
    variant = hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:6] if changes else ""
    same = scale == PAPER and not changes
    named = scale if scales and (of_paper or scale != PAPER) else ""
    return read_recipe(base, name=name, scale=named, same_setting=same, path=path, variant=variant)


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
        SoftPromptError: a value in it cannot be used.
    """
    where = path or Path(name)
    spec = checked(RecipeSpec, plain, where)
    fields: dict[str, Any] = {
        **dict(spec),
        "about": " ".join(spec.about.split()),
        "rows": tuple(line for row in spec.rows for line in _lines(row, spec, where)),
        "columns": _columns(spec, where),
        "averages": _averages(spec),
    }
    recipe = Recipe(**fields, name=name, scale=scale, same_setting=same_setting, variant=variant, plain=plain)
    _check(recipe, where)
    return recipe


def _read(path: Path) -> dict[str, Any]:
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SoftPromptError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    except yaml.YAMLError as error:
        raise SoftPromptError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(plain, dict):
        raise SoftPromptError(f"{path}: a recipe is a mapping with title, models, tasks and rows")
    return plain


def _known_names(base: Mapping[str, Any], layers: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Refuses rows that name a task or a model of no scale. Rows may name those that a scale leaves out."""
    for key in ("tasks", "models"):
        known = {name for layer in layers for name in layer.get(key) or ()}
        for row in base["rows"]:
            _require_known(row.get(key) or (), known, f"{path}: row '{row.get('name')}' speaks of the {key[:-1]}")
    tasks = {name for layer in layers for name in layer.get("tasks") or ()}
    for layer in layers:
        for name, averaged in (layer.get("averages") or {}).items():
            _require_known(averaged or (), tasks, f"{path}: the average '{name}' is over the task")


def _require_known(names: Iterable[str], known: Collection[str], what: str) -> None:
    foreign = next((name for name in names if name not in known), None)
    if foreign is not None:
        raise SoftPromptError(f"{what} '{foreign}'; {nearest(foreign, known)}")


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


def _located(plain: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The recipe with absolute paths of its tasks' YAML files and its results, which lie beside it."""

    def located(entry: Any) -> Any:
        if isinstance(entry, Mapping):
            return {**entry, "task": located(entry["task"])} if "task" in entry else entry
        beside = folder / str(entry)
        return str(beside.resolve()) if is_declaration(str(entry)) and beside.is_file() else entry

    named = {key: plain[key] for key in ("tasks", "sources") if plain.get(key)}
    if plain.get("results"):
        plain = {**plain, "results": str((folder / plain["results"]).resolve())}
    return {**plain, **{key: {name: located(one) for name, one in entries.items()} for key, entries in named.items()}}


def _overlay(base: Mapping[str, Any], over: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A recipe with a scale laid over it; both have the shape of a recipe."""
    over = dict(over)
    only_rows, only_tasks, rows = (over.pop(key, None) for key in ("only_rows", "only_tasks", "rows"))
    result = overlaid(base, over, _WHOLE)
    if isinstance(rows, Mapping):
        names = [name for row in base["rows"] for name in _names_of(row)]
        _require_known([name for name in rows if name != EVERY], names, f"{path}: the scale changes the row")
        result["rows"] = []
        for row in base["rows"]:
            for name in (EVERY, *_names_of(row)):
                row = overlaid(row, rows.get(name) or {}, _WHOLE)
            result["rows"].append(row)
    elif rows is not None:
        result["rows"] = rows
    if only_rows is not None:
        names = [name for row in result["rows"] for name in _names_of(row)]
        _require_known(only_rows, names, f"{path}: the scale keeps")
        result["rows"] = [row for row in result["rows"] if set(_names_of(row)) & set(only_rows)]
    if only_tasks is not None:
        _require_known(only_tasks, result["tasks"], f"{path}: the scale keeps")
        result["tasks"] = {name: task for name, task in result["tasks"].items() if name in only_tasks}
        if result.get("columns"):
            result["columns"] = {
                name: column
                for name, column in result["columns"].items()
                if (column.get("task", name) if isinstance(column, Mapping) else name) in only_tasks
            }
    if only_rows is not None or only_tasks is not None or "models" in over:
        result["figures"] = _figures_left(result, base)
    return result


def _figures_left(recipe: Mapping[str, Any], before: Mapping[str, Any]) -> list[Any]:
    """The figures of a recipe without the rows, tasks and models that they name and a scale has left out."""

    def names(of: Mapping[str, Any]) -> dict[str, set[str]]:
        rows = {name for row in of["rows"] for name in _names_of(row)}
        columns = {*(of.get("columns") or ()), *of["tasks"]}
        return {"rows": rows, "tasks": set(of["tasks"]), "models": set(of.get("models") or ()), "columns": columns}

    left = names(recipe)
    gone = {key: values - left[key] for key, values in names(before).items()}
    figures = []
    for figure in recipe.get("figures") or ():
        kept = {key: [name for name in figure[key] if name not in gone[key]] for key in gone if figure.get(key)}
        if all(kept.values()):
            figures.append({**figure, **kept})
    return figures


def _names_of(row: Mapping[str, Any]) -> list[str]:
    """The names by which an overlay can change a row: its name, and its label as it is written."""
    return [row[key] for key in ("name", "label") if row.get(key)]


def _lines(row: RowSpec, spec: RecipeSpec, where: Path) -> list[RecipeRow]:
    """The lines of the table that a row of the recipe stands for: one, or one for each combination of its grid."""
    here = f"{where}: row '{row.name}'"
    by_model = row.models if isinstance(row.models, dict) else {}
    models = tuple(model for model in spec.models if by_model or not row.models or model in row.models)
    _require_known(() if by_model else row.models, spec.models, f"{here} is for the model")
    _require_known(row.source_names, spec.sources, f"{here} starts from")
    _require_known(row.only_tasks, spec.tasks, f"{here} is for the task")
    lines = []
    combinations = [
        dict(zip(grid, line, strict=True)) for grid in row.grid for line in itertools.product(*grid.values())
    ]
    for combination in combinations:
        values = {last_part(name): value for name, value in combination.items()}
        pattern = ", ".join(f"{key}={as_text(value)}" for key, value in values.items())
        label = _filled(row.label, {"name": row.name, **values}, here)
        fields: dict[str, Any] = {
            **dict(row),
            "label": label or (f"{row.name} ({pattern})" if pattern else row.name),
            "models": models,
            "published": _filled(row.published, {"name": row.name, "model": "{model}", **values}, here),
        }
        del fields["grid"]
        lines.append(RecipeRow(**fields, by_model=by_model, combination=combination))
    return lines


def _filled(pattern: str | None, values: Mapping[str, Any], here: str) -> str | None:
    """A pattern filled with the grid's values."""
    if pattern is None:
        return None
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None]
    except ValueError as error:
        raise SoftPromptError(f"{here}: '{pattern}': {error}") from None
    foreign = next((name for name in names if name not in values), None)
    if foreign is not None:
        raise SoftPromptError(
            f"{here}: '{pattern}' has {{{foreign}}}, which its grid does not; {nearest(foreign, values)}"
        )
    return pattern.format(**{key: as_text(value) for key, value in values.items()})


def _columns(spec: RecipeSpec, where: Path) -> tuple[Column, ...]:
    """The columns that the recipe names, else one for each task."""
    columns = []
    for name, column in (spec.columns or dict.fromkeys(spec.tasks, ColumnSpec())).items():
        label = column.task or name
        _require_known([label], spec.tasks, f"{where}: column '{name}' is of the task")
        task = spec.tasks[label]
        data: dict[str, Any] = {**spec.data, **task.data}
        try:
            metrics = task_metrics(task.task, data.get("template"))
        except SoftPromptError as error:
            raise SoftPromptError(f"{where}: task '{label}': {error}") from None
        metrics = COSTS if spec.measure == "cost" else metrics
        metric = column.metric or metrics[0]
        _require_known([metric], metrics, f"{where}: column '{name}': {task.task} has no")
        columns.append(Column(name, label, metric))
    return tuple(columns)


def _averages(spec: RecipeSpec) -> dict[str, tuple[str, ...]]:
    """The averages of several tasks, without the tasks that a scale leaves out."""
    left = {name: tuple(task for task in tasks if task in spec.tasks) for name, tasks in spec.averages.items()}
    return {name: tasks for name, tasks in left.items() if len(tasks) > 1}


def _check(recipe: Recipe, where: Path) -> None:
    """Makes sure that every cell can be set up, as far as that shows without models and data."""
    pairs: set[tuple[str, str]] = set()
    for row in recipe.rows:
        for model in row.models:
            if (row.label, model) in pairs:
                raise SoftPromptError(f"{where}: two rows are called '{row.label}'; give them labels of their own")
            pairs.add((row.label, model))
    for model in recipe.models:
        if not any(model in row.models for row in recipe.rows):
            raise SoftPromptError(f"{where}: no row is run on the model '{model}'")
    if not recipe.evaluate and any(cell.choice for cell in recipe.cells()):
        raise SoftPromptError(f"{where}: rows choose by validation, which 'evaluate: false' leaves out")
    _check_stages(recipe, where)
    _check_published(recipe, where)
    _check_figures(recipe, where)
    prompts = {name: f"source-{name}" for name in recipe.sources}
    known = {field.name for field in dataclasses.fields(Data)} - set(_PLACES)
    for cell in (*recipe.source_cells(), *recipe.cells()):
        try:
            task, data = recipe.layers(cell, "data")
            task_metrics(task, data.get("template"))
            _require_known(data, known, "in a recipe, data has no setting")
            recipe.data_of(cell)
            recipe.training_of(cell)
            make_config(cell.row.method, **recipe.settings_of(cell, prompts))
        except SoftPromptError as error:
            raise SoftPromptError(f"{where}: {cell}: {error}") from None


def _check_stages(recipe: Recipe, where: Path) -> None:
    search, more = recipe.search, recipe.more_seeds
    for claim in recipe.claims:
        _require_known((claim.better, claim.than), {row.label for row in recipe.rows}, f"{where}: claims speak of row")
    for key, asked in (("search", search), ("more_seeds", more)):
        if asked is not None and any(cell.choice for cell in recipe.cells()):
            raise SoftPromptError(f"{where}: {key} does not go with rows that choose")
        if asked is not None and recipe.measure == "cost":
            raise SoftPromptError(f"{where}: {key} is for scores; leave it out of a recipe that measures cost")
    if more is not None and not any(row.baseline for row in recipe.rows):
        raise SoftPromptError(f"{where}: more_seeds needs a row with 'baseline: true'")
    if search is None:
        return
    seeds = {*recipe.seeds, *range(max(recipe.seeds), max(recipe.seeds) + (0 if more is None else more.to))}
    if both := sorted(seeds.intersection(search.seeds)):
        raise SoftPromptError(f"{where}: seed {both[0]} is of the search and of the table; take others for the search")
    for cell in recipe.cells() if not recipe.evaluate else ():
        if recipe.training_of(cell).max_steps is None:
            raise SoftPromptError(f"{where}: {cell}: a search without 'evaluate' needs training.max_steps")


def _check_published(recipe: Recipe, where: Path) -> None:
    if recipe.published is None:
        return
    try:
        reference = published(recipe.published)
        for row in recipe.rows:
            for model in row.models if row.published is not None else ():
                reference.row_of(str(row.published), model)
    except SoftPromptError as error:
        raise SoftPromptError(f"{where}: {error}") from None


def _check_figures(recipe: Recipe, where: Path) -> None:
    known = {
        "rows": {name for row in recipe.rows for name in (row.name, row.label)},
        "tasks": set(recipe.tasks),
        "models": set(recipe.models),
        "columns": {name for column in recipe.columns for name in (column.name, column.task)},
    }
    for figure in recipe.figures:
        for key, names in known.items():
            what = f"{where}: a figure of kind '{figure.kind}' is of the {key[:-1]}"
            _require_known(getattr(figure, key) or (), names, what)
