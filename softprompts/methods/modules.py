"""What methods share that change the backbone's own modules instead of its input: no virtual tokens, and no folding."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from softprompts.errors import SoftPromptError
from softprompts.methods.contract import Method, MethodConfig, Shape
from softprompts.soft_prompt import Frozen, Part, PartWay
from softprompts.validation import settings

NORM = "norm"
LINEAR = ("linear", "conv1d")
Activation = Literal["gelu", "gelu_new", "relu", "swish"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_new": functools.partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "swish": functional.silu,
}


@settings
class ModuleConfig(MethodConfig):
    """Settings that all of these have.

    Attributes:
        num_virtual_tokens: always 0.
    """

    num_virtual_tokens: Literal[0] = 0

    uses_parts = True


class ModuleMethod(Method):
    """A method whose prompts are changed modules."""

    def cannot_fold(self) -> str | None:
        """Folding leaves tokens, prefixes and updates, and there are none."""
        return "it changes the model's weights"


def key(path: str, name: str = "") -> str:
    """A module's path (and the name of a parameter in it) as the name of a parameter of ours, which has no dots."""
    return (f"{path}.{name}" if name else path).replace(".", "/")


def with_role(config: MethodConfig, shape: Shape, roles: Iterable[str]) -> list[Part]:
    """The linear layers that have any of these roles.

    Raises:
        SoftPromptError: there is none.
    """
    wanted = set(roles)
    found = [part for part in shape.parts if part.kind in LINEAR and part.by_row and wanted.intersection(part.roles)]
    config.require(bool(found), f"this backbone has no linear layer known as {' or '.join(sorted(wanted))}")
    return found


def copies(parts: Iterable[Part]) -> tuple[nn.ParameterDict, dict[str, dict[str, str]]]:
    """Trained copies of the parameters of some modules; tied ones have one copy.

    Returns:
        The copies by their names, and for each path which of them stands in for which parameter.
    """
    made: dict[int, str] = {}
    names: dict[str, dict[str, str]] = {}
    trained = nn.ParameterDict()
    for part in parts:
        names[part.path] = {}
        for name, tensor in part.tensors.items():
            if not tensor.numel():
                raise SoftPromptError(
                    f"'{part.path}' is empty and cannot be copied: load the model whole, not in parts"
                )
            if id(tensor) not in made:
                made[id(tensor)] = key(part.path, name)
                trained[made[id(tensor)]] = nn.Parameter(tensor.detach().clone())
            names[part.path][name] = made[id(tensor)]
    return trained, names


def behind(
    activation: Callable[[Tensor], Tensor],
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    up_bias: Tensor,
    frozen: Frozen,
    x: Tensor,
) -> Tensor:
    """A way through a module: ``h + W_up f(W_down h + b_down) + b_up`` with what the module makes, ``h``."""
    h = frozen(x)
    inner = activation(functional.linear(h.to(down.dtype), down, down_bias))
    return h + functional.linear(inner, up, up_bias).to(h.dtype)


def ways_with(trained: nn.ParameterDict, names: Mapping[str, Mapping[str, str]]) -> dict[str, PartWay]:
    """By path, the way through each module with the parameters that `copies` made of its own."""
    return {
        path: functools.partial(_replaced, {name: trained[own] for name, own in used.items()})
        for path, used in names.items()
    }


def _replaced(tensors: Mapping[str, Tensor], frozen: Frozen, *args: Any, **kwargs: Any) -> Tensor:
    return frozen.with_parameters(tensors, *args, **kwargs)


def draw_seed() -> int:
    """A seed for what is drawn within one pass, from torch's generator."""
    return int(torch.randint(2**62, (), device="cpu"))
