"""`attach`: soft prompts in place on a frozen transformers model, every row of a batch with its own.

The model object stays what it was, a `PreTrainedModel` of its own class; it becomes an instance of a class made from
that class and `PromptModel`, as torch's ``fully_shard`` does it. Hooks on its input module put prompt tokens in and
cut their positions off again, so that logits cover real tokens only; attention runs through `softprompts.attention`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from softprompts import attention, heads
from softprompts.backbone import Backbone, set_attention
from softprompts.errors import SoftPromptError, nearest
from softprompts.methods.base import Component, MethodConfig, Shape, Vocabulary
from softprompts.passing import Layout, Pass, positions_of, repeat_rows

_STATE = "_softprompt_state"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class Prompt(nn.Module):
    """One named prompt: a method's module, and the task head that belongs to it.

    Attributes:
        config: the method's config.
        method: the method's module.
        head: the trained copy of the model's task head; None where the model has none.
        labels: label names of the head, may be empty.
        sites: indices of the backbone's attention sites that the prefix goes to.
    """

    def __init__(self, config: MethodConfig, method: nn.Module, head: nn.Module | None, sites: list[int]):
        super().__init__()
        self.config = config
        self.method = method
        self.head = head
        self.sites = sites
        self.labels: list[str] = []

    @property
    def num_labels(self) -> int | None:
        """Number of outputs of the head; None without one."""
        return None if self.head is None else heads.num_outputs(self.head)

    def components(self) -> dict[str, Component]:
        """The groups of trained parameters: the method's, and "head"."""
        groups: dict[str, Component] = dict(self.method.components())
        if self.head is not None:
            groups["head"] = Component(list(self.head.parameters()), learning_rate=1e-2)
        return groups


