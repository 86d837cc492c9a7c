"""Builds a prompt into its model: a directory that plain transformers loads, without this library, with equal outputs.

- Input tokens become new tokens of the vocabulary, whose embeddings are the prompt; the tokenizer puts them where an
  attached model does (`softprompts.model.interop.prompt_tokens`).
- Changes of weights (`Method.merged`) are computed into the weights.
- The prompt's head becomes the model's own.

Before anything is written, both models run on the same text: embeddings and outputs must be equal but for rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from softprompts.backbones import packaged
from softprompts.backbones.backbone import quiet
from softprompts.backbones.kinds import trial
from softprompts.backbones.loading import tokenizer_of
from softprompts.errors import SoftPromptError
from softprompts.injection.prompt import require
from softprompts.injection.state import state_of
from softprompts.injection.wiring import detach
from softprompts.model.card import materialized_card
from softprompts.model.interop.embeddings import embedding_scale, input_tokens, inputs_with_prompt, kept_in_front
from softprompts.model.interop.prompt_tokens import PromptTokens, save_tokenizer, with_prompt_tokens
from softprompts.model.saving import serialize
from softprompts.soft_prompt import Part
from softprompts.storage.files import new_folder, require_new_folder, write_text_atomic
from softprompts.storage.hub import quiet_hub

_TEXT = "This is a short text, to try it out."
_NEVER = -1e4  # the bias of a token that is never generated; float16 can hold it
_REFUSED = {
    "per_row": "it depends on the input, which no weights of a plain model do",
    "keys": "its prefix goes to keys and values of every attention, and plain models have no place for it",
    "update": "it changes the text's embeddings by their place in the text, which no weights of a plain model do",
}


def materialize(model: Any, name: str, path: str | Path, tokenizer: Any = None) -> Path:
    """Writes a model with a prompt in it; see `PromptModel.materialize`."""
    folder = require_new_folder(path)
    tokens = check_materializable(model, name)
    if getattr(model, "is_quantized", False):
        raise SoftPromptError(
            f"{type(model).__name__} is quantised: load it in full precision, load the prompt on that, and materialize"
        )
    tokenizer = _tokenizer_of(model, tokenizer, needed=tokens is not None)
    added = None
    if tokens is not None:
        backbone = state_of(model).backbone
        added = with_prompt_tokens(tokenizer, len(tokens), kept_in_front(model, name), backbone.max_tokens)
    with trial(model):
        plain = _plain(model, name, tokens, added)
        _compare(model, name, plain, tokenizer, added)
    with new_folder(folder) as temporary, quiet():
        plain.save_pretrained(temporary)
        if added is not None:
            save_tokenizer(added.tokenizer, temporary, [_TEXT, (_TEXT, _TEXT)])
        elif tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        write_text_atomic(temporary / "README.md", materialized_card(serialize(model, name)[0]))
    return folder


def check_materializable(model: Any, name: str) -> Tensor | None:
    """Returns the prompt's input tokens, if it has some; raises a `SoftPromptError` where no plain model has it."""
    method = require(model.prompts, name).method
    reason = method.cannot_merge()
    if reason is not None:
        raise SoftPromptError(f"{method.config.method}: {reason}")
    return input_tokens(method, _REFUSED)


def _tokenizer_of(model: Any, tokenizer: Any, needed: bool) -> Any:
    """Returns the given tokenizer, else that of the backbone, by its name; None if there is none."""
    if tokenizer is not None:
        return tokenizer
    name = state_of(model).backbone.identity["name"]
    try:
        if not name:
            raise OSError("the backbone has no name")
        path = packaged.resolve_model(name)
        with quiet(), quiet_hub(path) as offline:
            return tokenizer_of(path, offline)
    except Exception as error:  # a damaged or foreign folder fails anywhere
        if needed:
            raise SoftPromptError(
                "materialize needs the tokenizer, which is to put the prompt's tokens into texts: pass tokenizer=..."
            ) from error
        return None


@torch.no_grad()
def _plain(model: Any, name: str, tokens: Tensor | None, added: PromptTokens | None) -> Any:
    """Returns a copy of the model as it was before it was attached, with the prompt in its weights."""
    method, labels = model.prompts[name].method, model.prompts[name].labels
    backbone = state_of(model).backbone
    # The scale of the model's own table, before any prompt stands in for it.
    scale = embedding_scale(backbone) if tokens is not None else None
    values = method.merged(backbone.described_parts(method.config.method)) if method.changes else {}
    plain = copy.deepcopy(model)
    head = plain.prompts[name].head
    _merge(method.config.method, state_of(plain).backbone.parts, values)
    detach(plain)
    plain.requires_grad_(True)
    if head is not None:
        for module_name, module in head.items():
            like = next(getattr(plain, module_name).parameters())
            setattr(plain, module_name, module.to(device=like.device, dtype=like.dtype))
        plain.config.id2label = dict(enumerate(labels))
        plain.config.label2id = {label: index for index, label in enumerate(labels)}
        if hasattr(plain, "num_labels"):
            plain.num_labels = len(labels)
    if tokens is not None and added is not None:
        if scale is None:
            raise SoftPromptError(
                f"{type(model).__name__} does not look its embeddings up in a table alone: no new row would be this "
                "prompt"
            )
        _give_tokens(plain, tokens / scale, added.ids, backbone.kind == "decoder")
    return plain.eval()


