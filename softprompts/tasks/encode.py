"""Turns rows into token ids, and a model's predictions back into answers.

An encoder has a head, and each kind of task its own way (`softprompts.tasks.kinds`). A language model writes: an
encoder-decoder reads the form's source and answers; a decoder goes on from the source and a line "answer:".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from softprompts.errors import SoftPromptError, nearest
from softprompts.tasks import cache
from softprompts.tasks.decision import Decided, Decision
from softprompts.tasks.example import Example
from softprompts.tasks.form import Form
from softprompts.tasks.kinds import KINDS, chat, texts
from softprompts.tasks.kinds.encoded import Encoded as Encoded
from softprompts.tasks.task import Task
from softprompts.tasks.text_metrics import NEG_LOSS

_FEW = 500  # rows that are tokenised faster than they are looked up
_CODE = (Path(__file__).with_name("conversations.py"), *sorted(Path(__file__).parent.glob("kinds/*.py")))
MODEL_KINDS = ("encoder", "encoder-decoder", "decoder")
Decide = Callable[[Form, Sequence[Any]], Decided]  # the probabilities and answers that the scores of rows make


def encode_examples(
    examples: Sequence[Example],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    max_length: int,
    with_answer: bool = True,
) -> Encoded:
    """Encodes rows without padding.

    A row that is too long is cut at the end of the fields that its form names for that (``cut``), else of its longest
    one; a context that is searched for a span is read in windows instead.

    Args:
        examples: rows of the task.
        task: says how they are put to a model.
        tokenizer: the model's tokenizer.
        kind: "encoder", "encoder-decoder" or "decoder".
        max_length: most tokens of an input. The soft prompt is not counted. Nor is the answer of a text or a chat,
            which is never cut; other answers of a decoder are counted in.
        with_answer: False: rows have no label, and a decoder's end where its answer begins.

    Returns:
        Rows for `collate`. Of an encoder, see the kinds of tasks; of a language model ``input_ids``, ``label`` (what
        it stands for, where answers are ranked) and ``labels``: the answer's ids, in a decoder behind -100 on all
        that is not answer. Of several labels such a row for each label word is one of ``choices``.

    Raises:
        SoftPromptError: unknown kind of model, one that the task is not for, ``max_length`` too short, or label words
            that cannot be told apart.
    """
    check_kind(kind, task)
    if kind == "encoder":
        return KINDS[task.kind].encode(examples, task.form, tokenizer, max_length, with_answer)
    if task.kind == "chat":
        return chat.encode(examples, tokenizer, kind, max_length, with_answer)
    return texts.encode(examples, task.form, tokenizer, kind, max_length, with_answer)


def say_cut(parts: Sequence[Encoded], examples: int, max_length: int) -> str:
    """One line for the user about rows that were cut: how many, and in which fields; empty: none was."""
    rows = sum(part.truncated for part in parts)
    if not rows:
        return ""
    fields = sum((Counter(part.cut) for part in parts), Counter[str]())
    what = ", ".join(f"'{name}' of {count:,}" for name, count in fields.items())
    if len(fields) == 1:
        what = f"the field '{next(iter(fields))}'"
    return f"{rows:,} of {examples:,} rows were cut to {max_length:,} tokens; of them {what}"


def encode_cached(
    split: str, task: Task, tokenizer: PreTrainedTokenizerBase, kind: str, max_length: int, folder: Path | None = None
) -> Encoded:
    """`encode_examples` of a split of a task, with a cache on disk in ``folder``, or in `cache.cache_folder`."""
    rows: Sequence[Example] = getattr(task, split)

    def make() -> Encoded:
        return encode_examples(rows, task, tokenizer, kind, max_length)

    if len(rows) < _FEW or (folder is None and cache.cache_folder() is None):
        return make()
    key: dict[str, Any] = {
        "rows": task.record()[split]["sha256"],
        "form": task.form.to_dict(),
        "tokenizer": cache.tokenizer_fingerprint(tokenizer),
        "kind": kind,
        "max_length": max_length,
        "code": cache.code_fingerprint([Path(__file__), *_CODE]),
    }
    if task.kind == "chat":
        key["template"] = tokenizer.chat_template
    return cache.cached(key, make, folder=folder)


def label_ids(task: Task, tokenizer: PreTrainedTokenizerBase, kind: str) -> list[list[int]] | None:
    """Token ids of each answer that a language model chooses from, with the end-of-text token if there is one.

    None where it does not choose: an encoder has a head, and some tasks have answers that are generated.

    Raises:
        SoftPromptError: no label words, or two have the same ids.
    """
    check_kind(kind, task)
    if kind == "encoder" or task.form.answering == "generate" or not task.form.closed:
        return None
    return texts.word_ids(task.form, tokenizer, kind)


def new_tokens(task: Task, tokenizer: PreTrainedTokenizerBase, kind: str) -> int | None:
    """How many tokens a language model generates at most for an answer; None where it does not generate."""
    check_kind(kind, task)
    if kind == "encoder" or (task.form.closed and task.form.answering == "rank"):
        return None
    return texts.new_tokens(task.form, tokenizer, kind)


def end_ids(task: Task, tokenizer: PreTrainedTokenizerBase, kind: str) -> list[int]:
    """The tokens that end what a language model writes for a chat; empty: those of the model."""
    return chat.end_ids(tokenizer) if task.kind == "chat" and kind != "encoder" else []


def check_kind(kind: str, task: Task) -> None:
    """Makes sure that a kind of model can do a task.

    Raises:
        SoftPromptError: it cannot.
    """
    if kind not in MODEL_KINDS:
        raise SoftPromptError(f"unknown kind of model '{kind}': {nearest(kind, MODEL_KINDS)}")
    if kind != "encoder" and task.kind == "tagging":
        raise SoftPromptError(f"task '{task.name}' labels every word, which takes an encoder; this is a {kind} model")
    if kind == "encoder" and task.form.written:
        raise SoftPromptError(
            f"task '{task.name}' is to write a {task.kind}, which this encoder cannot: name a causal or an "
            "encoder-decoder model (--model)"
        )


def marker(
    task: Task,
    examples: Sequence[Example],
    encoded: Encoded,
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    decide: Decide | None = None,
) -> Callable[[Any], dict[str, float]]:
    """Returns a function that scores a `softprompts.training.Prediction` for all rows with the task's metrics."""
    read = answer_reader(task, examples, encoded, tokenizer, kind, decide)
    groups = [example.group for example in examples] if any(example.group is not None for example in examples) else None
    references = KINDS[task.kind].references(examples, task.form)

    def mark(prediction: Any) -> dict[str, float]:
        # Here and not on top: scikit-learn takes a while to import.
        from softprompts.tasks.metrics import compares_strings, compute

        if task.metrics == (NEG_LOSS,):
            return compute(task.metrics, prediction.losses, prediction.losses)
        answers, valid = read(prediction)
        if not valid and task.form.invalid == "zero":
            return dict.fromkeys(task.metrics, 0.0)
        scores: dict[str, float] = {}
        for name in task.metrics:
            rows = (answers, references)
            if name == NEG_LOSS:
                rows = (prediction.losses, prediction.losses)
            elif compares_strings(name):
                words, tokens = task.form.words, prediction.tokens
                written = [words[label] for label in answers] if tokens is None else texts.decode(tokenizer, tokens)
                rows = (written, [words[label] for label in references])
            scores |= compute([name], *rows, groups)
        return scores

    return mark