class PromptSet(nn.Module, Mapping[str, Prompt]):
    """The prompts of a model by name; any valid name works, also those of `torch.nn.Module`'s own attributes."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "training":  # a flag of every module, also where a prompt has that name
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def __getitem__(self, name: str) -> Prompt:
        return cast(Prompt, self._modules[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def __contains__(self, name: object) -> bool:
        return name in self._modules

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


class State:
    """What an attached model remembers: what it was before, and the pass that is under way."""

    def __init__(self, model: PreTrainedModel):
        self.backbone = Backbone(model)
        self.model_class = type(model)
        self.kernel = model.config._attn_implementation
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.training = {module: module.training for module in model.modules()}
        self.labels = (model.config.num_labels, dict(model.config.id2label or {}), dict(model.config.label2id or {}))
        self.ignored_on_save = model._keys_to_ignore_on_save
        self.hooks: list[Any] = []
        self.heads = heads.find(model)
        self.original_heads = {name: getattr(model, name) for name in self.heads}
        self.current: Pass | None = None
        self.generating: Pass | None = None
        self.last: Pass | None = None
        self.active: str | None = None
        self.backbone_dropout = False
        self.opened = False
        self.inside = False

    def __getstate__(self) -> dict[str, Any]:
        # A copy starts between two passes; the tensors of the last one belong to the original's graph.
        return self.__dict__ | {"current": None, "generating": None, "last": None, "opened": False, "inside": False}

    @contextlib.contextmanager
    def activate(self, pass_: Pass | None) -> Iterator[None]:
        """Makes ``pass_`` the one that hooks and attention sites see."""
        before = self.current, self.inside
        self.current, self.inside = pass_, True
        try:
            yield
        finally:
            self.current, self.inside = before

    # --- hooks and callbacks; bound methods, so that a deep copy of the model has its own ---------------------------

    def prefix_of(self, site: int, rows: int) -> attention.Prefix | None:
        """Asked by every attention site."""
        return None if self.current is None else self.current.prefix(site, rows)

    def before_entry(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Puts prompt tokens and updates into the input of the encoder or decoder-only base model."""
        if self.current is None:
            # Either no row has a prompt, or this is a call past the model's forward, as `generate` calls encoders.
            pass_ = None if self.inside else self.generating or self.open(None)
            if pass_ is None:
                return None
            self.current, self.opened = pass_, True
        inputs = dict(zip(self.backbone.parameters, args, strict=False)) | kwargs
        if self.backbone.text_input:
            self._insert(self.current, inputs)
        else:
            if self.current.has_input_part or self.current.needs_input:
                raise SoftPromptError(
                    f"{self.model_class.__name__} takes {self.backbone.model.main_input_name}, not token ids: "
                    "only plain prefixes work on it"
                )
            given = inputs[self.backbone.model.main_input_name]
            self.current.prepare(given.shape[0], given.device, None, None)
        return (), inputs

    def _insert(self, pass_: Pass, inputs: dict[str, Any]) -> None:
        ids, given = inputs.get("input_ids"), inputs.get("inputs_embeds")
        mask = inputs.get("attention_mask")
        source = ids if ids is not None else given
        if source is None:
            raise SoftPromptError("the model was called without input_ids or inputs_embeds")
        rows, columns, device = source.shape[0], source.shape[1], source.device
        causal = self.backbone.kind == "decoder"
        cache = inputs.get("past_key_values") if causal else None
        seen = 0 if cache is None else int(cache.get_seq_length())
        inserts = pass_.has_input_part
        if seen and inserts and not pass_.ready:
            raise SoftPromptError(
                "the given past_key_values were made without this prompt, whose tokens belong in front: start anew"
            )

        if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
            if inserts or (pass_.needs_input and not pass_.ready):
                raise SoftPromptError("input prompts need a 2-D attention_mask (rows, tokens), not a prepared 4-D one")
            pass_.prepare(rows, device, None, None)
            pass_.layout = None
            return
        real = None if mask is None else mask.bool()
        if real is not None and pass_.rows and seen == 0 and real.shape != (rows, columns):
            real = real[:, -columns:]

        embeddings = given
        if embeddings is None and (inserts or (pass_.needs_input and not pass_.ready)):
            embeddings = self.backbone.embeddings(ids)
        if not pass_.ready:
            visible = torch.ones(rows, columns, dtype=torch.bool, device=device) if real is None else real
            if pass_.context_mask is not None:
                visible = visible & pass_.context_mask.to(device)
            pass_.prepare(rows, device, embeddings if pass_.needs_input else None, visible)

        tokens = pass_.tokens
        if real is None and seen and tokens is not None and tokens.counts is not None:
            # `generate` drops a mask of ones; with prompts of different lengths in the cache there is padding again.
            real = torch.ones(rows, seen - tokens.length + columns, dtype=torch.bool, device=device)
        layout = Layout(
            real,
            (rows, columns if real is None else real.shape[1]),
            tokens,
            causal,
            self.backbone.keep_first,
            device,
        )
        length = layout.length
        if self.backbone.max_tokens is not None and length + seen + columns - (length if seen else 0) > (
            self.backbone.max_tokens
        ):
            raise SoftPromptError(
                f"a prompt of {length} tokens and an input of {columns} exceed the {self.backbone.max_tokens} "
                f"positions of {self.model_class.__name__}: shorten the input or the prompt"
            )
        if pass_.update is not None:
            assert embeddings is not None
            update = _aligned_update(pass_.update, real, rows, columns, seen, layout)
            embeddings = embeddings + update.to(dtype=embeddings.dtype, device=embeddings.device)

        if causal:
            self._insert_causal(pass_, inputs, layout, embeddings, real, seen, columns)
        else:
            self._insert_encoder(pass_, inputs, layout, embeddings, real)

    def _insert_encoder(
        self, pass_: Pass, inputs: dict[str, Any], layout: Layout, embeddings: Tensor | None, real: Tensor | None
    ) -> None:
        pass_.layout = layout
        if layout.simple and pass_.tokens is None and pass_.update is None:
            return
        if pass_.tokens is None and pass_.update is None and inputs.get("input_ids") is not None:
            # Only padding on the left: move it to the right, where no position depends on it.
            inputs["input_ids"] = layout.ids(inputs["input_ids"])
        else:
            assert embeddings is not None
            inputs["input_ids"] = None
            inputs["inputs_embeds"] = layout.embeddings(embeddings, pass_.tokens)
        if inputs.get("attention_mask") is not None or layout.new_mask is not None:
            assert layout.new_mask is not None
            like = inputs.get("attention_mask")
            inputs["attention_mask"] = layout.new_mask.to(torch.long if like is None else like.dtype)
        _widen_others(inputs, layout)
        if inputs.get("position_ids") is not None:
            inputs["position_ids"] = layout.positions(inputs["position_ids"], real)

    def _insert_causal(
        self,
        pass_: Pass,
        inputs: dict[str, Any],
        layout: Layout,
        embeddings: Tensor | None,
        real: Tensor | None,
        seen: int,
        columns: int,
    ) -> None:
        given = inputs.get("position_ids")
        if seen:  # a later step: the prompt is in the cache, only mask and positions have to know of it
            pass_.layout = None
            if pass_.update is not None:
                inputs["input_ids"], inputs["inputs_embeds"] = None, embeddings
            if layout.new_mask is not None:
                inputs["attention_mask"] = layout.new_mask.to(torch.long)
            if self.backbone.takes_positions:
                if given is not None and pass_.tokens is not None:
                    inputs["position_ids"] = given + pass_.tokens.count(given.shape[0], given.device)[:, None]
                elif given is None and layout.new_mask is not None:
                    inputs["position_ids"] = positions_of(layout.new_mask)[:, -columns:]
            return
        pass_.layout = layout
        if pass_.tokens is not None or pass_.update is not None:
            assert embeddings is not None
            inputs["input_ids"] = None
            inputs["inputs_embeds"] = layout.embeddings(embeddings, pass_.tokens)
            _widen_others(inputs, layout)
        if layout.new_mask is not None:
            inputs["attention_mask"] = layout.new_mask.to(torch.long)
        if self.backbone.takes_positions and (given is not None or not layout.simple):
            inputs["position_ids"] = layout.positions(given, real)

    def after_entry(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Cuts prompt positions from the output of a base model; an encoder keeps them for its decoder."""
        pass_ = self.current
        if self.opened:
            self.current, self.opened = None, False
        if pass_ is None or output is None:
            return output
        if self.backbone.kind == "encoder-decoder":
            if pass_.tokens is None:
                output = _restored(output, pass_.layout)
            if not isinstance(output, tuple):
                output._softprompt_pass = pass_
            return output
        return _restored(output, pass_.layout)

    def before_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Widens the mask with which a decoder looks at its encoder's output."""
        pass_ = self.current
        if pass_ is None:
            return None
        names = list(inspect.signature(module.forward).parameters)
        inputs = dict(zip(names, args, strict=False)) | kwargs
        states = inputs.get("encoder_hidden_states")
        if states is None:
            return None
        pass_.prepare(states.shape[0], states.device, None, None)
        mask = inputs.get("encoder_attention_mask")
        if pass_.tokens is None or (mask is not None and mask.shape[-1] == states.shape[1]):
            return None
        counts = pass_.tokens.count(states.shape[0], states.device)
        if mask is None and pass_.tokens.counts is None:
            return None
        real = states.shape[1] - pass_.tokens.length if mask is None else mask.sum(-1)
        columns = torch.arange(states.shape[1], device=states.device)[None]
        inputs["encoder_attention_mask"] = (columns < (counts + real)[:, None]).long()
        return (), inputs

    def open(self, names: str | Sequence[str | None] | None, context_mask: Tensor | None = None) -> Pass | None:
        """A pass for the named prompts; None when no row has one."""
        prompts = self.backbone.model.prompts
        if names is None:
            names = self.active
        if names is None:
            return None
        wanted = [names] if isinstance(names, str) else list(dict.fromkeys(names))
        for name in wanted:
            if name is not None and name not in prompts:
                raise SoftPromptError(f"unknown prompt '{name}'; {nearest(name, prompts)}")
        if wanted == [None]:
            return None
        return Pass(prompts, names, context_mask)


def _widen_others(inputs: dict[str, Any], layout: Layout) -> None:
    """Puts zeros for the prompt into everything else with a number per token: token types, global attention."""
    for name, value in inputs.items():
        if name in ("input_ids", "attention_mask", "position_ids", "head_mask") or name.startswith("encoder_"):
            continue
        if isinstance(value, Tensor) and value.ndim == 2 and value.shape[1] == layout.columns:
            inputs[name] = layout.ids(value)


def _aligned_update(update: Tensor, real: Tensor | None, rows: int, columns: int, seen: int, layout: Layout) -> Tensor:
    """The embedding update ``(R|1, m, d)`` for the given columns: entry ``i`` at a row's ``i``-th real token."""
    length = update.shape[1]
    if real is None or (layout.simple and not seen and not layout.causal):
        start = seen - layout.length if seen else 0
        part = update[:, start : start + columns]
        return F.pad(part, (0, 0, 0, columns - part.shape[1]))
    position = positions_of(real)[:, -columns:]
    update = repeat_rows(update, rows).expand(rows, -1, -1)
    inside = (position < length) & real[:, -columns:]
    index = position.clamp(max=length - 1)[..., None].expand(-1, -1, update.shape[2])
    return update.gather(1, index) * inside[..., None]


def _restored(output: Any, layout: Layout | None) -> Any:
    """A model output with prompt columns cut from all hidden states."""
    if layout is None or (layout.simple and not layout.length):
        return output
    width = layout.length + layout.columns

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor) and value.ndim == 3 and value.shape[1] == width:
            return layout.restore(value)
        if isinstance(value, tuple) and value and all(isinstance(v, Tensor) and v.ndim == 3 for v in value):
            return tuple(cut(v) for v in value)
        return value

    if isinstance(output, tuple):
        return tuple(cut(value) for value in output)
    for name in ("last_hidden_state", "hidden_states"):
        if output.get(name) is not None:
            output[name] = cut(output[name])
    return output


