"""How texts on the command line are read: pairs, lists, numbers."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from softprompts.errors import SoftPromptError


def pairs(given: list[str] | None, flag: str = "--set") -> dict[str, str]:
    """NAME=VALUE pairs.

    Raises:
        SoftPromptError: one is no such pair, or a name is given twice.
    """
    settings: dict[str, str] = {}
    for pair in given or []:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise SoftPromptError(f"{flag} {pair}: write NAME=VALUE")
        if key in settings:
            raise SoftPromptError(f"{flag}: {key} is given twice")
        settings[key] = value
    return settings


def listed(flag: str, text: str) -> list[str]:
    """The parts between commas.

    Raises:
        SoftPromptError: there are none, or one is given twice.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise SoftPromptError(f"{flag} names nothing")
    twice = next((part for part in parts if parts.count(part) > 1), None)
    if twice is not None:
        raise SoftPromptError(f"{flag} names {twice} twice")
    return parts


def whole(flag: str, text: str) -> int:
    """A whole number.

    Raises:
        SoftPromptError: anything else.
    """
    if not text.isdecimal():
        raise SoftPromptError(f"{flag}: '{text}' is not a whole number of at least 0")
    return int(text)


def value_of(text: str, type_: str = "") -> Any:
    """What the value of a setting stands for.

    Args:
        text: a number, true, false, none, a JSON list, parts between commas, or a text.
        type_: the field's type as it is written in the method's file: it tells a list from a text with commas in it.
    """
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        # Some settings have "none" for a name.
        return text if words[text.lower()] is None and type_ and "None" not in type_ else words[text.lower()]
    if type_.startswith("str"):
        return text
    for read in (json.loads, float):
        with contextlib.suppress(ValueError):
            return read(text)
    return [part.strip() for part in text.split(",")] if "tuple" in type_ or ("," in text and not type_) else text
