"""The harness of transformers' suites, and a sample of them where a checkout is at hand."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.foreign import __main__ as foreign
from tests.foreign import report
from tests.foreign.report import Difference


def write(folder: Path, *rows: tuple[str, str, str, str]) -> None:
    keys = ("test", "form", "outcome", "message")
    lines = [json.dumps({"case": "C", "seconds": 0.1} | dict(zip(keys, row, strict=True))) for row in rows]
    (folder / "bert.jsonl").write_text("\n".join(lines) + "\n")


def test_results_are_counted_by_what_came_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = [Difference("It is frozen.", "test_train.*", "no grad", forms=["prefix"])]
    monkeypatch.setattr(report, "differences", lambda: known)
    write(
        tmp_path,
        ("test_a", "plain", "passed", ""),
        ("test_b", "plain", "passed", ""),
        ("test_train", "plain", "passed", ""),
        ("test_c", "plain", "failed", "always"),
        ("test_a", "prefix", "started", ""),
        ("test_a", "prefix", "passed", ""),
        ("test_b", "prefix", "skipped", "why"),
        ("test_train", "prefix", "failed", "RuntimeError: no grad"),
        ("test_train", "input", "failed", "RuntimeError: no grad"),
        ("test_a", "input", "failed", "no grad"),
    )
    found = report.counts(tmp_path, ["bert", "llama"], ["prefix", "input"])
    assert found == {
        ("bert", "prefix"): Counter(plain=3, attached=1, expected=1, unexpected=1),
        ("bert", "input"): Counter(plain=3, unexpected=2),
    }
    faults = report.unexpected(tmp_path, ["bert"], ["prefix", "input"])
    assert [(row["test"], row["form"]) for row in faults] == [
        ("test_b", "prefix"),
        ("test_train", "input"),
        ("test_a", "input"),
    ]
    assert "| bert | prefix | 3 | 1 | 1 | 1 |" in report.table(found)
    assert "| It is frozen. | 1 |" in report.page(tmp_path, ["bert"], ["prefix", "input"])


def test_every_expected_difference_has_a_reason_and_an_error() -> None:
    for difference in report.differences():
        assert difference.why.endswith("."), difference
        assert difference.error and re.compile(difference.error) and re.compile(difference.tests)
        assert set(difference.forms) <= set(foreign.FORMS)


@pytest.mark.parametrize(
    ("given", "said"), [(None, "names no checkout of transformers"), ("nowhere", "no tests/test_modeling_common.py")]
)
def test_a_missing_checkout_is_said(
    given: str | None, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(foreign.VARIABLE, raising=False)
    if given is not None:
        monkeypatch.setenv(foreign.VARIABLE, given)
    monkeypatch.setattr("sys.argv", ["tests.foreign"])
    assert foreign.main() == 2
    assert said in capsys.readouterr().err


def test_a_sample_of_the_suites(tmp_path: Path) -> None:
    source = foreign.checkout()
    if isinstance(source, str):
        pytest.skip(source)
    sample = "test_(greedy_generate|left_padding_compat|save_load$|batching_equivalence)"
    assert foreign.run_family(source, "llama", tmp_path / "llama.jsonl", foreign.FORMS, sample, 60) == 0
    assert all(count["attached"] for count in report.counts(tmp_path, ["llama"], foreign.FORMS).values())
    assert not report.unexpected(tmp_path, ["llama"], foreign.FORMS)
