"""A small tokenizer that knows line breaks, and chat templates as they are out there."""

from __future__ import annotations

from typing import Any

import transformers as tf
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
_WORDS = ["\n", "system", "user", "assistant", "be", "short", "hi", "hello", "what", "is", "two", "plus", "and", "four"]
_WORDS += ["three", "five", "so", "done", "[INST]", "[/INST]", "<think>", "</think>", "then", "?", "bye"]

TEMPLATES = {
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|> ' + m.role + '\n' + m.content + ' <|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|> assistant\n' }}{% endif %}"
    ),
    # Writes no beginning of a turn, and ends answers by the end of the text.
    "inst": (
        "{{ '<s>' }}{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' + m.content + ' </s>' }}"
        "{% elif m.role == 'user' %}{{ ' [INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
    ),
    # Writes its reasoning before the last answer only.
    "thinking": (
        "{% for m in messages %}{{ '<|im_start|> ' + m.role + '\n' }}"
        "{% if m.role == 'assistant' and loop.last %}{{ '<think> </think> ' }}{% endif %}"
        "{{ m.content + ' <|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|> assistant\n' }}{% endif %}"
    ),
    "endless": "{% for m in messages %}{{ m.role + '\n' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant\n' }}{% endif %}",
    "backwards": "{% for m in messages %}{{ m.content + ' ' + m.role + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant\n' }}{% endif %}",
}

TALK: list[dict[str, str]] = [
    {"role": "user", "content": "what is two plus two ?"},
    {"role": "assistant", "content": "four"},
    {"role": "user", "content": "and plus three ?"},
    {"role": "assistant", "content": "so five\n\nbye"},
]
SYSTEM = {"role": "system", "content": "be short"}


def chat_tokenizer(template: str | None = "chatml") -> Any:
    """The tokenizer with one of the templates, or with none."""
    vocabulary = {word: index for index, word in enumerate([*_SPECIAL, *_WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\n"), "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=made, additional_special_tokens=["<|im_start|>", "<|im_end|>"], **named
    )
    tokenizer.chat_template = None if template is None else TEMPLATES[template]
    return tokenizer


def words(tokenizer: Any, ids: list[int]) -> str:
    """The tokens of ids, with blanks between; line breaks are shown."""
    return " ".join(tokenizer.convert_ids_to_tokens(ids)).replace("\n", "\\n")


def marked(tokenizer: Any, row: dict[str, Any]) -> str:
    """The tokens of a row, those with a loss in capitals; a line break is \\n, or \\N."""
    tokens = [token.replace("\n", "\\n") for token in tokenizer.convert_ids_to_tokens(row["input_ids"])]
    pairs = zip(tokens, row["labels"], strict=True)
    return " ".join(token.upper() if label != -100 else token for token, label in pairs)
