"""Encoding for language models: the model reads the row's source and writes the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from softprompts.errors import SoftPromptError
from softprompts.tasks.answers import read_labels, read_scores
from softprompts.tasks.batches import IGNORED
from softprompts.tasks.example import Example
from softprompts.tasks.form import Form
from softprompts.tasks.kinds.encoded import Encoded, changed, clip, shorten, tally
from softprompts.tasks.kinds.multi_label import targets

Rows = Sequence[Example]
_ANSWER = "\nanswer:"
_FREE_TOKENS = 32  # generated for an answer that may be any text
_SPARE_TOKENS = 2  # generated beyond the longest label word: what is longer is no label word
_TURN_TOKENS = 8  # that a chat template writes around an answer


def encode(
    examples: Rows, form: Form, tokenizer: PreTrainedTokenizerBase, kind: str, max_length: int, with_answer: bool
) -> Encoded:
    """See `softprompts.tasks.encode_examples`."""
    words = word_ids(form, tokenizer, kind) if form.closed and (with_answer or kind == "decoder") else []
    answers = _answers(examples, form, words, tokenizer, kind) if with_answer else []
    room = max_length
    if kind == "decoder" and not form.written:  # whether the answer is there or not: what is read must be the same
        least = 0 if form.closed else min(_FREE_TOKENS, max_length // 4)
        room -= max([least, *map(len, words if form.closed else answers)])
    ending = _ANSWER if kind == "decoder" else ""

    def tokenize(rows: Sequence[Mapping[str, str]]) -> list[list[int]]:
        batch: list[list[int]] = tokenizer([form.write(values) + ending for values in rows], verbose=False)["input_ids"]
        if kind == "decoder":  # the answer goes on from here, so no end-of-text token yet
            return [ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids for ids in batch]
        return batch

    def length(row: Mapping[str, str]) -> int:
        return len(tokenize([row])[0])

    values = [example.fields for example in examples]
    clipped = [clip(row, length, max_length) for row in values]
    features, cut = [], []
    for index, ids in enumerate(tokenize(clipped) if values else []):
        if len(ids) > room:
            shorter = shorten(clipped[index], [form.source], form.cut, length, room, max_length)
            ids = tokenize([shorter])[0]
            cut.append(changed(values[index], shorter, [form.source]))
        row: dict[str, Any] = {"input_ids": ids}
        if with_answer and form.kind == "multi-label":
            row = {"choices": [_answered(ids, each, kind) for each in words], "targets": targets(examples[index], form)}
        elif answers:
            row = _answered(ids, answers[index], kind)
            if form.closed:
                row["label"] = examples[index].label
        features.append(row)
    return Encoded(features, len(cut), cut=tally(cut))


def _answered(ids: list[int], answer: list[int], kind: str) -> dict[str, Any]:
    """A row with an answer's ids: in a decoder behind its input, which they go on from."""
    if kind != "decoder":
        return {"input_ids": ids, "labels": answer}
    return {"input_ids": ids + answer, "labels": [IGNORED] * len(ids) + answer}


def _answers(
    examples: Rows, form: Form, words: list[list[int]], tokenizer: PreTrainedTokenizerBase, kind: str
) -> list[list[int]]:
    """The ids that each row is answered with; none where it is answered with all label words."""
    if form.kind == "multi-label":
        return []
    if form.closed:
        return [words[form.label_index(example.label)] for example in examples]
    return [_ids(example.answers[0], tokenizer, kind) for example in examples]


def word_ids(form: Form, tokenizer: PreTrainedTokenizerBase, kind: str) -> list[list[int]]:
    """Token ids of each label word as the model is to write it, with the end-of-text token if the tokenizer has one.

    Of several labels, the last word is the one for none of them.

    Raises:
        SoftPromptError: there are no label words, or two words have the same ids.
    """
    if not form.words:
        raise SoftPromptError("the task has no label words: a language model needs them")
    words: dict[tuple[int, ...], str] = {}
    for word in form.words:
        ids = tuple(_ids(word, tokenizer, kind))
        if ids in words:
            raise SoftPromptError(f"the tokenizer cannot tell the label words '{words[ids]}' and '{word}' apart")
        words[ids] = word
    return [list(ids) for ids in words]


def new_tokens(form: Form, tokenizer: PreTrainedTokenizerBase, kind: str) -> int:
    """How many tokens are generated at most for an answer."""
    if not form.closed:
        return form.max_new_tokens or _FREE_TOKENS
    return max(map(len, word_ids(form, tokenizer, kind))) + _SPARE_TOKENS


def longest_answer(examples: Rows, tokenizer: PreTrainedTokenizerBase) -> tuple[int, str | int]:
    """How many tokens the longest answer of texts or of chats has at most, with what ends it; and its row."""
    ids = tokenizer(text_target=[example.answers[0] for example in examples], verbose=False)["input_ids"]
    length, row = max((len(each), -place) for place, each in enumerate(ids))
    return length + _TURN_TOKENS, examples[-row].id


def decode(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[Sequence[int]]) -> list[str]:
    """Generated tokens as texts."""
    return [text.strip() for text in tokenizer.batch_decode([list(row) for row in tokens], skip_special_tokens=True)]


def read(
    examples: Sequence[Example], form: Form, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[Sequence[int]]
) -> tuple[list[Any], bool]:
    """Reads generated tokens as one answer per example; also returns whether all of them are valid."""
    written = decode(tokenizer, tokens)
    if not form.closed:
        return written, True
    if form.kind == "regression":
        answers = read_scores(written)
    else:
        truth, rule = [example.label for example in examples], form.invalid
        if None in truth and rule == "opposite":  # rows to predict, without the truth
            rule = "zero"  # leaves an answer that is no label invalid
        answers = read_labels(written, form.words, None if None in truth else truth, rule)
    return answers.values, not answers.invalid


def continuation_ids(text: str, tokenizer: PreTrainedTokenizerBase, kind: str, end: bool) -> list[int]:
    """Token ids of any text as a model is to write it, maybe with the end-of-text token if the tokenizer has one."""
    ids = _ids(text, tokenizer, kind)
    return ids if end or ids[-1:] != [tokenizer.eos_token_id] else ids[:-1]


def _ids(word: str, tokenizer: PreTrainedTokenizerBase, kind: str) -> list[int]:
    target = tokenizer(text_target=word)["input_ids"] if kind == "encoder-decoder" else _continuation(tokenizer, word)
    ids = list(target)
    if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
        ids.append(tokenizer.eos_token_id)
    return ids


def _continuation(tokenizer: PreTrainedTokenizerBase, word: str) -> list[int]:
    # Tokenizers differ in where the blank goes, so the word is tokenised behind what it will follow.
    anchor = tokenizer(_ANSWER, add_special_tokens=False)["input_ids"]
    whole = tokenizer(f"{_ANSWER} {word}", add_special_tokens=False)["input_ids"]
    if len(whole) > len(anchor) and list(whole[: len(anchor)]) == list(anchor):
        return list(whole[len(anchor) :])
    return list(tokenizer(f" {word}", add_special_tokens=False)["input_ids"])
