"""A task's rows as a model takes them, encoded once per split and length."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from softprompts.tasks import Task, label_ids, marker, new_tokens
from softprompts.tasks.encode import Encoded, check_kind, encode_cached, end_ids
from softprompts.tasks.kinds.texts import longest_answer
from softprompts.tasks.text_metrics import NEG_LOSS
from softprompts.training import Evaluation

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
        encoded = self.split(split, length)
        score = marker(self.task, getattr(self.task, split), encoded, self.tokenizer, self.kind)
        more: dict[str, Any] = {"label_ids": self.label_ids, "new_tokens": self.new_tokens}
        if self.task.form.written:
            more |= {"losses": NEG_LOSS in self.task.metrics, "ends": self.ends}
            if self.task.metrics == (NEG_LOSS,):
                more["new_tokens"] = None
        return Evaluation(encoded.features, score=score, batch_size=batch_size, **more)
