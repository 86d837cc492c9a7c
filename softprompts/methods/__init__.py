"""The methods, one file each. Importing this package registers all of them; a new one is added to this list."""

import sys
from types import ModuleType

from softprompts.methods.about import About as About
from softprompts.methods.about import Span as Span
from softprompts.methods.about import View as View
from softprompts.methods.about import Vital as Vital
from softprompts.methods.baselines.adamix import AdaMixConfig as AdaMixConfig
from softprompts.methods.baselines.adapter import AdapterConfig as AdapterConfig
from softprompts.methods.baselines.adapter import AdapterDropConfig as AdapterDropConfig
from softprompts.methods.baselines.adaptive_prefix import AdaptivePrefixConfig as AdaptivePrefixConfig
from softprompts.methods.baselines.attempt import AttemptConfig as AttemptConfig
from softprompts.methods.baselines.bitfit import BitFitConfig as BitFitConfig
from softprompts.methods.baselines.dept import DePTConfig as DePTConfig
from softprompts.methods.baselines.dpt import DPTConfig as DPTConfig
from softprompts.methods.baselines.full import FullConfig as FullConfig
from softprompts.methods.baselines.head_only import HeadOnlyConfig as HeadOnlyConfig
from softprompts.methods.baselines.intrinsic import IntrinsicConfig as IntrinsicConfig
from softprompts.methods.baselines.intrinsic import fit_autoencoder as fit_autoencoder
from softprompts.methods.baselines.lora import LoraConfig as LoraConfig
from softprompts.methods.baselines.mpt import MPTConfig as MPTConfig
from softprompts.methods.baselines.p_tuning import PTuningConfig as PTuningConfig
from softprompts.methods.baselines.prefix_tuning import PrefixTuningConfig as PrefixTuningConfig
from softprompts.methods.baselines.prompt_tuning import PromptTuningConfig as PromptTuningConfig
from softprompts.methods.baselines.residual import ResidualConfig as ResidualConfig
from softprompts.methods.baselines.smop import SMoPConfig as SMoPConfig
from softprompts.methods.baselines.spot import SPoTConfig as SPoTConfig
from softprompts.methods.compose import ComposedConfig as ComposedConfig
from softprompts.methods.compose import compose as compose
from softprompts.methods.compose import make_config as make_config
from softprompts.methods.contract import SITE_KINDS as SITE_KINDS
from softprompts.methods.contract import Answers as Answers
from softprompts.methods.contract import Component as Component
from softprompts.methods.contract import Method as Method
from softprompts.methods.contract import MethodConfig as MethodConfig
from softprompts.methods.contract import Rows as Rows
from softprompts.methods.contract import Shape as Shape
from softprompts.methods.contract import Vocabulary as Vocabulary
from softprompts.methods.ept import EPTConfig as EPTConfig
from softprompts.methods.folded import FoldedConfig as FoldedConfig
from softprompts.methods.folded import fold as fold
from softprompts.methods.multi_mask import MultiMaskConfig as MultiMaskConfig
from softprompts.methods.registry import methods as methods
from softprompts.methods.registry import register as register
from softprompts.methods.selective_prefix import SelectivePrefixConfig as SelectivePrefixConfig
from softprompts.methods.superpos import SuperPosConfig as SuperPosConfig
from softprompts.soft_prompt import Part as Part


class _Callable(ModuleType):
    """``softprompts.methods`` is this package and the function that lists what is in it."""

    def __call__(self) -> dict[str, type[MethodConfig]]:
        """All methods by name; see `softprompts.methods.registry.methods`."""
        return methods()


sys.modules[__name__].__class__ = _Callable
