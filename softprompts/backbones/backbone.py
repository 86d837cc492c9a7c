"""The frozen model as we need it: its kind, its embeddings, its attention sites, and where prompt tokens go in.

All of it is asked of the model itself (by a tiny forward pass) or of transformers' own tables; there is no list of
architectures here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import logging as hf_logging

from softprompts.backbones import packaged, quantized, sharded
from softprompts.backbones.module_roles import Trace
from softprompts.errors import SoftPromptError
from softprompts.soft_prompt import Part

_PROBE = "softprompts|probe"
_ROWS = 5  # of the trial: as many as it has of nothing else


@dataclass(frozen=True)
class Site:
    """One attention module that a prefix can join.

    Attributes:
        module: the attention module.
        kind: "encoder.self", "decoder.self" or "decoder.cross".
        kv_heads: number of key/value heads.
        head_dim: width of one head.
        width: width of the states that the module is called with; 0 where that is not known.
        biased_by: the module whose ``compute_bias`` gives the bias of relative positions here; None without one.
    """

    module: nn.Module
    kind: str
    kv_heads: int
    head_dim: int
    width: int = 0
    biased_by: nn.Module | None = None


class Backbone:
    """What the injection needs to know of a model. Looks, and changes nothing.

    Attributes:
        model: the model.
        kind: "encoder", "decoder" or "encoder-decoder".
        entry: the module whose ``input_ids`` are replaced by embeddings (the encoder, or the base of a decoder).
        decoder: the decoder of an encoder-decoder, else None.
        embeddings: the input embedding module.
        sites: attention sites in the order in which they run.
        keep_first: number of leading tokens that stay in front of prompt tokens (1 where a pooler reads [CLS]).
        max_tokens: hard limit on tokens from a learned position table, None without one.
        takes_positions: whether ``entry`` accepts ``position_ids``.
        first_position: the position id of a first token (RoBERTa counts from behind that of padding).
        reads_first: whether a classifier reads the base model's output at the first position, past any pooler.
        parts: the modules that a prompt can change, described, each with the module.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.kind = _kind(model)
        if self.kind == "encoder-decoder":
            self.entry: nn.Module = model.get_encoder()
            self.decoder: nn.Module | None = model.get_decoder()
        else:
            self.entry, self.decoder = _entry_of(model, self.kind), None
        self.embeddings: nn.Module = model.get_input_embeddings()
        self.text_input = model.main_input_name == "input_ids"
        self.parameters = list(inspect.signature(self.entry.forward).parameters)
        self.takes_positions = "position_ids" in self.parameters
        self.keep_first = int(self.kind == "encoder" and getattr(self.entry, "pooler", None) is not None)
        self.max_tokens, self.first_position = position_limit(self.entry), first_position(self.entry)
        classifies = getattr(model, "loss_type", None) == "ForSequenceClassification"
        self.reads_first = self.kind == "encoder" and not self.keep_first and classifies
        self.parts: list[tuple[Part, nn.Module]] = []
        self.sites, self.no_sites_reason = _find_sites(self)
        if not self.parts:
            self.parts = _modules_that_run(self)

    @property
    def hidden_size(self) -> int:
        """Width of the input embeddings (ELECTRA's and ALBERT's are narrower than their layers)."""
        return int(sharded.shape_of(self._table)[1])

    @property
    def identity(self) -> dict[str, Any]:
        """What a saved prompt must know of the model itself to be put back on the right one."""
        config, quantization = self.model.config, quantized.name_of(self.model)
        return {
            "name": packaged.model_name(str(getattr(config, "_name_or_path", "") or "")),
            "revision": getattr(config, "_commit_hash", None),
            "model_type": config.model_type,
            "hidden_size": self.hidden_size,
            "vocabulary": self.vocabulary_size,
            # Told and not asked for: a prompt fits the quantised and the plain model.
            **({"quantization": quantization} if quantization is not None else {}),
        }

    @property
    def vocabulary_size(self) -> int:
        """Rows of the input embeddings."""
        return int(sharded.shape_of(self._table)[0])

    @property
    def device(self) -> torch.device:
        """Where the input embeddings are."""
        return self._table.device

    @property
    def _table(self) -> Tensor:
        return cast(Tensor, self.embeddings.weight)

    def width_of(self, sites: list[int]) -> int:
        """Width of the states that these sites are called with; 0 where they differ, or it is not known."""
        widths = {self.sites[index].width for index in sites}
        return widths.pop() if len(widths) == 1 else 0

    def described_parts(self, method: str) -> tuple[Part, ...]:
        """The modules that a prompt can change, with their tensors as they are now.

        Raises:
            SoftPromptError: none are known.
        """
        if not self.parts:
            raise SoftPromptError(
                f"{method} changes modules, and which {type(self.model).__name__} has cannot be told: a trial pass "
                "through it failed"
            )
        found = []
        for part, module in self.parts:
            tensors = {name: tensor for name, tensor in module._parameters.items() if tensor is not None}
            found.append(dataclasses.replace(part, tensors=tensors, packed=quantized.holds_packed(module)))
        return tuple(found)

    def fixed_positions(self, sites: list[int]) -> str | None:
        """Why a prefix at these sites cannot have positions of its own; None where it can."""
        if self.kind != "encoder-decoder":
            return None if self.takes_positions else "takes no position_ids"
        own = [self.sites[index] for index in sites if self.sites[index].kind.endswith(".self")]
        if all(site.biased_by is not None for site in own):
            return None
        return "adds positions where a prefix cannot shift them"

    def chosen_sites(self, kinds: tuple[str, ...] | None, method: str) -> list[int]:
        """Indices of the sites of the given kinds; all for None.

        Raises:
            SoftPromptError: the model cannot take prefixes, or has no site of a named kind.
        """
        name = type(self.model).__name__
        if not self.sites:
            raise SoftPromptError(f"{method} needs a prefix, which {name} cannot take: {self.no_sites_reason}")
        there = sorted({site.kind for site in self.sites})
        for kind in kinds or ():
            if kind not in there:
                raise SoftPromptError(f"{method}: {name} has no '{kind}' attention; it has: {', '.join(there)}")
        chosen = [i for i, site in enumerate(self.sites) if kinds is None or site.kind in kinds]
        if len({self.sites[i].kv_heads * self.sites[i].head_dim for i in chosen}) > 1:
            raise SoftPromptError(
                f"{method}: the attention sites of {name} differ in width; choose sites= of one width or input prompts"
            )
        return chosen


