"""The config of any method by its name, compositions included."""

from __future__ import annotations

from typing import Any

from softprompts.methods.compose import from_names
from softprompts.methods.contract import MethodConfig
from softprompts.methods.registry import config_of
from softprompts.storage.names import JOINT


def make_config(method: str, **fields: Any) -> MethodConfig:
    """The config of a method by its name; of several with "+" between their names, see `compose`.

    Raises:
        SoftPromptError: unknown method or field (with the nearest known one), or a value out of range.
    """
    return from_names(method, fields) if JOINT in method else config_of(method, fields)
