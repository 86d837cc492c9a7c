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

from softprompts.errors import SoftPromptError

_UNLIMITED = 10**9  # tokenizers without a limit say a number far above
_PIECE = "soft-prompt"
_CARRIED = ("model_max_length", "padding_side", "truncation_side", "model_input_names", "chat_template")


@dataclass(frozen=True)
class PromptTokens:
    """A tokenizer with a prompt's tokens.

    Attributes:
        tokenizer: the tokenizer.
        ids: ids of the prompt's tokens, in their order.
        keep: how many tokens of an input stay in front of them.
    """

    tokenizer: Any
    ids: tuple[int, ...]
    keep: int


def with_prompt_tokens(tokenizer: Any, count: int, keep: int, limit: int | None) -> PromptTokens:
    """A copy of a tokenizer with new tokens that it puts into every text, or pair of texts.

    Args:
        tokenizer: a fast one.
        count: number of new tokens.
        keep: how many of an input's tokens stay in front of them: 0, or 1 where that is a special token.
        limit: most tokens that the model takes, the new ones included; None for any number.

    Raises:
        SoftPromptError: it is no fast tokenizer, or puts no special token in front where one is to stay there.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise SoftPromptError(
            f"materialize needs a fast tokenizer, which can put tokens into texts; {type(tokenizer).__name__} is none"
        )
    made = copy.deepcopy(tokenizer)
    vocabulary = made.get_vocab()
    first = 0  # a model that has a prompt in it already can get another
    while f"<|{_PIECE}-{first}|>" in vocabulary:
        first += 1
    names = [f"<|{_PIECE}-{index}|>" for index in range(first, first + count)]
    made.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    ids = tuple(made.convert_tokens_to_ids(names))
    if len({*ids} - {*vocabulary.values()}) != count:
        raise SoftPromptError("the tokenizer has no room for the prompt's tokens: it gives them ids that it uses")
    description = json.loads(made.backend_tokenizer.to_str())
    entry = {"id": _PIECE, "ids": list(ids), "tokens": names}
    description["post_processor"] = _placed(description.get("post_processor"), entry, first, keep)
    made.backend_tokenizer.post_processor = Tokenizer.from_str(json.dumps(description)).post_processor
    # Told of these, a tokenizer makes its post-processor anew when it is loaded.
    for key in ("add_bos_token", "add_eos_token"):
        made.init_kwargs.pop(key, None)
    if made.model_max_length < _UNLIMITED:
        longest = made.model_max_length + count
        made.model_max_length = longest if limit is None else min(longest, limit)
    _put_into_chats(made, "".join(names))
    _check(made, tokenizer, ids, keep)
    return PromptTokens(made, ids, keep)


def _placed(post: dict[str, Any] | None, entry: dict[str, Any], first: int, keep: int) -> dict[str, Any]:
    """A post-processor, as the tokenizers library writes it, with the prompt's tokens in its templates."""
    steps = [] if post is None else post["processors"] if post["type"] == "Sequence" else [post]
    made: list[dict[str, Any]] = []
    done = False
    for step in steps:
        template, beside = _as_template(step)
        made += beside
        if template is not None:
            made.append(_inserted(template, entry, first, keep))
            done = True
    if not done:
        made.append(_inserted(_template([_text("A")], [_text("A"), _text("B", 1)], {}), entry, first, keep))
    return made[0] if len(made) == 1 else {"type": "Sequence", "processors": made}


def _as_template(step: dict[str, Any]) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """A step as a template, where it adds tokens, and what else it does."""
    if step["type"] == "TemplateProcessing":
        return copy.deepcopy(step), []
    if step["type"] not in ("BertProcessing", "RobertaProcessing"):
        return None, [step]
    (cls, cls_id), (sep, sep_id) = step["cls"], step["sep"]
    tokens = {cls: {"id": cls, "ids": [cls_id], "tokens": [cls]}, sep: {"id": sep, "ids": [sep_id], "tokens": [sep]}}
    start, single = [_special(cls), _text("A")], [_special(cls), _text("A"), _special(sep)]
    if step["type"] == "BertProcessing":
        return _template(single, [*single, _text("B", 1), _special(sep, 1)], tokens), []
    pair = [*start, _special(sep), _special(sep), _text("B"), _special(sep)]
    trimming = {key: step[key] for key in ("add_prefix_space", "trim_offsets")}
    return _template(single, pair, tokens), [{"type": "ByteLevel", **trimming, "use_regex": True}]


def _template(single: list[Any], pair: list[Any], tokens: dict[str, Any]) -> dict[str, Any]:
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}


def _special(token: str, kind: int = 0) -> dict[str, Any]:
    return {"SpecialToken": {"id": token, "type_id": kind}}


def _text(which: str, kind: int = 0) -> dict[str, Any]:
    return {"Sequence": {"id": which, "type_id": kind}}


def _inserted(template: dict[str, Any], entry: dict[str, Any], first: int, keep: int) -> dict[str, Any]:
    name = f"{entry['id']}-{first}"
    for key in ("single", "pair"):
        pieces = template[key]
        if keep and not (keep == 1 and pieces and "SpecialToken" in pieces[0]):
            raise SoftPromptError(
                "the prompt goes behind the first token of a text, and this tokenizer puts no special token there"
            )
        template[key] = [*pieces[:keep], _special(name), *pieces[keep:]]
    template["special_tokens"] = {**template["special_tokens"], name: {**entry, "id": name}}
    return template


def _put_into_chats(tokenizer: Any, text: str) -> None:
    """Chats are written out as a text that already has all special tokens in it."""
    templates = tokenizer.chat_template
    if isinstance(templates, str):
        tokenizer.chat_template = text + templates
    elif isinstance(templates, dict):
        tokenizer.chat_template = {name: text + template for name, template in templates.items()}


def _check(made: Any, before: Any, ids: Sequence[int], keep: int) -> None:
    """Makes sure that texts are encoded as they were but for the new tokens."""
    for texts in (("a b",), ("a b", "c")):
        old, new = before(*texts), made(*texts)
        for key in old:
            extra = {"input_ids": list(ids), "attention_mask": [1] * len(ids)}.get(key, [0] * len(ids))
            if new[key] != [*old[key][:keep], *extra, *old[key][keep:]]:
                raise SoftPromptError(f"{type(before).__name__} cannot be made to put the prompt's tokens into texts")


def save_tokenizer(tokenizer: Any, folder: Path, texts: Sequence[Any]) -> None:
    """Writes a tokenizer so that `AutoTokenizer` brings back the same one.

    Some classes make their own post-processor when they are loaded. Such a one is saved as a plain fast tokenizer.

    Raises:
        SoftPromptError: what comes back is another one.
    """
    tokenizer.save_pretrained(folder)
    if _comes_back(tokenizer, folder, texts):
        return
    named = {key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    carried = {key: getattr(tokenizer, key) for key in _CARRIED}
    plain = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **named, **carried)
    for file in folder.glob("*token*"):
        file.unlink()
    plain.save_pretrained(folder)
    if not _comes_back(tokenizer, folder, texts):
        raise SoftPromptError(f"a {type(tokenizer).__name__} that puts the prompt's tokens into texts cannot be saved")


def _comes_back(tokenizer: Any, folder: Path, texts: Sequence[Any]) -> bool:
    back = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    same = back.model_max_length == tokenizer.model_max_length
    for text in texts:
        pair = text if isinstance(text, tuple) else (text,)
        same = same and dict(back(*pair)) == dict(tokenizer(*pair))
    return bool(same)
