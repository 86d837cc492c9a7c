"""Reads texts of the command line: pairs, lists, numbers, values of settings."""

from __future__ import annotations

import contextlib
import json
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from softprompts.errors import SoftPromptError


def pairs(given: list[str] | None, flag: str = "--set") -> dict[str, str]:
    """NAME=VALUE pairs; raises a `SoftPromptError` where one is no such pair, or a name is given twice."""
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
    """The parts between commas; raises a `SoftPromptError` where there are none, or one is given twice."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise SoftPromptError(f"{flag} names nothing")
    twice = next((part for part in parts if parts.count(part) > 1), None)
    if twice is not None:
        raise SoftPromptError(f"{flag} names {twice} twice")
    return parts


def whole_numbers(flag: str, text: str) -> list[int]:
    """The whole numbers between commas; as `listed`, raises a `SoftPromptError` also where something else is there."""
    parts = listed(flag, text)
    for part in parts:
        if not part.isdecimal():
            raise SoftPromptError(f"{flag}: '{part}' is not a whole number of at least 0")
    return [int(part) for part in parts]


def kinds_of(annotation: Any) -> set[Any]:
    """The types that a field may have: int and NoneType of ``int | None``, tuple of ``tuple[str, ...]``."""
    union = get_origin(annotation) in (Union, UnionType)
    return {get_origin(each) or each for each in (get_args(annotation) if union else (annotation,))}


def value_of(text: str, annotation: Any = None) -> Any:
    """The value of a setting.

    Args:
        text: a number, true, false, none, a JSON list, parts between commas, or a text.
        annotation: the type of the setting's field; it tells a list from a text with commas in it.
    """
    kinds = kinds_of(annotation)
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        value = words[text.lower()]
        # Some settings have "none" for a name.
        return text if value is None and annotation is not None and NoneType not in kinds else value
    if kinds & {str, Literal}:
        return text
    for read in (json.loads, float):
        with contextlib.suppress(ValueError):
            return read(text)
    return [part.strip() for part in text.split(",")] if tuple in kinds or ("," in text and not annotation) else text
