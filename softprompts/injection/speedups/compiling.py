"""torch.compile for the layers of a frozen backbone, one by one and only for a while.

Layers of one kind share their compiled code, so that compiling takes about as long as for one of them whatever the
depth. Hooks, prompts, heads and gradient checkpointing stay outside; a layer's prefixes are looked up outside too and
are ordinary inputs of the compiled code. Sizes are dynamic: batches may differ in rows and columns.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from softprompts.attention import prefix
from softprompts.errors import SoftPromptError
from softprompts.injection import checkpointing, module_dispatch
from softprompts.injection.state import State, state_of

# One kind of layer is compiled once for each sort of prompt (no prefix, shared, by row, masked, selective), with and
# without gradients, with and without autocast: more than torch's usual limit of 8, after which it stops compiling.
_KINDS = 64


def require_compiler(device: torch.device) -> None:
    """Makes sure that there is what torch needs to compile for a device.

    Raises:
        SoftPromptError: there is not.
    """
    if sys.platform == "win32":
        names = [os.environ.get("CXX") or "cl"]
    else:
        names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    if not any(shutil.which(name) for name in names) or not _works():
        raise SoftPromptError(
            f"compiling needs a C++ compiler ({' or '.join(names)}), of which none works: "
            "install one, or leave out compile"
        )
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise SoftPromptError("compiling for a GPU needs Triton: pip install triton, or leave out compile")


def _works() -> bool:
    """Whether torch finds a C++ compiler that runs."""
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler
    except ImportError:  # other versions of torch have it elsewhere
        return True
    try:
        return bool(get_cpp_compiler())
    except InvalidCxxCompiler:
        return False


def layers_of(model: Any) -> list[nn.Module]:
    """The layers of an attached model: outermost ones only.

    Raises:
        SoftPromptError: the model is not made of layers that can be told, or a prompt changes modules in them.
    """
    module_dispatch.require_unchanged(model)
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    backbone = [module for name, module in model.named_modules() if not name.startswith("prompts.")]
    listed = [layer for module in backbone if isinstance(module, nn.ModuleList) for layer in module]
    sites = {site.module for site in state_of(model).backbone.sites}
    for module in backbone:
        layer = isinstance(module, GradientCheckpointingLayer) or (
            module in listed and any(part in sites for part in module.modules())
        )
        if layer and module not in inside:
            found.append(module)
            inside.update(module.modules())
    if not found:
        raise SoftPromptError(f"{type(model).__name__} is not made of layers that can be compiled; leave out compile")
    return found


def require_compilable(model: Any, device: torch.device) -> None:
    """Makes sure that `compiled` can do its work.

    Raises:
        SoftPromptError: there is no compiler for the device, or no layer in the model.
    """
    layers_of(model)
    require_compiler(device)


@contextlib.contextmanager
def compiled(model: Any) -> Iterator[None]:
    """Within this context the layers of an attached model run compiled; afterwards they are what they were.

    Raises:
        SoftPromptError: there is no compiler, no layer, or compiling fails.
    """
    import torch._dynamo
    import torch.fx.experimental._config as shapes

    state = state_of(model)
    site_of = {site.module: index for index, site in enumerate(state.backbone.sites)}
    # Where one position of the last layer is read, little is left of it to compile, and its widths would be fixed.
    spared = None if state.readout is None else state.readout.layer
    layers = [_Layer(layer, state, site_of) for layer in layers_of(model) if layer is not spared]
    with (
        torch._dynamo.config.patch(recompile_limit=_KINDS, accumulated_recompile_limit=16 * _KINDS),
        # Sizes that happen to be equal in the first batch, such as rows and columns, need not be so in the next.
        shapes.patch(use_duck_shape=False),  # type: ignore[attr-defined]
    ):
        try:
            for layer in layers:
                layer.install()
            yield
        finally:
            for layer in layers:
                layer.uninstall()


class _Layer:
    """Stands in for a layer's forward: looks up the prefixes of the attention sites within, then runs compiled code."""

    def __init__(self, layer: nn.Module, state: State, site_of: dict[nn.Module, int]):
        self.layer = layer
        self.state = state
        self.sites = [(module, site_of[module]) for module in layer.modules() if module in site_of]
        # Below gradient checkpointing, where the model has it.
        self.slot = checkpointing.inner_slot(layer)
        self.before: Any = None

    def install(self) -> None:
        self.before = self.layer.__dict__.get(self.slot)
        self.layer.__dict__[self.slot] = self

    def uninstall(self) -> None:
        if self.before is None:
            self.layer.__dict__.pop(self.slot, None)
        else:
            self.layer.__dict__[self.slot] = self.before
        for module, _ in self.sites:
            prefix.let_go(module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        states = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if states is None:
            raise SoftPromptError(f"{type(self.layer).__name__} was called without a tensor and cannot be compiled")
        if any(self.state.reads_states(index) for _, index in self.sites):
            return _forward(self.before, self.layer, args, kwargs)  # gates are made within the layer, by hooks
        for module, index in self.sites:
            prefix.hold(module, self.state.prefix_of(index, states.shape[0]))
        try:
            return _run(self.before, self.layer, args, kwargs)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            # What follows an empty line is torch's advice on how to debug it.
            reason = " ".join(str(error).strip().split("\n\n")[0].split())[:300]
            raise SoftPromptError(f"compiling {type(self.layer).__name__} failed: {reason}") from error


def _forward(own: Callable[..., Any] | None, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if own is not None:
        return own(*args, **kwargs)
    return type(layer).forward(layer, *args, **kwargs)


_run = torch.compile(_forward, dynamic=True)
