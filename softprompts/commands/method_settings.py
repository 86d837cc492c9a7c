"""What ``--set`` says of methods."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from softprompts.commands.parsing import value_of
from softprompts.errors import SoftPromptError, nearest
from softprompts.storage.names import JOINT

if TYPE_CHECKING:
    from softprompts.methods.contract import MethodConfig


def method_config(name: str, settings: dict[str, str]) -> MethodConfig:
    """The config of a method, or of several in one, with settings as the command line has them.

    Raises:
        SoftPromptError: unknown method or setting, or a value out of range.
    """
    from softprompts.methods import compose, make_config
    from softprompts.methods import methods as known

    if name == "folded":
        raise SoftPromptError("'folded' is what fold() leaves of a prompt; train one of the methods")
    if JOINT in name:
        parts = {part: settings_of(part, settings, name.split(JOINT)) for part in name.split(JOINT)}
        if len(parts) == name.count(JOINT) + 1:
            return compose(*(method_config(part, own) for part, own in parts.items()))
    types = {f.name: str(f.type) for f in dataclasses.fields(known()[name])} if name in known() else {}
    return make_config(name, **{key: value_of(text, types.get(key, "")) for key, text in settings.items()})


def settings_of(name: str, settings: dict[str, str], names: list[str]) -> dict[str, str]:
    """The settings that concern one method: those with its name in front, and general ones that it has.

    A composition's are those of its parts, still with the part's name in front.

    Args:
        name: of the method.
        settings: all that were given.
        names: of all methods they were given for.

    Raises:
        SoftPromptError: a setting is of a method that is not there, or none of them has it.
    """
    from softprompts.methods import methods as known

    configs = known()
    parts = name.split(JOINT) if JOINT in name else []
    everyone = [part for given in names for part in given.split(JOINT)]
    fields = {n: configs[n].settable() for n in everyone if n in configs}
    chosen: dict[str, str] = {}
    for key, value in settings.items():
        method, dot, rest = key.partition(".")
        if dot:
            if method not in everyone:
                raise SoftPromptError(f"--set {key}: '{method}' is not among the methods; {nearest(method, everyone)}")
            if method == name:
                chosen[rest] = value
            elif method in parts:
                chosen[key] = value
        elif not any(key in there for there in fields.values()):
            raise SoftPromptError(f"--set {key}: none of the methods has this setting")
        elif any(key in fields.get(own, ()) for own in parts or [name]):
            chosen.setdefault(key, value)  # what is said of this method alone wins
    return chosen
