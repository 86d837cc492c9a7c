"""Reads generated text as a label or a score, by the rules of the papers."""

from __future__ import annotations

import ctypes
import math
import re
import reprlib
import string
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any, NamedTuple

from softprompts.errors import SoftPromptError, nearest

RULES: dict[str, str] = {
    "mismatch": "an answer that is no label is wrong; case, punctuation and articles are ignored (SMoP)",
    "opposite": "an answer that is no label counts as a wrong label: of two, the opposite of the truth (DePT, ATTEMPT)",
    "zero": "a single answer that is no label makes the whole task's score 0 (SuperPos-Prompt)",
}

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


class ReadAnswers(NamedTuple):
    """Labels or scores that were read from texts.

    Attributes:
        values: one for each text: a label (-1 stands for none of the classes), or a finite score.
        invalid: how many texts were none of the words, or no finite number, whatever they count as.
    """

    values: list[Any]
    invalid: int


def normalise(text: str) -> str:
    """The text in lower case, without punctuation, articles (a, an, the) and superfluous white space.

    It is the normalisation of SQuAD's official script (Rajpurkar et al. 2016), which SMoP, Multi-mask and Residual
    Prompt Tuning compare labels by too. Punctuation is ASCII's and vanishes: "not_entailment" becomes
    "notentailment".
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def read_labels(texts: Iterable[str], words: Sequence[str], truth: Sequence[int] | None, rule: str) -> ReadAnswers:
    """The class that each generated text names, where ``words`` has one for each; only "opposite" needs the ``truth``.

    What becomes of a text that is none of the words:

    - "mismatch": -1, so that it is wrong. SMoP and Multi-mask compare strings after `normalise`. The only rule under
      which case, punctuation and articles do not matter; the others only strip white space.
    - "opposite": a wrong class, ``(truth + 1) mod n``; of two classes, the opposite of the truth. DePT and ATTEMPT
      do so for F1 (after T5), where an invalid answer thus costs precision too. Their accuracy is the same under
      every rule; for Matthews and macro-F1 their code leaves invalid answers what they are, as the others do here.
    - "zero": -1, and whoever scores gives the whole task 0 if ``invalid`` is not 0, as SuperPos-Prompt does.

    Raises:
        SoftPromptError: unknown rule; fewer than two words, words that the rule cannot tell apart or that are empty
            after it; a text that is none; a number of texts that differs from the truth's, or a truth that is no class.
    """
    if rule not in RULES:
        raise SoftPromptError(f"unknown rule for invalid answers '{rule}': {nearest(rule, RULES)}")
    if len(words) < 2:
        raise SoftPromptError(f"label words: {list(words)}; give at least two")
    read = normalise if rule == "mismatch" else str.strip
    classes: dict[str, int] = {}
    for label, word in enumerate(words):
        form = read(word)
        if not form:
            raise SoftPromptError(f"label word '{word}' is empty when read by rule '{rule}'; choose another word")
        if form in classes:
            raise SoftPromptError(
                f"label words '{words[classes[form]]}' and '{word}' are both '{form}' when read by rule '{rule}'; "
                "choose words that differ"
            )
        classes[form] = label
    labels = [classes.get(read(text), -1) for text in _texts(texts)]
    invalid = labels.count(-1)
    if truth is not None:
        _check_truth(truth, len(labels), len(words))
    if rule == "opposite":
        if truth is None:
            raise SoftPromptError("rule 'opposite' needs the true labels")
        wrong = [(int(true) + 1) % len(words) for true in truth]
        labels = [other if label < 0 else label for label, other in zip(labels, wrong, strict=True)]
    return ReadAnswers(labels, invalid)


def read_scores(texts: Iterable[str], invalid: float = -1.0) -> ReadAnswers:
    """The number that each generated text is, for STS-B and other regression.

    A text that is no finite number becomes ``invalid``: -1 as in T5, ATTEMPT and DePT. Residual Prompt Tuning takes 0
    for an answer with letters in it. (Its code removes the point first, "3.8" read as 38 on both sides, and stops at
    an empty answer; neither is repeated here.)

    Raises:
        SoftPromptError: a text that is none.
    """
    scores = [finite_number(text) for text in _texts(texts)]
    return ReadAnswers([float(invalid) if score is None else score for score in scores], scores.count(None))


def finite_number(text: str) -> float | None:
    """The number that a text is; None: it is no finite number."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def score_string(value: float, snap: bool = True) -> str:
    """The text that stands for a score, which a language model is trained to write.

    T5 snaps STS-B's scores to multiples of 0.2 (Raffel et al. 2020), so that there are 26 texts from "0.0" to "5.0".
    ATTEMPT and DePT say the same, but as released their code computes ``round((x * 5) / 5, 1)``, which keeps every
    first decimal ("3.7"), while their list of possible answers has T5's 26.

    Scores are taken in single precision, as they are stored for those codes: the score of a tie (3.7 lies between 3.6
    and 3.8) then does not hang on the file that it was read from.

    Args:
        value: the score.
        snap: to multiples of 0.2, as T5; else to one decimal, as the released code. Ties go to the even one in both.

    Raises:
        SoftPromptError: the value is not a finite number.
    """
    single = _single(value)
    if not math.isfinite(single):
        raise SoftPromptError(f"score {value!r} is not a finite number; leave the row out or correct it")
    rounded = round(_single(single * 5)) / 5 if snap else round(single, 1)
    return f"{rounded + 0.0:.1f}"  # + 0.0 makes 0 of -0


def _single(value: float) -> float:
    return ctypes.c_float(value).value


def _texts(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str):
        raise SoftPromptError(f"answers: {reprlib.repr(texts)} is one text; give a list of texts")
    listed = list(texts)
    for row, text in enumerate(listed):
        if not isinstance(text, str):
            raise SoftPromptError(
                f"answers: row {row} is {reprlib.repr(text)}, not a text; decode what the model generated"
            )
    return listed


def _check_truth(truth: Sequence[int], rows: int, classes: int) -> None:
    if len(truth) != rows:
        raise SoftPromptError(f"answers: {rows} texts for {len(truth)} true labels; give one for each row")
    for row, label in enumerate(truth):
        if not isinstance(label, Integral) or not 0 <= int(label) < classes:
            raise SoftPromptError(f"answers: row {row} has the true label {label!r}, not one of 0 to {classes - 1}")