def kind_of(config: Any) -> str:
    """Which of "encoder", "decoder" and "encoder-decoder", by the config and transformers' tables of model types."""
    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
    causal_only = (
        config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        and config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )
    return "decoder" if causal_only or getattr(config, "is_decoder", False) else "encoder"


def _kind(model: PreTrainedModel) -> str:
    kind = kind_of(model.config)
    if kind == "encoder-decoder" and not hasattr(model, "get_decoder"):
        return "encoder"
    return kind


def _entry_of(model: PreTrainedModel, kind: str) -> nn.Module:
    """The base model, or the stack within it where the model calls that one itself, past the base model (OPT)."""
    base = model.base_model
    inner = model.get_decoder() if kind == "decoder" and base is not model else base
    if inner is base or inner is model or inner not in set(base.modules()):
        return base
    called: list[nn.Module] = []
    handles = [one.register_forward_pre_hook(lambda module, _: called.append(module)) for one in (base, inner)]
    try:
        with trial(model):
            model(input_ids=torch.ones(1, 1, dtype=torch.long, device=next(model.parameters()).device))
    except Exception:
        return base
    finally:
        for handle in handles:
            handle.remove()
    return inner if called == [inner] else base


def position_limit(entry: nn.Module) -> int | None:
    """The tokens that a learned position table has room for; None where there is no such table."""
    for name, module in entry.named_modules():
        leaf = name.rpartition(".")[2]
        if isinstance(module, nn.Embedding) and leaf in ("position_embeddings", "embed_positions", "wpe"):
            reserved = getattr(module, "offset", None)
            if reserved is None:
                reserved = 0 if module.padding_idx is None else module.padding_idx + 1
            return int(module.num_embeddings - reserved)
    return None


