"""Metrics against closed forms, constructions by definition, and the libraries that others score with.

Values marked with a library's name were computed with it; where it is installed, they are computed again.
"""

from __future__ import annotations

import importlib.util
import math
import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from softprompts.errors import SoftPromptError
from softprompts.tasks import compute
from softprompts.tasks.metrics import METRICS, compares_strings, metric_parts

CLASSES = [0, 1, 2, 1, 0, 1]
BINARY = [0, 1, 1, 1, 0, 1]
QUESTIONS = ["a", "a", "b", "b", "c", "c"]
SCORES = [0.0, 1.5, 5.0, 2.2]
ACCEPTED = [["Paris"], ["the Rome", "Roma"], ["Paris, France"]]
STRINGS = ["True", "False", "true", "False."]
TAGS = [["B-PER", "I-PER", "O"], ["B-LOC", "B-PER"]]

# For each metric: the truth, a perfect prediction, a constant one, and the constant's score in closed form.
KNOWN: dict[str, tuple[list[Any], list[Any], list[Any], float]] = {
    "accuracy": (BINARY, BINARY, [1] * 6, 4 / 6),
    "f1": (BINARY, BINARY, [1] * 6, 2 * 4 / (6 + 4)),
    "macro_f1": (BINARY, BINARY, [1] * 6, (0.8 + 0) / 2),
    "matthews": (BINARY, BINARY, [1] * 6, 0),
    "pearson": (SCORES, SCORES, [1.0] * 4, 0),
    "spearman": (SCORES, SCORES, [1.0] * 4, 0),
    "f1a": (BINARY, BINARY, [1] * 6, 2 * 4 / (6 + 4)),
    "question_em": (BINARY, BINARY, [1] * 6, 1 / 3),  # question b has the answers 1, 1
    "em": (ACCEPTED, ["Paris!", "roma", "paris france"], ["paris"] * 3, 1 / 3),
    "token_f1": (ACCEPTED, ["Paris!", "roma", "paris france"], ["paris"] * 3, (1 + 0 + 2 / 3) / 3),
    # Five words, each read as a person; of three entities the last is one.
    "seqeval_precision": (TAGS, TAGS, [["B-PER"] * 3, ["B-PER"] * 2], 1 / 5),
    "seqeval_recall": (TAGS, TAGS, [["B-PER"] * 3, ["B-PER"] * 2], 1 / 3),
    "seqeval_f1": (TAGS, TAGS, [["B-PER"] * 3, ["B-PER"] * 2], 2 / (5 + 3)),
    "tag_accuracy": (TAGS, TAGS, [["B-PER"] * 3, ["B-PER"] * 2], 2 / 5),
    "string_accuracy": (STRINGS, ["true", "false"] * 2, ["true"] * 4, 1 / 2),
    "string_macro_f1": (STRINGS, ["true", "false"] * 2, ["true"] * 4, (2 / 3 + 0) / 2),
    "accuracy+macro_f1": (BINARY, BINARY, [1] * 6, (4 / 6 + 0.4) / 2),
    "question_em+f1a": (BINARY, BINARY, [1] * 6, (1 / 3 + 0.8) / 2),
}


# Three labels, of which the constant answer gives the first: 3 hits, 1 false alarm, 3 missed.
SETS = [[1, 0, 1], [1, 1, 0], [0, 0, 1], [1, 0, 0]]
KNOWN["micro_f1"] = (SETS, SETS, [[1, 0, 0]] * 4, 6 / 10)
KNOWN["subset_accuracy"] = (SETS, SETS, [[1, 0, 0]] * 4, 1 / 4)


def test_macro_f1_of_several_labels() -> None:
    assert compute(["macro_f1"], [[1, 0, 0]] * 4, SETS) == pytest.approx({"macro_f1": (6 / 7) / 3})
    with pytest.raises(SoftPromptError, match="rows differ in the number of labels"):
        compute(["macro_f1"], [[1, 0]] * 4, SETS)