def answer_reader(
    task: Task,
    examples: Sequence[Example],
    encoded: Encoded,
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    decide: Decide | None = None,
) -> Callable[[Any], tuple[list[Any], bool]]:
    """Returns a function from a prediction to one answer per example, and to whether all of them are valid.

    Answers are what the metrics compare: indices of labels or choices, scores, texts, lists of tags, or of several
    labels a 0 or 1 for each. ``decide`` makes answers of scores, where a temperature or thresholds were chosen.
    """
    if decide is None and task.kind == "multi-label":
        decide = Decision().decide
    ends = end_ids(task, tokenizer, kind)

    def read(prediction: Any) -> tuple[list[Any], bool]:
        if decide is not None:
            return decide(task.form, prediction.scores).answers, True
        if prediction.tokens is not None:
            tokens = prediction.tokens
            if task.kind == "chat":
                tokens = chat.last_answers(tokens, encoded, ends)
            return texts.read(examples, task.form, tokenizer, tokens)
        if kind != "encoder":
            return [task.form.label_value(index) for index in prediction.labels], True
        return KINDS[task.kind].answers(examples, task.form, encoded, prediction), True

    return read


def neg_losses(encoded: Encoded, losses: Sequence[tuple[float, int]]) -> list[float]:
    """Of each example, the mean loss of its answers' tokens with its sign changed; ``losses`` are of the rows."""
    sums: dict[int, tuple[float, int]] = {}
    for owner, (loss, tokens) in zip(encoded.owners or range(len(losses)), losses, strict=True):
        before = sums.get(owner, (0.0, 0))
        sums[owner] = before[0] + loss, before[1] + tokens
    return [-loss / max(1, tokens) for _, (loss, tokens) in sorted(sums.items())]


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id to pad with: the padding token's, else the end-of-text token's (the attention mask hides either)."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    name = f" of '{tokenizer.name_or_path}'" if tokenizer.name_or_path else ""
    raise SoftPromptError(f"the tokenizer{name} has neither a padding nor an end-of-text token: set its pad_token")
