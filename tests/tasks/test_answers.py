from __future__ import annotations

import math
import random
import string
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from softprompts.errors import SoftPromptError
from softprompts.tasks import compute
from softprompts.tasks.answers import RULES, ReadAnswers, normalise, read_labels, read_scores, score_string

NLI = ["entailment", "not_entailment"]
THREE = ["0", "1", "2"]


# Texts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("not_entailment", "notentailment"),
        ("  The   Cat's an\tanimal.\n", "cats animal"),
        ("A", ""),
        ("a.n", ""),  # punctuation goes first, then "an" is an article
        ("theatre and Athena", "theatre and athena"),
        ("1,989", "1989"),
        ("x–a–y", "x– –y"),  # an article leaves a blank
        ("Ça va…", "ça va…"),  # only ASCII's punctuation, as in SQuAD's script
        ("", ""),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_normalised_text_has_no_case_punctuation_or_articles() -> None:
    rng = random.Random(0)
    pieces = ["the", "A", "an", "then", " ", "\t", "Word", *string.punctuation, "é", "-"]
    for _ in range(500):
        text = "".join(rng.choice(pieces) + rng.choice(["", " "]) for _ in range(rng.randint(0, 12)))
        words = normalise(text).split(" ")
        assert words == [""] or all(words)
        assert not {"a", "an", "the"} & set(words) and not set("".join(words)) & set(string.punctuation)
        # Casing, spaces and articles around it change nothing.
        assert normalise(f" {text.swapcase()}  THE, ") == normalise(text) == normalise(normalise(text))


# Labels


def test_rules_are_explained_in_a_line() -> None:
    assert tuple(RULES) == ("mismatch", "opposite", "zero")
    assert all(line and "\n" not in line for line in RULES.values())


def test_mismatch_compares_normalised_strings() -> None:
    texts = ["Not_Entailment.", "the entailment", "not entailment", "", "notentailment"]
    assert read_labels(texts, NLI, [1] * 5, "mismatch") == ReadAnswers([1, 0, -1, -1, 1], 2)
    assert read_labels(texts, NLI, None, "mismatch").values == [1, 0, -1, -1, 1]


@pytest.mark.parametrize("rule", ["opposite", "zero"])
def test_the_other_rules_only_strip(rule: str) -> None:
    texts = [" entailment\n", "Entailment", "not_entailment", "not_entailment."]
    labels = [0, 0, 1, 0] if rule == "opposite" else [0, -1, 1, -1]
    assert read_labels(texts, NLI, [0, 1, 0, 1], rule) == ReadAnswers(labels, 2)


def test_opposite_takes_the_next_class_of_several() -> None:
    assert read_labels(["x", "x", "x", "2"], THREE, [0, 1, 2, 0], "opposite") == ReadAnswers([1, 2, 0, 2], 3)


@pytest.mark.parametrize("rule", RULES)
def test_invalid_answers_are_wrong_under_every_rule(rule: str) -> None:
    rng = random.Random(1)
    for _ in range(100):
        words = [f"label{number}" for number in range(rng.randint(2, 4))]
        truth = [rng.randrange(len(words)) for _ in range(rng.randint(1, 20))]
        meant = [rng.choice([*range(len(words)), None]) for _ in truth]
        texts = [f" {words[m]} " if m is not None else rng.choice(["", "label", "label0 label1", "0"]) for m in meant]
        read = read_labels(texts, words, truth, rule)
        right = sum(m == t for m, t in zip(meant, truth, strict=True))
        assert read.invalid == meant.count(None)
        assert compute(["accuracy"], read.values, truth)["accuracy"] == pytest.approx(right / len(truth))
        assert all(label == m for label, m in zip(read.values, meant, strict=True) if m is not None)


def test_opposite_costs_precision_as_in_t5() -> None:
    # One right, one missed; the invalid answer to a 0 becomes a 1 under "opposite".
    texts, truth = ["1", "0", "?"], [1, 1, 0]
    opposite = read_labels(texts, ["0", "1"], truth, "opposite").values
    assert compute(["f1"], opposite, truth)["f1"] == pytest.approx(2 * 1 / (2 + 2))
    mismatch = read_labels(texts, ["0", "1"], truth, "mismatch").values
    assert compute(["f1"], mismatch, truth)["f1"] == pytest.approx(2 * 1 / (1 + 2))