def test_every_metric_has_known_scores() -> None:
    of_texts = {"exact_match", "rouge1", "rouge2", "rougeL", "chrf", "bleu", "neg_loss"}  # see test_text_metrics.py
    assert set(METRICS) <= set(KNOWN) | of_texts


@pytest.mark.parametrize("name", KNOWN)
def test_perfect_and_constant_predictions(name: str) -> None:
    true, perfect, constant, expected = KNOWN[name]
    assert compute([name], perfect, true, groups=QUESTIONS) == pytest.approx({name: 1})
    assert compute([name], constant, true, groups=QUESTIONS) == pytest.approx({name: expected})


# Classes and scores


def test_constant_zero_has_no_f1() -> None:
    assert compute(["f1"], [0] * 6, BINARY) == {"f1": 0}


def test_known_values() -> None:
    # 3 true positives, 1 false positive, 1 false negative, 1 true negative
    given = [1, 1, 1, 1, 0, 0]
    true = [1, 1, 1, 0, 1, 0]
    assert compute(["f1"], given, true)["f1"] == pytest.approx(6 / 8)
    assert compute(["f1a"], given, true)["f1a"] == pytest.approx(6 / 8)
    assert compute(["matthews"], given, true)["matthews"] == pytest.approx((3 * 1 - 1 * 1) / 8)
    assert compute(["spearman"], [1.0, 2.0, 30.0, 4.0], SCORES)["spearman"] == pytest.approx(0.8 + 0.2)
    assert compute(["pearson"], [-s for s in SCORES], SCORES)["pearson"] == pytest.approx(-1)


