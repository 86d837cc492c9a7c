"""TODO."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from softprompts.bench.recipe import (
    LAYERS,
)
from softprompts.errors import SoftPromptError, nearest

# What a figure may say besides its kind and title, by kind.
FIGURES: Mapping[str, tuple[str, ...]] = {
    "sweep": ("x", "y", "rows", "columns", "models", "facets"),
    "curves": ("rows", "tasks", "models"),
    "parameters": ("rows", "columns", "models"),
    "cost": ("rows", "tasks", "models"),
    "analysis": ("what", "rows", "tasks", "models"),
}


_KEYS = (
    "title", "about", "paper", "shows", "published", "measure", "models", "seeds", "max_length", "evaluate", "quantize",
    "data", "training", "tasks", "columns", "rows", "sources", "figures", "cost", "table", "scales",
)  # fmt: skip


_ROW = (
    "name", "label", "method", "group", "models", "settings", "training", "data", "grid", "choose", "published",
    "baseline", "tasks", "only_tasks", "sources",
)  # fmt: skip


_ROW_LAYERS = (*LAYERS, "choose")
_SOURCE = ("task", "method", "settings", "training", "data")
EVERY = "*"  # a name for all rows in an overlay
# What may be where: a type (dict: with any keys), [what a list is of], {key: ...} with EVERY for all other keys, or
# several of these in a tuple. Keys that are not here are of no matter, or refused elsewhere.
_LAYER: Mapping[str, Any] = {"settings": dict, "training": dict, "data": dict, "choose": {EVERY: list}}
_SHAPED_ROW: Mapping[str, Any] = {
    **_LAYER,
    "name": str,
    "method": str,
    "label": str,
    "published": str,
    "models": ([str], {EVERY: {**_LAYER, "tasks": {EVERY: _LAYER}}}),
    "grid": object,
    "tasks": {EVERY: _LAYER},
    "only_tasks": [str],
    "baseline": bool,
    "sources": ([str], {EVERY: (str, [str])}),
}


_SHAPED: Mapping[str, Any] = {
    "published": str,
    "models": {EVERY: str},
    "seeds": list,
    "evaluate": bool,
    "data": dict,
    "training": dict,
    "cost": dict,
    "tasks": {EVERY: (str, {"task": str, "data": dict, "training": dict})},
    "columns": {EVERY: (str, {"task": str, "metric": str})},
    "rows": ([_SHAPED_ROW], {EVERY: _SHAPED_ROW}),
    "sources": {EVERY: {"task": str, "method": str, "settings": dict, "training": dict, "data": dict}},
    "figures": [{"kind": str}],
    "only_rows": [str],
    "only_tasks": [str],
}


_TOLD = {dict: "a mapping", list: "a list", str: "a text", bool: "true or false"}


def _shaped(value: Any, shape: Any, where: Path, place: str) -> None:
    """Refuses values of another kind than their place is for; None, which takes a key out, is fine everywhere.

    Args:
        value: what was read.
        shape: what it may be, see `_SHAPED`.
        where: the file.
        place: where in it, as "rows.Prefix.settings".
    """
    within = f"{place}." if place else ""
    if isinstance(value, Mapping):
        strange = next((key for key in value if not isinstance(key, str)), None)
        if strange is not None:
            raise SoftPromptError(f"{where}: {within}{strange}: names are texts; put {strange!r} in quotes")
    if value is not None and not isinstance(value, Mapping | list | tuple | str | int | float):
        raise SoftPromptError(f"{where}: {place} is {value!r}; put it in quotes")
    shapes = shape if isinstance(shape, tuple) else (shape,)
    kinds = [kind if isinstance(kind, type) else dict if isinstance(kind, Mapping) else type(kind) for kind in shapes]
    mine = list if isinstance(value, tuple) else dict if isinstance(value, Mapping) else type(value)
    if value is not None and mine not in kinds and object not in kinds:
        told = " or ".join(_TOLD[kind] for kind in kinds)
        raise SoftPromptError(f"{where}: {place or 'the recipe'} must be {told}, not {value!r}")
    inner = next((one for one, kind in zip(shapes, kinds, strict=True) if kind is mine), object)
    if isinstance(value, Mapping):
        known = inner if isinstance(inner, Mapping) else {}
        for key, part in value.items():
            _shaped(part, known.get(key, known.get(EVERY, object)), where, f"{within}{key}")
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value, start=1):
            called = part.get("name") if isinstance(part, Mapping) else None
            _shaped(part, inner[0] if isinstance(inner, list) else object, where, f"{within}{called or number}")


def _strict(value: Any, keys: Iterable[str], where: Path, what: str) -> None:
    keys = list(keys)
    if not isinstance(value, Mapping):
        raise SoftPromptError(f"{where}: {what} must be a mapping, not {value!r}")
    foreign = next((str(key) for key in value if key not in keys), None)
    if foreign is not None:
        raise SoftPromptError(f"{where}: {what} has no key '{foreign}'; {nearest(foreign, keys)}")


def _mapping(plain: Mapping[str, Any], key: str, where: Path) -> dict[str, Any]:
    value = plain.get(key) or {}
    if not isinstance(value, Mapping):
        raise SoftPromptError(f"{where}: '{key}' must be a mapping, not {value!r}")
    return dict(value)


def _sequence(plain: Mapping[str, Any], key: str, where: Path) -> list[Any]:
    value = plain.get(key) or []
    if not isinstance(value, list | tuple):
        raise SoftPromptError(f"{where}: '{key}' must be a list, not {value!r}")
    return list(value)


def _one_of(plain: Mapping[str, Any], key: str, options: Sequence[str], where: Path) -> str | None:
    value = plain.get(key)
    if value is not None and value not in options:
        raise SoftPromptError(f"{where}: '{key}' must be one of {', '.join(options)}, not {value!r}")
    return value
