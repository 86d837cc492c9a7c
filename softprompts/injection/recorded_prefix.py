"""A prefix from real tokens: the keys and values that attention sites see of them in the frozen model."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from softprompts.attention.prefix import Recorder
from softprompts.backbones.kinds import trial
from softprompts.errors import SoftPromptError, first_line
from softprompts.injection.batch_pass import Pass
from softprompts.injection.state import State


class _Recording(Pass):
    """A pass without any prompt, whose attention sites are recorded."""

    def __init__(self, recorder: Recorder):
        super().__init__({}, [None])
        self.recorder = recorder

    def prefix(self, site: int, rows: int) -> Any:
        return self.recorder


def recorded_prefix(state: State, sites: Sequence[int], ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Keys and values ``(S, l, w)`` in float32, as they enter the attention of each site: in rotary models turned.

    The tokens run once, as a row of their own: nothing in front, no prompt. A decoder beside an encoder runs the same
    tokens, and its cross-attention sees what the encoder makes of them.

    Args:
        state: of the attached model.
        sites: indices of its attention sites.
        ids: the tokens.

    Raises:
        SoftPromptError: the model cannot run them.
    """
    backbone, model = state.backbone, state.backbone.model
    name, base = state.model_class.__name__, model.base_model
    instead = "set init='normal'"
    if not backbone.text_input:
        raise SoftPromptError(
            f"{name} takes {model.main_input_name}, so that no prefix can start from tokens: {instead}"
        )
    if backbone.max_tokens is not None and len(ids) > backbone.max_tokens:
        raise SoftPromptError(
            f"a prefix from {len(ids)} tokens exceeds the {backbone.max_tokens} positions of {name}: {instead}"
        )
    row = torch.tensor([list(ids)], device=backbone.device)
    inputs: dict[str, Any] = {"input_ids": row}
    if backbone.kind == "encoder-decoder":
        inputs["decoder_input_ids"] = row
    if "use_cache" in inspect.signature(base.forward).parameters:
        inputs["use_cache"] = False
    recorder, last_pass = Recorder(), state.last_pass
    try:
        # The model's own forward takes the pass around it; the base model's hooks take the one that is under way.
        with trial(model), state.activate(_Recording(recorder), inside=base is not model):
            base(**inputs)
        keys, values = recorder.of(sites)
    except Exception as error:
        raise SoftPromptError(
            f"the tokens that a prefix is to start from cannot be run through {name} ({first_line(error)}): {instead}"
        ) from error
    finally:
        state.last_pass = last_pass
    return keys.to(backbone.device), values.to(backbone.device)
