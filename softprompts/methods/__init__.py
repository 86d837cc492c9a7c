"""The methods, one file each. Importing this package makes all of them known by name."""

import sys
from types import ModuleType

from softprompts.methods.adamix import AdaMixConfig
from softprompts.methods.adapter import AdapterConfig, AdapterDropConfig
from softprompts.methods.adaptive_prefix import AdaptivePrefixConfig
from softprompts.methods.attempt import AttemptConfig
from softprompts.methods.base import (
    SITE_KINDS,
    About,
    Answers,
    Component,
    Method,
    MethodConfig,
    Part,
    Rows,
    Shape,
    Span,
    View,
    Vocabulary,
    make_config,
    methods,
    register,
)
from softprompts.methods.bitfit import BitFitConfig
from softprompts.methods.compose import ComposedConfig, compose
from softprompts.methods.dept import DePTConfig
from softprompts.methods.dpt import DPTConfig
from softprompts.methods.ept import EPTConfig
from softprompts.methods.folded import FoldedConfig, fold
from softprompts.methods.full import FullConfig
from softprompts.methods.head_only import HeadOnly as HeadOnly
from softprompts.methods.head_only import HeadOnlyConfig as HeadOnlyConfig
from softprompts.methods.intrinsic import IntrinsicConfig, fit_autoencoder
from softprompts.methods.lora import LoraConfig
from softprompts.methods.mpt import MPTConfig
from softprompts.methods.multi_mask import MultiMaskConfig
from softprompts.methods.p_tuning import PTuningConfig
from softprompts.methods.prefix_tuning import PrefixTuningConfig
from softprompts.methods.prompt_tuning import PromptTuningConfig
from softprompts.methods.residual import ResidualConfig
from softprompts.methods.selective_prefix import SelectivePrefixConfig
from softprompts.methods.smop import SMoPConfig
from softprompts.methods.spot import SPoTConfig
from softprompts.methods.superpos import SuperPosConfig

__all__ = [
    "SITE_KINDS",
    "About",
    "AdaMixConfig",
    "AdapterConfig",
    "AdapterDropConfig",
    "AdaptivePrefixConfig",
    "Answers",
    "AttemptConfig",
    "BitFitConfig",
    "Component",
    "ComposedConfig",
    "DPTConfig",
    "DePTConfig",
    "EPTConfig",
    "FoldedConfig",
    "FullConfig",
    "HeadOnlyConfig",
    "IntrinsicConfig",
    "LoraConfig",
    "MPTConfig",
    "Method",
    "MethodConfig",
    "MultiMaskConfig",
    "PTuningConfig",
    "Part",
    "PrefixTuningConfig",
    "PromptTuningConfig",
    "ResidualConfig",
    "Rows",
    "SMoPConfig",
    "SPoTConfig",
    "SelectivePrefixConfig",
    "Shape",
    "Span",
    "SuperPosConfig",
    "View",
    "Vocabulary",
    "compose",
    "fit_autoencoder",
    "fold",
    "make_config",
    "methods",
    "register",
]


class _Callable(ModuleType):
    """``softprompts.methods`` is this package and the function that lists what is in it."""

    def __call__(self) -> dict[str, type[MethodConfig]]:
        """All methods by name; see `softprompts.methods.base.methods`."""
        return methods()


sys.modules[__name__].__class__ = _Callable
