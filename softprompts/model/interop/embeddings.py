"""Prompts as embeddings, for servers that take these in place of token ids (vLLM's ``prompt_embeds``).

A prompt of input tokens is a few rows in front of the embeddings of a text; whoever can feed embeddings to the model
needs nothing else. Prefixes are keys and values inside of every attention, and have no such form.
"""

from __future__ import annotations

import base64
import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save as dump_tensors
from torch import Tensor

from softprompts.errors import SoftPromptError
from softprompts.injection.batch_pass import Pass
from softprompts.injection.prompt import require
from softprompts.injection.state import state_of
from softprompts.soft_prompt import SoftPrompt
from softprompts.storage.files import require_new_folder, write_folder
from softprompts.version import __version__

TENSOR_FILE = "prompt_embeds.safetensors"
CONFIG_FILE = "prompt_embeds.json"
_SENT = (torch.float32, torch.float16, torch.bfloat16)  # what vLLM's server takes


@torch.no_grad()
def prompt_embeds(model: Any, name: str, input_ids: Sequence[int] | Tensor) -> Tensor:
    """The embeddings of one input with its prompt, as the model itself would see them.

    Methods that look at the input or change its embeddings work too: this is the prompt of this very input. A method
    that changes the embeddings of the first ``m`` tokens (DePT, EPT) goes on with those that a decoder-only model
    generates, which this cannot: generation is the same where the input has ``m`` tokens or more.

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
    training = prompt.method.training
    prompt.method.eval()
    try:
        pass_, inputs = entered(model, name, ids)
    finally:
        prompt.method.train(training)
    soft = pass_.soft[name]
    _only_input(prompt.config.method, soft)
    if soft.tokens is None and soft.update is None:
        raise _nothing(prompt.config.method)
    made = inputs.get("inputs_embeds")
    return cast(Tensor, (state_of(model).backbone.embeddings(ids) if made is None else made)[0])


def entered(model: Any, name: str, ids: Tensor) -> tuple[Pass, dict[str, Any]]:
    """The pass of some rows and what the base model or encoder would be called with.

    Args:
        model: an attached model.
        name: the prompt.
        ids: ``(M, n)``, without padding.
    """
    state = state_of(model)
    pass_ = state.open(name)
    assert pass_ is not None
    with state.activate(pass_):
        _, inputs = state.hooks.before_entry(
            state.backbone.entry, (), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        )
    return pass_, inputs


def _only_input(method: str, soft: SoftPrompt) -> None:
    if soft.keys is not None:
        raise SoftPromptError(
            f"{method}: its prefix goes to keys and values inside the model, which input embeddings cannot carry"
        )
    if soft.modules:
        raise SoftPromptError(
            f"{method}: it changes the model's weights, which input embeddings cannot carry; materialize may do it"
        )


def _nothing(method: str) -> SoftPromptError:
    return SoftPromptError(f"{method}: it has no input tokens, so there are no embeddings to export")


def plain_tokens(model: Any, name: str) -> Tensor:
    """The tokens ``(l, d)`` that a prompt is made of, whatever the input is; as the prompt holds them.

    Raises:
        SoftPromptError: unknown name, or it is not made of such tokens alone.
    """
    method = require(model.prompts, name).method
    if method.per_row:
        raise SoftPromptError(
            f"{method.config.method}: it depends on the input, so its tokens differ from text to text; "
            "prompt_embeds(model, name, input_ids) gives those of one"
        )
    training = method.training
    with torch.no_grad():
        soft = method.eval()(None)
    method.train(training)
    _only_input(method.config.method, soft)
    if soft.update is not None:
        raise SoftPromptError(
            f"{method.config.method}: it also changes the embeddings of the text, place by place; "
            "prompt_embeds(model, name, input_ids) gives those of one text"
        )
    if soft.tokens is None:
        raise _nothing(method.config.method)
    return cast(Tensor, soft.tokens[0].detach().clone())


def save_embeddings(model: Any, name: str, path: str | Path) -> None:
    """Writes a prompt's tokens as embeddings; see `PromptModel.save_embeddings`."""
    folder = require_new_folder(path)
    tokens, backbone, prompt = plain_tokens(model, name), state_of(model).backbone, require(model.prompts, name)
    like = backbone.embeddings.weight
    # As the model is going to see them: a prompt that is kept in single precision is rounded in every pass.
    tokens = tokens.to(cast(Tensor, like).dtype).cpu().contiguous()
    ids = torch.arange(min(2, backbone.vocabulary_size), device=backbone.device)[-1:][None]
    pass_, _ = entered(model, name, ids)
    keep = pass_.layout.keep_first if pass_.layout is not None and backbone.kind == "encoder" else 0
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
    """What the model multiplies the rows of its table with (Gemma: the root of ``d``); None where it is no number."""
    weight = cast(Tensor, backbone.embeddings.weight)
    ids = torch.arange(min(64, len(weight)), device=weight.device)
    seen, rows = backbone.embeddings(ids).double(), weight[ids].double()
    if seen.shape != rows.shape:
        return None
    scale = float((seen * rows).sum() / (rows * rows).sum().clamp(min=1e-300))
    close = torch.allclose(seen, scale * rows, rtol=4 * torch.finfo(weight.dtype).eps, atol=1e-12)
    return scale if close and scale != 0 else None


def encode_embeds(embeddings: Tensor) -> str:
    """Embeddings as text, as vLLM's HTTP interface takes them: base64 of what ``torch.save`` writes.

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
    """The reverse of `encode_embeds`. Reads tensors and nothing else: no code in it is run.

    Raises:
        SoftPromptError: it is no such text.
    """
    try:
        with torch.sparse.check_sparse_tensor_invariants(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice about other ways to write it
            found = torch.load(io.BytesIO(base64.b64decode(text, validate=True)), "cpu", weights_only=True)
    except Exception as error:  # whatever its bytes make of the reader
        raise SoftPromptError(f"no embeddings can be read from this text ({type(error).__name__})") from error
    if not isinstance(found, Tensor) or found.ndim != 2:
        raise SoftPromptError("no embeddings can be read from this text: it holds something else")
    return found
