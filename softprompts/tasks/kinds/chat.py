"""Conversations, written by the tokenizer's chat template; the loss is on the assistant's answers alone.

A row is the template's text up to the end of the last answer. An answer is what the template writes behind the message
that it answers and behind the beginning of a turn (``add_generation_prompt``), up to the token that ends the turn. So a
model learns each answer from the very tokens that it is given when it is to write one. Some templates write an answer
in another way once the conversation goes on (without its reasoning, say); of these, each answer becomes a row.

A conversation that is too long loses its oldest messages, but for the system's; then texts that are no answer are cut.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from softprompts.errors import SoftPromptError, first_line
from softprompts.tasks.batches import IGNORED
from softprompts.tasks.conversations import ANSWERER, MESSAGES, Messages, question_of, unpacked
from softprompts.tasks.example import Example
from softprompts.tasks.kinds.encoded import Encoded, shorten, tally
from softprompts.tasks.kinds.tags import require_offsets

_OLDEST = "the oldest messages"


def require_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises a `SoftPromptError` where a tokenizer has no chat template."""
    if not tokenizer.chat_template:
        raise SoftPromptError(
            f"the tokenizer of '{tokenizer.name_or_path}' has no chat template: choose a model that has one (often "
            "called -Instruct or -Chat), put chat_template.jinja beside the tokenizer, or train with --kind text"
        )
    require_offsets(tokenizer)


def encode(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, kind: str, max_length: int, with_answer: bool
) -> Encoded:
    """See `softprompts.tasks.encode_examples`; ``max_length`` is for what stands in front of the last answer."""
    require_template(tokenizer)
    features: list[dict[str, Any]] = []
    owners: list[int] = []
    cut = []
    for index, example in enumerate(examples):
        conversation = _Conversation(tokenizer, f"row {example.id}")
        messages = unpacked(example.fields[MESSAGES])
        messages, lost = _fitting(conversation, messages, max_length)
        if not with_answer:
            rows = [{"input_ids": conversation.question(messages)}]
        elif kind == "decoder":
            rows = conversation.answered(messages)
        else:
            text = messages[-1]["content"]
            target = [*tokenizer(text_target=text, add_special_tokens=False)["input_ids"], *_end(tokenizer)]
            rows = [{"input_ids": conversation.question(messages), "labels": target}]
        features += rows
        owners += [index] * len(rows)
        if lost:
            cut.append(lost)
    several = len(owners) > len(examples)
    return Encoded(features, len(cut), owners if several else None, tally(cut))


def end_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: the end of the text, and what the template ends a turn with."""
    require_template(tokenizer)
    sample = [{"role": "user", "content": "a"}, {"role": ANSWERER, "content": "b"}]
    last = _Conversation(tokenizer, "the chat template").answered(sample)[0]["input_ids"][-1]
    return list(dict.fromkeys([*_end(tokenizer), *([last] if last in _special(tokenizer) else [])]))


def last_answers(tokens: Sequence[Sequence[int]], encoded: Encoded, ends: Sequence[int]) -> list[list[int]]:
    """What was written for the last answer of each example, up to its end."""
    owners = encoded.owners or range(len(tokens))
    last = dict(zip(owners, tokens, strict=True))
    return [list(itertools.takewhile(lambda token: token not in ends, last[owner])) for owner in sorted(last)]


class _Conversation:
    """The tokens of a conversation; errors begin with ``where``."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, where: str):
        self.tokenizer, self.where = tokenizer, where

    def question(self, messages: Messages) -> list[int]:
        """What stands in front of the last answer."""
        text = self._text(question_of(messages), begun=True)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def answered(self, messages: Messages) -> list[dict[str, Any]]:
        """The row of a conversation that ends in an answer; a row for each answer where the template needs that."""
        text, answers = self._text(messages), []
        for index in range(1, len(messages)):
            if messages[index]["role"] == ANSWERER:
                before, behind = self._text(messages[:index], begun=True), self._text(messages[: index + 1])
                if not behind.startswith(before):
                    raise SoftPromptError(
                        f"{self.where}: the chat template does not write an answer behind the beginning of a turn, so "
                        "that nobody can tell where it begins: choose another model, or --kind text"
                    )
                answers.append((behind, (len(before), len(behind))))
        if all(text.startswith(behind) for behind, _ in answers):
            return [self._row(text, [span for _, span in answers])]
        return [self._row(behind, [span]) for behind, span in answers]

    def _row(self, text: str, spans: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """The row of a text with the loss on what stands in these places."""
        tokens = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids, offsets, special = list(tokens["input_ids"]), tokens["offset_mapping"], _special(self.tokenizer)
        labels = [IGNORED] * len(ids)
        for start, end in spans:
            inside = [place for place, (first, last) in enumerate(offsets) if last > start and first < end > first]
            # White space behind the end of a turn is the template's, not the answer's.
            kept = inside
            while kept and ids[kept[-1]] not in special and text[slice(*offsets[kept[-1]])].isspace():
                kept = kept[:-1]
            inside = kept if kept and ids[kept[-1]] in special else inside
            for place in inside:
                labels[place] = ids[place]
        length = max(place for place, label in enumerate(labels) if label != IGNORED) + 1
        ids, labels = ids[:length], labels[:length]
        if ids[-1] not in special:  # nothing else would tell where it ends
            ids, labels = [*ids, *_end(self.tokenizer)], [*labels, *_end(self.tokenizer)]
        return {"input_ids": ids, "labels": labels}

    def _text(self, messages: Messages, begun: bool = False) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=begun))
        except Exception as error:  # whatever the template raises
            raise SoftPromptError(
                f"{self.where}: the tokenizer's chat template does not take these messages ({first_line(error)})"
            ) from error


def _fitting(conversation: _Conversation, messages: Messages, max_length: int) -> tuple[Messages, list[str]]:
    """The messages whose question has at most so many tokens, and what was cut of them."""
    lost: list[str] = []
    while len(conversation.question(messages)) > max_length:
        first = next((index for index, message in enumerate(messages) if message["role"] != "system"), 0)
        asked = [index for index, message in enumerate(question_of(messages)) if message["role"] == "user"]
        later = [index for index in asked if index > first]
        if not later:
            break
        messages, lost = [*messages[:first], *messages[later[0] :]], [_OLDEST]
    else:
        return messages, lost
    texts = {
        f"m{index}": each["content"] for index, each in enumerate(question_of(messages)) if each["role"] != ANSWERER
    }

    def within(values: Mapping[str, str]) -> Messages:
        return [{**each, "content": values.get(f"m{index}", each["content"])} for index, each in enumerate(messages)]

    def length(values: Mapping[str, str]) -> int:
        return len(conversation.question(within(values)))

    template = "".join(f"{{{name}}}" for name in texts)
    shorter = shorten(texts, [template], list(texts)[-1:], length, max_length, max_length)
    return within(shorter), [*lost, MESSAGES]


def _special(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    added = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return (added | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id}


def _end(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
