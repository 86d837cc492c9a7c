"""The hooks around a model's input module and its decoder.

They replace token ids by embeddings with prompt tokens among them, widen masks and positions to match, and cut the
prompt's columns from what comes out.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import warnings
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softprompts.attention.prefix import Prefix, Recorder, site_of
from softprompts.backbones.backbone import states_given
from softprompts.backbones.kinds import CACHES, trial
from softprompts.errors import SoftPromptError
from softprompts.injection.batch_pass import Pass
from softprompts.injection.changes import follow
from softprompts.injection.layout import CausalLayout, EncoderLayout, Layout, positions_from_first, positions_of
from softprompts.injection.outputs import is_table, restored, tensors
from softprompts.injection.rows import repeat_rows
from softprompts.injection.state import State


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
            self._insert(pass_, inputs)
            self._shift_positions(pass_, inputs)
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
            pass_.decoder_view, pass_.later = _view_of_decoder(inputs), int(pass_.seen) > 0
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
        if pass_.ready or not (pass_.needs_input or pass_.reads_states):
            return
        rows, columns = given.shape[:2]
        visible = torch.ones(rows, columns, dtype=torch.bool, device=given.device)
        if mask is not None:
            visible = mask[:: len(mask) // rows, -columns:].bool()
        pass_.visible = visible
        embeddings = given if given.ndim == 3 else self.backbone.embeddings(given.to(self.backbone.device))
        pass_.prepare(rows, given.device, embeddings if pass_.needs_input else None, visible)

    # --- putting prompts into the input -------------------------------------------------------------------------

    def _insert(self, pass_: Pass, inputs: dict[str, Any]) -> None:
        ids, given, mask = inputs.get("input_ids"), inputs.get("inputs_embeds"), inputs.get("attention_mask")
        source = ids if ids is not None else given
        if source is None:
            raise SoftPromptError("the model was called without input_ids or inputs_embeds")
        (rows, columns), device = source.shape[:2], source.device
        causal = self.backbone.kind == "decoder"
        cache = next((inputs[name] for name in CACHES if inputs.get(name) is not None), None) if causal else None
        seen = 0 if cache is None else columns_in(cache, pass_.columns)
        first_time, inserts, pass_.later = not pass_.ready, pass_.has_tokens, seen > 0
        if seen and inserts and first_time:
            raise SoftPromptError(
                "the given past_key_values were made without this prompt, whose tokens belong in front: start anew"
            )
        if seen and first_time and (pass_.needs_input or pass_.reads_states):
            raise SoftPromptError(
                "the given past_key_values were made without this prompt, which looks at all of the input: start anew"
            )
        if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
            if first_time and not inserts and not pass_.needs_input:
                pass_.prepare(rows, device)
            if inserts or not pass_.ready or pass_.update is not None or (pass_.reads_states and not seen):
                raise SoftPromptError(
                    "input prompts and prompts that look at the input need a 2-D attention_mask (rows, tokens), "
                    "not a prepared 4-D one"
                )
            pass_.layout, pass_.view = None, None
            return
        real = None if mask is None else mask.bool()
        if real is not None and pass_.rows and seen == 0 and real.shape != (rows, columns):
            real = real[:, -columns:]

        if causal and pass_.of_whole_rows and real is None and not seen and _is_packed(inputs):
            raise SoftPromptError(
                "packed rows (position_ids that start anew, cu_seq_lens_q) take prefixes that do not depend on the "
                "input; prompt tokens have one place a row: put one sequence in a row"
            )
        embeddings = given
        if first_time:
            if given is None and pass_.needs_input:
                embeddings = self.backbone.embeddings(ids)
            visible = real
            if visible is None:
                looks = pass_.needs_input or pass_.reads_states
                every = torch.ones(rows, columns, dtype=torch.bool, device=device)
                visible = self._without_padding(source) if looks else every
            if pass_.context_mask is not None:
                visible = visible & pass_.context_mask.to(device)
            pass_.visible = visible
            pass_.prepare(rows, device, embeddings if pass_.needs_input else None, visible)
            if pass_.changes_modules:
                embeddings = given  # looked up again: prompts may change the table
        if embeddings is None and (inserts or pass_.update is not None):
            embeddings = self.backbone.embeddings(ids)
        scale = self.backbone.embedding_scale
        if embeddings is not None and ids is not None and scale != 1:
            embeddings = embeddings * scale
        tokens = pass_.tokens
        if real is None and seen and tokens is not None and tokens.counts is not None and _holds_columns(cache):
            # `generate` drops a mask of ones; with prompts of different lengths in the cache there is padding again.
            real = torch.ones(rows, seen - tokens.length + columns, dtype=torch.bool, device=device)
        shape = (rows, columns if real is None else real.shape[1])
        given_to_layout = (real, shape, tokens, device)
        on_encoders = (self.backbone.keep_first, self.backbone.reads_first)
        if not causal:
            layout: Layout = EncoderLayout(*given_to_layout, *on_encoders)
        else:
            layout = self._causal_layout(pass_, given_to_layout, cache is not None or bool(inputs.get("use_cache")))
        if pass_.gated_sites and pass_.visible is not None:
            seen_of_rows = repeat_rows(pass_.visible, rows).expand(rows, -1)
            pass_.view = _view_of_input(seen_of_rows, layout, columns, seen)
        pass_.columns = seen + columns + (0 if seen else layout.length)
        self._require_room(pass_, seen, columns, layout.length, inputs.get("position_ids"))
        if pass_.update is not None:
            assert embeddings is not None
            update = _aligned_update(pass_.update, real, rows, columns, seen, layout)
            embeddings = embeddings + scale * update.to(dtype=embeddings.dtype, device=embeddings.device)
        if seen:
            self._widen_later_step(pass_, inputs, layout, embeddings, columns, real is not None)
        else:
            self._widen(pass_, inputs, layout, embeddings, real)

    def _without_padding(self, source: Tensor) -> Tensor:
        """What prompts see ``(R, n)`` of rows without a mask: without the padding at their ends, if they are causal.

        So that scores do not depend on how long the other rows of a batch are, as the frozen model's do not. A longest
        row has no padding: what all rows end with are tokens. What else may be one is told in a warning.
        """
        visible = torch.ones(source.shape[:2], dtype=torch.bool, device=source.device)
        if self.backbone.kind != "decoder" or source.ndim > 2 or len(source) == 1:
            return visible
        padding = source == 0
        pad_id = getattr(self.backbone.model.config.get_text_config(), "pad_token_id", None)
        if pad_id is not None:
            padding |= source == pad_id
        at_end = padding.flip(1).long().cumprod(1).flip(1).bool()
        length = source.shape[1] - int(at_end.sum(1).min())
        at_end[:, length:] = False
        at_end[:, 0] = False
        if bool(at_end.any()):
            name = self.state.model_class.__name__
            warnings.warn(
                f"{name} got rows that end with padding or a token 0, and no attention_mask; "
                "prompts that look at the input take these for padding: pass attention_mask",
                stacklevel=2,
            )
        return ~at_end

    def _causal_layout(self, pass_: Pass, given: tuple[Any, ...], cached: bool) -> Layout:
        """The layout of a causal model; those that count positions themselves get no padding in front if it can be."""
        if self.backbone.takes_positions:
            return CausalLayout(*given)
        name = self.state.model_class.__name__
        if not cached:
            layout: Layout = EncoderLayout(*given)
            pass_.padded_behind = not layout.simple
            return layout
        if pass_.padded_behind:
            raise SoftPromptError(f"{name} takes no position_ids: pass use_cache=True to the first call of a loop, too")
        layout = CausalLayout(*given)
        tokens = pass_.tokens
        if tokens is not None and tokens.counts is not None and not self._bears_padding:
            raise SoftPromptError(
                f"{name} takes no position_ids and counts padding in front of a row, so that prompts of different "
                "lengths cannot generate in one batch: generate them one after the other, or with use_cache=False"
            )
        return layout

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

    def _require_room(self, pass_: Pass, seen: int, columns: int, length: int, positions: Any) -> None:
        limit = self.backbone.max_tokens
        shift = pass_.shift if isinstance(pass_.shift, int) else int(pass_.shift.max())
        prompt = shift + (0 if seen else length)
        if limit is not None and prompt + seen + columns > limit:
            if (
                not seen
                and positions is not None
                and prompt + int(positions.max()) - self.backbone.first_position < limit
            ):
                return  # a packed row, whose sequences fit
            raise SoftPromptError(
                f"a prompt of {length + shift} tokens and an input of {columns} exceed the {limit} positions of "
                f"{self.state.model_class.__name__}: shorten the input or the prompt"
            )

    def _widen(
        self, pass_: Pass, inputs: dict[str, Any], layout: Layout, embeddings: Tensor | None, real: Tensor | None
    ) -> None:
        """Puts the prompt into the inputs of a pass without a cache."""
        pass_.layout = layout
        positions = inputs.get("position_ids")
        changed = pass_.tokens is not None or pass_.update is not None
        mask_type = torch.long
        if isinstance(layout, EncoderLayout):
            if pass_.logits_only and self.state.last_layer is not None:
                pass_.read_column = self.state.last_layer.read_column(layout)
            if layout.simple and not changed:
                return
            if not changed and inputs.get("input_ids") is not None:
                # Only padding on the left: move it to the right, where no position depends on it.
                inputs["input_ids"] = layout.ids(inputs["input_ids"])
            mask_type = torch.long if inputs.get("attention_mask") is None else inputs["attention_mask"].dtype
            widens_others, sets_positions = True, positions is not None
            changed = changed or inputs.get("inputs_embeds") is not None
        else:
            widens_others = changed
            sets_positions = self.backbone.takes_positions and (positions is not None or not layout.simple)
        if changed:
            assert embeddings is not None
            tokens, scale = pass_.tokens, self.backbone.embedding_scale
            if tokens is not None and scale != 1:
                tokens = dataclasses.replace(tokens, embeddings=scale * tokens.embeddings)
            inputs["input_ids"], inputs["inputs_embeds"] = None, layout.embeddings(embeddings, tokens)
        if widens_others:
            _widen_others(inputs, layout)
        if layout.new_mask is not None:
            inputs["attention_mask"] = layout.new_mask.to(mask_type)
        if sets_positions:
            planes = None if positions is None or positions.ndim == 2 else positions  # of text, height and width, say
            made: Tensor | None
            if planes is not None:
                made = torch.stack([cast(Tensor, layout.positions(plane, real)) for plane in planes])
            else:
                made = layout.positions(positions, real)
            inputs["position_ids"] = made if positions is not None or made is None else self._counted(made)

    def _widen_later_step(
        self, pass_: Pass, inputs: dict[str, Any], layout: Layout, embeddings: Tensor | None, columns: int, masked: bool
    ) -> None:
        """A later step of a causal model: the prompt is in the cache, and mask and positions have to count it."""
        pass_.layout = None
        if pass_.update is not None:
            inputs["input_ids"], inputs["inputs_embeds"] = None, embeddings
        if layout.new_mask is not None and masked:
            inputs["attention_mask"] = layout.new_mask.to(torch.long)
        positions = inputs.get("position_ids")
        if not self.backbone.takes_positions:
            return
        if positions is not None and pass_.tokens is not None:
            count = pass_.tokens.count(positions.shape[-2], positions.device)
            inputs["position_ids"] = positions + count[:, None]
        elif positions is None and layout.new_mask is not None:
            inputs["position_ids"] = self._counted(positions_from_first(layout.new_mask)[:, -columns:])

    def _counted(self, positions: Tensor) -> Tensor:
        """Positions as the model counts them, which need not begin at 0."""
        return positions + self.backbone.first_position

    def _shift_positions(self, pass_: Pass, inputs: dict[str, Any]) -> None:
        """Moves the tokens' positions behind those of prefixes that have some; relative ones stay as they are."""
        shift = pass_.shift
        if (isinstance(shift, int) and not shift) or self.backbone.kind == "encoder-decoder":
            return
        source = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
        (rows, columns), device = source.shape[:2], source.device
        positions = inputs.get("position_ids")
        if positions is None:
            cache = inputs.get("past_key_values")
            start = 0 if cache is None else cache.get_seq_length()
            positions = torch.arange(columns, device=device)[None] + start + self.backbone.first_position
        if isinstance(shift, Tensor):
            shift = repeat_rows(shift.to(device), rows)[:, None]
        inputs["position_ids"] = positions + shift


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


