"""Soft-prompt and prefix tuning of frozen transformers, every row of a batch with its own prompt."""

__version__ = "0.1.0"

from softprompts.errors import SoftPromptError as SoftPromptError
from softprompts.methods import EPTConfig as EPTConfig
from softprompts.methods import MultiMaskConfig as MultiMaskConfig
from softprompts.methods import PrefixTuningConfig as PrefixTuningConfig
from softprompts.methods import PromptTuningConfig as PromptTuningConfig
from softprompts.methods import SelectivePrefixConfig as SelectivePrefixConfig
from softprompts.methods import SuperPosConfig as SuperPosConfig
from softprompts.methods.base import Component as Component
from softprompts.methods.base import Method as Method
from softprompts.methods.base import MethodConfig as MethodConfig
from softprompts.methods.base import Rows as Rows
from softprompts.methods.base import make_config as make_config
from softprompts.methods.base import methods as methods
from softprompts.methods.base import register as register
from softprompts.model import PromptModel as PromptModel
from softprompts.model import attach as attach
from softprompts.model import detach as detach
from softprompts.model import is_attached as is_attached
from softprompts.saving import load as load
from softprompts.soft_prompt import SoftPrompt as SoftPrompt