class PromptModel:
    """What `attach` adds to a transformers model. Not made by itself."""

    prompts: PromptSet
    config: Any

    # --- forward and generate -------------------------------------------------------------------------------------

    def _prompted_forward(self, forward: Callable[..., Any], names: list[str], *args: Any, **kwargs: Any) -> Any:
        state = _state(self)
        inputs = dict(zip(names, args, strict=False)) | kwargs
        prompt_names = inputs.pop("prompt_names", None)
        context_mask = inputs.pop("context_mask", None)
        pass_ = state.generating
        if pass_ is None:
            pass_ = self._resume(inputs, prompt_names)
        if pass_ is None:
            labels = inputs.get("labels")
            predicts = state.backbone.kind == "decoder" and not state.heads
            if context_mask is None and labels is not None and predicts and labels.ndim == 2:
                context_mask = _context_of(labels)
            pass_ = state.open(prompt_names, context_mask)
            if pass_ is not None:
                self._check_names(pass_, inputs)
        state.last = pass_
        if pass_ is None:
            with state.activate(None), self._own_labels() if state.heads else contextlib.nullcontext():
                return forward(**inputs)
        if self._checkpointing and "use_cache" in names and inputs.get("past_key_values") is None:
            inputs["use_cache"] = False  # a recomputed layer would write to the cache twice
        own_loss = "labels" in inputs and state.heads and self._classifies
        labels = inputs.pop("labels") if own_loss else inputs.get("labels")
        with state.activate(pass_):
            output = forward(**inputs)
        return self._finish(output, pass_, labels, bool(own_loss), inputs.get("num_items_in_batch"))

    @contextlib.contextmanager
    def _own_labels(self) -> Iterator[None]:
        """The model's own labels while it computes a loss without any prompt."""
        problem = self.config.problem_type
        try:
            with self.disable_prompt():
                yield
        finally:  # transformers notes its guess there, which need not be right for the prompts
            self.config.problem_type = problem

    def _resume(self, inputs: dict[str, Any], names: Any) -> Pass | None:
        """The pass under which the given cache or encoder output was made, so that a loop by hand goes on with it."""
        cache, encoded = inputs.get("past_key_values"), inputs.get("encoder_outputs")
        for source in (cache, encoded):
            pass_ = getattr(source, "_softprompt_pass", None)
            if pass_ is None or (source is cache and not int(source.get_seq_length())):
                continue
            if names is None or pass_.given == (names if isinstance(names, str) else list(names)):
                return cast(Pass, pass_)
        return None

    def _check_names(self, pass_: Pass, inputs: dict[str, Any]) -> None:
        if not isinstance(pass_.given, list):
            return
        given = next((v for k, v in inputs.items() if k in _ROW_INPUTS and isinstance(v, Tensor)), None)
        if given is not None and given.shape[0] != len(pass_.given):
            raise SoftPromptError(f"prompt_names has {len(pass_.given)} names for a batch of {given.shape[0]} rows")

    def _finish(self, output: Any, pass_: Pass, labels: Tensor | None, own_loss: bool, num_items: Any) -> Any:
        state = _state(self)
        if not isinstance(output, tuple):
            if output.get("past_key_values") is not None and state.generating is None:
                output.past_key_values._softprompt_pass = pass_
            if state.backbone.kind == "encoder-decoder" and pass_.tokens is not None:
                for name in ("encoder_last_hidden_state", "encoder_hidden_states"):
                    if output.get(name) is not None:
                        cut = _restored((output[name],), pass_.layout)[0]
                        output[name] = cut
        penalty = sum(pass_.penalties.values())
        if pass_.penalties and labels is not None and num_items is not None:
            # Trainer adds up the parts of an accumulated batch.
            penalty = penalty * ((labels != -100).sum() / num_items)
        if own_loss and labels is not None:
            logits = output[0] if isinstance(output, tuple) else output.logits
            problem = "token_classification" if self._classifies == "ForTokenClassification" else None
            problem = problem or self.config.problem_type
            loss = heads.classification_loss(
                logits, labels, pass_, self.prompts, state.labels[0] or 0, problem, num_items
            )
            loss = loss + penalty
            if isinstance(output, tuple):
                return (loss, *output)
            output.loss = loss
            # Losses come first in transformers' outputs, and pipelines and Trainer rely on it.
            items = dict(output.items())
            return type(output)(**({"loss": items.pop("loss")} | items))
        if pass_.penalties:
            if isinstance(output, tuple):
                if output and isinstance(output[0], Tensor) and output[0].ndim == 0:
                    return (output[0] + penalty, *output[1:])
                return output
            if output.get("loss") is not None:
                output.loss = output.loss + penalty
        return output

    def generate(self, *args: Any, prompt_names: str | Sequence[str | None] | None = None, **kwargs: Any) -> Any:
        """`transformers`' generate; each row generates under its own prompt.

        Args:
            *args: as for the model's own ``generate``.
            prompt_names: one name per row, or one for all; None for the prompt set by `set_prompt`.
            **kwargs: as for the model's own ``generate``.
        """
        state = _state(self)
        pass_ = self._resume(kwargs, prompt_names) or state.open(prompt_names)
        base: Any = super()
        if pass_ is None:
            with _bare(state):
                return base.generate(*args, **kwargs)
        cache = kwargs.get("past_key_values")
        if cache is not None and state.backbone.kind == "decoder" and pass_.has_input_part and cache.get_seq_length():
            raise SoftPromptError(
                "generate cannot go on from past_key_values that hold prompt tokens, which it would count as input: "
                "leave past_key_values out, or use a prefix method"
            )
        self._check_names(pass_, {"input_ids": args[0] if args else None} | kwargs)
        before, state.generating = state.generating, pass_
        try:
            return base.generate(*args, **kwargs)
        finally:
            state.generating = before

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: Any, generation_mode: Any, batch_size: int, max_cache_length: int
    ) -> Any:
        # Preallocated caches must also hold the prompt tokens of a decoder-only model.
        state = _state(self)
        if state.generating is not None and state.backbone.kind == "decoder":
            max_cache_length += max((self._token_count(name) for name in state.generating.names), default=0)
        base: Any = super()
        return base._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )

    def create_masks_for_generate(self, *args: Any, **kwargs: Any) -> Any:
        """Leaves a 2-D mask as it is while prompt tokens are in play: its columns are still to be widened."""
        state = _state(self)
        pass_ = state.generating or state.current
        if pass_ is not None and (pass_.has_input_part or pass_.needs_input) and "attention_mask" in kwargs:
            return kwargs["attention_mask"]
        from transformers.masking_utils import create_masks_for_generate

        own = getattr(state.model_class, "create_masks_for_generate", create_masks_for_generate)
        return own(*args, **kwargs)

    def _token_count(self, name: str | None) -> int:
        if name is None or not self.prompts[name].config.uses_tokens:
            return 0
        return self.prompts[name].config.num_virtual_tokens

    # --- prompts by name --------------------------------------------------------------------------------------------

    @property
    def backbone_kind(self) -> str:
        """One of "encoder", "decoder" and "encoder-decoder"."""
        return _state(self).backbone.kind

    @property
    def active_prompt(self) -> str | None:
        """The prompt of calls that name none."""
        return _state(self).active

    @property
    def penalties(self) -> dict[str, Tensor]:
        """The auxiliary loss of each prompt of the last forward pass that has one."""
        last = _state(self).last
        return {} if last is None else last.penalties

    def add_prompt(
        self,
        name: str,
        config: MethodConfig,
        *,
        num_labels: int | None = None,
        labels: Sequence[str] | None = None,
        tokenizer: Any = None,
        seed: int | None = None,
    ) -> PromptModel:
        """Adds a freshly initialised prompt under a new name.

        Args:
            name: letters, digits, "_" and "-".
            config: which method, and its settings.
            num_labels: outputs of the task head; None for as many as the model's own head has.
            labels: names of the labels (gives ``num_labels`` too).
            tokenizer: needed by initialisation from text; found by the model's name when not given.
            seed: makes the initialisation repeatable without touching the global random state.

        Returns:
            The model.

        Raises:
            SoftPromptError: the name is taken or not allowed, or the method does not fit the model.
        """
        state = _state(self)
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            raise SoftPromptError(f"prompt name '{name}': use letters, digits, '_' and '-' only")
        if name in self.prompts:
            raise SoftPromptError(f"there is a prompt named '{name}' already; delete_prompt it or choose another name")
        if labels is not None:
            num_labels = len(labels) if num_labels is None else num_labels
        backbone = state.backbone
        sites = backbone.chosen_sites(config.sites, config.method) if config.uses_prefix else []
        limit = backbone.max_tokens
        if config.uses_tokens and limit is not None and config.num_virtual_tokens >= limit:
            raise SoftPromptError(
                f"{config.method}: {config.num_virtual_tokens} virtual tokens leave no room for the input in the "
                f"{limit} positions of {state.model_class.__name__}"
            )
        if config.uses_tokens and not backbone.text_input:
            raise SoftPromptError(
                f"{config.method} puts tokens into the input, but {state.model_class.__name__} takes "
                f"{backbone.model.main_input_name}: use a prefix method"
            )
        device = backbone.embeddings.weight.device  # type: ignore[union-attr]
        shape = Shape(
            hidden_size=backbone.hidden_size,
            num_sites=len(sites),
            kv_width=backbone.sites[sites[0]].kv_heads * backbone.sites[sites[0]].head_dim if sites else 0,
            vocabulary=_vocabulary(backbone, tokenizer),
        )
        with _seeded(seed), torch.device(device):
            method = config.build(shape)
            if method.per_row and not backbone.text_input:
                raise SoftPromptError(
                    f"{config.method} looks at the input's embeddings, but {state.model_class.__name__} takes "
                    f"{backbone.model.main_input_name}: use a plain prefix"
                )
            head = heads.new(state.original_heads, num_labels, cast(PreTrainedModel, self))
        if head is None and num_labels is not None:
            raise SoftPromptError(
                f"{state.model_class.__name__} has no task head: load the model with AutoModelForSequenceClassification"
            )
        for parameter in [*method.parameters(), *(head.parameters() if head else [])]:
            if parameter.is_floating_point() and parameter.dtype in (torch.float16, torch.bfloat16):
                parameter.data = parameter.data.float()
        prompt = Prompt(config, method.to(device), head, sites)
        if prompt.num_labels is not None:
            known = state.labels[1]
            default = [str(known.get(i, f"LABEL_{i}")) for i in range(prompt.num_labels)]
            matches = prompt.num_labels == len(known)
            fallback = default if matches else [f"LABEL_{i}" for i in range(prompt.num_labels)]
            prompt.labels = list(labels) if labels is not None else fallback
            if len(prompt.labels) != prompt.num_labels:
                raise SoftPromptError(f"{len(prompt.labels)} label names for {prompt.num_labels} labels")
        prompt.train(cast(nn.Module, self).training)
        self.prompts._modules[name] = prompt
        if state.active is None:
            self.set_prompt(name)
        return self

    def set_prompt(self, name: str | None) -> PromptModel:
        """Chooses the prompt of calls that name none; None for the bare backbone.

        Raises:
            SoftPromptError: unknown name.
        """
        state = _state(self)
        if name is not None and name not in self.prompts:
            raise SoftPromptError(f"unknown prompt '{name}'; {nearest(name, self.prompts)}")
        state.active = name
        labels = self.prompts[name].labels if name is not None else []
        number, id2label, label2id = state.labels
        if labels:
            id2label = dict(enumerate(labels))
            label2id = {label: i for i, label in id2label.items()}
            number = len(labels)
        if state.heads:  # pipelines and Trainer read the label names here
            self.config.id2label, self.config.label2id = id2label, label2id
            if hasattr(self, "num_labels"):
                self.num_labels = number
        return self

    @contextlib.contextmanager
    def disable_prompt(self) -> Iterator[None]:
        """Within this context, calls that name no prompt run the bare backbone."""
        before = _state(self).active
        self.set_prompt(None)
        try:
            yield
        finally:
            self.set_prompt(before if before in self.prompts else None)

    def delete_prompt(self, name: str) -> None:
        """Forgets a prompt.

        Raises:
            SoftPromptError: unknown name.
        """
        if name not in self.prompts:
            raise SoftPromptError(f"unknown prompt '{name}'; {nearest(name, self.prompts)}")
        if _state(self).active == name:
            self.set_prompt(None)
        del self.prompts._modules[name]

    def fold(self, name: str) -> PromptModel:
        """Replaces a prompt by its plain, inference-size form with equal outputs.

        Raises:
            SoftPromptError: unknown name, or the method has no plain form (the reason is named).
        """
        from softprompts.methods.folded import fold

        if name not in self.prompts:
            raise SoftPromptError(f"unknown prompt '{name}'; {nearest(name, self.prompts)}")
        prompt = self.prompts[name]
        prompt.config, prompt.method = fold(prompt.method)
        return self

    def save_prompt(self, name: str, path: str | Path, metadata: dict[str, Any] | None = None) -> None:
        """Writes one prompt to a folder: ``softprompt_config.json``, ``softprompt.safetensors`` and a model card.

        Args:
            name: the prompt.
            path: the folder; made if it is not there.
            metadata: JSON values to keep with it, such as task and score.

        Raises:
            SoftPromptError: unknown name.
        """
        from softprompts import saving

        saving.save_prompt(self, name, path, metadata)

    def load_prompt(self, path: str | Path, name: str | None = None) -> PromptModel:
        """Adds a saved prompt, under its own name or another.

        Raises:
            SoftPromptError: the files are missing, damaged or for another backbone; nothing is loaded then.
        """
        from softprompts import saving

        saving.load_prompt(self, path, name)
        return self

    def save_pretrained(self, save_directory: str | Path, *, state_dict: Any = ..., **kwargs: Any) -> None:
        """Writes the prompts and nothing of the backbone.

        A single prompt goes into the folder itself, several into one folder each. HF Trainer passes ``state_dict`` and
        reads ``model.safetensors`` back: for it, that file is written as well, with only the prompts' tensors.
        """
        from softprompts import saving

        if kwargs.get("is_main_process", True):
            saving.save_all(self, save_directory, for_trainer=state_dict is not ...)

    def print_trainable_parameters(self) -> None:
        """Prints trained and total numbers of parameters."""
        trained, total = self.num_trainable_parameters()
        print(f"trainable params: {trained:,} || all params: {total:,} || trainable%: {100 * trained / total:.4f}")

    def num_trainable_parameters(self) -> tuple[int, int]:
        """Numbers of trained parameters and of all."""
        module = cast(nn.Module, self)
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        return trained, sum(p.numel() for p in module.parameters())

    # --- modes, checkpointing ---------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> PromptModel:
        """Puts the prompts in training mode; the frozen backbone stays in evaluation mode (no dropout there) unless
        ``attach`` was told ``backbone_dropout=True``.
        """
        module, state = cast(nn.Module, self), _state(self)
        module.training = mode
        for child in module.children():
            child.train(mode if child is self.prompts else mode and state.backbone_dropout)
        return self

    @property
    def _checkpointing(self) -> bool:
        module = cast(PreTrainedModel, self)
        if not (module.training and torch.is_grad_enabled()):
            return False
        return any(getattr(layer, "gradient_checkpointing", False) for layer in module.modules())

    @property
    def _classifies(self) -> str | None:
        """The kind of loss that we compute ourselves, as the number of labels is each prompt's own."""
        kind: str | None = self.loss_type  # type: ignore[attr-defined]
        return kind if kind in ("ForSequenceClassification", "ForTokenClassification") else None

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        base: Any = super()
        base._set_gradient_checkpointing(*args, **kwargs)
        _wrap_checkpoint_functions(cast(PreTrainedModel, self))

    def enable_input_require_grads(self) -> None:
        """Does nothing: gradients reach prompts without it, and the embeddings' own would be wasted work."""


