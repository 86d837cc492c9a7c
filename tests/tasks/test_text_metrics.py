"""Scores of written texts, held against the libraries called by hand."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from softprompts.errors import SoftPromptError
from softprompts.tasks.metrics import compute

GIVEN = ["the cat sat on the mat", "a dog", "no idea at all", ""]
RIGHT = [("the cat sat on a mat", "a cat was on the mat"), ("the dog barks",), ("no idea at all",), ("something",)]


def test_rouge_takes_the_best_reference_of_each_row() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rouge1", "rouge2", "rougeL"])
    for name, value in compute(["rouge1", "rouge2", "rougeL"], GIVEN, RIGHT).items():
        best = [
            max(scorer.score(text, given)[name].fmeasure for text in texts)
            for given, texts in zip(GIVEN, RIGHT, strict=True)
        ]
        assert value == pytest.approx(sum(best) / len(best)) and 0 < value < 1


def test_chrf_and_bleu_are_of_all_rows_with_all_their_references() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    streams = [[texts[0] for texts in RIGHT], [RIGHT[0][1], None, None, None]]
    assert compute(["chrf"], GIVEN, RIGHT)["chrf"] == pytest.approx(sacrebleu.corpus_chrf(GIVEN, streams).score / 100)
    assert compute(["bleu"], GIVEN, RIGHT)["bleu"] == pytest.approx(sacrebleu.corpus_bleu(GIVEN, streams).score / 100)
    assert compute(["chrf", "bleu"], GIVEN[:1], [("the cat sat on the mat",)]) == pytest.approx({"chrf": 1, "bleu": 1})


def test_exact_match_is_to_the_letter() -> None:
    right = [("a dog",), ("A dog",), ("a dog", "the dog"), ("dog",)]
    assert compute(["exact_match"], ["a dog", "a dog", " the dog\n", "a dog"], right) == {"exact_match": 0.5}


def test_the_loss_is_of_all_tokens_with_its_sign_changed() -> None:
    losses = [(3.0, 1), (1.0, 3)]
    assert compute(["neg_loss"], losses, losses) == {"neg_loss": -1.0}
    with pytest.raises(SoftPromptError, match="row 0 of the predictions is 'a', not a loss and its number of tokens"):
        compute(["neg_loss"], ["a"], ["a"])


@pytest.mark.parametrize(
    ("metric", "package"), [("rouge2", "rouge-score"), ("chrf", "sacrebleu"), ("bleu", "sacrebleu")]
)
def test_a_missing_library_is_named_with_its_extra(metric: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(
        SoftPromptError, match=f"'{metric}' needs {package}, of the extra 'text': pip install {package}"
    ):
        compute([metric], GIVEN, RIGHT)
