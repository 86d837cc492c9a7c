"""Matrix products with frozen weights through oneDNN, on processors where torch's own choice leaves half of it unused.

On a CPU torch gives float32 products to MKL. On AMD processors with AVX-512, MKL stays with narrower instructions,
while oneDNN, which torch brings along too, uses all of them: it was 2.2 times as fast there on the layers of a small
encoder, forward and backward (benchmarks/step.py, docs/performance.md). A frozen weight needs no gradient of its own,
so that two products are all there is to a linear layer:

    y = x W^T + b,   dL/dx = dL/dy W

Used in passes with a prompt, for frozen float32 weights of ``nn.Linear`` and ``Conv1D``. Numbers differ from MKL's by
rounding. Under autocast to bfloat16, on any processor with instructions for it, the weights are cast once and not at
every call; what comes out is what autocast makes. ``SOFTPROMPTS_ONEDNN=0`` in the environment switches both off.
"""

from __future__ import annotations

import functools
import os
import platform
import types
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from softprompts.injection.state import State

_STATE, _HALF = "_softprompt_linear", "_softprompt_bfloat16"
_ROWS = 8  # with fewer, as when generating token by token, there is nothing to gain


@functools.cache
def pays() -> bool:
    """Whether this is a processor on which oneDNN is faster than what torch chooses, and it computes what it should."""
    if not _wanted():
        return False
    # By what is there and not by a stopwatch, so that the same machine always computes the same numbers.
    return (
        _amd() and torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkl.is_available() and works()
    )


@functools.cache
def half_pays() -> bool:
    """Whether this processor multiplies bfloat16 itself."""
    return _wanted() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and works()


def _wanted() -> bool:
    return os.environ.get("SOFTPROMPTS_ONEDNN", "1").lower() not in ("0", "false", "no", "off")


@functools.cache
def works() -> bool:
    """Whether oneDNN's operator, which is not part of torch's public interface, is there and right."""
    inputs = torch.linspace(-1, 1, 60, device="cpu").view(3, 4, 5)
    weight, bias = torch.linspace(-2, 1, 35, device="cpu").view(7, 5), torch.ones(7, device="cpu")
    try:
        forward = _product(inputs, weight, bias)
        backward = _product(forward, weight.t(), None)
    except (AttributeError, RuntimeError):
        return False
    wanted = inputs @ weight.t() + bias
    return torch.allclose(forward, wanted, atol=1e-5) and torch.allclose(backward, wanted @ weight, atol=1e-4)


def _amd() -> bool:
    told = Path("/proc/cpuinfo")
    try:
        return "AuthenticAMD" in (told.read_text()[:2000] if told.exists() else platform.processor())
    except OSError:
        return False


def install(model: nn.Module, state: State) -> None:
    """Lets the frozen linear layers of a model that is being attached run through oneDNN, where it pays."""
    if not (pays() or half_pays()):
        return
    # Each prompt has a head of its own, made from the model's, which trains.
    heads = {part for head in state.backbone.heads.values() for part in head.modules()}
    for module in model.modules():
        if type(module) in (nn.Linear, Conv1D) and module not in heads and "forward" not in module.__dict__:
            module.__dict__[_STATE] = state
            module.__dict__["forward"] = types.MethodType(_forward, module)


def uninstall(model: nn.Module) -> None:
    """Undoes `install`."""
    for module in model.modules():
        ours = getattr(module.__dict__.get("forward"), "__func__", None) is _forward
        module.__dict__.pop(_HALF, None)
        if module.__dict__.pop(_STATE, None) is not None and ours:
            del module.__dict__["forward"]


def _forward(self: nn.Module, x: Tensor) -> Tensor:
    """Stands in for the layer's forward."""
    if torch.compiler.is_compiling() or self.__dict__[_STATE].current is None or not _covers(self, x):
        return cast(Tensor, type(self).forward(self, x))
    weight, bias = cast(Tensor, self.weight), cast("Tensor | None", self.bias)
    if torch.is_autocast_enabled("cpu"):
        x = x.to(torch.bfloat16)
        weight, bias = _half(self)
    if isinstance(self, Conv1D):  # keeps it the other way round
        weight = weight.t()
    if x.requires_grad and torch.is_grad_enabled():
        return cast(Tensor, FrozenLinear.apply(x, weight, bias))  # type: ignore[no-untyped-call]
    return _product(x, weight, bias)


def _half(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias in bfloat16, cast when they are first used or have changed."""
    parts = cast(Tensor, layer.weight), cast("Tensor | None", layer.bias)
    now = [None if part is None else (part.data_ptr(), part._version) for part in parts]
    kept = layer.__dict__.get(_HALF)
    if kept is None or kept[0] != now:
        half = [None if part is None else part.detach().to(torch.bfloat16) for part in parts]
        kept = layer.__dict__[_HALF] = (now, half)
    return cast("tuple[Tensor, Tensor | None]", tuple(kept[1]))


def _covers(layer: nn.Module, x: Tensor) -> bool:
    weight, bias = cast(Tensor, layer.weight), cast("Tensor | None", layer.bias)
    if torch.is_autocast_enabled("cpu"):
        fits = torch.get_autocast_dtype("cpu") == torch.bfloat16 and half_pays() and x.is_floating_point()
    else:
        fits = x.dtype == torch.float32 and pays()
    return bool(
        fits
        and weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and type(weight) is nn.Parameter
        and not weight.requires_grad
        and (bias is None or not bias.requires_grad)
        and x.numel() >= _ROWS * x.shape[-1]
        and torch.backends.mkldnn.enabled  # type: ignore[attr-defined]
        and not torch._C._are_functorch_transforms_active()
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


class FrozenLinear(torch.autograd.Function):
    """``x W^T + b`` with a gradient for ``x`` alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``x``: (..., k), ``weight``: (n, k) in any strides, ``bias``: (n,); returns (..., n)."""
        ctx.save_for_backward(weight)
        return _product(x, weight, bias).detach()  # no view of a product of two axes: callers may write into it

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Itself such a product, so that it can be differentiated again."""
        (weight,) = ctx.saved_tensors
        return FrozenLinear.apply(grads[0], weight.t(), None), None, None  # type: ignore[no-untyped-call]