def _merge(method: str, parts: Sequence[tuple[Part, nn.Module]], values: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Puts new values into the parameters of modules; tied parameters must get the same values."""
    merged: dict[nn.Parameter, tuple[str, Tensor]] = {}
    for part, module in parts:
        for key, parameter in module._parameters.items():
            if parameter is None:
                continue
            value = values.get(part.path, {}).get(key, parameter)
            path, first = merged.setdefault(parameter, (part.path, value))
            if first is not value and not torch.equal(first, value):
                raise SoftPromptError(
                    f"{method}: '{path}' and '{part.path}' share their {key}, and the prompt changes one of them only"
                )
    for parameter, (_, value) in merged.items():
        if value is not parameter:
            parameter.copy_(value)


def _give_tokens(plain: Any, rows: Tensor, ids: Sequence[int], causal: bool) -> None:
    """Makes the rows ``(l, d)`` the embeddings of new tokens, which are never generated."""
    if max(ids) >= len(plain.get_input_embeddings().weight):
        with torch.random.fork_rng(devices=[]):
            plain.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    table, output = plain.get_input_embeddings().weight, plain.get_output_embeddings()
    if output is not None:
        if output.weight is not table:
            output.weight[list(ids)] = 0
        if getattr(output, "bias", None) is not None:
            output.bias[list(ids)] = _NEVER
    table[list(ids)] = rows.to(table)
    if plain.can_generate():
        settings = plain.generation_config
        settings.suppress_tokens = sorted({*(settings.suppress_tokens or ()), *ids})
        for limit in ("max_length", "min_length") if causal else ():  # they count what is in front too
            if getattr(settings, limit, None):
                setattr(settings, limit, getattr(settings, limit) + len(ids))


@torch.no_grad()
def _compare(model: Any, name: str, plain: Any, tokenizer: Any, added: PromptTokens | None) -> None:
    """Makes sure that both models compute the same of a text."""
    backbone = state_of(model).backbone
    if not backbone.text_input:
        return
    before = list(range(1, 6)) if tokenizer is None else tokenizer(_TEXT)["input_ids"]
    after = before if added is None else added.tokenizer(_TEXT)["input_ids"]
    ids, new = (torch.tensor([one], device=backbone.device) for one in (before, after))
    _, inputs = inputs_with_prompt(model, name, ids)
    table, like = plain.get_input_embeddings(), cast(Tensor, backbone.embeddings.weight)
    if inputs.get("inputs_embeds") is not None:
        wanted, got = inputs["inputs_embeds"], table(new)
        if got.shape != wanted.shape or _difference(got, wanted) > 8 * torch.finfo(like.dtype).eps:
            raise SoftPromptError(
                f"{name}: a plain {type(model).__name__} with its tokenizer would not see the same embeddings; this "
                "prompt cannot be materialized"
            )
    more: dict[str, Any] = {} if backbone.kind != "encoder-decoder" else {"decoder_input_ids": ids[:, :3]}
    ours = _outputs(model, ids, prompt_names=name, **more)
    theirs = _outputs(plain, new, **more)
    for key, wanted in ours.items():
        got = _without(theirs[key], wanted, added)
        off = _difference(got, wanted) if got.shape == wanted.shape else float("inf")
        if off > torch.finfo(like.dtype).eps ** 0.5:
            raise SoftPromptError(
                f"{model.prompts[name].config.method}: a plain {type(model).__name__} would give other outputs; where "
                "a head reads a text's first token, that would be one of the prompt's"
            )


def _outputs(model: Any, ids: Tensor, **more: Any) -> dict[str, Tensor]:
    """Returns a model's logits or states for one text."""
    try:
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), return_dict=True, **more)
    except (RuntimeError, ValueError):  # a model that chooses among several texts
        ids = ids[:, None]
        output = model(input_ids=ids, attention_mask=torch.ones_like(ids), return_dict=True, **more)
    return {key: value for key, value in output.items() if key == "last_hidden_state" or key.endswith("logits")}


def _without(theirs: Tensor, ours: Tensor, added: PromptTokens | None) -> Tensor:
    """Removes the positions of the prompt's tokens from a plain model's output; logits of these tokens become ours."""
    if added is None or theirs.ndim < 2:
        return theirs
    start, length = added.keep, len(added.ids)
    if theirs.shape[1] == ours.shape[1] + length:
        theirs = torch.cat([theirs[:, :start], theirs[:, start + length :]], 1)
    if theirs.ndim == 3 and theirs.shape[2] >= max(ours.shape[2], max(added.ids) + 1):  # of the vocabulary
        theirs = theirs[..., : ours.shape[2]].clone()
        known = [index for index in added.ids if index < ours.shape[2]]
        theirs[..., known] = ours[..., known].to(theirs)
    return theirs


def _difference(one: Tensor, other: Tensor) -> float:
    """Returns the largest difference as a share of the largest value."""
    return float((one.double() - other.double()).abs().max() / other.double().abs().max().clamp(min=1e-30))
