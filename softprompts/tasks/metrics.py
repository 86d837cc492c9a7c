"""Metrics by name.

Classes and scores are left to scikit-learn and SciPy. Answers in words follow SQuAD's official script, entities follow
seqeval; both are small enough to be written here, and the tests hold them against the libraries.
"""

from __future__ import annotations

import itertools
import operator
import reprlib
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from scipy import stats  # type: ignore[import-untyped]
from sklearn import metrics as sklearn_metrics  # type: ignore[import-untyped]

from softprompts.errors import SoftPromptError, nearest
from softprompts.tasks.answers import normalise
from softprompts.tasks.tag_schemes import entities, tags_entities
from softprompts.tasks.text_metrics import NEG_LOSS, of_corpus, rouge

Array = np.ndarray
_SIDES = ("predictions", "references")


def _accuracy(predictions: Array, references: Array) -> float:
    return float(sklearn_metrics.accuracy_score(references, predictions))


def _f1(predictions: Array, references: Array) -> float:
    # F1 of label 1. Any other prediction counts as "not 1", so an invalid one needs no class of its own.
    return float(sklearn_metrics.f1_score(references == 1, predictions == 1, zero_division=0))


def _micro_f1(predictions: Array, references: Array) -> float:
    return float(sklearn_metrics.f1_score(references, predictions, average="micro", zero_division=0))


def _macro_f1(predictions: Array, references: Array) -> float:
    if references.ndim == 2:  # of each label's yes
        return float(sklearn_metrics.f1_score(references, predictions, average="macro", zero_division=0))
    classes = np.union1d(predictions, references)
    classes = classes[classes >= 0]  # an invalid prediction is wrong, but no class to average over
    return float(sklearn_metrics.f1_score(references, predictions, labels=classes, average="macro", zero_division=0))


def _matthews(predictions: Array, references: Array) -> float:
    if np.ptp(predictions) == 0 or np.ptp(references) == 0:
        return 0.0  # as scikit-learn, which warns where both hold the same single class
    return float(sklearn_metrics.matthews_corrcoef(references, predictions))


def _question_em(predictions: Array, references: Array, groups: Sequence[Hashable]) -> float:
    right: dict[Hashable, bool] = {}
    for group, is_right in zip(groups, (predictions == references).tolist(), strict=True):
        right[group] = right.get(group, True) and is_right
    return sum(right.values()) / len(right)


def _correlation(function: Callable[[Array, Array], tuple[float, float]]) -> Callable[[Array, Array], float]:
    def score(predictions: Array, references: Array) -> float:
        if not (np.isfinite(predictions).all() and np.isfinite(references).all()):
            return float("nan")
        if np.ptp(predictions) == 0 or np.ptp(references) == 0:
            return 0.0  # undefined for a constant; as a score it is worth nothing
        return float(function(predictions, references)[0])

    return score


