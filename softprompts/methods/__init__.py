"""The methods, one file each. Importing this package makes all of them known by name."""

import sys
from types import ModuleType

from softprompts.methods.about import About, Span, View
from softprompts.methods.baselines.adamix import AdaMixConfig
from softprompts.methods.baselines.adapter import AdapterConfig, AdapterDropConfig
from softprompts.methods.baselines.adaptive_prefix import AdaptivePrefixConfig
from softprompts.methods.baselines.attempt import AttemptConfig
from softprompts.methods.baselines.bitfit import BitFitConfig
from softprompts.methods.baselines.dept import DePTConfig
from softprompts.methods.baselines.dpt import DPTConfig
from softprompts.methods.baselines.full import FullConfig
from softprompts.methods.baselines.head_only import HeadOnly as HeadOnly
from softprompts.methods.baselines.head_only import HeadOnlyConfig as HeadOnlyConfig
from softprompts.methods.baselines.intrinsic import IntrinsicConfig, fit_autoencoder
from softprompts.methods.baselines.lora import LoraConfig
from softprompts.methods.baselines.mpt import MPTConfig
from softprompts.methods.baselines.p_tuning import PTuningConfig
from softprompts.methods.baselines.prefix_tuning import PrefixTuningConfig
from softprompts.methods.baselines.prompt_tuning import PromptTuningConfig
from softprompts.methods.baselines.residual import ResidualConfig
from softprompts.methods.baselines.smop import SMoPConfig
from softprompts.methods.baselines.spot import SPoTConfig
from softprompts.methods.compose import ComposedConfig, compose
from softprompts.methods.contract import SITE_KINDS, Answers, Component, Method, MethodConfig, Rows, Shape, Vocabulary
from softprompts.methods.ept import EPTConfig
from softprompts.methods.folded import FoldedConfig, fold
from softprompts.methods.making import make_config
from softprompts.methods.multi_mask import MultiMaskConfig
from softprompts.methods.registry import methods, register
from softprompts.methods.selective_prefix import SelectivePrefixConfig
from softprompts.methods.superpos import SuperPosConfig
from softprompts.soft_prompt import Part

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
        """All methods by name; see `softprompts.methods.registry.methods`."""
        return methods()


sys.modules[__name__].__class__ = _Callable