def columns_in(cache: Any, counted: int) -> int:
    """How many columns a cache holds; ``counted`` where it only says that it holds some, as state spaces do."""
    if isinstance(cache, list | tuple):  # RWKV's
        return counted or 1
    try:
        return int(cache.get_seq_length())
    except ValueError:
        return counted if cache.has_previous_state() else 0
    except AttributeError:  # of models with a cache of their own
        return int(getattr(cache, "seqlen_offset", 0)) or (0 if getattr(cache, "rnn_state_initial", True) else counted)


def _holds_columns(cache: Any) -> bool:
    """Whether a cache has a column for each token, which a mask can hide; state spaces have none."""
    try:
        return int(cache.get_seq_length()) > 0
    except (AttributeError, ValueError):
        return False


def _view_of_input(visible: Tensor, layout: Layout, columns: int, seen: int) -> Tensor:
    """Where in a pass, prompt tokens included, the input is that prompts may depend on."""
    if seen:
        return visible[:, -columns:]
    # Without a cache every step of a generation runs all columns; those behind the first step's are not looked at.
    return layout.ids(F.pad(visible, (0, layout.columns - visible.shape[1])))


def _view_of_decoder(inputs: dict[str, Any]) -> Tensor:
    """The first token of each row of an encoder-decoder's decoder: all others are, or once were, predicted."""
    source = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
    rows, columns = source.shape[:2]
    mask = inputs.get("attention_mask")
    first = torch.zeros(rows, 1, dtype=torch.long, device=source.device)
    if isinstance(mask, Tensor) and mask.shape == (rows, columns):
        first = mask.long().argmax(1, keepdim=True)
    return torch.arange(columns, device=source.device) == first


