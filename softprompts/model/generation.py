"""How an attached model generates: one pass under prompts for all of a ``generate``, whatever its way of decoding."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor
from transformers.masking_utils import create_masks_for_generate

from softprompts.backbones.kinds import CACHES
from softprompts.errors import SoftPromptError
from softprompts.injection.batch_pass import Pass
from softprompts.injection.caches import columns_in
from softprompts.injection.outputs import restore_encoders
from softprompts.injection.state import state_of

_ROW_INPUTS = ("input_ids", "inputs_embeds", "encoder_outputs", "input_features", "inputs", "decoder_input_ids")


class PromptGeneration:
    """What transformers' ``generate`` calls on a model, with prompts; a part of `PromptModel`."""

    def generate(self, *args: Any, prompt_names: str | Sequence[str | None] | None = None, **kwargs: Any) -> Any:
        """`transformers`' generate; each row generates under its own prompt.

        Args:
            *args: as for the model's own ``generate``.
            prompt_names: one name per row, or one for all; None for the prompt set by `set_prompt`.
            **kwargs: as for the model's own ``generate``.
        """
        state = state_of(self)
        around = state.around
        if prompt_names is None and around is not None:  # called within a generation, as some assistants are
            prompt_names = [None] if around.pass_ is None else around.pass_.given
        pass_ = self._pass_of(kwargs, prompt_names) or state.open(prompt_names)
        base: Any = super()
        if pass_ is None:
            with state.activate(None, inside=False):
                return base.generate(*args, **kwargs)
        self._require_name_per_row(pass_, {"input_ids": args[0] if args else None} | kwargs)
        with state.activate(pass_, inside=False):
            output = base.generate(*args, **kwargs)
        if state.backbone.kind == "encoder-decoder" and pass_.has_tokens:
            restore_encoders(output, pass_.layout)
        return output

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: Any, generation_mode: Any, batch_size: int, max_cache_length: int
    ) -> Any:
        # Preallocated caches must also hold the prompt tokens of a decoder-only model.
        state, base = state_of(self), cast(Any, super())
        if state.surrounding is not None and state.backbone.kind == "decoder":
            prompts = state.surrounding.prompts.values()
            max_cache_length += max((prompt.config.input_tokens for prompt in prompts), default=0)
        return base._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> Any:
        # The last thing that `generate` prepares: prompts see the input that it was given here, not the first
        # forward's, which may be a piece of it or hold tokens that are guessed.
        state, base = state_of(self), cast(Any, super())
        processors, pass_ = base._get_logits_processor(*args, **kwargs), state.surrounding
        if pass_ is None:
            return processors
        if state.backbone.kind == "decoder":
            mask = (kwargs.get("model_kwargs") or {}).get("attention_mask")
            state.hooks.see_input(pass_, kwargs["encoder_input_ids"], mask)
        for processor in processors:
            if isinstance(processor, UnbatchedClassifierFreeGuidanceLogitsProcessor) and processor.model is self:
                processor.model = self._beside(pass_)
        return processors

    def _beside(self, pass_: Pass) -> Callable[..., Any]:
        """The model called beside a generation, on an input of its own under the same prompts."""
        state = state_of(self)
        other = state.open(pass_.given)

        def call(*args: Any, **kwargs: Any) -> Any:
            with state.activate(other, inside=False):
                return cast(Any, self)(*args, **kwargs)

        return call

    def _prefill(self, input_ids: Tensor, generation_config: Any, model_kwargs: Any, *args: Any, **kwargs: Any) -> Any:
        state, base = state_of(self), cast(Any, super())
        size, mask = generation_config.prefill_chunk_size, model_kwargs.get("attention_mask")
        pass_ = state.surrounding if state.backbone.kind == "decoder" else None
        if pass_ is not None and size is not None and not pass_.takes_chunks(None if mask is None else mask[:, :size]):
            generation_config = copy.copy(generation_config)
            generation_config.prefill_chunk_size = None
        cache = model_kwargs.get("past_key_values")
        if pass_ is not None and pass_.tokens is not None and cache is not None:
            # The cache holds prompt tokens too, which `generate` does not know of where it leaves out what is there.
            seen = columns_in(cache, pass_.columns) - pass_.tokens.length
            whole = generation_config._mask_length if mask is None else mask.shape[1]
            if seen > 0 and input_ids.shape[1] == whole:
                input_ids = input_ids[:, seen:]
            given = model_kwargs.get("inputs_embeds")
            if seen > 0 and given is not None:  # all of the input, of which as many columns are left out
                model_kwargs = model_kwargs | {"inputs_embeds": F.pad(given, (0, 0, pass_.tokens.length, 0))}
        return base._prefill(input_ids, generation_config, model_kwargs, *args, **kwargs)

    def create_masks_for_generate(self, *args: Any, **kwargs: Any) -> Any:
        """Leaves a 2-D mask as it is where prompts look at it, or their tokens are still to widen it."""
        state = state_of(self)
        pass_ = state.surrounding or state.current
        looked_at = pass_ is not None and pass_.of_whole_rows
        if looked_at and "attention_mask" in kwargs:
            return kwargs["attention_mask"]
        own = getattr(state.model_class, "create_masks_for_generate", create_masks_for_generate)
        return own(*args, **kwargs)

    def _pass_of(self, inputs: Mapping[str, Any], names: Any) -> Pass | None:
        """A fork of the pass under which the given cache or encoder output was made: a loop by hand goes on with it."""
        for name in (*CACHES, "encoder_outputs"):
            source = inputs.get(name)
            pass_: Pass | None = getattr(source, "_softprompt_pass", None)
            if pass_ is None or (name in CACHES and not columns_in(source, pass_.columns)):
                continue
            if names is None or are_of(pass_, names):
                return pass_.fork()
        return None

    def _require_name_per_row(self, pass_: Pass | None, inputs: Mapping[str, Any]) -> None:
        """Refuses a list of names that is not as long as the batch."""
        if pass_ is None or not isinstance(pass_.given, list):
            return
        given = next((v for k, v in inputs.items() if k in _ROW_INPUTS and isinstance(v, Tensor)), None)
        if given is not None and len(given) != len(pass_.given):
            raise SoftPromptError(f"prompt_names has {len(pass_.given)} names for a batch of {len(given)} rows")


def are_of(pass_: Pass | None, names: str | Sequence[str | None]) -> bool:
    """Whether a pass is that of these names."""
    given = names if isinstance(names, str) else list(names)
    return set(given) == {None} if pass_ is None else pass_.given == given
