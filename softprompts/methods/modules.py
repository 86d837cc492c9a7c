"""Base classes of the methods that change modules of the backbone: they have no virtual tokens and do not fold."""

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
    """The settings that all of these methods have.

    Attributes:
        num_virtual_tokens: always 0.
    """

    num_virtual_tokens: Literal[0] = 0

    uses_parts = True


class ModuleMethod(Method):
    """A method whose prompts are changed modules."""

    def cannot_fold(self) -> str | None:
        """Folding leaves tokens, prefixes and updates, of which there are none."""
        return "it changes the model's weights"


class BottleneckMethod(ModuleMethod):
    """A method that puts bottlenecks behind modules: ``W_down``, ``b_down``, ``W_up`` and ``b_up`` by the path of each.

    y = h + W_up f(W_down h + b_down) + b_up,   h = frozen(x)
    """

    def __init__(self, config: MethodConfig, activation: Activation):
        super().__init__(config)
        self.activation = ACTIVATIONS[activation]
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        self.down_bias, self.up_bias = nn.ParameterDict(), nn.ParameterDict()

    def add(self, part: Part, width: int, std: float, downs: tuple[int, ...] = (), ups: tuple[int, ...] = ()) -> None:
        """Makes the bottleneck of ``width`` behind a module: weights from N(0, std^2), biases 0.

        ``downs`` and ``ups`` are the numbers of equal projections, where there is more than one.
        """
        name, out = key(part.path), part.out_features
        down, up = (nn.init.normal_(torch.empty(size), std=std) for size in ((width, out), (out, width)))
        self.down[name] = nn.Parameter(down.repeat(*downs, 1, 1))
        self.up[name] = nn.Parameter(up.repeat(*ups, 1, 1))
        self.down_bias[name] = nn.Parameter(torch.zeros(*downs, width))
        self.up_bias[name] = nn.Parameter(torch.zeros(*ups, out))

    def way(self, path: str) -> PartWay:
        """The way through a module and the bottleneck behind it."""
        name = key(path)
        projections = ((self.down[name], self.down_bias[name]), (self.up[name], self.up_bias[name]))
        (down, down_bias), (up, up_bias) = (self.choose(weight, bias) for weight, bias in projections)

        def behind(frozen: Frozen, x: Tensor) -> Tensor:
            h = frozen(x)
            inner = self.activation(functional.linear(h.to(down.dtype), down, down_bias))
            return h + functional.linear(inner, up, up_bias).to(h.dtype)

        return behind

    def choose(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The weight and bias of a projection that a pass takes."""
        return weight, bias

    def bottlenecks(self) -> list[nn.Parameter]:
        """All their parameters."""
        tables = (self.down, self.down_bias, self.up, self.up_bias)
        return [parameter for table in tables for parameter in table.values()]


def key(path: str, name: str = "") -> str:
    """The path of a module (and the name of a parameter in it) as a name without dots, for a parameter of ours."""
    return (f"{path}.{name}" if name else path).replace(".", "/")


def with_role(config: MethodConfig, shape: Shape, roles: Iterable[str]) -> list[Part]:
    """The linear layers that have any of these roles.

    Raises:
        SoftPromptError: there is none.
    """
    wanted = set(roles)
    layers = [part for part in shape.parts if part.kind in LINEAR and part.by_row and wanted.intersection(part.roles)]
    config.require(bool(layers), f"this backbone has no linear layer known as {' or '.join(sorted(wanted))}")
    return layers


def copies(parts: Iterable[Part]) -> tuple[nn.ParameterDict, dict[str, dict[str, str]]]:
    """Trained copies of the parameters of some modules; tied ones have one copy.

    Returns:
        The copies by their names; and by the path of each module, the name of the copy of each of its parameters.
    """
    copied: dict[int, str] = {}  # the names of copies by the identity of what they are copied from
    names: dict[str, dict[str, str]] = {}
    trained = nn.ParameterDict()
    for part in parts:
        names[part.path] = {}
        for name, tensor in part.tensors.items():
            if not tensor.numel():
                raise SoftPromptError(
                    f"'{part.path}' is empty and cannot be copied: load the model whole, not in parts"
                )
            if id(tensor) not in copied:
                copied[id(tensor)] = key(part.path, name)
                trained[copied[id(tensor)]] = nn.Parameter(tensor.detach().clone())
            names[part.path][name] = copied[id(tensor)]
    return trained, names


def ways_with(trained: nn.ParameterDict, names: Mapping[str, Mapping[str, str]]) -> dict[str, PartWay]:
    """By path, the way through each module with the parameters that `copies` made of its own."""
    return {
        path: functools.partial(_replaced, {name: trained[copy] for name, copy in copied.items()})
        for path, copied in names.items()
    }


def _replaced(tensors: Mapping[str, Tensor], frozen: Frozen, *args: Any, **kwargs: Any) -> Tensor:
    return frozen.with_parameters(tensors, *args, **kwargs)
