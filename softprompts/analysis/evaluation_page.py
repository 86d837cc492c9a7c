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
_SHARES = ("accuracy", "em")
_IN_WORDS = {"em": "exact match", "f1": "F1", "macro_f1": "macro F1", "token_f1": "F1 of words"}
_IN_WORDS |= {
    f"seqeval_{name}": f"entity {name.upper() if name == 'f1' else name}" for name in ("f1", "precision", "recall")
}


def write_page(path: str | Path, errors: Errors, title: str, rows_of: str) -> Path:
    """Writes the page.

    Args:
        path: the file.
        errors: what is shown.
        title: the prompt's name.
        rows_of: what the rows are called.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(percent=_percent, tint=_tint, in_words=_in_words)
    folder = resources.files("softprompts.analysis") / "page"
    template = environment.from_string((folder / "evaluation.html.jinja").read_text(encoding="utf-8"))
    text = template.render(
        errors=errors,
        written=errors.kind in ("text", "chat"),
        title=title,
        rows_of=rows_of,
        version=__version__,
        style=Markup(css() + (folder / "evaluation.css").read_text(encoding="utf-8")),
        confusion=errors.confusion if len(errors.found) <= _MOST_CLASSES else (),
        points=_placed(errors.points),
        share_of_right=_share_of_right(errors),
    )
    write_text_atomic(path, text)
    return Path(path)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def _in_words(metric: str) -> str:
    return _IN_WORDS.get(metric, metric.replace("_", " "))


def _share_of_right(errors: Errors) -> str | None:
    """The metric that is the share of right rows itself; None where none is."""
    right = errors.right
    return next((name for name in _SHARES if right is not None and errors.metrics.get(name) == right.value), None)


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