_ROW_INPUTS = ("input_ids", "inputs_embeds", "encoder_outputs", "input_features", "inputs", "decoder_input_ids")


def _state(model: Any) -> State:
    return cast(State, model.__dict__[_STATE])


@contextlib.contextmanager
def _bare(state: State) -> Iterator[None]:
    before, state.active = state.active, None
    try:
        yield
    finally:
        state.active = before


@contextlib.contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _context_of(labels: Tensor) -> Tensor:
    """Tokens of a causal model's training batch that a prompt may look at: those that are not targets.

    A row whose tokens all are targets shows its first token only, lest the prompt should see what is to be predicted.
    """
    context = labels == -100
    context[:, 0] |= ~context.any(1)
    return context


def _vocabulary(backbone: Backbone, tokenizer: Any) -> Vocabulary:
    model, table = backbone.model, backbone.embeddings

    def embed(ids: Tensor) -> Tensor:
        return cast(Tensor, table(ids.to(table.weight.device)))  # type: ignore[union-attr, arg-type]

    def encode(text: str) -> list[int]:
        source = tokenizer
        if source is None:
            from transformers import AutoTokenizer

            try:
                source = AutoTokenizer.from_pretrained(model.config._name_or_path)
            except Exception as error:
                raise SoftPromptError("initialisation from text needs the tokenizer: pass tokenizer=...") from error
        return list(source(text, add_special_tokens=False)["input_ids"])

    config = model.config.get_text_config()
    special = {
        value
        for key in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id")
        for value in _as_list(getattr(config, key, None))
    }
    if tokenizer is not None:
        special |= set(tokenizer.all_special_ids)
    size = min(int(table.weight.shape[0]), getattr(config, "vocab_size", None) or int(table.weight.shape[0]))  # type: ignore[union-attr, index]
    return Vocabulary(embed, size, special, encode)