def _widen_others(inputs: dict[str, Any], layout: Layout) -> None:
    """Puts zeros for the prompt into everything else with a number per token, such as token types; no label is one."""
    for name, value in inputs.items():
        if name in ("input_ids", "attention_mask", "position_ids", "head_mask") or name.startswith("encoder_"):
            continue
        if not isinstance(value, Tensor) or value.ndim not in (2, 3) or value.shape[1] != layout.columns:
            continue
        if value.ndim == 2 or (value.shape[0] == layout.rows and not value.is_floating_point()):  # such as boxes
            inputs[name] = layout.ids(value, -100 if name.endswith("labels") else 0)


def _is_packed(inputs: dict[str, Any]) -> bool:
    """Whether rows hold several sequences each, as models tell it that get no mask."""
    positions = inputs.get("position_ids")
    if inputs.get("cu_seq_lens_q") is not None:
        return True
    if not isinstance(positions, Tensor) or positions.ndim != 2 or torch.compiler.is_compiling():
        return False
    return bool((positions.diff(dim=1) != 1).any())


def _aligned_update(update: Tensor, real: Tensor | None, rows: int, columns: int, seen: int, layout: Layout) -> Tensor:
    """The embedding update ``(R|1, m, d)`` for the given columns: entry ``i`` at a row's ``i``-th real token."""
    length = update.shape[1]
    if real is None or (layout.simple and not seen and not isinstance(layout, CausalLayout)):
        start = seen - layout.length if seen else 0
        part = update[:, start : start + columns]
        return F.pad(part, (0, 0, 0, columns - part.shape[1]))
    position = positions_of(real)[:, -columns:]
    update = repeat_rows(update, rows).expand(rows, -1, -1)
    inside = (position < length) & real[:, -columns:]
    index = position.clamp(max=length - 1)[..., None].expand(-1, -1, update.shape[2])
    return update.gather(1, index) * inside[..., None]