@pytest.mark.parametrize(
    ("texts", "words", "truth", "rule", "message"),
    [
        (["x"], NLI, [0], "oposite", "unknown rule for invalid answers 'oposite': did you mean 'opposite'"),
        (["x"], ["yes"], [0], "zero", r"label words: \['yes'\]; give at least two"),
        (["x"], ["not_so", "Notso"], [0], "mismatch", "'not_so' and 'Notso' are both 'notso' when read by rule 'mism"),
        (["x"], ["yes", " yes"], [0], "zero", "'yes' and ' yes' are both 'yes'"),
        (["x"], ["A", "B"], [0], "mismatch", "label word 'A' is empty when read by rule 'mismatch'"),
        (["x"], ["yes", " "], [0], "opposite", "label word ' ' is empty"),
        (["x"], NLI, None, "opposite", "rule 'opposite' needs the true labels"),
        (["x", "y"], NLI, [0], "zero", "2 texts for 1 true labels"),
        (["x", "y"], NLI, [0, 2], "zero", "row 1 has the true label 2, not one of 0 to 1"),
        (["x", "y"], NLI, [0, -1], "mismatch", "row 1 has the true label -1"),
        (["x"], NLI, ["0"], "opposite", "row 0 has the true label '0'"),
        (["x", 3], NLI, [0, 1], "zero", "row 1 is 3, not a text"),
        ("yes", NLI, [0, 1, 0], "zero", "'yes' is one text"),
    ],
)
def test_errors_of_labels(texts: Any, words: Any, truth: Any, rule: str, message: str) -> None:
    with pytest.raises(SoftPromptError, match=message):
        read_labels(texts, words, truth, rule)


def test_words_that_differ_in_case_serve_the_rules_that_keep_it() -> None:
    assert read_labels(["A", "a"], ["A", "a"], [0, 1], "zero") == ReadAnswers([0, 1], 0)


# Scores


def test_scores() -> None:
    texts = ["3.8", " 5\n", "-1.5", "1e1", "", "3.8.", "three", "nan", "inf", "-Infinity", "1e999"]
    assert read_scores(texts) == ReadAnswers([3.8, 5.0, -1.5, 10.0] + [-1.0] * 7, 7)
    assert read_scores(["2.0", "high"], invalid=0) == ReadAnswers([2.0, 0.0], 1)
    assert read_scores([]) == ReadAnswers([], 0)
    with pytest.raises(SoftPromptError, match="row 0 is 3.8, not a text"):
        read_scores([3.8])  # type: ignore[list-item]


def test_every_score_string_is_read_back() -> None:
    rng = random.Random(2)
    for _ in range(1000):
        value = rng.random() * 5
        for snap, step in ((True, 0.2), (False, 0.1)):
            scores = read_scores([score_string(value, snap)])
            assert scores.invalid == 0 and abs(scores.values[0] - value) <= step / 2 + 1e-6


def test_snapped_scores_are_26_strings() -> None:
    strings = {score_string(value / 1000) for value in range(5001)}
    assert strings == {f"{step / 5:.1f}" for step in range(26)}


@pytest.mark.parametrize(
    ("value", "snapped", "rounded"),
    [
        (3.8, "3.8", "3.8"),
        (3.75, "3.8", "3.8"),
        (3.7, "3.6", "3.7"),  # ties go to the even step: 18 fifths
        (3.9, "4.0", "3.9"),
        (2.333, "2.4", "2.3"),
        (0, "0.0", "0.0"),
        (5, "5.0", "5.0"),
        (-0.04, "0.0", "0.0"),
    ],
)
def test_score_strings(value: float, snapped: str, rounded: str) -> None:
    assert score_string(value) == snapped
    assert score_string(value, snap=False) == rounded


def test_score_strings_are_those_of_t5_and_of_the_released_code() -> None:
    values = [*(step / 100 for step in range(501)), *(step / 7 for step in range(36))]
    for value in values:
        single = np.float32(value)
        t5 = np.round(single * np.float32(5)) / np.float32(5)
        assert score_string(value) == f"{t5:.1f}"
        released = np.round((float(single) * 5) / 5, decimals=1)
        assert score_string(value, snap=False) == str(float(released))
        # The hub stores single precision, a file what somebody typed: both give the same string.
        assert score_string(float(single)) == score_string(value)
        assert score_string(float(single), snap=False) == score_string(value, snap=False)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300])
def test_no_string_for_what_is_no_score(value: float) -> None:
    with pytest.raises(SoftPromptError, match="is not a finite number"):
        score_string(value)


def test_answers_are_read_without_scikit_learn() -> None:
    code = "import sys, softprompts.tasks.answers; print({'sklearn', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "set()"