def test_an_invalid_prediction_counts_as_wrong() -> None:
    assert compute(["accuracy", "f1"], [-1, 1], [1, 1]) == pytest.approx({"accuracy": 0.5, "f1": 2 / 3})
    # Class 0: 1 of 1 found; class 1: 1 of 2. The invalid answer is no third class.
    assert compute(["macro_f1"], [0, 1, -1], [0, 1, 1])["macro_f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert compute(["question_em"], [0, 1, -1, 1], [0, 1, 1, 1], groups=[1, 1, 2, 2]) == {"question_em": 0.5}
    for name in ("accuracy", "f1", "macro_f1", "matthews", "f1a", "question_em"):
        assert compute([name], [-1] * 6, BINARY, groups=QUESTIONS) == {name: 0}


def test_macro_f1_and_question_em_by_definition() -> None:
    rng = random.Random(1)
    for _ in range(50):
        rows = rng.randint(1, 30)
        true = [rng.randrange(3) for _ in range(rows)]
        given = [rng.randrange(-1, 3) for _ in range(rows)]
        groups = [(rng.randrange(4), "q") for _ in range(rows)]
        parts = []
        for label in {*true, *given} - {-1}:
            both = sum(g == t == label for g, t in zip(given, true, strict=True))
            parts.append(2 * both / (given.count(label) + true.count(label)))
        wrong = {group for group, g, t in zip(groups, given, true, strict=True) if g != t}
        scores = compute(["macro_f1", "question_em"], given, true, groups=groups)
        assert scores["macro_f1"] == pytest.approx(sum(parts) / len(parts))
        assert scores["question_em"] == pytest.approx(1 - len(wrong) / len(set(groups)))


def test_one_class_only() -> None:
    scores = compute(["accuracy", "macro_f1", "matthews"], [2] * 3, [2] * 3)
    assert scores == {"accuracy": 1, "macro_f1": 1, "matthews": 0}


def test_order_and_infinity() -> None:
    assert list(compute(["macro_f1", "accuracy"], CLASSES, CLASSES)) == ["macro_f1", "accuracy"]
    assert math.isnan(compute(["pearson"], [math.inf, 1.0], [1.0, 2.0])["pearson"])
    assert math.isnan(compute(["pearson+spearman"], [math.nan, 1.0], [1.0, 2.0])["pearson+spearman"])


def test_arrays_tensors_and_whole_floats() -> None:
    expected = compute(["accuracy", "f1"], [1, 0, 1], [1, 1, 1])
    assert compute(["accuracy", "f1"], np.array([1, 0, 1]), np.array([True, True, True])) == expected
    assert compute(["accuracy", "f1"], torch.tensor([1, 0, 1]), torch.tensor([1.0, 1.0, 1.0])) == expected  # type: ignore[arg-type]
    assert compute(["accuracy", "f1"], [np.int64(1), 0.0, np.float32(1)], (1, 1, 1)) == expected
    assert compute(["question_em"], [1, 0], [1, 1], groups=np.array([7, 8])) == {"question_em": 0.5}


# Answers in words. The numbers are torchmetrics 1.9.0's (functional.text.squad).

WORDED = [
    ("the Denver Broncos", ["Denver Broncos", "Broncos"], 1, 1),
    ("in Santa Clara, California", ["Santa Clara, California.", "Levi's Stadium"], 0, 6 / 7),
    ("gold gold medal", ["gold medal medal"], 0, 2 / 3),
    ("a", ["The"], 1, 1),
    ("", ["1989"], 0, 0),
    ("", [""], 1, 1),
    ("don't know", ["dont know"], 1, 1),
    ("Saint-Denis", ["Saint Denis"], 0, 0),
    ("1989", ["1,989"], 1, 1),
    ("café", ["Café!"], 1, 1),
    ("the cat the", ["cat"], 1, 1),
]


@pytest.mark.parametrize(("given", "accepted", "em", "f1"), WORDED)
def test_answers_in_words(given: str, accepted: list[str], em: float, f1: float) -> None:
    assert compute(["em", "token_f1"], [given], [accepted]) == pytest.approx({"em": em, "token_f1": f1})


def random_answers() -> tuple[list[str], list[list[str]]]:
    rng = random.Random(2)
    words = ["the", "a", "An", "Paris,", "paris", "Rome", "of", "x-y", "don't", "42", "–", "U.S.", "İ"]

    def text() -> str:
        return " ".join(words[int(rng.random() * len(words))] for _ in range(int(rng.random() * 6)))

    return [text() for _ in range(300)], [[text() for _ in range(1 + int(rng.random() * 3))] for _ in range(300)]


def test_random_answers_score_as_torchmetrics_has_them() -> None:
    scores = compute(["em", "token_f1"], *random_answers())
    assert scores == pytest.approx({"em": 0.11, "token_f1": 0.300598}, abs=1e-6)  # it computes in float32


@pytest.mark.skipif(importlib.util.find_spec("torchmetrics") is None, reason="torchmetrics is not installed")
def test_squad_agrees_with_torchmetrics() -> None:
    from torchmetrics.functional.text import squad  # type: ignore[import-not-found]

    texts, accepted = random_answers()
    theirs = squad(
        [{"prediction_text": text, "id": str(row)} for row, text in enumerate(texts)],
        [{"answers": {"answer_start": [0] * len(t), "text": t}, "id": str(row)} for row, t in enumerate(accepted)],
    )
    ours = compute(["em", "token_f1"], texts, accepted)
    assert ours["em"] == pytest.approx(float(theirs["exact_match"]) / 100, abs=1e-6)
    assert ours["token_f1"] == pytest.approx(float(theirs["f1"]) / 100, abs=1e-6)


# Strings


def test_every_distinct_string_is_a_class() -> None:
    true = ["True", "True", "False", "False"]
    given = ["true.", "The true", "maybe", "false"]
    # true: 2 of 2; false: 1 of 2, F1 2/3; "maybe" is a third class of F1 0
    assert compute(["string_accuracy"], given, true) == {"string_accuracy": 3 / 4}
    assert compute(["string_macro_f1"], given, true)["string_macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_many_strings_are_no_cause_for_a_warning() -> None:
    given, true = [f"word {i}" for i in range(60)], [f"word {i}" for i in range(30, 90)]
    assert compute(["string_macro_f1", "string_accuracy"], given, true) == {"string_macro_f1": 0, "string_accuracy": 0}


# Tags. The numbers are seqeval 1.2.2's: precision, recall, F1.

TAGGED = {
    "I begins": ([["I-PER", "I-PER", "O", "B-LOC"]], [["B-PER", "I-PER", "O", "B-LOC"]], (1, 1, 1)),
    "I of another type begins": ([["B-PER", "I-LOC", "I-LOC"]], [["B-PER", "B-LOC", "I-LOC"]], (1, 1, 1)),
    "B splits": ([["B-PER", "B-PER", "O"]], [["B-PER", "I-PER", "O"]], (0, 0, 0)),
    "cut short": ([["B-ORG", "I-ORG", "O", "B-LOC"]], [["B-ORG", "I-ORG", "I-ORG", "B-LOC"]], (0.5, 0.5, 0.5)),
    "wrong type": ([["B-ORG", "I-ORG"], ["B-PER"]], [["B-LOC", "I-LOC"], ["B-PER"]], (0.5, 0.5, 0.5)),
    "type with a hyphen": ([["B-a-b", "I-a-b"]], [["B-a-b", "I-a-c"]], (0, 0, 0)),
    "rows end entities": ([["O", "B-PER"], ["I-PER", "O"]], [["O", "B-PER"], ["B-PER", "O"]], (1, 1, 1)),
    "no entity": ([["O"]], [["O"]], (0, 0, 0)),
    "no type": ([["B", "I", "O", "I"]], [["B", "I", "O", "B"]], (1, 1, 1)),
    "empty row": ([[], ["B-X"]], [[], ["B-X"]], (1, 1, 1)),
}
SEQEVAL = ["seqeval_precision", "seqeval_recall", "seqeval_f1"]


def random_tags() -> tuple[list[list[str]], list[list[str]]]:
    rng = random.Random(3)
    tags = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]

    def tag() -> str:
        return tags[int(rng.random() * 5)]

    true = [[tag() for _ in range(int(rng.random() * 8) + 1)] for _ in range(100)]
    return [[t if rng.random() < 0.7 else tag() for t in row] for row in true], true


def entities(rows: list[list[str]]) -> set[tuple[int, int, int, str]]:
    """By trying every stretch of every row, whether it is an entity."""
    found = set()
    for r, tags in enumerate(rows):
        for start in range(len(tags)):
            kind = tags[start][2:]
            for end in range(start + 1, len(tags) + 1):
                before = tags[start - 1] if start else "O"
                begins = tags[start] == f"B-{kind}" or before not in (f"B-{kind}", f"I-{kind}")
                goes_on = all(tag == f"I-{kind}" for tag in tags[start + 1 : end])
                stops = end == len(tags) or tags[end] != f"I-{kind}"
                if tags[start] != "O" and begins and goes_on and stops:
                    found.add((r, start, end, kind))
    return found


@pytest.mark.parametrize("case", TAGGED)
def test_tags(case: str) -> None:
    given, true, expected = TAGGED[case]
    assert tuple(compute(SEQEVAL, given, true).values()) == pytest.approx(expected)


def test_random_tags_by_definition_and_as_seqeval_has_them() -> None:
    given, true = random_tags()
    mine, theirs = entities(given), entities(true)
    both = len(mine & theirs)
    expected = both / len(mine), both / len(theirs), 2 * both / (len(mine) + len(theirs))
    assert tuple(compute(SEQEVAL, given, true).values()) == pytest.approx(expected)
    assert expected == pytest.approx((0.6971608832807571, 0.7269736842105263, 0.7117552334943641))


@pytest.mark.skipif(importlib.util.find_spec("seqeval") is None, reason="seqeval is not installed")
def test_tags_agree_with_seqeval() -> None:
    from seqeval.metrics import f1_score, precision_score, recall_score  # type: ignore[import-not-found]

    for given, true, _ in (*TAGGED.values(), (*random_tags(), None)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of scores without entities
            theirs = [precision_score(true, given), recall_score(true, given), f1_score(true, given)]
        assert list(compute(SEQEVAL, given, true).values()) == pytest.approx(theirs)


# Composites and errors


def test_composites() -> None:
    given, true = [1, 1, 0, 0, 0, 1], BINARY
    names = ["question_em", "f1a", "question_em+f1a", "accuracy + f1"]
    scores = compute(names, given, true, groups=QUESTIONS)
    assert list(scores) == names
    assert scores["question_em+f1a"] == pytest.approx((scores["question_em"] + scores["f1a"]) / 2)
    assert scores["accuracy + f1"] == pytest.approx((3 / 6 + 2 * 2 / (3 + 4)) / 2)
    assert metric_parts("accuracy+macro_f1") == ("accuracy", "macro_f1")
    assert metric_parts("em") == ("em",)


@pytest.mark.parametrize(
    ("names", "given", "true", "groups", "message"),
    [
        (["acuracy"], [1], [1], None, "unknown metric 'acuracy': did you mean 'accuracy'"),
        (["accuracy+macrof1"], [1], [1], None, r"'macrof1' in 'accuracy\+macrof1': did you mean 'macro_f1'"),
        (["accuracy"], [1, 2], [1], None, "2 predictions for 1 references: give one for each row"),
        (METRICS, [], [], None, "no predictions"),
        (["accuracy"], "yes", ["yes"], None, "predictions are 'yes'; give a list"),
        (["accuracy"], [1], np.array(1), None, "references are 1; give a list"),
        (["accuracy"], [1, "yes"], [1, 1], None, "row 1 of the predictions is 'yes', not a class"),
        (["accuracy"], [[1], [1]], [1, 1], None, r"row 0 of the predictions is \[1\], not a class"),
        (["f1"], [1, 0.5], [1, 1], None, "row 1 of the predictions is 0.5"),
        (["f1"], [math.inf, 1], [1, 1], None, "row 0 of the predictions is inf"),
        (["macro_f1"], [math.nan, 1], [1, 1], None, "row 0 of the predictions is nan"),
        (["matthews"], [-2, 1], [1, 1], None, "row 0 of the predictions is -2"),
        (["accuracy"], [1, 1], [1, -1], None, "row 1 of the references is -1, not a class from 0"),
        (["pearson"], ["3.8"], [3.8], None, "metric 'pearson': row 0 of the predictions is '3.8', not a number"),
        (["question_em"], [1], [1], None, "'question_em' needs groups"),
        (["question_em+f1a"], [1, 1], [1, 1], ["q"], "1 groups for 2 predictions: give one for each row"),
        (["question_em"], [1, 1], [1, 1], ["q", ([],)], r"row 1 of the groups is \(\[\],\)"),
        (["em"], ["a", 1], [["a"], ["b"]], None, "row 1 of the predictions is 1, not a text"),
        (["em"], ["x" * 9999], ["x" * 9999], None, r"references is 'x+\.\.\.x+', not a list of accepted texts"),
        (["token_f1"], ["a"], [[]], None, r"row 0 of the references is \[\], not a list of accepted texts"),
        (["string_accuracy"], ["a"], [["a"]], None, r"row 0 of the references is \['a'\], not a text"),
        (["seqeval_f1"], [["X-LOC"]], [["B-LOC"]], None, "row 0 of the predictions has the tag 'X-LOC'; BIO has O"),
        (["seqeval_f1"], [["O"]], [["B-"]], None, "row 0 of the references has the tag 'B-'"),
        (["seqeval_f1"], [["O", 3]], [["O", "O"]], None, "row 0 of the predictions has the tag 3"),
        (["seqeval_f1"], [["O"], ["O"]], [["O"], ["O", "O"]], None, "row 1 has 1 predicted tags for 2 words"),
        (["seqeval_f1"], ["OO"], [["O", "O"]], None, "row 0 of the predictions is 'OO', not a list of tags"),
    ],
)
def test_errors(names: Any, given: Any, true: Any, groups: Any, message: str) -> None:
    with pytest.raises(SoftPromptError, match=message) as caught:
        compute(names, given, true, groups)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_which_metrics_compare_strings() -> None:
    assert [name for name in METRICS if compares_strings(name)] == ["string_accuracy", "string_macro_f1"]
    assert compares_strings("accuracy+string_accuracy") and not compares_strings("accuracy+f1")
