"""What the verbs of the command line share: consoles, and how options are read."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from softprompts.errors import SoftPromptError

# No markup and no colours guessed from the text: labels, texts and paths are the user's, brackets and all.
out = Console(markup=False, highlight=False, emoji=False)
err = Console(markup=False, highlight=False, emoji=False, stderr=True)


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
    """The parts between commas, of which there must be some and none twice."""
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


def report_folder(report: str | None, root: str, name: str) -> Path:
    """Where a report goes: as asked, else beside the runs."""
    return Path(report) if report is not None else Path(root) / name


@contextlib.contextmanager
def telling_how_to_go_on(how: str) -> Iterator[None]:
    """After an interruption, says how to go on."""
    try:
        yield
    except KeyboardInterrupt as stop:
        err.print(f"{stop}; {how}" if str(stop) else "interrupted", soft_wrap=True)
        raise


def csv_text(lines: list[list[str]]) -> str:
    """Lines of cells as CSV."""
    text = io.StringIO()
    csv.writer(text).writerows(lines)
    return text.getvalue()
