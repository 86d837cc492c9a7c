"""Exports prompts as embeddings, for servers that take these in place of token ids (vLLM's ``prompt_embeds``).

A prompt of input tokens is a few rows in front of the embeddings of a text, which any code that can feed embeddings to
the model can use. Prefixes are keys and values inside of every attention, and have no such form.
"""

from __future__ import annotations

import base64
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save as dump_tensors
from torch import Tensor

from softprompts.backbones.kinds import trial
from softprompts.errors import SoftPromptError
from softprompts.injection.batch_pass import Pass
from softprompts.injection.prompt import require
from softprompts.injection.state import state_of
from softprompts.methods.contract import Method
from softprompts.soft_prompt import SoftPrompt
from softprompts.storage.files import require_new_folder, write_folder
from softprompts.version import __version__

TENSOR_FILE = "prompt_embeds.safetensors"
CONFIG_FILE = "prompt_embeds.json"
_SENT = (torch.float32, torch.float16, torch.bfloat16)  # the types that vLLM's server takes
# Why a prompt is not exported, by what it has beside tokens.
_OF_INPUT = {
    "keys": "its prefix goes to keys and values inside the model, which input embeddings cannot carry",
    "modules": "it changes the model's weights, which input embeddings cannot carry; materialize may do it",
}
_OF_NO_INPUT = {
    "per_row": "it depends on the input, so its tokens differ from text to text; prompt_embeds(model, name, input_ids) "
    "gives those of one",
    **_OF_INPUT,
    "update": "it also changes the embeddings of the text, place by place; prompt_embeds(model, name, input_ids) gives "
    "those of one text",
}
_NOTHING = "it has no input tokens, so there are no embeddings to export"


@torch.no_grad()
def prompt_embeds(model: Any, name: str, input_ids: Sequence[int] | Tensor) -> Tensor:
    """Returns the embeddings of one input with its prompt, as the model itself would see them.

    Methods that depend on the input or change its embeddings work too: this is the prompt of this very input. A method
    that changes the embeddings of the first ``m`` tokens (DePT, EPT) also changes those that a decoder-only model
    generates among them, which this cannot: generation is the same if the input has ``m`` tokens or more.

    Args:
        model: an attached model.
        name: the prompt.
        input_ids: ``(n,)`` or ``(1, n)``, the ids of one text, without padding.

    Returns:
        ``(l + n, d)``, in the type of the model's embeddings and with their scaling: for ``inputs_embeds``, and for
        vLLM's ``prompt_embeds``.

    Raises:
        SoftPromptError: unknown name; more than one row; or the prompt is not made of input embeddings alone.
    """
    prompt = require(model.prompts, name)
    ids = torch.as_tensor(input_ids, dtype=torch.long, device=state_of(model).backbone.device)
    ids = ids[None] if ids.ndim == 1 else ids
    if ids.ndim != 2 or len(ids) != 1 or not ids.shape[1]:
        raise SoftPromptError(f"prompt_embeds takes the ids of one text, not a tensor of shape {tuple(ids.shape)}")
    if not state_of(model).backbone.text_input:
        raise SoftPromptError(f"{type(model).__name__} takes no token ids, so there are no embeddings to export")
    with trial(prompt.method):
        pass_, inputs = inputs_with_prompt(model, name, ids)
    soft = pass_.soft[name]
    _refuse(prompt.config.method, soft, _OF_INPUT)
    if soft.tokens is None and soft.update is None:
        raise SoftPromptError(f"{prompt.config.method}: {_NOTHING}")
    embeddings = inputs.get("inputs_embeds")
    return cast(Tensor, (state_of(model).backbone.embeddings(ids) if embeddings is None else embeddings)[0])


def inputs_with_prompt(model: Any, name: str, ids: Tensor) -> tuple[Pass, dict[str, Any]]:
    """Returns the pass of rows ``(M, n)`` without padding, and the arguments that the entry would be called with."""
    state = state_of(model)
    pass_ = state.open(name)
    assert pass_ is not None
    with state.activate(pass_):
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        _, inputs = state.hooks.before_entry(state.backbone.entry, (), given)
    return pass_, inputs


def kept_in_front(model: Any, name: str) -> int:
    """Returns how many tokens of an input stay in front of a prompt's: 1 on an encoder that keeps [CLS] first."""
    backbone = state_of(model).backbone
    pass_, _ = inputs_with_prompt(model, name, torch.arange(1, 4, device=backbone.device)[None])
    return int(pass_.layout.keep_first) if pass_.layout is not None and backbone.kind == "encoder" else 0


