"""One step of a pass: the arguments of one call of the model, and how the prompts of its rows get into them.

A step is a whole forward pass, or, where a cache holds what came before, the columns that a call adds to it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from softprompts.backbones.backbone import Backbone
from softprompts.backbones.kinds import CACHES
from softprompts.errors import SoftPromptError
from softprompts.injection.batch_pass import Pass
from softprompts.injection.caches import columns_in
from softprompts.injection.layout import CausalLayout, EncoderLayout, Layout, positions_from_first, positions_of
from softprompts.injection.rows import repeat_rows


class Step:
    """A call of a model that takes text.

    Args:
        pass_: the prompts of its rows.
        inputs: its arguments by name, which change in place.
        backbone: the model.

    Raises:
        SoftPromptError: neither ids nor embeddings are given.
    """

    def __init__(self, pass_: Pass, inputs: dict[str, Any], backbone: Backbone):
        self.pass_, self.inputs, self.backbone = pass_, inputs, backbone
        self.ids = inputs.get("input_ids")
        self.embeddings: Any = inputs.get("inputs_embeds")  # (M, n, d), given or looked up; None: not so far
        self.source: Any = self.ids if self.ids is not None else self.embeddings
        if self.source is None:
            raise SoftPromptError("the model was called without input_ids or inputs_embeds")
        (self.rows, self.columns), self.device = self.source.shape[:2], self.source.device
        self.causal = backbone.kind == "decoder"
        caches = [inputs[name] for name in CACHES if inputs.get(name) is not None]
        self.cache = caches[0] if caches and self.causal else None
        self.seen = 0 if self.cache is None else columns_in(self.cache, pass_.columns)  # prompt tokens included
        self.first, mask = not pass_.ready, inputs.get("attention_mask")
        self.prepared_mask = mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2)
        # (M, n) bool, the real tokens, behind those in the cache; None where no mask tells.
        self.real: Tensor | None = None if mask is None or self.prepared_mask else mask.bool()
        if self.real is not None and pass_.rows and not self.seen and self.real.shape != (self.rows, self.columns):
            self.real = self.real[:, -self.columns :]

    def require_own_cache(self) -> None:
        """Refuses a cache made without prompts that had to be there from its first column on."""
        if self.seen and self.first and (self.pass_.has_tokens or self.pass_.looks):
            why = "whose tokens belong in front" if self.pass_.has_tokens else "which looks at all of the input"
            raise SoftPromptError(f"the given past_key_values were made without this prompt, {why}: start anew")

    def require_unpacked(self) -> None:
        """Refuses rows of several sequences each where prompts are those of a whole row."""
        looked_at = self.causal and self.pass_.of_whole_rows and self.real is None and not self.seen
        if looked_at and _is_packed(self.inputs):
            raise SoftPromptError(
                "packed rows (position_ids that start anew, cu_seq_lens_q) take prefixes that do not depend on the "
                "input; prompt tokens have one place a row: put one sequence in a row"
            )

    # --- embeddings ---------------------------------------------------------------------------------------------

    def look_up(self) -> None:
        """Looks up the embeddings of the ids, where none are there yet."""
        if self.embeddings is None:
            self.embeddings = self.backbone.embeddings(self.ids)

    def scale(self) -> None:
        """Scales embeddings that were looked up as the model would, which does not where they are given."""
        if self.embeddings is not None and self.ids is not None and self.backbone.embedding_scale != 1:
            self.embeddings = self.embeddings * self.backbone.embedding_scale

    def add_update(self, layout: Layout) -> None:
        """Adds the update ``(R|1, m, d)`` of the pass to the embeddings: entry ``i`` to a row's ``i``-th real token."""
        update, real, columns = self.pass_.update, self.real, self.columns
        if update is None:
            return
        length = update.shape[1]
        if real is None or (layout.simple and not self.seen and not isinstance(layout, CausalLayout)):
            start = self.seen - layout.length if self.seen else 0
            part = update[:, start : start + columns]
            update = F.pad(part, (0, 0, 0, columns - part.shape[1]))
        else:
            position = positions_of(real)[:, -columns:]
            inside = (position < length) & real[:, -columns:]
            update = repeat_rows(update, self.rows).expand(self.rows, -1, -1)
            index = position.clamp(max=length - 1)[..., None].expand(-1, -1, update.shape[2])
            update = update.gather(1, index) * inside[..., None]
        self.embeddings = self.embeddings + self.backbone.embedding_scale * update.to(self.embeddings)

    # --- widening the inputs ------------------------------------------------------------------------------------

    def widen(self, layout: Layout) -> None:
        """Puts prompt tokens and changed embeddings into the inputs of a step that has none in front of it."""
        pass_, inputs = self.pass_, self.inputs
        pass_.layout, mask_type = layout, torch.long
        mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
        changed = pass_.tokens is not None or pass_.update is not None
        if isinstance(layout, EncoderLayout):
            if layout.simple and not changed:
                return
            if not changed and self.ids is not None:
                # Only padding on the left: move it to the right, where no position depends on it.
                inputs["input_ids"] = layout.ids(self.ids)
            mask_type = torch.long if mask is None else mask.dtype
            widens_others, sets_positions = True, positions is not None
            changed = changed or inputs.get("inputs_embeds") is not None
        else:
            widens_others = changed
            sets_positions = self.backbone.takes_positions and (positions is not None or not layout.simple)
        if changed:
            inputs["input_ids"], inputs["inputs_embeds"] = None, self._with_tokens(layout)
        if widens_others:
            _widen_others(inputs, layout)
        if layout.new_mask is not None:
            inputs["attention_mask"] = layout.new_mask.to(mask_type)
        if sets_positions:
            inputs["position_ids"] = self._positions(layout)

    def widen_later(self, layout: Layout) -> None:
        """Lets mask and positions of a causal model's later step count the prompt, which is in the cache."""
        pass_, inputs, positions = self.pass_, self.inputs, self.inputs.get("position_ids")
        pass_.layout = None
        if pass_.update is not None:
            inputs["input_ids"], inputs["inputs_embeds"] = None, self.embeddings
        if layout.new_mask is not None and self.real is not None:
            inputs["attention_mask"] = layout.new_mask.to(torch.long)
        if not self.backbone.takes_positions:
            return
        if positions is not None and pass_.tokens is not None:
            count = pass_.tokens.count(positions.shape[-2], positions.device)
            inputs["position_ids"] = positions + count[:, None]
        elif positions is None and layout.new_mask is not None:
            counted = positions_from_first(layout.new_mask)[:, -self.columns :]
            inputs["position_ids"] = counted + self.backbone.first_position

    def _with_tokens(self, layout: Layout) -> Tensor:
        """The embeddings with prompt tokens among them, scaled alike."""
        tokens, scale = self.pass_.tokens, self.backbone.embedding_scale
        if tokens is not None and scale != 1:
            tokens = dataclasses.replace(tokens, embeddings=scale * tokens.embeddings)
        return layout.embeddings(self.embeddings, tokens)

    def _positions(self, layout: Layout) -> Tensor | None:
        """The positions of the widened columns: the caller's moved, or those that the model would count."""
        given = self.inputs.get("position_ids")
        if given is not None and given.ndim != 2:  # planes of text, height and width, say
            return torch.stack([cast(Tensor, layout.positions(plane, self.real)) for plane in given])
        made = layout.positions(given, self.real)
        return made if given is not None or made is None else made + self.backbone.first_position

    def shift_positions(self) -> None:
        """Moves the tokens' positions behind those of prefixes that have some; relative ones stay as they are."""
        shift, inputs = self.pass_.shift, self.inputs
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