def first_position(entry: nn.Module) -> int:
    """The position id that a model gives a row's first token."""
    for name, module in entry.named_modules():
        if name.rpartition(".")[2] == "position_embeddings" and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers from logging advice about things we ask on purpose."""
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)


@contextlib.contextmanager
def trial(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, and every module's own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), sharded.running(model):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def attention_of(model: PreTrainedModel) -> list[tuple[Any, str]]:
    """Every config in the model with its attention implementation: the model's own, then those of its parts.

    The encoder and decoder of T5 have copies of the config.
    """
    configs = {id(m.config): m.config for m in model.modules() if isinstance(m, PreTrainedModel)}
    return [(config, config._attn_implementation) for config in configs.values()]


def restore_attention(before: list[tuple[Any, str]]) -> None:
    """Puts back what `attention_of` found."""
    for config, name in before:
        config._attn_implementation = name


def set_attention(model: PreTrainedModel, name: str) -> bool:
    """Sets the attention implementation of a model and its parts; False where the model does not let it be set."""
    with quiet():
        try:
            for module in model.modules():
                # Some versions of transformers leave out parts whose config is a copy.
                if isinstance(module, PreTrainedModel) and module.config._attn_implementation != name:
                    module.set_attn_implementation(name)
        except (ValueError, AttributeError):
            return False
    return bool(model.config._attn_implementation == name)


def _find_sites(backbone: Backbone) -> tuple[list[Site], str]:
    """Runs rows of three tokens through the model with an attention function that only writes down who calls it."""
    model = backbone.model
    original = attention_of(model)
    seen: dict[int, tuple[nn.Module, torch.Size, torch.Size, int]] = {}
    widths: dict[int, int] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = states_given(args, kwargs)
        widths[id(module)] = 0 if states is None else states.shape[-1]

    trace = Trace(model)

    def record(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **_: Any
    ) -> tuple[Tensor, None]:
        seen.setdefault(id(module), (module, key.shape, value.shape, query.shape[2]))
        trace.attended(module, query, key, value)
        return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None

    AttentionInterface.register(_PROBE, record)
    AttentionMaskInterface.register(_PROBE, lambda *_, **__: None)
    if not set_attention(model, _PROBE):
        restore_attention(original)
        return [], "its attention does not go through transformers' attention interface; input prompts work"
    handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in model.base_model.modules()]
    try:
        with trial(model), trace:
            model.base_model(**_probe_inputs(backbone))
    except Exception as error:
        return [], f"a trial pass through it failed ({type(error).__name__}: {str(error).splitlines()[0]})"
    finally:
        restore_attention(original)
        for handle in handles:
            handle.remove()
    if not seen:
        return [], "none of its layers uses transformers' attention interface; input prompts work"

    inside = {id(module) for module in backbone.entry.modules()}
    sites: list[Site] = []
    for module, key, value, queries in seen.values():
        if key[-1] != value[-1]:
            return [], "its keys and values differ in width; input prompts work"
        if backbone.kind == "encoder":
            kind = "encoder.self"
        elif backbone.kind == "decoder":
            kind = "decoder.self"
        elif id(module) in inside:
            kind = "encoder.self"
        else:
            kind = "decoder.self" if key[2] == queries else "decoder.cross"
        biased_by = _biased_by(module, [site.module for site in sites if site.kind == kind])
        sites.append(Site(module, kind, int(key[1]), int(key[3]), widths.get(id(module), 0), biased_by))
    backbone.parts = _described(backbone, trace, {site.module: site.kind for site in sites})
    return sites, ""


def _biased_by(module: nn.Module, before: list[nn.Module]) -> nn.Module | None:
    """Who makes the bias of relative positions that an attention module adds: itself, or one before it (T5)."""
    for candidate in (module, *before):
        compute = getattr(candidate, "compute_bias", None)
        if compute is None or not isinstance(getattr(candidate, "relative_attention_bias", None), nn.Module):
            continue
        if "past_seen_tokens" in inspect.signature(compute).parameters:
            return candidate
    return None


def _modules_that_run(backbone: Backbone) -> list[tuple[Part, nn.Module]]:
    """The modules of a model whose attention we cannot look into: nothing is known of what they are for."""
    trace = Trace(backbone.model)
    try:
        with trial(backbone.model), trace:
            backbone.model.base_model(**_probe_inputs(backbone))
    except Exception:
        return []
    return _described(backbone, trace, {})


def _described(backbone: Backbone, trace: Trace, kinds: dict[nn.Module, str]) -> list[tuple[Part, nn.Module]]:
    entry = "decoder" if backbone.kind == "decoder" else "encoder"
    stacks = {"decoder": backbone.decoder, entry: backbone.entry}
    return trace.parts(kinds, stacks, _ROWS if backbone.text_input else 1)


def states_given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The hidden states ``(M, n, d)`` that a module is called with, by name or first; None where there are none."""
    states = kwargs.get("hidden_states", args[0] if args else None)
    return states if isinstance(states, Tensor) and states.ndim == 3 else None


def _probe_inputs(backbone: Backbone) -> dict[str, Any]:
    model, device = backbone.model, backbone.device
    ids: Callable[[int], Tensor] = lambda n: torch.arange(1, n + 1, device=device).repeat(_ROWS, 1)  # noqa: E731
    if backbone.text_input:
        inputs: dict[str, Any] = {"input_ids": ids(3)}
    else:
        size = getattr(model.config, "max_source_positions", 0) * 2  # the convolutions of speech encoders halve it
        mel = torch.zeros(1, getattr(model.config, "num_mel_bins", 0), size, device=device, dtype=model.dtype)
        inputs = {model.main_input_name: mel}
    if backbone.kind == "encoder-decoder":
        inputs["decoder_input_ids"] = ids(2) if backbone.text_input else ids(2)[:1]
    if "use_cache" in inspect.signature(model.base_model.forward).parameters:
        inputs["use_cache"] = False
    return inputs
