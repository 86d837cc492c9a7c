"""Soft-prompt and prefix tuning of frozen transformers, every row of a batch with its own prompt."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from softprompts.version import __version__ as __version__

if TYPE_CHECKING:
    from softprompts.errors import SoftPromptError as SoftPromptError
    from softprompts.injection.state import is_attached as is_attached
    from softprompts.injection.wiring import detach as detach
    from softprompts.methods import *  # noqa: F403
    from softprompts.model.attach import attach as attach
    from softprompts.model.load import load as load
    from softprompts.model.method_check import check_method as check_method
    from softprompts.model.prompt_model import PromptModel as PromptModel
    from softprompts.predictor import Predictor as Predictor
    from softprompts.soft_prompt import Frozen as Frozen
    from softprompts.soft_prompt import SoftPrompt as SoftPrompt

# Public names by module, but for the configs of the methods, which `softprompts.methods` lists. Each is imported when
# it is first used, so that `softprompts --help` need not wait for torch.
_NAMES = {
    "softprompts.errors": ("SoftPromptError",),
    "softprompts.injection.state": ("is_attached",),
    "softprompts.injection.wiring": ("detach",),
    "softprompts.methods": (
        *("Component", "Method", "MethodConfig", "Part", "Rows", "Shape"),
        *("compose", "fit_autoencoder", "make_config", "register"),
    ),
    "softprompts.model.attach": ("attach",),
    "softprompts.model.load": ("load",),
    "softprompts.model.method_check": ("check_method",),
    "softprompts.model.prompt_model": ("PromptModel",),
    "softprompts.predictor": ("Predictor",),
    "softprompts.soft_prompt": ("Frozen", "SoftPrompt"),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "methods":  # the package itself can be called
        return import_module("softprompts.methods")
    if name == "__all__":
        methods = import_module("softprompts.methods")
        configs = {key for key, value in vars(methods).items() if key.endswith("Config") and value.listed}
        value: Any = ["__version__", "methods", *sorted(configs | set(_HOMES))]
    else:
        home = _HOMES.get(name, "softprompts.methods" if name[:1].isupper() else None)
        if home is None or not hasattr(import_module(home), name):
            raise AttributeError(f"module 'softprompts' has no attribute '{name}'")
        value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
