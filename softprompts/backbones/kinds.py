"""What a frozen model is, found by running three tokens through it: how it attends, where its input goes in.

No table of architectures decides: a model is an *encoder-decoder* where it generates from an encoder's output, a
*decoder* where it generates and caches without one, or where a token's states do not change with the tokens behind it,
else an *encoder*. Tables of transformers answer where nothing can be run (a config, a model on the meta device).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

from softprompts.backbones import sharded
from softprompts.errors import first_line

KINDS = ("encoder", "decoder", "encoder-decoder")
# By type, how far two computations of the same numbers may differ, as a part of the largest of them.
# Many models compute parts in float32 whatever their weights are.
_TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-4}
CACHES = ("past_key_values", "cache_params", "state")  # transformers' names of a cache, in inputs and outputs
_COARSE = 0.1  # of types with fewer digits, and of quantised weights


@dataclass(frozen=True)
class Kind:
    """What a model is.

    Attributes:
        name: one of `KINDS`.
        entry: the module whose input prompts join: the encoder, the base model of an encoder, or the stack of a decoder
            that is given ids or embeddings and holds the layers (of a vision-language model, its language model).
        decoder: the decoder of an encoder-decoder, else None.
        scale: what ``entry`` multiplies the embeddings of ids with, and embeddings that it is given not; mostly 1.
        no_tokens_reason: why no embeddings can take the place of ids; "" where they can.
    """

    name: str
    entry: nn.Module
    decoder: nn.Module | None = None
    scale: float = 1.0
    no_tokens_reason: str = ""


def kind_of(config: Any) -> str:
    """Returns one of `KINDS` by the config and transformers' tables of model types, without any model."""
    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
    tables = modeling_auto
    causal = {*tables.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *tables.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
    causal |= {*tables.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES}
    causal_only = config.model_type in causal and config.model_type not in tables.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return "decoder" if causal_only or getattr(config, "is_decoder", False) else "encoder"


def look(model: PreTrainedModel) -> Kind:
    """Runs three tokens through a model, twice, and tells what it is; the model stays as it is."""
    base, embeddings = model.base_model, model.get_input_embeddings()
    if getattr(model.config, "is_encoder_decoder", False) and hasattr(model, "get_decoder"):
        encoder, decoder = _halves(model)
        if encoder is not None and decoder is not None:
            if model.main_input_name != "input_ids":
                return Kind("encoder-decoder", encoder, decoder)
            with trial(model):
                calls, _ = _calls(encoder, _ids(model))
                return Kind(
                    "encoder-decoder", encoder, decoder, *_taking(model, encoder, table_of(model, encoder), calls)
                )
    if model.main_input_name != "input_ids":
        return Kind(_by_table(model), base)
    with trial(model):
        calls, caches = _calls(base, _ids(model))
        name = "decoder" if caches and model.can_generate() else _by_attention(model, calls)
        entry = _innermost(calls, base, embeddings) if name == "decoder" else base
        return Kind(name, entry, None, *_taking(model, entry, embeddings, calls))


def _halves(model: PreTrainedModel) -> tuple[nn.Module | None, nn.Module | None]:
    """Returns encoder and decoder; None for what is not to be had apart. Some name the model of both the decoder."""
    encoder, decoder = model.get_encoder(), model.get_decoder()
    while decoder is not None and encoder in set(decoder.modules()):
        inner = decoder.get_decoder() if hasattr(decoder, "get_decoder") else decoder
        decoder = None if inner is decoder else inner
    return encoder, decoder


@dataclass
class _Call:
    """A call of a model within a model: what it was given, by the names of its arguments, and the states it made."""

    module: nn.Module
    given: Mapping[str, Any]
    states: Tensor


def _by_table(model: PreTrainedModel) -> str:
    name = kind_of(model.config)
    return "encoder" if name == "encoder-decoder" else name


def plain_ids(model: PreTrainedModel, count: int) -> list[int]:
    """Returns token ids that the config gives no meaning of their own; fewer where the vocabulary is small."""
    special: set[int] = set()
    for config in (model.config, model.config.get_text_config()):
        for name, value in vars(config).items():
            if name.endswith(("_token_id", "_token_ids", "_token_index", "_idx", "_index")):
                special |= {
                    each for each in (value if isinstance(value, list | tuple) else [value]) if each is not None
                }
    table: Any = model.get_input_embeddings().weight
    return [token for token in range(sharded.shape_of(table)[0]) if token > 0 and token not in special][:count]


def _ids(model: PreTrainedModel) -> Tensor:
    """Two rows of three tokens that differ in the last one."""
    table: Any = model.get_input_embeddings().weight
    known = plain_ids(model, 4)
    if len(known) < 4:  # of a tiny vocabulary, any do
        known = [token % sharded.shape_of(table)[0] for token in range(4)]
    return torch.tensor([known[:3], [*known[:2], known[-1]]], device=table.device)


def _calls(whole: nn.Module, ids: Tensor) -> tuple[list[_Call], bool]:
    """Returns the models that these ids, or states for them, run through, from outside inwards; [] if none could run.

    Each is within the one before. And whether a cache comes out.
    """
    chain: list[nn.Module] = []
    given: dict[nn.Module, Mapping[str, Any]] = {}
    made: dict[nn.Module, Tensor] = {}

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        values = [*args, *kwargs.values()]
        whole_rows = any(isinstance(value, Tensor) and value.shape[:2] == ids.shape for value in values)
        if whole_rows and module not in given and (not chain or module in set(chain[-1].modules())):
            chain.append(module)
            given[module] = dict(kwargs)

    def after(module: nn.Module, args: Any, output: Any) -> None:
        states = states_of(output)
        if module in given and states is not None and states.shape[:2] == ids.shape:
            made.setdefault(module, states)

    inner = [module for module in whole.modules() if isinstance(module, PreTrainedModel)]
    handles: list[Any] = [module.register_forward_pre_hook(before, with_kwargs=True) for module in inner]
    handles += [module.register_forward_hook(after) for module in inner]
    caching = {"use_cache": True} if "use_cache" in inspect.signature(whole.forward).parameters else {}
    try:
        output = whole(input_ids=ids, attention_mask=torch.ones_like(ids), **caching)
    except Exception:
        return [], False
    finally:
        for handle in handles:
            handle.remove()
    calls = [_Call(module, given[module], made[module]) for module in chain if module in made]
    return calls, cache_in(output) is not None


def cache_in(output: Any) -> tuple[str, Any] | None:
    """Returns the cache in an output of a model and its name there; None without one."""
    names = [name for name in CACHES if isinstance(output, dict) and output.get(name) is not None]
    return (names[0], output[names[0]]) if names else None


def _innermost(calls: list[_Call], base: nn.Module, embeddings: nn.Module) -> nn.Module:
    """Returns the last model called that takes embeddings and a mask, and has the table of embeddings in it.

    Not one for which the model around it makes masks or plain positions, of the columns that it knows.
    """
    entry = base
    for call in calls:
        parameters = inspect.signature(call.module.forward).parameters
        takes = "inputs_embeds" in parameters and "attention_mask" in parameters
        mask, positions = call.given.get("attention_mask"), call.given.get("position_ids")
        plain_mask = isinstance(mask, Tensor) and mask.ndim == 2
        plain_positions = isinstance(positions, Tensor) and positions.ndim < 3
        if call.module is not base and (not plain_mask or plain_positions):
            break
        if takes and embeddings in set(call.module.modules()):
            entry = call.module
    return entry


def _by_attention(model: PreTrainedModel, calls: list[_Call]) -> str:
    """Returns "decoder" where the states of a first token are the same whatever the last one is, else "encoder"."""
    states = calls[-1].states if calls else None
    tables = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if states is None or states.is_meta or not torch.isfinite(states).all() or not states.any():
        return _by_table(model)
    if model.config.model_type in tables[1] and model.config.model_type not in tables[0]:
        return "encoder"  # some look at blocks of tokens, and three are less than one
    difference, size = (float(part.abs().max()) for part in (states[0, :2].double() - states[1, :2], states))
    if 0 < difference <= 8 * torch.finfo(states.dtype).eps * size:
        return _by_table(model)
    return "encoder" if difference else "decoder"


def table_of(model: PreTrainedModel, encoder: nn.Module | None) -> nn.Module:
    """Returns the module that embeds ids: an encoder's own, which need not be tied to the model's."""
    own = encoder.get_input_embeddings() if isinstance(encoder, PreTrainedModel) else None
    shared = model.get_input_embeddings()
    return own if isinstance(own, nn.Embedding) and own.weight is not shared.weight else shared


def _taking(model: PreTrainedModel, entry: nn.Module, embeddings: nn.Module, calls: list[_Call]) -> tuple[float, str]:
    """Returns by what an entry scales the embeddings of ids, and why embeddings cannot take the place of ids."""
    if "inputs_embeds" not in inspect.signature(entry.forward).parameters:
        return 1.0, f"{type(entry).__name__} takes token ids and no embeddings in their place"
    call = next((call for call in calls if call.module is entry), None)
    if call is None or call.states.is_meta:  # the check of a prompt that joins tells
        return 1.0, ""
    embedded = embeddings(_ids(model))
    for scale in (1.0, *_scales(model, entry)):
        scaled = embedded if scale == 1.0 else embedded * scale
        if call.given.get("inputs_embeds") is not None:  # the model around it looks ids up
            same, expected = scaled, call.given["inputs_embeds"]
        else:
            try:
                same, expected = states_of(entry(inputs_embeds=scaled)), call.states
            except Exception as error:
                return 1.0, f"it fails when it is given embeddings in place of token ids ({first_line(error)})"
        if same is not None and same.shape == expected.shape and differs(expected, same, model) is None:
            return scale, ""
    return 1.0, "it uses token ids beyond their embeddings"


def _scales(model: nn.Module, entry: nn.Module) -> list[float]:
    """Numbers that a model may multiply the embeddings of ids with."""
    found = [
        float(value)
        for module in (entry, *entry.children(), model)
        for name, value in vars(module).items()
        if "scale" in name and isinstance(value, int | float) and not isinstance(value, bool)
    ]
    return [value for value in dict.fromkeys(found) if value not in (0.0, 1.0)]


def states_of(output: Any) -> Tensor | None:
    """Returns the last hidden states ``(M, n, d)``, or the logits, of an output of a model; None without any."""
    if isinstance(output, tuple):
        output = output[0] if output else None
    for name in ("last_hidden_state", "logits"):
        states = output.get(name) if isinstance(output, dict) else None
        if isinstance(states, Tensor) and states.ndim == 3:
            return states
    return output if isinstance(output, Tensor) and output.ndim == 3 else None


def differs(expected: Tensor, given: Tensor, model: PreTrainedModel) -> float | None:
    """Returns by how much states ``(..., d)`` differ, as a part of the largest; None where it is no more than rounding.

    Where numbers are coarse, the token in the middle counts: experts may change where two are about equal.
    """
    tolerance = _COARSE if getattr(model, "is_quantized", False) else _TOLERANCES.get(model.dtype, _COARSE)
    expected, given = expected.double().flatten(0, -2), given.double().flatten(0, -2)
    undefined = expected.isnan() & given.isnan()
    expected, given = expected.masked_fill(undefined, 0), given.masked_fill(undefined, 0)
    by_token = (expected - given).abs().amax(-1) / expected.abs().max().clamp(min=1e-30)
    difference = float(by_token.median() if tolerance == _COARSE else by_token.max())
    return None if difference <= tolerance else difference


@contextlib.contextmanager
def trial(model: nn.Module) -> Iterator[None]:
    """Runs in evaluation mode without gradients; modules, attributes, hooks and random state stay as they were."""
    before = [(module, dict(module.__dict__), dict(module._buffers), _hooks(module)) for module in model.modules()]
    devices = {tensor.device for tensor in model.parameters() if tensor.is_cuda}
    model.eval()
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad(), sharded.running(model):
            yield
    finally:
        for module, attributes, buffers, hooks in before:
            for name in module.__dict__.keys() - attributes.keys():
                del module.__dict__[name]
            module.__dict__.update(attributes)
            module._buffers.update(buffers)
            for registered, known in hooks:  # transformers' first pass that gives out attention maps leaves some
                for key in registered.keys() - known:
                    del registered[key]


def _hooks(module: nn.Module) -> list[tuple[dict[int, Any], set[int]]]:
    """The tables of a module's hooks, and the keys that are in them."""
    tables = [value for name, value in module.__dict__.items() if "_hooks" in name and isinstance(value, dict)]
    return [(table, set(table)) for table in tables]
