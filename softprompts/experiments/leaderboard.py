"""The result of a search: a table of configurations, the best first, and the files that it is written to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softprompts.errors import SoftPromptError
from softprompts.storage import run_folder
from softprompts.storage.files import replace_folder, require_folder, write_json_atomic, write_text_atomic
from softprompts.storage.saved_prompt import CONFIG_FILE
from softprompts.storage.tables import csv_text, markdown_table

BEST = "best"
RECORDS = ("leaderboard.md", "leaderboard.csv", "leaderboard.json")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A configuration and how far it came.

    Attributes:
        trial: its number, from 1, in the order of proposals.
        method: its method.
        proposed: the settings that were searched.
        settings: all settings of the method.
        training: all settings of the training.
        rates: the learning rate of each component.
        trained: number of trained parameters.
        rung: the last rung it was trained to, from 1; 0 before.
        steps: steps taken.
        scores: its best score up to each rung; None where the metric is undefined there.
        state: "finished", "cut" or "diverged".
        test: the kept prompt's score on rows that nothing was chosen by; None without such rows, or if not finished.
        run: id of the run, the name of its folder.
    """

    trial: int
    method: str
    proposed: Mapping[str, Any]
    settings: Mapping[str, Any]
    training: Mapping[str, Any]
    rates: Mapping[str, float]
    trained: int
    rung: int = 0
    steps: int = 0
    scores: tuple[float | None, ...] = ()
    state: str = "cut"
    test: float | None = None
    run: str

    @property
    def score(self) -> float | None:
        """The last score there is."""
        return self.scores[-1] if self.scores else None

    def __str__(self) -> str:
        settings = f" with {_settings_text(self.proposed)}" if self.proposed else ""
        return f"trial {self.trial}, {self.method}{settings}"


@dataclass(frozen=True)
class Leaderboard:
    """The result of a `search`.

    Attributes:
        task: name of the task.
        model: name of the backbone.
        metric: the score's name.
        rows_scored: validation rows behind a score.
        test_rows: rows behind a test score.
        rungs: steps at which the worse were cut, and the full budget.
        settings: what decides the search, as plain JSON values.
        entries: the configurations, the best first, those that diverged last.
        constant: the score of one answer for all validation rows; None where there is no such score.
    """

    task: str
    model: str
    metric: str
    rows_scored: int
    test_rows: int
    rungs: tuple[int, ...]
    settings: Mapping[str, Any]
    entries: tuple[Entry, ...]
    constant: float | None = None

    @property
    def best(self) -> Entry | None:
        """The best configuration that has the full budget behind it; None where all of those diverged."""
        return next((entry for entry in self.entries[:1] if entry.state == "finished"), None)

    def columns(self, full: bool = True) -> list[str]:
        """The table's columns; ``full``: with those that a narrow terminal has no room for."""
        head = ["trial", "method", "settings", *(["learning rates"] if full else [])]
        head += [*(f"step {step}" for step in self.rungs), *(["test"] if self.test_rows else [])]
        return [*head, *(["steps", "rung", "state"] if full else []), "trained"]

    def cells(self, entry: Entry, full: bool = True) -> list[str]:
        """A configuration as the table shows it, scores times 100."""
        scores = [_percent(score) for score in entry.scores]
        if entry.state == "diverged":
            scores.append("diverged")
        scores += ["-"] * (len(self.rungs) - len(scores))
        return [
            str(entry.trial),
            entry.method,
            _settings_text(entry.proposed) or "defaults",
            *([_settings_text(entry.rates)] if full else []),
            *scores,
            *([_percent(entry.test)] if self.test_rows else []),
            *([f"{entry.steps:,}", f"{entry.rung} of {len(self.rungs)}", entry.state] if full else []),
            f"{entry.trained:,}",
        ]

    def note(self) -> str:
        """The caption of the table."""
        text = (
            f"{self.metric} x 100 on {self.rows_scored:,} validation rows, each run's best so far at each rung"
            f"{'' if self.constant is None else f' (one answer for all rows: {_percent(self.constant)})'}. The "
            "best of many is flattered by the rows it was chosen on"
        )
        best = self.best
        if best is not None and best.test is not None:
            return f"{text}; on {self.test_rows:,} test rows, which chose nothing, it has {_percent(best.test)}."
        return f"{text}; measure it on rows that chose nothing."

    def markdown(self) -> str:
        """The table as Markdown, the best in bold."""
        rows = [[f"**{cell}**" if entry is self.best else cell for cell in self.cells(entry)] for entry in self.entries]
        return f"{markdown_table(self.columns(), rows)}\n\n{self.model} on {self.task}; {self.note()}\n"

    def csv(self) -> str:
        """One line per configuration, for programs."""
        proposed = sorted({name for entry in self.entries for name in entry.proposed})
        facts = ("trial", "method", "state", "rung", "steps", "score", "test", "trained", "run")
        lines = []
        for rank, entry in enumerate(self.entries, 1):
            scores = [*entry.scores, *[None] * (len(self.rungs) - len(entry.scores))]
            rates = " ".join(f"{name}={rate:g}" for name, rate in entry.rates.items())
            values = (entry.proposed.get(name) for name in proposed)
            lines.append([rank, *(getattr(entry, fact) for fact in facts), rates, *scores, *values])
        return csv_text(["rank", *facts, "learning_rates", *(f"score_{step}" for step in self.rungs), *proposed], lines)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        values = dataclasses.asdict(dataclasses.replace(self, entries=()))
        entries = [{"rank": rank, **dataclasses.asdict(entry)} for rank, entry in enumerate(self.entries, 1)]
        return {**values, "rungs": list(self.rungs), "entries": entries}


def check_report(folder: str | Path) -> None:
    """Raises a `SoftPromptError` if something else is where a report is to be written."""
    require_folder(folder, "the report")
    best = Path(folder) / BEST
    if best.exists() and not (best / CONFIG_FILE).is_file():
        raise SoftPromptError(f"{best} is there already and is no saved prompt; name another folder for the report")


def write_report(leaderboard: Leaderboard, folder: str | Path, root: str | Path) -> list[Path]:
    """Writes the leaderboard as Markdown, CSV and JSON, and a copy of the best prompt, whose run folder is in ``root``.

    Returns what was written.
    """
    folder = Path(folder)
    check_report(folder)
    written = [folder / name for name in RECORDS]
    write_text_atomic(written[0], leaderboard.markdown())
    write_text_atomic(written[1], leaderboard.csv())
    write_json_atomic(written[2], leaderboard.to_dict())
    best = leaderboard.best
    if best is None:
        return written
    replace_folder(Path(root) / best.run / run_folder.PROMPT, folder / BEST)
    return [*written, folder / BEST]


def _percent(score: float | None) -> str:
    return "-" if score is None else f"{100 * score:.1f}"


def _settings_text(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value_text(value)}" for name, value in values.items())


def value_text(value: Any) -> str:
    """A setting's value as text."""
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(value_text, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