def _as_list(value: Any) -> Iterable[int]:
    if value is None:
        return []
    return value if isinstance(value, (list, tuple)) else [value]


def _checkpointed_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Forward of a layer of an attached model: checkpoints it also where the frozen layer is in evaluation mode."""
    own = self.__dict__.get("_softprompt_forward")
    forward = own if own is not None else functools.partial(type(self).forward, self)
    wanted = getattr(self, "gradient_checkpointing", False) and not self.training
    owner = self.__dict__["_softprompt_owner"]
    if wanted and owner.current is not None and torch.is_grad_enabled() and owner.backbone.model.training:
        for cache in ("past_key_values", "layer_past"):
            if kwargs.get(cache) is not None:
                kwargs[cache] = None
        function: Any = self._gradient_checkpointing_func
        return function(functools.partial(forward, **kwargs), *args)
    return forward(*args, **kwargs)


class _CheckpointFunction:
    """A checkpoint function under which the recomputation sees the same prompts as the first run did."""

    def __init__(self, function: Callable[..., Any], state: State):
        self.original = function
        if isinstance(function, functools.partial) and function.keywords.get("use_reentrant"):
            warnings.warn(
                "gradient checkpointing with use_reentrant=True does not reach prompts; using use_reentrant=False",
                stacklevel=2,
            )
            function = functools.partial(
                function.func, *function.args, **(function.keywords | {"use_reentrant": False})
            )
        self.function = function
        self.state = state

    def __call__(self, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        state, pass_ = self.state, self.state.current

        def run(*inner: Any, **named: Any) -> Any:
            with state.activate(pass_):
                return layer(*inner, **named)

        return self.function(run, *args, **kwargs)


def _wrap_checkpoint_functions(model: PreTrainedModel) -> None:
    wrapped: dict[int, _CheckpointFunction] = {}
    for module in model.modules():
        function = module.__dict__.get("_gradient_checkpointing_func")
        if function is not None and not isinstance(function, _CheckpointFunction):
            if id(function) not in wrapped:
                wrapped[id(function)] = _CheckpointFunction(function, _state(model))
            module._gradient_checkpointing_func = wrapped[id(function)]  # type: ignore[assignment]


@functools.cache
def _attached_class(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The class of an attached ``base``: same name and module, so that whoever goes by names sees no difference."""
    signature = inspect.signature(base.forward)
    names = [name for name in signature.parameters if name != "self"]

    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._prompted_forward(functools.partial(base.forward, self), names, *args, **kwargs)

    extra = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
        for name in ("prompt_names", "context_mask")
    ]
    given = list(signature.parameters.values())
    tail = [p for p in given if p.kind is inspect.Parameter.VAR_KEYWORD]
    head = [p for p in given if p.kind is not inspect.Parameter.VAR_KEYWORD]
    forward.__signature__ = signature.replace(parameters=[*head, *extra, *tail])  # type: ignore[attr-defined]
    members = {"forward": forward, "__module__": base.__module__, "__doc__": base.__doc__}
    return cast("type[PreTrainedModel]", type(base.__name__, (PromptModel, base), members))


