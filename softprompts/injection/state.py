"""Putting prompts into a running model: hooks around its input module and its decoder, and the pass under way.

The hooks replace token ids by embeddings with prompt tokens among them, widen masks and positions to match, and cut
the prompt's positions from what comes out. They are methods of `State`, of which an attached model has one.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from softprompts.attention import prefix
from softprompts.attention.read_column import Reading
from softprompts.backbones import task_head
from softprompts.backbones.backbone import Backbone, attention_of, states_given
from softprompts.errors import SoftPromptError
from softprompts.injection.batch_pass import Pass, RandomContexts, View
from softprompts.injection.input_hooks import _aligned_update, _decoder_view, _view, _widen_others, restored
from softprompts.injection.layout import Layout, positions_of
from softprompts.injection.prompt import PromptSet, require
from softprompts.injection.rows import repeat_rows
from softprompts.injection.speedups.last_layer import Readout

STATE = "_softprompt_state"


def state_of(model: Any) -> State:
    """What an attached model remembers."""
    return cast(State, model.__dict__[STATE])


def is_attached(model: Any) -> bool:
    """Whether `attach` has been called on the model."""
    return isinstance(model, nn.Module) and STATE in model.__dict__


class State:
    """What an attached model remembers: what it was before, and the pass that is under way."""

    def __init__(self, model: PreTrainedModel):
        self.backbone = Backbone(model)
        self.model_class = type(model)
        self.attention = attention_of(model)
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.training = {module: module.training for module in model.modules()}
        known = cast("dict[int, str]", dict(model.config.id2label or {}))
        self.labels = (model.config.num_labels, known, dict(model.config.label2id or {}))
        self.ignored_on_save = model._keys_to_ignore_on_save
        self.hooks: list[Any] = []
        self.watching: list[Any] = []  # hooks of attention sites, see `watch_sites`
        self.heads = task_head.find(model)
        self.readout: Readout | None = None
        self.original_heads = {name: getattr(model, name) for name in self.heads}
        self.current: Pass | None = None
        self.generating: Pass | None = None
        self.last: Pass | None = None
        self.active: str | None = None
        self.bare = False  # whether it was said, by `set_prompt(None)`, that no prompt is to be active
        self.backbone_dropout = False
        self.opened = False
        self.inside = False
        # Where a prompt has random numbers of its own, the context in which its modules draw them; set by training.
        self.randomness: RandomContexts | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy starts between two passes; the tensors of the last one belong to the original's graph.
        passing = {"current": None, "generating": None, "last": None, "opened": False, "inside": False}
        return self.__dict__ | passing | {"randomness": None}

    @contextlib.contextmanager
    def activate(self, pass_: Pass | None) -> Iterator[None]:
        """Makes ``pass_`` the one that hooks and attention sites see."""
        before = self.current, self.inside
        self.current, self.inside = pass_, True
        try:
            yield
        finally:
            self.current, self.inside = before

    @contextlib.contextmanager
    def under(self, names: str | Sequence[str | None]) -> Iterator[None]:
        """Makes the prompts of these names those of calls to parts of the model, past its own forward."""
        before, self.generating = self.generating, self.open(names)
        try:
            yield
        finally:
            self.generating = before

    # --- hooks and callbacks; bound methods, so that a deep copy of the model has its own ---------------------------

    def prefix_of(self, site: int, rows: int) -> prefix.Prefix | None:
        """Asked by every attention site."""
        return None if self.current is None else self.current.prefix(site, rows)

    def watch_sites(self) -> None:
        """Looks at what attention sites are called with where gates of a prompt depend on it, and nowhere else."""
        prompts = cast(PromptSet, self.backbone.model.prompts)
        wanted = {site for prompt in prompts.values() if prompt.method.reads_states for site in prompt.sites}
        for handle in self.watching:
            handle.remove()
        modules = [self.backbone.sites[site].module for site in sorted(wanted)]
        self.watching = [module.register_forward_pre_hook(self.before_site, with_kwargs=True) for module in modules]

    def before_site(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Shows the states that an attention site is called with to prompts whose gates depend on them."""
        states, site = states_given(args, kwargs), prefix.site_of(module)
        if self.current is not None and states is not None:
            in_decoder = self.backbone.decoder is not None and self.backbone.sites[site].kind != "encoder.self"
            self.current.look(site, states, self.current.decoder_view if in_decoder else self.current.view)

    def before_entry(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Puts prompt tokens and updates into the input of the encoder or decoder-only base model."""
        if self.current is None:
            # Either no row has a prompt, or this is a call past the model's forward, as `generate` calls encoders.
            pass_ = None if self.inside else self.generating or self.open(None)
            if pass_ is None:
                return None
            self.current, self.opened = pass_, True
            if self.backbone.kind == "decoder" and self.backbone.model.training:
                self._require_forward(pass_)
        inputs = dict(zip(self.backbone.parameters, args, strict=False)) | kwargs
        self.current.seen = 0
        if self.backbone.text_input:
            self._insert(self.current, inputs)
            self._shift(self.current, inputs)
        else:
            if self.current.has_input_part or self.current.needs_input:
                raise SoftPromptError(
                    f"{self.model_class.__name__} takes {self.backbone.model.main_input_name}, not token ids: "
                    "only plain prefixes work on it"
                )
            given = inputs[self.backbone.model.main_input_name]
            self.current.prepare(given.shape[0], given.device, None, None)
            if self.current.update is not None:
                raise SoftPromptError(f"{self.model_class.__name__} takes no token ids, whose embeddings could change")
        return (), inputs

    def _require_forward(self, pass_: Pass) -> None:
        """Refuses what goes wrong in silence where a trainer runs the base model and computes the loss itself."""
        head = self.backbone.model.get_output_embeddings()
        outputs = {part.path for part, module in self.backbone.parts if module is head}
        for name in dict.fromkeys(pass_.names):
            method = None if name is None else pass_.prompts[name].method
            if method is not None and outputs & set(method.changes):
                raise SoftPromptError(
                    f"prompt '{name}' changes the output layer, which this trainer goes past: train it with "
                    "transformers.Trainer or softprompts' own loop"
                )
            if method is not None and pass_ is not self.generating and (method.per_row or name in pass_.penalties):
                raise SoftPromptError(
                    f"prompt '{name}' looks at the input or has a penalty, and this trainer computes the loss past "
                    "the model's forward: put softprompts.trainers.PromptTraining before the trainer's class"
                )

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
            if not inserts and not (pass_.needs_input and not pass_.ready):
                pass_.prepare(rows, device, None, None)
                inserts = pass_.update is not None
            if inserts or not pass_.ready:
                raise SoftPromptError("input prompts need a 2-D attention_mask (rows, tokens), not a prepared 4-D one")
            pass_.layout, pass_.view = None, View(later=seen > 0)
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
            pass_.visible = visible
            pass_.prepare(rows, device, embeddings if pass_.needs_input else None, visible)
            if embeddings is not given and pass_.changes_modules:
                embeddings = self.backbone.embeddings(ids)  # those of the prompts that have their own

        if embeddings is None and pass_.update is not None:  # a change of the input without any token
            embeddings = self.backbone.embeddings(ids)
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
            self.backbone.reads_first,
        )
        if pass_.watched:
            pass_.view = _view(pass_.visible, layout, rows, columns, seen)
        length = layout.length
        shift = pass_.shift if isinstance(pass_.shift, int) else int(pass_.shift.max())
        if self.backbone.max_tokens is not None and shift + seen + columns + (0 if seen else length) > (
            self.backbone.max_tokens
        ):
            raise SoftPromptError(
                f"a prompt of {length + shift} tokens and an input of {columns} exceed the {self.backbone.max_tokens} "
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

    def _shift(self, pass_: Pass, inputs: dict[str, Any]) -> None:
        """Moves the tokens' positions behind those of prefixes that have some; relative ones stay as they are."""
        shift = pass_.shift
        if (isinstance(shift, int) and not shift) or self.backbone.kind == "encoder-decoder":
            return
        source = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
        rows, columns, device = source.shape[0], source.shape[1], source.device
        positions = inputs.get("position_ids")
        if positions is None:
            cache = inputs.get("past_key_values")
            start = 0 if cache is None else cache.get_seq_length()
            positions = torch.arange(columns, device=device)[None] + start + self.backbone.first_position
        if isinstance(shift, Tensor):
            shift = repeat_rows(shift.to(device), rows)[:, None]
        inputs["position_ids"] = positions + shift

    def _insert_encoder(
        self, pass_: Pass, inputs: dict[str, Any], layout: Layout, embeddings: Tensor | None, real: Tensor | None
    ) -> None:
        pass_.layout = layout
        if pass_.logits_only and self.readout is not None:
            column = 0 if self.readout.pooled else layout.first()
            pass_.reading = Reading(column, layout.length + layout.columns)
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
            if pass_ is not None and output is not None and pass_.penalties and self.backbone.model.training:
                self._require_forward(pass_)
            self.current, self.opened = None, False
        if pass_ is None or output is None:
            return output
        if self.backbone.kind == "encoder-decoder":
            if pass_.tokens is None:
                output = restored(output, pass_.layout)
            if not isinstance(output, tuple):
                output._softprompt_pass = pass_
            return output
        return restored(output, pass_.layout)

    def before_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Widens the mask with which a decoder looks at its encoder's output."""
        pass_ = self.current
        if pass_ is None:
            return None
        names = list(inspect.signature(module.forward).parameters)
        inputs = dict(zip(names, args, strict=False)) | kwargs
        cache = inputs.get("past_key_values")
        seen = 0 if cache is None else cache.get_seq_length()
        pass_.seen = seen.clone() if isinstance(seen, Tensor) else seen  # static caches count on in place
        states = inputs.get("encoder_hidden_states")
        if states is None:
            return None
        pass_.prepare(states.shape[0], states.device, None, None)
        if pass_.watched:
            pass_.decoder_view = _decoder_view(inputs)
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
        prompts = cast(PromptSet, self.backbone.model.prompts)
        if names is None:
            names = self.active
        if names is None:
            return None
        wanted = [names] if isinstance(names, str) else list(dict.fromkeys(names))
        for name in wanted:
            if name is not None:
                require(prompts, name)
        if wanted == [None]:
            return None
        return Pass(prompts, names, context_mask, self.randomness)
