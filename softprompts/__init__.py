"""Soft-prompt and prefix tuning of frozen transformers, every row of a batch with its own prompt."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from softprompts.version import __version__ as __version__

if TYPE_CHECKING:
    from softprompts.errors import SoftPromptError as SoftPromptError
    from softprompts.injection.state import is_attached as is_attached
    from softprompts.injection.wiring import detach as detach
    from softprompts.methods import AdaMixConfig as AdaMixConfig
    from softprompts.methods import AdapterConfig as AdapterConfig
    from softprompts.methods import AdapterDropConfig as AdapterDropConfig
    from softprompts.methods import AdaptivePrefixConfig as AdaptivePrefixConfig
    from softprompts.methods import AttemptConfig as AttemptConfig
    from softprompts.methods import BitFitConfig as BitFitConfig
    from softprompts.methods import ComposedConfig as ComposedConfig
    from softprompts.methods import DePTConfig as DePTConfig
    from softprompts.methods import DPTConfig as DPTConfig
    from softprompts.methods import EPTConfig as EPTConfig
    from softprompts.methods import FullConfig as FullConfig
    from softprompts.methods import HeadOnlyConfig as HeadOnlyConfig
    from softprompts.methods import IntrinsicConfig as IntrinsicConfig
    from softprompts.methods import LoraConfig as LoraConfig
    from softprompts.methods import MPTConfig as MPTConfig
    from softprompts.methods import MultiMaskConfig as MultiMaskConfig
    from softprompts.methods import PrefixTuningConfig as PrefixTuningConfig
    from softprompts.methods import PromptTuningConfig as PromptTuningConfig
    from softprompts.methods import PTuningConfig as PTuningConfig
    from softprompts.methods import ResidualConfig as ResidualConfig
    from softprompts.methods import SelectivePrefixConfig as SelectivePrefixConfig
    from softprompts.methods import SMoPConfig as SMoPConfig
    from softprompts.methods import SPoTConfig as SPoTConfig
    from softprompts.methods import SuperPosConfig as SuperPosConfig
    from softprompts.methods import fit_autoencoder as fit_autoencoder
    from softprompts.methods.compose import compose as compose
    from softprompts.methods.contract import Component as Component
    from softprompts.methods.contract import Method as Method
    from softprompts.methods.contract import MethodConfig as MethodConfig
    from softprompts.methods.contract import Rows as Rows
    from softprompts.methods.contract import Shape as Shape
    from softprompts.methods.making import make_config as make_config
    from softprompts.methods.registry import methods as methods
    from softprompts.methods.registry import register as register
    from softprompts.model.attach import attach as attach
    from softprompts.model.load import load as load
    from softprompts.model.prompt_model import PromptModel as PromptModel
    from softprompts.predictor import Predictor as Predictor
    from softprompts.soft_prompt import Frozen as Frozen
    from softprompts.soft_prompt import Part as Part
    from softprompts.soft_prompt import SoftPrompt as SoftPrompt

# Where each public name lives. Imported when first used, so that `softprompts --help` need not wait for torch.
_HOMES = {
    "softprompts.errors": ("SoftPromptError",),
    "softprompts.methods": (
        "AdaMixConfig",
        "AdapterConfig",
        "AdapterDropConfig",
        "AdaptivePrefixConfig",
        "AttemptConfig",
        "BitFitConfig",
        "compose",
        "ComposedConfig",
        "DePTConfig",
        "DPTConfig",
        "EPTConfig",
        "fit_autoencoder",
        "FullConfig",
        "HeadOnlyConfig",
        "IntrinsicConfig",
        "LoraConfig",
        "MPTConfig",
        "MultiMaskConfig",
        "PrefixTuningConfig",
        "PromptTuningConfig",
        "PTuningConfig",
        "ResidualConfig",
        "SelectivePrefixConfig",
        "SMoPConfig",
        "SPoTConfig",
        "SuperPosConfig",
        "Component",
        "Method",
        "MethodConfig",
        "Part",
        "Rows",
        "Shape",
        "make_config",
        "register",
    ),
    "softprompts.model.attach": ("attach",),
    "softprompts.model.prompt_model": ("PromptModel",),
    "softprompts.injection.state": ("is_attached",),
    "softprompts.injection.wiring": ("detach",),
    "softprompts.predictor": ("Predictor",),
    "softprompts.model.load": ("load",),
    "softprompts.soft_prompt": ("Frozen", "SoftPrompt"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = ["__version__", "methods", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name == "methods":  # the package itself can be called
        return import_module("softprompts.methods")
    if name not in _HOME:
        raise AttributeError(f"module 'softprompts' has no attribute '{name}'")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
