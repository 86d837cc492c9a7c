"""A tokenizer that puts the tokens of a prompt into every text, as an attached model puts the prompt itself."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing

from softprompts.errors import SoftPromptError

_UNLIMITED = 10**9  # the limit of tokenizers without one is far above
_PIECE = "soft-prompt"
_CARRIED = ("model_max_length", "padding_side", "truncation_side", "model_input_names", "chat_template")


@dataclass(frozen=True)
class PromptTokens:
    """A tokenizer with a prompt's tokens.

    Attributes:
        tokenizer: the tokenizer.
        ids: of the prompt's tokens, in their order.
        keep: how many tokens of an input stay in front of them.
    """

    tokenizer: Any
    ids: tuple[int, ...]
    keep: int


def with_prompt_tokens(tokenizer: Any, count: int, keep: int, limit: int | None) -> PromptTokens:
    """Returns a copy of a tokenizer with new tokens that it puts into every text, or pair of texts.

    Args:
        tokenizer: a fast one.
        count: number of new tokens.
        keep: how many of an input's tokens stay in front of them: 0, or 1 if that is a special token.
        limit: most tokens that the model takes, the new ones included; None for any number.

    Raises:
        SoftPromptError: it is no fast tokenizer, or puts no special token in front where one is to stay there.
    """
    if not isinstance(getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
        raise SoftPromptError(
            f"materialize needs a fast tokenizer, which can put tokens into texts; {type(tokenizer).__name__} is none"
        )
    extended = copy.deepcopy(tokenizer)
    vocabulary = extended.get_vocab()
    first = 0  # a model that has a prompt in it already can get another
    while f"<|{_PIECE}-{first}|>" in vocabulary:
        first += 1
    names = [f"<|{_PIECE}-{index}|>" for index in range(first, first + count)]
    extended.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    ids = tuple(extended.convert_tokens_to_ids(names))
    if len({*ids} - {*vocabulary.values()}) != count:
        raise SoftPromptError("the tokenizer has no room for the prompt's tokens: it gives them ids that it uses")
    description = json.loads(extended.backend_tokenizer.to_str())
    entry = {"id": f"{_PIECE}-{first}", "ids": list(ids), "tokens": names}
    description["post_processor"] = _with_entry(description.get("post_processor"), entry, keep)
    extended.backend_tokenizer.post_processor = Tokenizer.from_str(json.dumps(description)).post_processor
    # With these settings, a tokenizer makes a new post-processor when it is loaded.
    for key in ("add_bos_token", "add_eos_token"):
        extended.init_kwargs.pop(key, None)
    if extended.model_max_length < _UNLIMITED:
        longest = extended.model_max_length + count
        extended.model_max_length = longest if limit is None else min(longest, limit)
    _put_into_chats(extended, "".join(names))
    _check(extended, tokenizer, ids, keep)
    return PromptTokens(extended, ids, keep)


def _with_entry(post: dict[str, Any] | None, entry: dict[str, Any], keep: int) -> dict[str, Any]:
    """Returns a post-processor, as the tokenizers library writes it, with the prompt's tokens in its templates."""
    steps = [] if post is None else post["processors"] if post["type"] == "Sequence" else [post]
    steps = [new for step in steps for new in _as_template(step)]
    if not any(step["type"] == "TemplateProcessing" for step in steps):
        steps.append(_template("$A", "$A $B:1", {}))
    for step in steps:
        for key in ("single", "pair") if step["type"] == "TemplateProcessing" else ():
            pieces = step[key]
            if keep and not (keep == 1 and pieces and "SpecialToken" in pieces[0]):
                raise SoftPromptError(
                    "the prompt goes behind the first token of a text, and this tokenizer puts no special token there"
                )
            step[key] = [*pieces[:keep], {"SpecialToken": {"id": entry["id"], "type_id": 0}}, *pieces[keep:]]
            step["special_tokens"] = {**step["special_tokens"], entry["id"]: entry}
    return steps[0] if len(steps) == 1 else {"type": "Sequence", "processors": steps}


def _as_template(step: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns a step of a post-processor that adds tokens as a template, and the rest of what it does behind it."""
    if step["type"] not in ("BertProcessing", "RobertaProcessing"):
        return [step]
    cls, sep = step["cls"][0], step["sep"][0]
    tokens = dict([step["cls"], step["sep"]])
    if step["type"] == "BertProcessing":
        return [_template([cls, "$A", sep], [cls, "$A", sep, "$B:1", f"{sep}:1"], tokens)]
    trimming = {key: step[key] for key in ("add_prefix_space", "trim_offsets")}
    return [
        {"type": "ByteLevel", **trimming, "use_regex": True},
        _template([cls, "$A", sep], [cls, "$A", sep, sep, "$B", sep], tokens),
    ]


def _template(single: str | list[str], pair: str | list[str], tokens: dict[str, int]) -> dict[str, Any]:
    processor: Any = TemplateProcessing(single=single, pair=pair, special_tokens=list(tokens.items()))
    return json.loads(processor.__getstate__())  # type: ignore[no-any-return]


def _put_into_chats(tokenizer: Any, text: str) -> None:
    """Puts the tokens in front of chat templates, whose output is encoded without special tokens."""
    templates = tokenizer.chat_template
    if isinstance(templates, str):
        tokenizer.chat_template = text + templates
    elif isinstance(templates, dict):
        tokenizer.chat_template = {name: text + template for name, template in templates.items()}


def _check(extended: Any, original: Any, ids: Sequence[int], keep: int) -> None:
    """Makes sure that texts are encoded as they were but for the new tokens."""
    for texts in (("a b",), ("a b", "c")):
        before, after = original(*texts), extended(*texts)
        for key in before:
            added = {"input_ids": list(ids), "attention_mask": [1] * len(ids)}.get(key, [0] * len(ids))
            if after[key] != [*before[key][:keep], *added, *before[key][keep:]]:
                raise SoftPromptError(f"{type(original).__name__} cannot be made to put the prompt's tokens into texts")


def save_tokenizer(tokenizer: Any, folder: Path, texts: Sequence[Any]) -> None:
    """Writes a tokenizer so that `AutoTokenizer` loads the same one.

    Some classes make a post-processor of their own when they are loaded. These are saved as plain fast tokenizers.

    Raises:
        SoftPromptError: what is loaded is another one.
    """
    tokenizer.save_pretrained(folder)
    if _loads_equal(tokenizer, folder, texts):
        return
    named = {key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    carried = {key: getattr(tokenizer, key) for key in _CARRIED}
    plain = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **named, **carried)
    for file in folder.glob("*token*"):
        file.unlink()
    plain.save_pretrained(folder)
    if not _loads_equal(tokenizer, folder, texts):
        raise SoftPromptError(f"a {type(tokenizer).__name__} that puts the prompt's tokens into texts cannot be saved")


def _loads_equal(tokenizer: Any, folder: Path, texts: Sequence[Any]) -> bool:
    loaded = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    pairs = [text if isinstance(text, tuple) else (text,) for text in texts]
    same = all(dict(loaded(*pair)) == dict(tokenizer(*pair)) for pair in pairs)
    return same and bool(loaded.model_max_length == tokenizer.model_max_length)
