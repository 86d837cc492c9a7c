"""TODO."""

from __future__ import annotations

from typing import Any

from softprompts.attention import prefix
from softprompts.backbones import quantized
from softprompts.backbones.backbone import restore_attention
from softprompts.errors import SoftPromptError
from softprompts.injection import (
    checkpointing,
    head_dispatch,
    module_dispatch,
)
from softprompts.injection.speedups import frozen_linear
from softprompts.injection.state import STATE, is_attached, state_of


def detach(model: Any) -> Any:
    """Takes every prompt off again: the plain model, with its class, kernels, modes and trainable flags as before.

    Returns:
        The same object.

    Raises:
        SoftPromptError: the model is not attached.
    """
    if not is_attached(model):
        raise SoftPromptError("this model is not attached")
    state = state_of(model)
    model.set_prompt(None)
    for hook in [*state.hooks, *state.watching]:
        hook.remove()
    module_dispatch.uninstall(state)
    frozen_linear.uninstall(model)
    head_dispatch.uninstall(model, state)
    if state.readout is not None:
        state.readout.uninstall()
    for site in state.backbone.sites:
        prefix.unmark_site(site.module)
    checkpointing.uninstall(model)
    model.__dict__.pop("_hf_peft_config_loaded", None)
    quantized.free_layout(model)
    del model.prompts
    del model.__dict__[STATE]
    model.__class__ = state.model_class
    model._keys_to_ignore_on_save = state.ignored_on_save
    restore_attention(state.attention)
    for parameter in state.trained:
        parameter.requires_grad_(True)
    for module, mode in state.training.items():
        module.training = mode
    return model
