"""Methods by name: each registers its config; `config_of` makes one method's config from settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, TypeVar

from softprompts.errors import SoftPromptError, nearest
from softprompts.methods.contract import MethodConfig

ConfigT = TypeVar("ConfigT", bound=type[MethodConfig])
_REGISTRY: dict[str, type[MethodConfig]] = {}
_PLUGINS_LOADED = False


def register(name: str) -> Callable[[ConfigT], ConfigT]:
    """Class decorator: makes a config known under the method's name."""

    def decorate(cls: ConfigT) -> ConfigT:
        if name in _REGISTRY and _REGISTRY[name].__qualname__ != cls.__qualname__:
            raise SoftPromptError(f"the method name '{name}' is already taken by {_REGISTRY[name].__qualname__}")
        cls.method = name
        _REGISTRY[name] = cls
        return cls

    return decorate


def methods() -> dict[str, type[MethodConfig]]:
    """All methods by name, those of installed plug-ins (entry point group ``softprompts.methods``) included."""
    global _PLUGINS_LOADED
    if not _PLUGINS_LOADED:
        _PLUGINS_LOADED = True
        for point in entry_points(group="softprompts.methods"):
            point.load()
    return dict(_REGISTRY)


def restore(known: Mapping[str, type[MethodConfig]]) -> None:
    """Forgets what was registered since `methods` returned these."""
    _REGISTRY.clear()
    _REGISTRY.update(known)


def listed(known: Mapping[str, type[MethodConfig]]) -> list[str]:
    """The names of the methods that users choose by name."""
    return [name for name, config in known.items() if config.listed]


def config_of(method: str, fields: Mapping[str, Any], saved: bool = False) -> MethodConfig:
    """The config of one method by its name.

    Args:
        method: the name.
        fields: its settings.
        saved: they were saved: what they lack did not exist then (see `MethodConfig.before`).

    Raises:
        SoftPromptError: unknown method or field (with the nearest known one), or a value out of range.
    """
    known = methods()
    if method not in known:
        raise SoftPromptError(f"unknown method '{method}'; {nearest(method, listed(known))}")
    if saved:
        fields = {**known[method].before(), **fields}
    names = {field.name for field in dataclasses.fields(known[method])}
    for field in fields:
        if field not in names:
            raise SoftPromptError(f"{method} has no setting '{field}'; {nearest(field, names)}")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return known[method](**values)
