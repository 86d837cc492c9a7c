"""Configs of methods from the settings of ``--set``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, get_type_hints

from softprompts.commands.parsing import value_of
from softprompts.errors import SoftPromptError, nearest
from softprompts.storage.names import JOINT

if TYPE_CHECKING:
    from softprompts.methods.contract import MethodConfig


def method_configs(names: Sequence[str], settings: dict[str, str]) -> dict[str, MethodConfig]:
    """The config of each method, by its name, from the settings that concern it; see `method_config`."""
    return {name: method_config(name, settings_of(name, settings, names)) for name in names}


def method_config(name: str, settings: dict[str, str], stored: MethodConfig | None = None) -> MethodConfig:
    """The config of a method, or of several joined by "+"; refuses unknown names and values out of range.

    With a ``stored`` config of the same method, ``settings`` change it.
    """
    from softprompts.methods import compose, make_config
    from softprompts.methods import methods as known

    if name == "folded":
        raise SoftPromptError("'folded' is what fold() leaves of a prompt; train one of the methods")
    parts = name.split(JOINT)
    if 1 < len(parts) == len(set(parts)):
        whole = {} if stored is None else {part["method"]: part for part in stored.to_dict()["parts"]}
        before = {part: make_config(**values) for part, values in whole.items()}
        own = {part: settings_of(part, settings, parts) for part in parts}
        return compose(*(method_config(part, own[part], before.get(part)) for part in parts))
    types = get_type_hints(known()[name]) if name in known() else {}
    values = {} if stored is None else stored.to_dict()
    return make_config(name, **{**values, **{key: value_of(text, types.get(key)) for key, text in settings.items()}})


def changed_config(config: MethodConfig, settings: dict[str, str]) -> MethodConfig:
    """The config of a saved prompt with other settings; refuses those that the method does not have."""
    from softprompts.methods.registry import config_of

    if not settings:
        return config
    if JOINT in config.method:
        raise SoftPromptError(f"--set: {config.method} goes on with the settings of its prompt (--from)")
    types = get_type_hints(type(config))
    changes = {key: value_of(text, types.get(key)) for key, text in settings.items()}
    return config_of(config.method, {**config.to_dict(), **changes}, saved=True)


def settings_of(name: str, settings: dict[str, str], names: Sequence[str]) -> dict[str, str]:
    """The settings that concern one of the methods ``names``: those with its name in front, and general ones it has.

    Those of a composition are those of its parts, still with the part's name in front.

    Raises:
        SoftPromptError: a setting is of a method that is not among them, or none of them has it.
    """
    from softprompts.methods import methods as known

    configs = known()
    parts = name.split(JOINT)
    all_parts = [part for each in names for part in each.split(JOINT)]
    fields = {part: configs[part].settable() for part in all_parts if part in configs}
    chosen: dict[str, str] = {}
    for key, value in settings.items():
        method, dot, field = key.partition(".")
        if dot and method not in all_parts:
            raise SoftPromptError(f"--set {key}: '{method}' is not among the methods; {nearest(method, all_parts)}")
        if not dot and not any(key in settable for settable in fields.values()):
            raise SoftPromptError(f"--set {key}: none of the methods has this setting")
        if dot and method in parts:
            chosen[field if method == name else key] = value
        elif not dot and any(key in fields.get(part, ()) for part in parts):
            chosen.setdefault(key, value)  # a setting of this method alone wins
    return chosen