def attach(
    model: PreTrainedModel,
    config: MethodConfig | None = None,
    name: str = "default",
    *,
    num_labels: int | None = None,
    labels: Sequence[str] | None = None,
    tokenizer: Any = None,
    seed: int | None = None,
    backbone_dropout: bool = False,
) -> Any:
    """Freezes a transformers model and puts a soft prompt on it, in place.

    Args:
        model: any `transformers.PreTrainedModel`.
        config: the first prompt; None attaches without one (`load_prompt` and `add_prompt` add some later).
        name: its name.
        num_labels: outputs of its task head; None for as many as the model's own head has.
        labels: names of its labels.
        tokenizer: for initialisation from text.
        seed: makes the initialisation repeatable.
        backbone_dropout: keep the frozen model's dropout on while training (SuperPos-Prompt, section 4.3, found it
            better off, and off is faster).

    Returns:
        The same object.

    Raises:
        SoftPromptError: it is not a transformers model, is attached already, or the method does not fit it.
    """
    if not isinstance(model, PreTrainedModel):
        raise SoftPromptError(f"attach takes a transformers PreTrainedModel, not a {type(model).__name__}")
    if is_attached(model):
        raise SoftPromptError("this model is attached already; use model.add_prompt for another prompt")
    state = State(model)
    state.backbone_dropout = backbone_dropout
    backbone = state.backbone
    model.__dict__[_STATE] = state
    model.requires_grad_(False)
    model.__class__ = _attached_class(type(model))
    model.add_module("prompts", PromptSet())
    if backbone.sites:
        kernel = state.kernel
        if kernel in attention.KERNELS:
            set_attention(model, attention.implementation(kernel))
            for index, site in enumerate(backbone.sites):
                attention.mark_site(site.module, state.prefix_of, index)
        else:
            backbone.sites, backbone.no_sites_reason = (
                [],
                f"load it with attn_implementation='sdpa' instead of '{kernel}'",
            )
    state.hooks.append(backbone.entry.register_forward_pre_hook(state.before_entry, with_kwargs=True))
    state.hooks.append(backbone.entry.register_forward_hook(state.after_entry, with_kwargs=True, always_call=True))
    if backbone.decoder is not None:
        state.hooks.append(backbone.decoder.register_forward_pre_hook(state.before_decoder, with_kwargs=True))
    for module in list(model.modules()):
        if isinstance(module, GradientCheckpointingLayer):
            if "forward" in module.__dict__:
                module.__dict__["_softprompt_forward"] = module.__dict__["forward"]
            module.__dict__["_softprompt_owner"] = state
            module.__dict__["forward"] = types.MethodType(_checkpointed_forward, module)
    heads.install(model, state)
    _wrap_checkpoint_functions(model)
    prompt_free = [key for key in model.state_dict() if not key.startswith("prompts.")]
    model._keys_to_ignore_on_save = set(prompt_free)
    model.train(model.training)
    if config is not None:
        try:
            cast(PromptModel, model).add_prompt(
                name, config, num_labels=num_labels, labels=labels, tokenizer=tokenizer, seed=seed
            )
        except BaseException:
            detach(model)
            raise
    return model


