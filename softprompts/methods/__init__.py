"""The methods, one file each. Importing this package makes all of them known by name."""

import sys
from types import ModuleType

from softprompts.methods.base import (
    SITE_KINDS,
    About,
    Component,
    Method,
    MethodConfig,
    Rows,
    Shape,
    Span,
    Vocabulary,
    make_config,
    methods,
    register,
)
from softprompts.methods.dept import DePTConfig
from softprompts.methods.dpt import DPTConfig
from softprompts.methods.ept import EPTConfig
from softprompts.methods.folded import FoldedConfig, fold
from softprompts.methods.head_only import HeadOnly as HeadOnly
from softprompts.methods.head_only import HeadOnlyConfig as HeadOnlyConfig
from softprompts.methods.multi_mask import MultiMaskConfig
from softprompts.methods.p_tuning import PTuningConfig
from softprompts.methods.prefix_tuning import PrefixTuningConfig
from softprompts.methods.prompt_tuning import PromptTuningConfig
from softprompts.methods.residual import ResidualConfig
from softprompts.methods.selective_prefix import SelectivePrefixConfig
from softprompts.methods.smop import SMoPConfig
from softprompts.methods.superpos import SuperPosConfig

__all__ = [
    "SITE_KINDS",
    "About",
    "Component",
    "DPTConfig",
    "DePTConfig",
    "EPTConfig",
    "FoldedConfig",
    "HeadOnlyConfig",
    "Method",
    "MethodConfig",
    "MultiMaskConfig",
    "PTuningConfig",
    "PrefixTuningConfig",
    "PromptTuningConfig",
    "ResidualConfig",
    "Rows",
    "SMoPConfig",
    "SelectivePrefixConfig",
    "Shape",
    "Span",
    "SuperPosConfig",
    "Vocabulary",
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
