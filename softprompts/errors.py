"""Errors that name the thing, what is wrong with it and what to do, in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class SoftPromptError(ValueError):
    """Something the caller can put right. The command line prints its text and exits with code 2."""


def nearest(name: str, options: Iterable[str]) -> str:
    """Ends an error about an unknown name: the nearest known one if there is one, else all of them."""
    options = sorted(options)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known: {', '.join(options)}" if options else "none are known"


def shown(value: Any) -> str:
    """Shows a value of unknown size as a short piece of a line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def first_line(error: BaseException) -> str:
    """Returns what another library's error says, on one line; its kind where it says nothing."""
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def require_whole(owner: str, name: str, value: Any, least: int) -> None:
    """Refuses what is no whole number of at least ``least``; ``owner`` begins the error."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SoftPromptError(f"{owner}: {name} must be a whole number of at least {least}, not {value!r}")
