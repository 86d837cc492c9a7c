"""Where everything that makes a model see its prompts is installed, and removed again.

This is the only module that knows the accelerations in `softprompts.injection.speedups`; without them the numbers are
the same up to rounding.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig
from transformers.modeling_utils import AttentionInterface

from softprompts.attention import kernels, prefix
from softprompts.backbones import quantized
from softprompts.backbones.backbone import own_configs, restore_attention, set_attention
from softprompts.errors import SoftPromptError
from softprompts.injection import changes, head_dispatch, module_dispatch
from softprompts.injection.input_hooks import InputHooks
from softprompts.injection.prompt import PromptSet
from softprompts.injection.speedups import (
    checkpointing,
    frozen_linear,
    gated_prefix,
    last_layer,
    merged_attention,
    short_attention,
)
from softprompts.injection.speedups.read_column import narrowed
from softprompts.injection.state import STATE, State, is_attached, state_of

prefix.ACCELERATED.update(plain=short_attention.attend, selective=merged_attention.attend, gated=gated_prefix.gate)
for _name in prefix.KERNELS:
    AttentionInterface.register(prefix.implementation(_name), narrowed(kernels.ATTENTION[_name]))

_OUTPUT_ATTENTIONS: Any = PreTrainedConfig.output_attentions


def _set_output_attentions(config: Any, value: bool) -> None:
    """Transformers takes this setting for the kernel "eager" by its very name."""
    if value and config._attn_implementation == prefix.implementation("eager"):
        config._output_attentions = value
    else:
        _OUTPUT_ATTENTIONS.fset(config, value)


def _validate_output_attentions(config: Any) -> None:
    if config._attn_implementation != prefix.implementation("eager"):
        _VALIDATE(config)


_VALIDATE: Any = PreTrainedConfig.validate_output_attentions
setattr(PreTrainedConfig, "output_attentions", _OUTPUT_ATTENTIONS.setter(_set_output_attentions))  # noqa: B010
setattr(PreTrainedConfig, "validate_output_attentions", _validate_output_attentions)  # noqa: B010


def _replace_validator(config_class: Any) -> None:
    """Classes that were made before hold the function that they had then."""
    held = vars(config_class).get("__class_validators__", [])
    held[:] = [_validate_output_attentions if each is _VALIDATE else each for each in held]
    for derived in config_class.__subclasses__():
        _replace_validator(derived)


_replace_validator(PreTrainedConfig)

# For `softprompts.model`, which knows no acceleration.
follow_changes, follow_checkpointing, checkpoints = changes.follow, checkpointing.wrap_functions, checkpointing.is_on


def wire(model: Any, attached_class: type, backbone_dropout: bool) -> State:
    """Makes a `PreTrainedModel`, which becomes an instance of ``attached_class``, see prompts; it has none yet."""
    quantized.keep_layout(model)  # before anything runs
    own_configs(model)
    state = State(model)
    model.__dict__[STATE] = state
    model.backbone_dropout = backbone_dropout
    model.requires_grad_(False)
    model.__class__ = attached_class
    model.add_module("prompts", PromptSet())
    hooks = state.hooks = InputHooks(state)
    _serve_sites(state, hooks)
    entry, decoder = state.backbone.entry, state.backbone.decoder
    if entry is not model:  # the model's own hooks would run before there is a pass; its forward calls ours
        state.handles.append(entry.register_forward_pre_hook(hooks.before_entry, with_kwargs=True))
        state.handles.append(entry.register_forward_hook(hooks.after_entry, with_kwargs=True, always_call=True))
    if decoder is not None:
        state.handles.append(decoder.register_forward_pre_hook(hooks.before_decoder, with_kwargs=True))
    checkpointing.install(state)
    head_dispatch.install(state)
    state.last_layer = last_layer.install(state)
    frozen_linear.install(model, state)
    model._keys_to_ignore_on_save = {key for key in model.state_dict() if not key.startswith("prompts.")}
    if getattr(model, "is_quantized", False):
        # How HF Trainer is told that there is something to train on quantised weights, which it refuses otherwise.
        model._hf_peft_config_loaded = True
    changes.record(state)
    model.train(model.training)
    return state


def _serve_sites(state: State, hooks: InputHooks) -> None:
    """Puts our attention functions in place of the model's own; they ask ``hooks`` for prefixes."""
    backbone, kernel = state.backbone, state.attention[0][1]
    if not backbone.sites:
        return
    if not kernels.takes_prefixes(kernel):
        backbone.sites = []
        backbone.no_sites_reason = f"load it with attn_implementation='sdpa' instead of '{kernel}'"
        return
    backbone.only_keys = kernels.only_keys(kernel)
    set_attention(backbone.model, prefix.implementation(kernel))
    for index, site in enumerate(backbone.sites):
        prefix.mark_site(site.module, hooks.prefix_of, index, site.biased_by)


def follow_prompts(state: State) -> None:
    """Installs what the prompts of a model need by now: watched attention sites and changed modules."""
    for handle in state.site_handles:
        handle.remove()
    watched = {site for prompt in state.prompts.values() if prompt.method.reads_states for site in prompt.sites}
    modules = [state.backbone.sites[site].module for site in sorted(watched)]
    before_site = state.hooks.before_site
    state.site_handles = [module.register_forward_pre_hook(before_site, with_kwargs=True) for module in modules]
    module_dispatch.install(state)
    changes.record(state)


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
    for handle in [*state.handles, *state.site_handles]:
        handle.remove()
    module_dispatch.uninstall(state)
    frozen_linear.uninstall(model)
    head_dispatch.uninstall(state)
    for site in state.backbone.sites:
        prefix.unmark_site(site.module)
    checkpointing.uninstall(state)
    restore_attention(state.attention)
    quantized.free_layout(model)
    model.__dict__.pop("_hf_peft_config_loaded", None)
    del model.prompts, model.backbone_dropout, model.__dict__[STATE]
    model.__class__ = state.model_class
    model._keys_to_ignore_on_save = state.ignored_on_save
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in state.trained:
            parameter.requires_grad_(True)
    for module, training in state.modes.items():
        module.training = training
    return model
