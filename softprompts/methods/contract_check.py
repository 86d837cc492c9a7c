"""What has to hold of every method, as far as sizes and gradients tell; each check gives the fault, or None.

`softprompts.model.method_check` runs these and more on small models.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter

import torch

from softprompts.errors import SoftPromptError
from softprompts.methods.contract import Method, MethodConfig
from softprompts.methods.registry import config_of
from softprompts.soft_prompt import SoftPrompt

NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*", re.ASCII)


def settings_fault(config: MethodConfig) -> str | None:
    """What is wrong with the settings: their way through JSON, in which they are saved, must not change them."""
    if not NAME.fullmatch(config.method):
        return f"the name '{config.method}' has to be of small letters and digits with single '-' between"
    try:
        fields = json.loads(json.dumps(config.to_dict(), allow_nan=False))
    except (TypeError, ValueError) as error:
        return f"they cannot be saved as JSON ({error}): use numbers, texts, lists and None"
    try:
        again = config_of(config.method, fields)
    except (SoftPromptError, TypeError) as error:
        return f"what was saved makes no config ({error}): every setting of to_dict() has to be a field"
    return None if again == config else "they change on their way through JSON: compare to_dict() with the fields"


def components_fault(method: Method) -> str | None:
    """Which parameter would never be trained, or twice, or at no rate."""
    components = method.components()
    listed = Counter(id(part) for component in components.values() for part in component.parameters)
    for name, parameter in method.named_parameters():
        times = listed[id(parameter)]
        if parameter.requires_grad and times != 1:
            return f"components() lists the parameter '{name}' {times} times; once is right" + (
                ", or nothing trains it (what is not trained is a buffer)" if not times else ""
            )
    own = {id(parameter) for parameter in method.parameters()}
    for name, component in components.items():
        if any(id(parameter) not in own for parameter in component.parameters):
            return f"components() lists in '{name}' what is no parameter of the module, and so is not saved"
        if not (math.isfinite(component.learning_rate) and component.learning_rate > 0):
            return f"the learning rate of '{name}' is {component.learning_rate}; it has to be above 0"
    return None


def prompt_fault(method: Method, soft: SoftPrompt, rows: int, sites: int, width: int, hidden_size: int) -> str | None:
    """What does not fit in what `forward` handed over.

    Args:
        method: the method.
        soft: what it returned for ``rows`` rows.
        rows: ``R``.
        sites: ``S``.
        width: ``w``.
        hidden_size: ``d``.
    """
    config = method.config
    if not isinstance(soft, SoftPrompt):
        return f"forward returned {type(soft).__name__}, not a SoftPrompt"
    if fault := soft.fault(rows if method.per_row else 1, sites, width, hidden_size):
        return f"of what forward returned, {fault}"
    for name, there, flag in (("tokens", soft.tokens, "uses_tokens"), ("keys", soft.keys, "uses_prefix")):
        if (there is not None) != getattr(config, flag):
            verb = "returns no" if there is None else "returns"
            return f"forward {verb} {name}, and {flag} of its config is {getattr(config, flag)}"
    if soft.tokens is not None and soft.tokens.shape[1] != config.input_tokens:
        return (
            f"forward returns {soft.tokens.shape[1]} tokens, and the config says {config.input_tokens} (input_tokens)"
        )
    if soft.penalty is not None and soft.penalty.shape != ():
        return f"the penalty is of shape {tuple(soft.penalty.shape)}, and has to be a scalar"
    if set(soft.modules or {}) != set(method.changes):
        return "the modules that forward changes are not those that 'changes' names"
    if bool(method.changes) != config.uses_parts:
        return f"it changes {len(method.changes)} modules, and uses_parts of its config is {config.uses_parts}"
    return None


def gradient_fault(method: Method, least: float | None = None) -> str | None:
    """Which parameter got no gradient in a backward pass, or none that is finite or larger than ``least``."""
    for name, parameter in method.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            return f"no gradient reaches '{name}': forward does not use it, or detaches what it makes of it"
        if not torch.isfinite(parameter.grad).all():
            return f"the gradient of '{name}' is not finite"
        if least is not None and not (parameter.grad.abs() > least).any():
            return f"the gradient of '{name}' is 0 everywhere: what it does has no influence on the outputs"
    return None
