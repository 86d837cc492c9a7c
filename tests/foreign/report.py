"""What came out of transformers' suites: counts, expected differences, and the page of the docs."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
import yaml

_EXPECTED = Path(__file__).with_name("expected.yaml")
_PAGE = Path(__file__).with_name("page.md")


@dataclass(frozen=True)
class Difference:
    """A kind of test that is expected to fail on attached models.

    Attributes:
        why: one sentence.
        tests: a regular expression that the whole name of the test matches.
        error: one that is found in the outcome and its message.
        forms: of prompts; empty: all.
        families: empty: all.
    """

    why: str
    tests: str
    error: str
    forms: Sequence[str] = field(default=())
    families: Sequence[str] = field(default=())

    def covers(self, row: dict[str, Any]) -> bool:
        """Whether a result is this difference."""
        return bool(
            (not self.forms or row["form"] in self.forms)
            and (not self.families or row["family"] in self.families)
            and re.fullmatch(self.tests, row["test"])
            and re.search(self.error, f"{row['outcome']}: {row['message']}")
        )


def differences() -> list[Difference]:
    """Those of expected.yaml."""
    return [Difference(**entry) for entry in yaml.safe_load(_EXPECTED.read_text())]


def rows_of(folder: Path, families: Iterable[str], tests: str = "") -> Iterator[dict[str, Any]]:
    """The last result of each form and test; ``tests`` is a regular expression for what a name has in it."""
    for family in families:
        file = folder / f"{family}.jsonl"
        rows = map(json.loads, file.read_text().splitlines()) if file.is_file() else iter(())
        last = {(row["case"], row["test"], row["form"]): row | {"family": family} for row in rows}
        yield from (row for row in last.values() if re.search(tests, row["test"]))


def expected(row: dict[str, Any], known: Sequence[Difference]) -> Difference | None:
    """The expected difference that a result is, if any."""
    return next((difference for difference in known if difference.covers(row)), None)


def counts(
    folder: Path, families: Sequence[str], forms: Sequence[str], tests: str = ""
) -> dict[tuple[str, str], Counter[str]]:
    """By family and form: passed "plain", passed "attached", "expected" differences, "unexpected" failures."""
    known, rows = differences(), list(rows_of(folder, families, tests))
    plain = Counter(row["family"] for row in rows if row["form"] == "plain" and row["outcome"] == "passed")
    found: dict[tuple[str, str], Counter[str]] = {}
    for row in rows:
        if row["form"] not in forms:
            continue
        count = found.setdefault((row["family"], row["form"]), Counter(plain=plain[row["family"]]))
        if row["outcome"] == "passed":
            count["attached"] += 1
        else:
            count["unexpected" if expected(row, known) is None else "expected"] += 1
    return found


def unexpected(folder: Path, families: Sequence[str], forms: Sequence[str], tests: str = "") -> list[dict[str, Any]]:
    """The failures that nothing explains."""
    known = differences()
    attached = (row for row in rows_of(folder, families, tests) if row["form"] in forms and row["outcome"] != "passed")
    return [row for row in attached if expected(row, known) is None]


def table(found: dict[tuple[str, str], Counter[str]]) -> str:
    """Counts as a table in Markdown."""
    lines = ["| family | prompt | passed plain | passed attached | expected differences | unexpected failures |"]
    lines.append("|---|---|---|---|---|---|")
    for (family, form), count in found.items():
        numbers = [count[name] for name in ("plain", "attached", "expected", "unexpected")]
        lines.append(f"| {family} | {form} | {' | '.join(map(str, numbers))} |")
    return "\n".join(lines)


def page(folder: Path, families: Sequence[str], forms: Sequence[str], tests: str = "") -> str:
    """The page of the docs; ``tests`` is the regular expression by which tests were chosen."""
    known = differences()
    times = Counter(
        difference.why
        for row in rows_of(folder, families, tests)
        if row["form"] in forms and row["outcome"] != "passed"
        if (difference := expected(row, known)) is not None
    )
    reasons = "\n".join(f"| {escaped(why)} | {number} |" for why, number in times.most_common())
    text = _PAGE.read_text().replace("{version}", transformers.__version__)
    chosen = f", and of the tests those whose names have this in them: `{tests}`" if tests else ""
    text = text.replace("{chosen}", chosen).replace("{table}", table(counts(folder, families, forms, tests)))
    return text.replace("{reasons}", f"| what differs, and why | results |\n|---|---|\n{reasons}")


def escaped(text: str) -> str:
    """Text for a cell of a table."""
    return text.replace("|", "\\|")


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    return next((line for line in reversed(log.read_text().splitlines()) if line.strip()), "")