def _em(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    rows = zip(predictions, references, strict=True)
    return sum(normalise(given) in map(normalise, accepted) for given, accepted in rows) / len(predictions)


def _exact_match(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    rows = zip(predictions, references, strict=True)
    right = [given.strip() in [text.strip() for text in accepted] for given, accepted in rows]
    return float(sklearn_metrics.accuracy_score([True] * len(right), right))


def _neg_loss(predictions: Sequence[Sequence[float]], references: Sequence[Any]) -> float:
    loss, tokens = np.array(predictions, dtype=np.float64).sum(0)
    return -float(loss / max(1, tokens))


def _token_f1(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    rows = zip(predictions, references, strict=True)
    return sum(max(_overlap(given, true) for true in accepted) for given, accepted in rows) / len(predictions)


def _overlap(given: str, true: str) -> float:
    given_words, true_words = normalise(given).split(), normalise(true).split()
    if not given_words or not true_words:
        return float(given_words == true_words)
    shared = (Counter(given_words) & Counter(true_words)).total()
    return 2 * shared / (len(given_words) + len(true_words))


def _of_strings(function: Callable[[Array, Array], float]) -> Callable[[Sequence[str], Sequence[str]], float]:
    """The metric of strings, each a class of its own."""

    def score(predictions: Sequence[str], references: Sequence[str]) -> float:
        ids: defaultdict[str, int] = defaultdict(itertools.count().__next__)
        given, true = (np.array([ids[normalise(text)] for text in texts]) for texts in (predictions, references))
        return function(given, true)

    return score


def _entities(rows: Iterable[Sequence[str]]) -> Iterator[tuple[int, int, int, str]]:
    """The entities as (row, first word, word after the last, type)."""
    for row, tags in enumerate(rows):
        for start, end, kind in entities(tags):
            yield row, start, end, kind


def _of_entities(function: Callable[[int, int, int], float]) -> Callable[[Any, Any], float]:
    def score(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> float:
        given, true = set(_entities(predictions)), set(_entities(references))
        return function(len(given & true), len(given), len(true))

    return score


def _tag_accuracy(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> float:
    given, true = (list(itertools.chain.from_iterable(rows)) for rows in (predictions, references))
    return _share(sum(map(operator.eq, given, true)), len(true))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _require(metric: str, side: str, rows: Sequence[Any], good: Callable[[Any], bool], wanted: str) -> None:
    for row, value in enumerate(rows):
        if not good(value):
            raise SoftPromptError(f"metric '{metric}': row {row} of the {side} is {reprlib.repr(value)}, not {wanted}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real | np.bool_)


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _is_class(value: Any) -> bool:
    return _is_number(value) and value >= -1 and float(value).is_integer()


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not _is_text(value)


def _are_texts(value: Any) -> bool:
    return _is_list(value) and bool(value) and all(map(_is_text, value))


Wanted = tuple[Callable[[Any], bool], str]  # what a value must be: a check, and its words
Reader = Callable[[str, Sequence[Any], Sequence[Any]], Sequence[Any]]
_TEXT: Wanted = (_is_text, "a text")
_NUMBER: Wanted = (_is_number, "a number")
_TAGS: Wanted = (_is_list, "a list of tags")
_LOSS: Wanted = (
    lambda value: _is_list(value) and len(value) == 2 and all(map(_is_number, value)),
    "a loss and its number of tokens",
)


def _reader(prediction: Wanted, reference: Wanted, dtype: type | None = None) -> Reader:
    def read(metric: str, *sides: Sequence[Any]) -> Sequence[Any]:
        for side, rows, wanted in zip(_SIDES, sides, (prediction, reference), strict=True):
            _require(metric, side, rows, *wanted)
        return sides if dtype is None else [np.array(rows, dtype=dtype) for rows in sides]

    return read


_classes = _reader(
    (_is_class, "a class: a whole number from 0, or -1 for none"),
    (lambda value: _is_class(value) and value >= 0, "a class from 0"),
    np.int64,
)
_numbers = _reader(_NUMBER, _NUMBER, np.float64)
_SET: Wanted = (lambda value: _is_list(value) and all(each in (0, 1) for each in value), "a 0 or 1 for each label")


def _sets(metric: str, *sides: Sequence[Any]) -> Sequence[Any]:
    rows = _reader(_SET, _SET)(metric, *sides)
    if len({len(row) for side in rows for row in side}) != 1:
        raise SoftPromptError(f"metric '{metric}': rows differ in the number of labels: give a 0 or 1 for each")
    return [np.array(side, dtype=np.int64) for side in rows]


def _classes_or_sets(metric: str, *sides: Sequence[Any]) -> Sequence[Any]:
    return (_sets if _is_list(sides[1][0]) else _classes)(metric, *sides)


_strings = _reader(_TEXT, _TEXT)
_losses = _reader(_LOSS, _LOSS)
_accepted = _reader(_TEXT, (_are_texts, "a list of accepted texts, at least one"))


def _any_tags(metric: str, *sides: Sequence[Any]) -> Sequence[Any]:
    _reader(_TAGS, _TAGS)(metric, *sides)
    for row, (given, true) in enumerate(zip(*sides, strict=True)):
        if len(given) != len(true):
            raise SoftPromptError(f"metric '{metric}': row {row} has {len(given)} predicted tags for {len(true)} words")
    return sides


def _tags(metric: str, *sides: Sequence[Any]) -> Sequence[Any]:
    _any_tags(metric, *sides)
    for side, rows in zip(_SIDES, sides, strict=True):
        for row, tag in ((row, tag) for row, tags in enumerate(rows) for tag in tags):
            if not (_is_text(tag) and tags_entities([tag])):
                place = f"metric '{metric}': row {row} of the {side}"
                raise SoftPromptError(f"{place} has the tag {reprlib.repr(tag)}; BIO has O, B-TYPE and I-TYPE")
    known = {tag for rows in sides for tags in rows for tag in tags}
    if not tags_entities(known):
        letters = ", ".join(sorted({tag[0] for tag in known}))
        raise SoftPromptError(f"metric '{metric}': tags begin with {letters}, which is neither BIO, BIOES nor BILOU")
    return sides


@dataclass(frozen=True)
class Metric:
    """How a metric is computed.

    Attributes:
        read: checks predictions and references and makes of them what ``score`` takes.
        score: the score of predictions and references, and of groups if it is ``grouped``.
        grouped: scores groups of rows.
    """

    read: Reader
    score: Callable[..., float]
    grouped: bool = False


METRICS: dict[str, Metric] = {
    "accuracy": Metric(_classes, _accuracy),
    "f1": Metric(_classes, _f1),
    "macro_f1": Metric(_classes_or_sets, _macro_f1),
    "micro_f1": Metric(_sets, _micro_f1),
    "subset_accuracy": Metric(_sets, _accuracy),
    "matthews": Metric(_classes, _matthews),
    "pearson": Metric(_numbers, _correlation(stats.pearsonr)),
    "spearman": Metric(_numbers, _correlation(stats.spearmanr)),
    "f1a": Metric(_classes, _f1),
    "question_em": Metric(_classes, _question_em, grouped=True),
    "em": Metric(_accepted, _em),
    "token_f1": Metric(_accepted, _token_f1),
    "seqeval_f1": Metric(_tags, _of_entities(lambda both, given, true: _share(2 * both, given + true))),
    "seqeval_precision": Metric(_tags, _of_entities(lambda both, given, true: _share(both, given))),
    "seqeval_recall": Metric(_tags, _of_entities(lambda both, given, true: _share(both, true))),
    "tag_accuracy": Metric(_any_tags, _tag_accuracy),
    "exact_match": Metric(_accepted, _exact_match),
    "rouge1": Metric(_accepted, rouge("rouge1")),
    "rouge2": Metric(_accepted, rouge("rouge2")),
    "rougeL": Metric(_accepted, rouge("rougeL")),
    "chrf": Metric(_accepted, of_corpus("chrf")),
    "bleu": Metric(_accepted, of_corpus("bleu")),
    NEG_LOSS: Metric(_losses, _neg_loss),
    "string_accuracy": Metric(_strings, _of_strings(_accuracy)),
    "string_macro_f1": Metric(_strings, _of_strings(_macro_f1)),
}


def metric_parts(name: str) -> tuple[str, ...]:
    """The metrics whose mean a name stands for: "accuracy+macro_f1" for two of them, "accuracy" for itself.

    Raises:
        SoftPromptError: one of them is unknown.
    """
    parts = tuple(part.strip() for part in name.split("+"))
    for part in parts:
        if part not in METRICS:
            place = f" in '{name}'" if len(parts) > 1 else ""
            raise SoftPromptError(f"unknown metric '{part}'{place}: {nearest(part, METRICS)}")
    return parts


def compares_strings(name: str) -> bool:
    """Whether a metric compares what was written for a label, not the label."""
    return any(METRICS[part].read is _strings for part in metric_parts(name))


def compute(
    metric_names: Iterable[str],
    predictions: Sequence[Any] | Array,
    references: Sequence[Any] | Array,
    groups: Sequence[Hashable] | Array | None = None,
) -> dict[str, float]:
    """Scores predictions against references.

    For classes, whole numbers from 0; a prediction of -1 is none of them and always wrong:

    - "accuracy"; "f1", of class 1; "macro_f1", the mean over the classes that occur; "matthews", where -1 is one
      more class, as for scikit-learn.
    - MultiRC's: "f1a", F1 of class 1 over all answers; "question_em", the share of groups that are right throughout.

    For rows with several labels, lists of a 0 or 1 for each: "micro_f1", of all ones together; "macro_f1", the mean of
    the labels' F1; "subset_accuracy", the share of rows whose labels are all right.

    For scores: "pearson", "spearman".

    For texts (compared after `answers.normalise`, but where said):

    - SQuAD's and ReCoRD's: "em", the share of exact matches; "token_f1", the overlap in words. References are lists of
      accepted answers, of which the best counts. Two texts that are empty once normalised match in both metrics.
    - "exact_match", the share of texts that are an accepted answer to the letter, but for white space at their ends.
    - rouge-score's "rouge1", "rouge2" and "rougeL" (F-measure, no stemming), sacrebleu's "chrf" and "bleu": of lists
      of accepted answers, by libraries of the extra ``text``, which normalise in their own ways.
    - SMoP's: "string_accuracy"; "string_macro_f1", where each distinct text that occurs is a class.

    For losses of written texts, each with its number of tokens: "neg_loss", the mean loss of a token with its sign
    changed, so that higher is better as everywhere (scikit-learn's spelling).

    For lists of BIO, BIOES or BILOU tags: "seqeval_f1", "seqeval_precision", "seqeval_recall" over all entities, which
    must agree in type, start and end. As in conlleval and seqeval's default mode, an I- tag that continues no entity of
    its type begins one; without entities the score is 0. For tags of any kind: "tag_accuracy", the share of words whose
    tag is right.

    Names joined with "+" give the mean: "accuracy+macro_f1", as Residual Prompt Tuning scores CB.

    Args:
        metric_names: the metrics.
        predictions: one for each row.
        references: the truth, one for each row.
        groups: what each row belongs to, for MultiRC the question.

    Returns:
        The scores by name, from 0 (correlations: -1; "neg_loss": no bound) to 1, in the order asked for. Correlations
        with a constant are 0, with non-finite values nan.

    Raises:
        SoftPromptError: unknown metric; no rows, numbers of rows that differ; groups that are missing; rows that are
            not what a metric takes.
    """
    given, true = map(_rows, _SIDES, (predictions, references))
    if len(given) != len(true):
        raise SoftPromptError(f"{len(given)} predictions for {len(true)} references: give one for each row")
    if not given:
        raise SoftPromptError("there are no predictions to score")
    parts_of = {name: metric_parts(name) for name in metric_names}
    scores: dict[str, float] = {}
    for name in dict.fromkeys(itertools.chain.from_iterable(parts_of.values())):
        metric = METRICS[name]
        more = [_groups(name, groups, len(given))] if metric.grouped else []
        scores[name] = metric.score(*metric.read(name, given, true), *more)
    return {name: sum(scores[part] for part in parts) / len(parts) for name, parts in parts_of.items()}


def _rows(side: str, rows: Any) -> list[Any]:
    listed = rows.tolist() if hasattr(rows, "tolist") else rows
    if isinstance(listed, str) or not isinstance(listed, Iterable):
        raise SoftPromptError(f"{side} are {reprlib.repr(listed)}; give a list with one for each row")
    return list(listed)


def _groups(metric: str, groups: Any, rows: int) -> list[Hashable]:
    if groups is None:
        raise SoftPromptError(f"metric '{metric}' needs groups: for each row, the question that it belongs to")
    keys = _rows("groups", groups)
    if len(keys) != rows:
        raise SoftPromptError(f"metric '{metric}': {len(keys)} groups for {rows} predictions: give one for each row")
    _require(metric, "groups", keys, _is_hashable, "a number, a text or a tuple of them")
    return keys
