"""A frozen model looked at: its kind, its embeddings, its attention modules, and where prompt tokens go in.

All of it is found out by tiny forward passes or in transformers' own tables; there is no list of architectures here.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface
from transformers.utils import logging as hf_logging

from softprompts.attention.prefix import require_known
from softprompts.backbones import packaged, quantized, sharded, task_head
from softprompts.backbones.kinds import look, table_of, trial
from softprompts.backbones.module_roles import Trace
from softprompts.backbones.module_roles import states_given as states_given
from softprompts.errors import SoftPromptError, first_line
from softprompts.soft_prompt import Part

_RECORDING = "softprompts|recording"
_POSITION_TABLES = ("position_embeddings", "embed_positions", "wpe")
_ROWS = 5  # in a trial pass: a number that no other axis has, so that axes of rows are told from others


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
    """What is known of a frozen model; making one leaves the model as it is.

    Attributes:
        model: the model.
        kind: "encoder" (BERT), "decoder" (Llama) or "encoder-decoder" (T5).
        entry: the module whose ``input_ids`` are replaced by embeddings (the encoder, or the base of a decoder).
        decoder: the decoder of an encoder-decoder, else None.
        embedding_scale: what ``entry`` multiplies the embeddings of ids with, and embeddings that it is given not.
        no_tokens_reason: why embeddings cannot take the place of ids; "" where they can.
        sites: attention sites in the order in which they run.
        keep_first: number of leading tokens that stay in front of prompt tokens (1 where a pooler reads [CLS]).
        max_tokens: hard limit on tokens from a learned position table, None without one.
        takes_positions: whether ``entry`` accepts ``position_ids``.
        first_position: the position id of a first token (RoBERTa counts from behind that of padding).
        reads_first: whether a classifier reads the base model's output at the first position, past any pooler.
        no_sites_reason: why there are none; "" where there are.
        unreached: names of attention classes in it that no prefix reaches.
        only_keys: the kernel of an attached model where it takes more keys only, and no change of the scores; "" else.
        text_input: whether the model takes token ids.
        parts: the modules that a prompt can change, each described, and the module itself.
        heads: the modules of the model's own task head, by name; empty without one.
        labels: number of the model's own labels, their names by id, and their ids by name.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        _require_table(model)
        self.text_input = model.main_input_name == "input_ids"
        found = look(model)
        self.kind, self.entry, self.decoder = found.name, found.entry, found.decoder
        self.embedding_scale, self.no_tokens_reason = found.scale, found.no_tokens_reason
        self.parameters = list(inspect.signature(self.entry.forward).parameters)
        self.takes_positions = "position_ids" in self.parameters
        self.keep_first = int(self.kind == "encoder" and getattr(self.entry, "pooler", None) is not None)
        self.max_tokens, self.first_position = position_table(self.entry)
        classifies = getattr(model, "loss_type", None) == "ForSequenceClassification"
        self.reads_first = self.kind == "encoder" and not self.keep_first and classifies
        self.sites, self.no_sites_reason, trace = _find_sites(self)
        self.unreached = _unreached(trace, {site.module for site in self.sites})
        self.only_keys = ""
        self.parts = _find_parts(self, trace)
        self.heads: dict[str, nn.Module] = {name: getattr(model, name) for name in task_head.find(model)}
        names, ids = cast("dict[int, str]", dict(model.config.id2label or {})), dict(model.config.label2id or {})
        self.labels = (model.config.num_labels, names, ids)

    @property
    def embeddings(self) -> nn.Module:
        """The input embedding module, which may be replaced (``set_input_embeddings``).

        Of an encoder-decoder whose halves have tables of their own, that of the encoder.
        """
        return table_of(self.model, self.entry if self.kind == "encoder-decoder" else None)

    @property
    def hidden_size(self) -> int:
        """Width of the input embeddings (ELECTRA's and ALBERT's are narrower than their layers)."""
        return int(sharded.shape_of(self._table)[1])

    @property
    def identity(self) -> dict[str, Any]:
        """The facts that tell whether a saved prompt belongs to this model."""
        config, quantization = self.model.config, quantized.name_of(self.model)
        return {
            "name": packaged.model_name(str(getattr(config, "_name_or_path", "") or "")),
            "revision": getattr(config, "_commit_hash", None),
            "model_type": config.model_type,
            "hidden_size": self.hidden_size,
            "vocabulary": self.vocabulary_size,
            # For information only: a prompt fits the quantised and the plain model.
            **({"quantization": quantization} if quantization is not None else {}),
        }

    @property
    def vocabulary_size(self) -> int:
        """Rows of the input embeddings."""
        return int(sharded.shape_of(self._table)[0])

    @property
    def num_tokens(self) -> int:
        """How many of these rows stand for tokens; the others only round their number up."""
        rows = self.vocabulary_size
        return min(rows, getattr(self.model.config.get_text_config(), "vocab_size", None) or rows)

    @property
    def special_ids(self) -> set[int]:
        """The special tokens that the config names; some name several of a kind."""
        config = self.model.config.get_text_config()
        named = [getattr(config, f"{kind}_token_id", None) for kind in ("pad", "bos", "eos", "cls", "sep", "mask")]
        lists = [value if isinstance(value, list | tuple) else [value] for value in named if value is not None]
        return {token for tokens in lists for token in tokens}

    def embed(self, ids: Tensor) -> Tensor:
        """Returns the embeddings of token ids, also of a model that is loaded in parts."""
        with sharded.running(self.embeddings):
            return cast(Tensor, self.embeddings(ids.to(self.device)))

    @property
    def device(self) -> torch.device:
        """Where the input embeddings are."""
        return self._table.device

    @property
    def _table(self) -> Tensor:
        return cast(Tensor, self.embeddings.weight)

    def width_of(self, sites: list[int]) -> int:
        """Returns the width of the states that these sites are called with; 0 if it differs or is not known."""
        widths = {self.sites[index].width for index in sites}
        return widths.pop() if len(widths) == 1 else 0

    def described_parts(self, method: str) -> tuple[Part, ...]:
        """Returns the descriptions of the modules that a prompt can change, with their tensors as they are now.

        Raises:
            SoftPromptError: none are known.
        """
        if not self.parts:
            raise SoftPromptError(
                f"{method} changes modules, and which {type(self.model).__name__} has cannot be told: a trial pass "
                "through it failed"
            )
        parts = []
        for part, module in self.parts:
            tensors = {name: tensor for name, tensor in module._parameters.items() if tensor is not None}
            parts.append(dataclasses.replace(part, tensors=tensors, packed=quantized.holds_packed(module)))
        return tuple(parts)

    def fixed_positions(self, sites: list[int]) -> str | None:
        """Returns why a prefix at these sites cannot have positions of its own; None if it can."""
        if self.kind != "encoder-decoder":
            return None if self.takes_positions else "takes no position_ids"
        chosen = [self.sites[index] for index in sites]
        biased = all(site.biased_by is not None for site in chosen if site.kind.endswith(".self"))
        return None if biased else "adds positions where a prefix cannot shift them"

    def chosen_sites(self, kinds: tuple[str, ...] | None, method: str) -> list[int]:
        """Returns the indices of the sites of the given kinds; of all sites for None.

        Raises:
            SoftPromptError: the model cannot take prefixes, or has no site of a named kind.
        """
        name = type(self.model).__name__
        if not self.sites:
            raise SoftPromptError(f"{method} needs a prefix, which {name} cannot take: {self.no_sites_reason}")
        known = sorted({site.kind for site in self.sites})
        for kind in kinds or ():
            if kind not in known:
                raise SoftPromptError(f"{method}: {name} has no '{kind}' attention; it has: {', '.join(known)}")
        chosen = [i for i, site in enumerate(self.sites) if kinds is None or site.kind in kinds]
        if len({self.sites[i].kv_heads * self.sites[i].head_dim for i in chosen}) > 1:
            raise SoftPromptError(
                f"{method}: the attention sites of {name} differ in width; choose sites= of one width or input prompts"
            )
        return chosen