def detach(model: Any) -> Any:
    """Takes every prompt off again: the plain model, with its class, kernels, modes and trainable flags as before.

    Returns:
        The same object.

    Raises:
        SoftPromptError: the model is not attached.
    """
    if not is_attached(model):
        raise SoftPromptError("this model is not attached")
    state = _state(model)
    model.set_prompt(None)
    for hook in state.hooks:
        hook.remove()
    heads.uninstall(model, state)
    for site in state.backbone.sites:
        attention.unmark_site(site.module)
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and "_softprompt_owner" in module.__dict__:
            del module.__dict__["forward"], module.__dict__["_softprompt_owner"]
            if "_softprompt_forward" in module.__dict__:
                module.__dict__["forward"] = module.__dict__.pop("_softprompt_forward")
        function = module.__dict__.get("_gradient_checkpointing_func")
        if isinstance(function, _CheckpointFunction):
            module._gradient_checkpointing_func = function.original
    del model.prompts
    del model.__dict__[_STATE]
    model.__class__ = state.model_class
    model._keys_to_ignore_on_save = state.ignored_on_save
    set_attention(model, state.kernel)
    for parameter in state.trained:
        parameter.requires_grad_(True)
    for module, mode in state.training.items():
        module.training = mode
    return model


def is_attached(model: Any) -> bool:
    """Whether `attach` has been called on the model."""
    return isinstance(model, nn.Module) and _STATE in model.__dict__
