"""Turns examples into token ids for the three kinds of model.

- encoder: the text, or the pair; a head gives the label.
- encoder-decoder: reads "word field: value field: value", answers with the label word.
- decoder: goes on from "word field: value" and a line "answer:" with the label word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from softprompts.errors import SoftPromptError, nearest
from softprompts.tasks.collate import IGNORED
from softprompts.tasks.task import Example, Task

MODEL_KINDS = ("encoder", "encoder-decoder", "decoder")
_ANSWER = "\nanswer:"


@dataclass(frozen=True)
class Encoded:
    """Rows for `collate`, in the order of the examples.

    Attributes:
        features: one dict of token ids a row.
        truncated: number of rows that had to be cut to ``max_length``.
    """

    features: list[dict[str, Any]]
    truncated: int


def encode_examples(
    examples: Sequence[Example],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    max_length: int,
    with_answer: bool = True,
) -> Encoded:
    """Encodes examples without padding; what is too long is cut at the end of its longest text.

    Args:
        examples: rows of the task.
        task: says how rows are written out and what the label words are.
        tokenizer: the model's tokenizer.
        kind: "encoder", "encoder-decoder" or "decoder".
        max_length: most tokens of an input; a decoder's answer is counted in, the soft prompt is not.
        with_answer: False: a decoder's rows end where its answer begins and have no ``labels``.

    Returns:
        Rows with ``input_ids``, ``label`` (class index or score), for encoders ``token_type_ids`` if the tokenizer
        has them, for the others ``labels``: the answer's ids, in a decoder behind -100 on all that is not answer.

    Raises:
        SoftPromptError: unknown kind, ``max_length`` too short, or label words that cannot be told apart.
    """
    _check_kind(kind)
    if kind == "encoder":
        return _encode_pairs(examples, tokenizer, max_length)
    answers = label_ids(task, tokenizer, kind)
    room = max_length - (max(len(ids) for ids in answers) if kind == "decoder" else 0)
    ending = _ANSWER if kind == "decoder" else ""

    def tokenize(rows: list[tuple[str, ...]]) -> list[list[int]]:
        texts = [task.render_values(values) + ending for values in rows]
        batch: list[list[int]] = tokenizer(texts, verbose=False)["input_ids"]
        if kind == "decoder":  # the answer goes on from here, so no end-of-text token yet
            return [ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids for ids in batch]
        return batch

    values = [example.field_values() for example in examples]
    features, truncated = [], 0
    for example, ids, texts in zip(examples, tokenize(values) if values else [], values, strict=True):
        if len(ids) > room:
            truncated += 1
            ids = _shorten(texts, ids, lambda texts: tokenize([texts])[0], room, max_length)
        row: dict[str, Any] = {"input_ids": ids, "label": example.label}
        answer = answers[task.label_index(example.label)]
        if kind == "encoder-decoder":
            row["labels"] = answer
        elif with_answer:
            row["input_ids"], row["labels"] = (ids + answer, [IGNORED] * len(ids) + answer)
        features.append(row)
    return Encoded(features, truncated)


def label_ids(task: Task, tokenizer: PreTrainedTokenizerBase, kind: str) -> list[list[int]]:
    """Token ids of each label word as the model is to write it, with the end-of-text token if the tokenizer has one.

    Raises:
        SoftPromptError: an encoder was asked for, the task has no label words, or two words have the same ids.
    """
    _check_kind(kind)
    if kind == "encoder":
        raise SoftPromptError("label_ids is for models that write their answer: an encoder has a head instead")
    if not task.label_words:
        raise SoftPromptError(f"task '{task.name}' has no label words: a language model needs them")
    words: dict[tuple[int, ...], str] = {}
    for word in task.label_words:
        if kind == "encoder-decoder":
            ids = list(tokenizer(text_target=word)["input_ids"])
        else:
            ids = _continuation(tokenizer, word)
        if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
            ids.append(tokenizer.eos_token_id)
        if tuple(ids) in words:
            both = f"'{words[tuple(ids)]}' and '{word}'"
            raise SoftPromptError(f"task '{task.name}': the tokenizer cannot tell the label words {both} apart")
        words[tuple(ids)] = word
    return [list(ids) for ids in words]


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id to pad with: the padding token's, else the end-of-text token's (the attention mask hides either)."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    raise SoftPromptError("the tokenizer has neither a padding nor an end-of-text token: set tokenizer.pad_token")


def _check_kind(kind: str) -> None:
    if kind not in MODEL_KINDS:
        raise SoftPromptError(f"unknown kind of model '{kind}': {nearest(kind, MODEL_KINDS)}")


def _encode_pairs(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Encoded:
    if not examples:
        return Encoded([], 0)
    paired = examples[0].text_pair is not None
    if max_length < tokenizer.num_special_tokens_to_add(paired) + (2 if paired else 1):
        raise SoftPromptError(f"max_length is {max_length}: too short for any text")
    pairs = [example.text_pair or "" for example in examples] if paired else None
    batch = tokenizer([example.text for example in examples], pairs, verbose=False)
    names = [name for name in ("input_ids", "token_type_ids") if name in batch]
    features, truncated = [], 0
    for index, example in enumerate(examples):
        row: dict[str, Any] = {name: batch[name][index] for name in names}
        if len(row["input_ids"]) > max_length:
            truncated += 1
            cut = tokenizer(example.text, example.text_pair, truncation="longest_first", max_length=max_length)
            row = {name: cut[name] for name in names}
        features.append({**row, "label": example.label})
    return Encoded(features, truncated)


def _continuation(tokenizer: PreTrainedTokenizerBase, word: str) -> list[int]:
    # Tokenizers differ in where the blank goes, so the word is tokenised behind what it will follow.
    anchor = tokenizer(_ANSWER, add_special_tokens=False)["input_ids"]
    whole = tokenizer(f"{_ANSWER} {word}", add_special_tokens=False)["input_ids"]
    if len(whole) > len(anchor) and list(whole[: len(anchor)]) == list(anchor):
        return list(whole[len(anchor) :])
    return list(tokenizer(f" {word}", add_special_tokens=False)["input_ids"])


def _shorten(
    values: tuple[str, ...],
    ids: list[int],
    tokenize: Callable[[tuple[str, ...]], list[int]],
    room: int,
    max_length: int,
) -> list[int]:
    if len(tokenize(("",) * len(values))) >= room:
        raise SoftPromptError(f"max_length is {max_length}: too short for any text")
    texts = list(values)
    while len(ids) > room:
        longest = max(range(len(texts)), key=lambda index: len(texts[index]))
        text = texts[longest]
        # Cut in proportion to what is too much, at least one character, and look again.
        keep = min(len(text) - 1, int(len(text) * room / len(ids)))
        texts[longest] = text[:keep].rstrip()
        ids = tokenize(tuple(texts))
    return ids
