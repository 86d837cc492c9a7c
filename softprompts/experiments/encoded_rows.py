"""A task's rows as a model takes them, encoded once per split and length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedTokenizerBase

from softprompts.tasks import Task, label_ids, marker, new_tokens
from softprompts.tasks.calibration import calibration_of
from softprompts.tasks.class_weights import ClassWeights, row_weights
from softprompts.tasks.decision import Decided, Decision, rows_digest
from softprompts.tasks.encode import Decide, Encoded, check_kind, encode_cached, end_ids
from softprompts.tasks.fitting import Fit
from softprompts.tasks.kinds import KINDS
from softprompts.tasks.kinds.texts import longest_answer
from softprompts.tasks.text_metrics import NEG_LOSS
from softprompts.training import Evaluation
from softprompts.training.prediction import Prediction

Score = Callable[[Prediction], dict[str, float]]

_SPLITS = ("train", "validation", "test")


class EncodedRows:
    """The rows of a task for one tokenizer and kind of model.

    Attributes:
        label_ids: for language models, the token ids of each answer to choose from; None where they do not choose.
        longest: tokens of the longest answer that is a free text, and where it is, in words; 0 where there is none.
        new_tokens: for language models, how many tokens are generated at most; None where they do not generate.
    """

    def __init__(self, task: Task, tokenizer: PreTrainedTokenizerBase, kind: str):
        check_kind(kind, task)
        self.task, self.tokenizer, self.kind = task, tokenizer, kind
        self.label_ids = label_ids(task, tokenizer, kind)
        self.longest: tuple[int, str] = (0, "")
        self.ends = end_ids(task, tokenizer, kind)
        self.new_tokens = new_tokens(task, tokenizer, kind)
        if task.form.written:
            found = ((split, longest_answer(rows, tokenizer)) for split in _SPLITS if (rows := getattr(task, split)))
            self.longest = max((length, f"row {row} of the {split} rows") for split, (length, row) in found)
            self.new_tokens = task.form.max_new_tokens or self.longest[0]
        self._encoded: dict[tuple[str, int], Encoded] = {}

    @property
    def answer_tokens(self) -> int:
        """Tokens that answers of free texts need room for, beside an input or (encoder-decoders) by themselves."""
        return max(self.longest[0], self.new_tokens or 0) if self.longest[0] else 0

    def of(self, task: Task) -> EncodedRows:
        """The rows of another task; splits that are the same, and put in the same form, are not encoded again."""
        other = EncodedRows(task, self.tokenizer, self.kind)
        if task.form.to_dict() == self.task.form.to_dict():
            for (split, length), encoded in self._encoded.items():
                if getattr(task, split) == getattr(self.task, split):
                    other._encoded[split, length] = encoded
        return other

    def split(self, split: str, length: int) -> Encoded:
        """The rows of a split, cut to a length."""
        if (split, length) not in self._encoded:
            self._encoded[split, length] = encode_cached(split, self.task, self.tokenizer, self.kind, length)
        return self._encoded[split, length]

    def evaluation(self, split: str, length: int, batch_size: int | None = None) -> Evaluation:
        """A split to score on, by the task's metrics."""
        return self._evaluation(split, length, self.marker(split, length), batch_size)

    def weighted(self, length: int, class_weights: ClassWeights | None) -> list[dict[str, Any]]:
        """The training rows, with the weight of each in the loss."""
        features = self.split("train", length).features
        if class_weights is None:
            return features
        weights = row_weights(self.task.form, self.task.train, class_weights)
        return [{**feature, "weight": weight} for feature, weight in zip(features, weights, strict=True)]

    def marker(self, split: str, length: int, decide: Decide | None = None) -> Score:
        """Scores predictions of a split, see `softprompts.tasks.marker`."""
        rows, encoded = getattr(self.task, split), self.split(split, length)
        return marker(self.task, rows, encoded, self.tokenizer, self.kind, decide)

    def _evaluation(self, split: str, length: int, score: Score, batch_size: int | None = None) -> Evaluation:
        more: dict[str, Any] = {"label_ids": self.label_ids, "new_tokens": self.new_tokens}
        if self.task.form.written:
            more |= {"losses": NEG_LOSS in self.task.metrics, "ends": self.ends}
            if self.task.metrics == (NEG_LOSS,):
                more["new_tokens"] = None
        return Evaluation(self.split(split, length).features, score=score, batch_size=batch_size, **more)


class FittedDecision:
    """A temperature and thresholds that are fitted to a run's kept prompt on validation rows, and its test under them.

    Args:
        rows: of the task.
        fit: what is fitted.
        length: most tokens of an input.

    Attributes:
        record: what the run's result and its prompt say of it, in plain values: see `Decision`, and for the validation
            rows (each decided by what was fitted on others) and the test rows, ``metrics`` and the calibration error
            before and after. Filled in when it is fitted.
        validation: what scores the prompt while it trains; ``fitting`` and ``test``: see `Lane`.
    """

    def __init__(self, rows: EncodedRows, fit: Fit, length: int):
        self._rows, self._fit, self._length = rows, fit, length
        self._decision = fit.start(rows.task.form)
        self.record: dict[str, Any] = self._decision.to_dict()
        start = self._decision.decide
        self.validation = rows._evaluation("validation", length, rows.marker("validation", length, start))
        self.fitting = rows._evaluation("validation", length, self._fit_on) if fit.fits else None
        self.test = rows._evaluation("test", length, self._test) if rows.task.test else None

    def _fit_on(self, prediction: Prediction) -> dict[str, float]:
        """Fits to the predictions of the validation rows."""
        task, form = self._rows.task, self._rows.task.form
        truths = self._truths("validation")
        self._decision = self._fit.on(form, prediction.scores, truths, rows_digest(task.validation))
        self.record |= self._decision.to_dict()
        return self._note("validation", prediction, self._fit.cross_fitted(form, prediction.scores, truths))

    def _test(self, prediction: Prediction) -> dict[str, float]:
        return self._note("test", prediction, self._decision.decide(self._rows.task.form, prediction.scores))

    def _note(self, split: str, prediction: Prediction, decided: Decided) -> dict[str, float]:
        """Puts into the record how rows come out that were decided so; returns their metrics."""
        form, truths = self._rows.task.form, self._truths(split)
        metrics = self._rows.marker(split, self._length, lambda *_: decided)(prediction)
        before = calibration_of(form, Decision().decide(form, prediction.scores).chances, truths).error
        after = calibration_of(form, decided.chances, truths).error
        self.record[split] = {"metrics": metrics, "calibration_error": {"before": before, "after": after}}
        return metrics

    def _truths(self, split: str) -> list[Any]:
        return KINDS[self._rows.task.kind].references(getattr(self._rows.task, split), self._rows.task.form)