def _require_table(model: PreTrainedModel) -> None:
    """Raises a `SoftPromptError` where a model has no table of input embeddings."""
    try:
        embeddings: Any = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        embeddings = None
    weight = getattr(embeddings, "weight", None)
    if not isinstance(embeddings, nn.Module) or not isinstance(weight, Tensor) or len(sharded.shape_of(weight)) != 2:
        raise SoftPromptError(
            f"{type(model).__name__} takes {model.main_input_name} and has no table of token embeddings, which soft "
            "prompts need"
        )


def position_table(entry: nn.Module) -> tuple[int | None, int]:
    """Returns how many tokens a learned position table has room for, None without one, and the id of a first token."""
    for path, module in entry.named_modules():
        name = path.rpartition(".")[2]
        if isinstance(module, nn.Embedding) and name in _POSITION_TABLES:
            behind_padding = 0 if module.padding_idx is None else module.padding_idx + 1
            limit = module.num_embeddings - getattr(module, "offset", behind_padding)
            return int(limit), behind_padding if name == "position_embeddings" else 0
    return None, 0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers from logging advice about things that are done on purpose."""
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)


def attention_of(model: PreTrainedModel) -> list[tuple[Any, str]]:
    """Returns every config in the model with its attention implementation.

    The encoder and decoder of T5 have copies of the model's config.
    """
    configs = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    distinct = {id(config): config for config in [*configs, *_older_configs(model)]}
    return [(config, config._attn_implementation) for config in distinct.values()]


def _older_configs(model: PreTrainedModel) -> list[Any]:
    """Returns the configs that layers go by where the model around them got another (``EncoderDecoderModel``)."""
    found: list[Any] = []
    owners: list[tuple[nn.Module, Any]] = [(model, model.config)]
    while owners:
        module, owner = owners.pop()
        config = module.__dict__.get("config")
        if isinstance(module, PreTrainedModel):
            owner = module.config
        elif isinstance(config, PreTrainedConfig) and config is not owner and type(config) is type(owner):
            found.append(config)
        owners += [(child, owner) for child in module.children()]
    return found


def own_configs(model: PreTrainedModel) -> None:
    """Gives a model copies of its configs, which others may hold too: the caller, or another model made from it."""
    held = [
        (module, name)
        for module in model.modules()
        for name, value in module.__dict__.items()
        if isinstance(value, PreTrainedConfig)
    ]
    copies: dict[int, Any] = {}  # by id, so that parts of a config that are shared go on being shared
    for module, name in held:
        module.__dict__[name] = copy.deepcopy(module.__dict__[name], copies)


def restore_attention(before: list[tuple[Any, str]]) -> None:
    """Restores the attention implementations that `attention_of` returned."""
    for config, name in before:
        config._attn_implementation = name


def set_attention(model: PreTrainedModel, name: str) -> bool:
    """Sets the attention implementation of a model and its parts; returns whether the model lets it be set."""
    with quiet():
        try:
            for module in model.modules():
                # Some versions of transformers leave out parts whose config is a copy.
                if not isinstance(module, PreTrainedModel) or module.config._attn_implementation == name:
                    continue
                if "flash" not in name:
                    module.set_attn_implementation(name)
                elif module._can_set_attn_implementation():  # which would look for a package of that name
                    module.config._attn_implementation = name
            for config in _older_configs(model):
                config._attn_implementation = name
        except (ValueError, AttributeError):
            return False
    return bool(model.config._attn_implementation == name)


@contextlib.contextmanager
def attention_through(
    model: PreTrainedModel, record: Callable[[nn.Module, Tensor, Tensor, Tensor], None]
) -> Iterator[bool]:
    """Replaces a model's attention by a function that records its queries, keys and values, and returns zeros.

    Yields:
        Whether the model lets its attention be replaced.
    """

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        require_known(kwargs)
        record(module, query, key, value)
        return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None

    before = attention_of(model)
    AttentionInterface.register(_RECORDING, attend)
    AttentionMaskInterface.register(_RECORDING, lambda *_, **__: None)
    try:
        yield set_attention(model, _RECORDING)
    finally:
        restore_attention(before)


def _find_sites(backbone: Backbone) -> tuple[list[Site], str, Trace]:
    """Returns the attention sites in the order in which they run; why there are none; and the trace of a trial pass."""
    trace = Trace(backbone.model)
    try:
        with attention_through(backbone.model, trace.attended) as recorded:
            if recorded:
                _run_trial(backbone, trace)
    except SoftPromptError as error:
        return [], str(error), trace
    except Exception as error:
        return [], f"a trial pass through it failed ({type(error).__name__}: {first_line(error)})", trace
    if not recorded:
        return [], "its attention does not go through transformers' attention interface; input prompts work", trace
    if not trace.attentions:
        return [], "none of its layers uses transformers' attention interface; input prompts work", trace
    if any(key.shape[-1] != value.shape[-1] for _, key, value in trace.attentions.values()):
        return [], "its keys and values differ in width; input prompts work", trace
    in_encoder = {*backbone.entry.modules()} if backbone.decoder is not None else set[nn.Module]()
    sites: list[Site] = []
    for module, (query, key, _) in trace.attentions.items():
        stack = "encoder" if backbone.kind == "encoder" or module in in_encoder else "decoder"
        crosses = stack == "decoder" and backbone.decoder is not None and key.shape[2] != query.shape[2]
        kind = f"{stack}.{'cross' if crosses else 'self'}"
        biased_by = _biased_by(module, [site.module for site in sites if site.kind == kind])
        sites.append(Site(module, kind, key.shape[1], key.shape[3], trace.widths.get(module, 0), biased_by))
    return sites, "", trace


def _unreached(trace: Trace, sites: set[nn.Module]) -> list[str]:
    """Returns the names of attention classes that ran in a trial pass and neither are, hold nor are held by a site."""
    within = {part for site in sites for part in site.modules()}
    ran = [module for module in trace.widths if "attention" in type(module).__name__.lower() and module not in within]
    left = {module for module in ran if sites and not sites & set(module.modules())}
    return sorted({type(module).__name__ for module in left if left & set(module.modules()) == {module}})


def _biased_by(module: nn.Module, earlier: list[nn.Module]) -> nn.Module | None:
    """Returns the module that makes the bias of relative positions of an attention: itself, or an earlier one (T5)."""
    for candidate in (module, *earlier):
        compute: Any = getattr(candidate, "compute_bias", None)
        biased = compute is not None and isinstance(getattr(candidate, "relative_attention_bias", None), nn.Module)
        if biased and "past_seen_tokens" in inspect.signature(compute).parameters:
            return candidate
    return None


def _find_parts(backbone: Backbone, trace: Trace) -> list[tuple[Part, nn.Module]]:
    """Describes the modules that ran in a trial pass; in a new pass if their attention could not be looked into."""
    if not backbone.sites:
        trace = Trace(backbone.model)
        try:
            _run_trial(backbone, trace)
        except Exception:
            return []
    entry = "decoder" if backbone.kind == "decoder" else "encoder"
    stacks = {"decoder": backbone.decoder, entry: backbone.entry}
    kinds = {site.module: site.kind for site in backbone.sites}
    return trace.parts(kinds, stacks, _ROWS if backbone.text_input else 1)


def _run_trial(backbone: Backbone, trace: Trace) -> None:
    """Runs a few rows of three tokens through the base model."""
    model, device = backbone.model, backbone.device

    def ids(count: int) -> Tensor:
        return torch.arange(1, count + 1, device=device).repeat(_ROWS if backbone.text_input else 1, 1)

    if backbone.text_input:
        inputs: dict[str, Any] = {"input_ids": ids(3)}
    else:
        size = getattr(model.config, "max_source_positions", 0) * 2  # the convolutions of speech encoders halve it
        mel = torch.zeros(1, getattr(model.config, "num_mel_bins", 0), size, device=device, dtype=model.dtype)
        inputs = {model.main_input_name: mel}
    if backbone.kind == "encoder-decoder":
        inputs["decoder_input_ids"] = ids(2)
    if "use_cache" in inspect.signature(model.base_model.forward).parameters:
        inputs["use_cache"] = False
    with trial(model), trace:
        model.base_model(**inputs)
