"""A page of HTML that shows what a prompt gets right and wrong; it needs nothing from outside."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from softprompts.plotting import css
from softprompts.storage.files import write_text_atomic
from softprompts.tasks.errors_made import Errors
from softprompts.version import __version__

_MOST_CLASSES = 30  # of a table of labels by answers


def write_page(path: str | Path, errors: Errors, title: str, rows_of: str) -> Path:
    """Writes the page.

    Args:
        path: the file.
        errors: what is shown.
        title: the prompt's name.
        rows_of: what the rows are called.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(percent=_percent, tint=_tint)
    folder = resources.files("softprompts.analysis") / "page"
    template = environment.from_string((folder / "evaluation.html.jinja").read_text(encoding="utf-8"))
    text = template.render(
        errors=errors,
        title=title,
        rows_of=rows_of,
        version=__version__,
        style=Markup(css() + (folder / "evaluation.css").read_text(encoding="utf-8")),
        confusion=errors.confusion if len(errors.found) <= _MOST_CLASSES else (),
        points=_placed(errors.points),
    )
    write_text_atomic(path, text)
    return Path(path)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _tint(count: int, row: Sequence[int]) -> int:
    """How strongly a cell is coloured, in percent of its row."""
    return round(100 * count / (sum(row) or 1))


def _placed(points: Sequence[tuple[float, float]], most: int = 2000) -> dict[str, Any]:
    """Labels and answers as places in a square of 100 by 100, and what its ends stand for."""
    if not points:
        return {}
    values = [value for point in points for value in point]
    low, high = min(values), max(values)
    room = (high - low) or 1.0
    every = max(1, len(points) // most)
    dots = [(100 * (x - low) / room, 100 - 100 * (y - low) / room) for x, y in points[::every]]
    return {"dots": [(round(x, 1), round(y, 1)) for x, y in dots], "low": f"{low:.3g}", "high": f"{high:.3g}"}
