"""The hooks around a model's input module and its decoder.

They replace token ids by embeddings with prompt tokens among them, widen masks and positions to match, and cut the
prompt's columns from what comes out.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softprompts.attention.prefix import Prefix, Recorder, site_of
from softprompts.backbones.backbone import states_given
from softprompts.backbones.kinds import trial
from softprompts.errors import SoftPromptError
from softprompts.injection.batch_pass import Pass
from softprompts.injection.caches import holds_columns
from softprompts.injection.changes import follow
from softprompts.injection.context import view_of_decoder, view_of_input, without_padding
from softprompts.injection.layout import CausalLayout, EncoderLayout, Layout
from softprompts.injection.outputs import is_table, restored, tensors
from softprompts.injection.rows import repeat_rows
from softprompts.injection.state import State
from softprompts.injection.step import Step


class InputHooks:
    """The hooks of one attached model. They are bound methods, so that a deep copy of the model has its own."""

    def __init__(self, state: State):
        self.state = state
        self.backbone = state.backbone

    # --- attention sites ----------------------------------------------------------------------------------------

    def prefix_of(self, site: int, rows: int) -> Prefix | Recorder | None:
        """Returns the prefix of an attention site for so many rows."""
        pass_ = self.state.current
        return None if pass_ is None else pass_.prefix(site, rows)

    def before_site(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Computes the gates that depend on the states which an attention site is called with."""
        states, site, pass_ = states_given(args, kwargs), site_of(module), self.state.current
        if pass_ is not None and states is not None:
            in_decoder = self.backbone.decoder is not None and self.backbone.sites[site].kind != "encoder.self"
            pass_.compute_gates(site, states, pass_.decoder_view if in_decoder else pass_.view)

    # --- the encoder, or the base of a decoder-only model -------------------------------------------------------

    def before_entry(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Puts prompt tokens and updates into the input."""
        pass_, scope = self.state.current, self.state.scope
        if scope is None or not scope.inside:  # a call past the model's forward, as `generate` calls encoders
            around = self.state.around
            pass_ = self.state.open(None) if around is None else around.pass_
            if pass_ is not None:
                follow(self.state)
                self.state.enter(pass_)
                if self.backbone.kind == "decoder" and self.backbone.model.training:
                    self._require_forward(pass_)
        if pass_ is None:  # no row has a prompt
            return None
        inputs = dict(zip(self.backbone.parameters, args, strict=False)) | kwargs
        if pass_.without_cache and "use_cache" in self.backbone.parameters:  # some heads do not hand it on
            inputs["use_cache"] = False
        pass_.seen = 0
        if self.backbone.text_input:
            pass_.choices = _flatten_choices(inputs)
            step = Step(pass_, inputs, self.backbone)
            self._insert(step)
            step.shift_positions()
            return (), inputs
        given = inputs[self.backbone.model.main_input_name]
        pass_.prepare(given.shape[0], given.device)
        if pass_.update is not None:
            name = self.state.model_class.__name__
            raise SoftPromptError(f"{name} takes no token ids, whose embeddings could change")
        return (), inputs

    def after_entry(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Cuts prompt columns from the output; an encoder keeps its tokens for the decoder."""
        pass_, scope = self.state.current, self.state.scope
        if pass_ is not None and scope is not None and scope.by_hook:
            self.state.leave()
            if output is not None and pass_.penalties and self.backbone.model.training:
                self._require_forward(pass_)
        if pass_ is None or output is None:
            return output
        self._tell_model_around(pass_, output)
        if self.backbone.kind != "encoder-decoder":
            whole = module is self.backbone.model or (scope is not None and scope.by_hook)
            return _by_choice(restored(output, pass_.layout, tables=whole), pass_.choices)
        if pass_.tokens is None:
            output = restored(output, pass_.layout)
        if not isinstance(output, tuple):
            output._softprompt_pass = pass_
        return output

    def _tell_model_around(self, pass_: Pass, output: Any) -> None:
        """Widens the mask by which the model around counts the tokens of tables that it makes a loss of.

        So prompt tokens count as they would typed; `PromptModel` cuts the tables afterwards.
        """
        layout, mask = pass_.layout, pass_.mask_around
        if layout is not None and mask is not None and any(is_table(part, layout) for part in tensors(output)):
            width = layout.length + layout.columns
            mask.data = mask.new_ones(layout.rows, width) if layout.new_mask is None else layout.new_mask.to(mask)

    def before_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Widens the mask with which a decoder looks at its encoder's output."""
        pass_ = self.state.current
        if pass_ is None:
            return None
        inputs = dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs
        cache = inputs.get("past_key_values")
        seen = 0 if cache is None else cache.get_seq_length()
        pass_.seen = seen.clone() if isinstance(seen, Tensor) else seen  # static caches count on in place
        states = inputs.get("encoder_hidden_states")
        if states is None:
            return None
        pass_.prepare(states.shape[0], states.device)
        if pass_.gated_sites:
            pass_.decoder_view, pass_.later = view_of_decoder(inputs), int(pass_.seen) > 0
        mask, tokens = inputs.get("encoder_attention_mask"), pass_.tokens
        if tokens is None or (mask is None and tokens.counts is None):
            return None
        if mask is not None and mask.shape[-1] == states.shape[1]:
            return None
        if pass_.layout is not None:
            given = torch.ones(len(states), pass_.layout.columns, dtype=torch.long, device=states.device)
            inputs["encoder_attention_mask"] = pass_.layout.mask(given if mask is None else mask)
            return (), inputs
        # An encoder's output that does not say how it was made: rows without anything hidden in their middle.
        real = states.shape[1] - tokens.length if mask is None else mask.sum(-1)
        count = tokens.count(states.shape[0], states.device) + real
        columns = torch.arange(states.shape[1], device=states.device)[None]
        inputs["encoder_attention_mask"] = (columns < count[:, None]).long()
        return (), inputs

    def _require_forward(self, pass_: Pass) -> None:
        """Refuses what goes wrong in silence where a trainer runs the base model and computes the loss itself."""
        head = self.backbone.model.get_output_embeddings()
        outputs = {part.path for part, module in self.backbone.parts if module is head}
        for name, prompt in pass_.prompts.items():
            if outputs & set(prompt.method.changes):
                raise SoftPromptError(
                    f"prompt '{name}' changes the output layer, which this trainer goes past: train it with "
                    "transformers.Trainer or softprompts' own loop"
                )
            computed_past = prompt.method.per_row or prompt.method.reads_states or name in pass_.penalties
            if computed_past and pass_ is not self.state.surrounding:
                raise SoftPromptError(
                    f"prompt '{name}' looks at the input or has a penalty, and this trainer computes the loss past "
                    "the model's forward: put softprompts.trainers.PromptTraining before the trainer's class"
                )

    def see_input(self, pass_: Pass, given: Tensor, mask: Tensor | None) -> None:
        """Computes prompts that depend on the input from all of it, before the first forward of a generation.

        Args:
            pass_: that of the generation.
            given: token ids ``(R, n)`` or embeddings ``(R, n, d)``.
            mask: ``(M, n)``, repeated for beams, or longer where a cache holds earlier tokens; None: all are real.
        """
        if pass_.ready or not pass_.looks:
            return
        rows, columns = given.shape[:2]
        visible = torch.ones(rows, columns, dtype=torch.bool, device=given.device)
        if mask is not None:
            visible = mask[:: len(mask) // rows, -columns:].bool()
        pass_.visible = visible
        embeddings = given if given.ndim == 3 else self.backbone.embeddings(given.to(self.backbone.device))
        pass_.prepare(rows, given.device, embeddings if pass_.needs_input else None, visible)

    # --- putting prompts into the input -------------------------------------------------------------------------

    def _insert(self, step: Step) -> None:
        """Puts the prompts of a pass into the inputs of one step of it."""
        pass_ = step.pass_
        pass_.later = step.seen > 0
        step.require_own_cache()
        if step.prepared_mask:
            self._leave_columns(step)
            return
        step.require_unpacked()
        if step.first:
            self._prepare(step)
        if pass_.has_tokens or pass_.update is not None:
            step.look_up()
        step.scale()
        layout = self._lay_out(step)
        self._require_room(step, layout)
        step.add_update(layout)
        if step.seen:
            step.widen_later(layout)
        else:
            step.widen(layout)

    def _leave_columns(self, step: Step) -> None:
        """Serves a call with a prepared mask, which prompts that need no other may have."""
        pass_ = step.pass_
        if step.first and not pass_.has_tokens and not pass_.needs_input:
            pass_.prepare(step.rows, step.device)
        reads_all = pass_.reads_states and not step.seen
        if pass_.has_tokens or not pass_.ready or pass_.update is not None or reads_all:
            raise SoftPromptError(
                "input prompts and prompts that look at the input need a 2-D attention_mask (rows, tokens), "
                "not a prepared 4-D one"
            )
        pass_.layout, pass_.view = None, None

    def _prepare(self, step: Step) -> None:
        """Computes the prompts of a pass, from what they may see of the input."""
        pass_, given, visible = step.pass_, step.embeddings, step.real
        if pass_.needs_input:
            step.look_up()
        if visible is None and pass_.looks:
            visible = without_padding(step.source, self.backbone, self.state.model_class)
        elif visible is None:
            visible = torch.ones(step.rows, step.columns, dtype=torch.bool, device=step.device)
        if pass_.context_mask is not None:
            visible = visible & pass_.context_mask.to(step.device)
        pass_.visible = visible
        pass_.prepare(step.rows, step.device, step.embeddings if pass_.needs_input else None, visible)
        if pass_.changes_modules:
            step.embeddings = given  # looked up again: prompts may change the table

    def _lay_out(self, step: Step) -> Layout:
        """Finds where prompt tokens go among the columns of a step, and notes what depends on that."""
        pass_, tokens = step.pass_, step.pass_.tokens
        unmasked = step.real is None and step.seen
        if unmasked and tokens is not None and tokens.counts is not None and holds_columns(step.cache):
            # `generate` drops a mask of ones; with prompts of different lengths in the cache there is padding again.
            columns = step.seen - tokens.length + step.columns
            step.real = torch.ones(step.rows, columns, dtype=torch.bool, device=step.device)
        shape = (step.rows, step.columns if step.real is None else step.real.shape[1])
        given = (step.real, shape, tokens, step.device)
        if not step.causal:
            layout: Layout = EncoderLayout(*given, self.backbone.keep_first, self.backbone.reads_first)
        elif self.backbone.takes_positions:
            layout = CausalLayout(*given)
        else:
            layout = self._lay_out_by_mask(step, given)
        if pass_.gated_sites and pass_.visible is not None:
            visible = repeat_rows(pass_.visible, step.rows).expand(step.rows, -1)
            pass_.view = view_of_input(visible, layout, step.columns, step.seen)
        if pass_.logits_only and self.state.last_layer is not None and isinstance(layout, EncoderLayout):
            pass_.read_column = self.state.last_layer.read_column(layout)
        pass_.columns = step.seen + step.columns + (0 if step.seen else layout.length)
        return layout

    def _lay_out_by_mask(self, step: Step, given: tuple[Any, ...]) -> Layout:
        """The layout of a causal model that counts positions itself: no padding in front, if that can be."""
        pass_, name = step.pass_, self.state.model_class.__name__
        if step.cache is None and not step.inputs.get("use_cache"):
            layout = EncoderLayout(*given)
            pass_.padded_behind = not layout.simple
            return layout
        if pass_.padded_behind:
            raise SoftPromptError(f"{name} takes no position_ids: pass use_cache=True to the first call of a loop, too")
        if pass_.tokens is not None and pass_.tokens.counts is not None and not self._bears_padding:
            raise SoftPromptError(
                f"{name} takes no position_ids and counts padding in front of a row, so that prompts of different "
                "lengths cannot generate in one batch: generate them one after the other, or with use_cache=False"
            )
        return CausalLayout(*given)

    @property
    def mixes_in_cache(self) -> bool:
        """Whether rows with prompts of different lengths can share a cache."""
        return self.backbone.kind != "decoder" or self.backbone.takes_positions or self._bears_padding

    @functools.cached_property
    def _bears_padding(self) -> bool:
        """Whether padding in front of a row changes nothing, found out by running a few tokens with and without."""
        entry, device = self.backbone.entry, self.backbone.device
        ids = torch.arange(1, 5, device=device)[None]
        mask = F.pad(torch.ones_like(ids), (2, 0))
        quick: dict[str, Any] = {"use_cache": False} if "use_cache" in self.backbone.parameters else {}
        with self.state.activate(None, inside=False), trial(self.backbone.model):
            alone = entry(input_ids=ids, **quick)[0].float()
            padded = entry(input_ids=F.pad(ids, (2, 0)), attention_mask=mask, **quick)[0].float()[:, 2:]
        largest = max(1e-4, 4 * torch.finfo(self.backbone.model.dtype).eps) * alone.abs().max()
        return bool((alone - padded).abs().max() <= largest)  # not where it is nan

    def _require_room(self, step: Step, layout: Layout) -> None:
        """Refuses more tokens than the model has positions."""
        limit, shift = self.backbone.max_tokens, step.pass_.shift
        shift = shift if isinstance(shift, int) else int(shift.max())
        prompt = shift + (0 if step.seen else layout.length)
        if limit is None or prompt + step.seen + step.columns <= limit:
            return
        positions: Any = step.inputs.get("position_ids")
        packed = not step.seen and positions is not None
        if packed and prompt + int(positions.max()) - self.backbone.first_position < limit:
            return  # its sequences fit
        raise SoftPromptError(
            f"a prompt of {layout.length + shift} tokens and an input of {step.columns} exceed the {limit} positions "
            f"of {self.state.model_class.__name__}: shorten the input or the prompt"
        )


def _flatten_choices(inputs: dict[str, Any]) -> int:
    """Lays the choices of rows ``(M, choices, n)`` one below the other, as the model would; returns how many, or 0."""
    ids = inputs.get("input_ids")
    if ids is None or ids.ndim != 3:
        return 0
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.shape == ids.shape:
            inputs[name] = value.flatten(0, 1)
    return int(ids.shape[1])


def _by_choice(output: Any, choices: int) -> Any:
    """An output whose last states ``(M * choices, n, d)`` are ``(M, choices, n, d)`` again, where there are choices."""
    if not choices:
        return output
    if isinstance(output, tuple):
        return (output[0].unflatten(0, (-1, choices)), *output[1:])
    output.last_hidden_state = output.last_hidden_state.unflatten(0, (-1, choices))
    return output