def input_tokens(method: Method, refusals: Mapping[str, str]) -> Tensor | None:
    """Returns a copy of the tokens ``(l, d)`` of a prompt that is the same for all inputs; None without tokens.

    Args:
        method: the prompt's module.
        refusals: why it is refused, by "per_row" or a field of `SoftPrompt` that it must not have.

    Raises:
        SoftPromptError: it has one of these.
    """
    if method.per_row:
        raise SoftPromptError(f"{method.config.method}: {refusals['per_row']}")
    with trial(method):
        soft = method(None)
    _refuse(method.config.method, soft, refusals)
    return None if soft.tokens is None else cast(Tensor, soft.tokens[0].detach().clone())


def _refuse(method: str, soft: SoftPrompt, refusals: Mapping[str, str]) -> None:
    present = {"keys": soft.keys is not None, "modules": bool(soft.modules), "update": soft.update is not None}
    for field, reason in refusals.items():
        if present.get(field):
            raise SoftPromptError(f"{method}: {reason}")


def tokens_to_export(model: Any, name: str) -> Tensor:
    """Returns the tokens ``(l, d)`` of a prompt; raises a `SoftPromptError` where it is more, or something else."""
    method = require(model.prompts, name).method
    tokens = input_tokens(method, _OF_NO_INPUT)
    if tokens is None:
        raise SoftPromptError(f"{method.config.method}: {_NOTHING}")
    return tokens


def save_embeddings(model: Any, name: str, path: str | Path) -> None:
    """Writes a prompt's tokens as embeddings; see `PromptModel.save_embeddings`."""
    folder = require_new_folder(path)
    backbone, prompt, tokens = state_of(model).backbone, require(model.prompts, name), tokens_to_export(model, name)
    # As the model is going to see them: a prompt that is kept in single precision is rounded in every pass.
    tokens = tokens.to(cast(Tensor, backbone.embeddings.weight).dtype).cpu().contiguous()
    keep = kept_in_front(model, name)
    facts = {
        "softprompts_version": __version__,
        "backbone": {key: backbone.identity[key] for key in ("name", "revision", "model_type")},
        "method": prompt.config.method,
        "tensor": "prompt_embeds",
        "shape": list(tokens.shape),
        "dtype": str(tokens.dtype).removeprefix("torch."),
        "embedding_scale": embedding_scale(backbone),
        "scaled": True,
        "place": f"behind the first {keep} of the input's tokens" if keep else "in front of the input",
        "keep_first": keep,
        "of": "the encoder" if backbone.kind == "encoder-decoder" else "the model",
    }
    tensors = dump_tensors({"prompt_embeds": tokens})
    write_folder(folder, {TENSOR_FILE: tensors, CONFIG_FILE: (json.dumps(facts, indent=2) + "\n").encode()})


@torch.no_grad()
def embedding_scale(backbone: Any) -> float | None:
    """Returns the factor of the rows of the model's table (Gemma: the root of ``d``); None if it is no one number."""
    weight = cast(Tensor, backbone.embeddings.weight)
    ids = torch.arange(min(64, len(weight)), device=weight.device)
    embedded, rows = backbone.embeddings(ids).double(), weight[ids].double()
    if embedded.shape != rows.shape:
        return None
    scale = float((embedded * rows).sum() / (rows * rows).sum().clamp(min=1e-300))
    close = torch.allclose(embedded, scale * rows, rtol=4 * torch.finfo(weight.dtype).eps, atol=1e-12)
    return scale if close and scale != 0 else None


def encode_embeds(embeddings: Tensor) -> str:
    """Encodes embeddings as text for vLLM's HTTP interface: base64 of what ``torch.save`` writes.

    Args:
        embeddings: ``(k, d)`` in float32, float16 or bfloat16; vLLM wants the type that it runs the model in.

    Raises:
        SoftPromptError: another shape or type.
    """
    if embeddings.ndim != 2 or embeddings.dtype not in _SENT:
        kind = str(embeddings.dtype).removeprefix("torch.")
        raise SoftPromptError(
            f"embeddings to send must be (tokens, width) in float32, float16 or bfloat16, not {kind} of shape "
            f"{tuple(embeddings.shape)}"
        )
    file = io.BytesIO()
    torch.save(embeddings.detach().cpu().contiguous().clone(), file)
    return base64.b64encode(file.getvalue()).decode("ascii")


def decode_embeds(text: str) -> Tensor:
    """Decodes what `encode_embeds` returned. Reads tensors and nothing else: no code in it is run.

    Raises:
        SoftPromptError: it is no such text.
    """
    try:
        with torch.sparse.check_sparse_tensor_invariants(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice about other ways to write it
            value = torch.load(io.BytesIO(base64.b64decode(text, validate=True)), "cpu", weights_only=True)
    except Exception as error:  # arbitrary bytes fail anywhere in the reader
        raise SoftPromptError(f"no embeddings can be read from this text ({type(error).__name__})") from error
    if not isinstance(value, Tensor) or value.ndim != 2:
        raise SoftPromptError("no embeddings can be read from this text: it holds something else")
    return value
