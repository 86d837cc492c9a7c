"""The methods, one file each. Importing this package makes all of them known by name."""

from softprompts.methods.base import (
    SITE_KINDS,
    Component,
    Method,
    MethodConfig,
    Rows,
    Shape,
    Vocabulary,
    make_config,
    methods,
    register,
)
from softprompts.methods.ept import EPTConfig
from softprompts.methods.folded import FoldedConfig, fold
from softprompts.methods.multi_mask import MultiMaskConfig
from softprompts.methods.prefix_tuning import PrefixTuningConfig
from softprompts.methods.prompt_tuning import PromptTuningConfig
from softprompts.methods.selective_prefix import SelectivePrefixConfig
from softprompts.methods.superpos import SuperPosConfig

__all__ = [
    "SITE_KINDS",
    "Component",
    "EPTConfig",
    "FoldedConfig",
    "Method",
    "MethodConfig",
    "MultiMaskConfig",
    "PrefixTuningConfig",
    "PromptTuningConfig",
    "Rows",
    "SelectivePrefixConfig",
    "Shape",
    "SuperPosConfig",
    "Vocabulary",
    "fold",
    "make_config",
    "methods",
    "register",
]
