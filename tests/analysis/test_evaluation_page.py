"""The page of what a prompt gets right and wrong: what it says of each kind of task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from softprompts.analysis.evaluation_page import write_page
from softprompts.tasks.errors_made import ClassScore, Errors, Mistake, Share

HALF = Share(0.5, 0.25, 0.75)


def page(tmp_path: Path, **errors: Any) -> str:
    written = write_page(tmp_path / "page.html", Errors(rows=4, **errors), "mine", "rows of mine")
    return " ".join(written.read_text(encoding="utf-8").split())


def test_a_share_of_right_rows_stands_once_with_its_interval(tmp_path: Path) -> None:
    text = page(tmp_path, kind="span", metrics={"em": 0.5, "token_f1": 0.6}, right=HALF)
    assert "<dt>exact match</dt><dd>0.5000</dd><small>95 % interval 0.2500 to 0.7500</small>" in text
    assert "<dt>F1 of words</dt><dd>0.6000</dd></div>" in text and "rows right</dt>" not in text
    other = page(tmp_path, kind="classification", metrics={"matthews": 0.1, "accuracy": 0.4}, right=HALF)
    assert "<dt>rows right</dt><dd>50.0 %</dd><small>95 % interval 25.0 % to 75.0 %</small>" in other


def test_tags_are_told_per_entity_and_without_a_baseline_that_is_none(tmp_path: Path) -> None:
    text = page(
        tmp_path,
        kind="tagging",
        metrics={"seqeval_f1": 0.9},
        right=HALF,
        baseline=("O (words)", HALF),
        classes=(ClassScore("PER", 0.9, 0.8, 0.85, 7),),
        mistakes=(Mistake(3, "x", "[Ann PER] sings", "Ann sings", None),),
        wrong=2,
    )
    assert "<dt>entity F1</dt>" in text and "<dt>whole rows right</dt>" in text
    assert "every word “O”</dt>" in text and "of the words right, and no entity found" in text
    assert "what any prompt has to beat" not in text and '<th scope="row">PER</th>' in text
    assert "label <b>[Ann PER] sings</b>,<br> answer <b" in text


def test_scores_have_their_residuals_beside_the_plot(tmp_path: Path) -> None:
    text = page(
        tmp_path,
        kind="regression",
        metrics={"pearson": 0.9},
        residuals={"mean absolute error": 0.25},
        points=((1.0, 1.5), (3.0, 2.5)),
        mistakes=(Mistake(0, "a text", "1", "1.5", 0.5),),
    )
    plot, table = text.index("<svg"), text.index("mean absolute error")
    assert text.index('class="beside"') < plot < table < text.index("Largest residuals")
    assert (
        text.count("<circle") == 2 and "(+0.5)" in text and "rows right" not in text.replace("What it gets right", "")
    )
