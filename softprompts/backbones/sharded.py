"""Parameters of which each process holds a part: FSDP2 (torch's ``fully_shard``) and DeepSpeed's ZeRO-3.

Both change parameters in place. FSDP2 makes each a `DTensor` that knows its whole shape; ZeRO-3 leaves an empty tensor
with its shape beside it, and fills it while its module runs. Prompts are sharded with the rest, and gathered to be
saved.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn


def shape_of(tensor: Tensor) -> torch.Size:
    """The whole shape of a parameter, of which this process may hold a part."""
    return cast(torch.Size, cast(Any, tensor).ds_shape) if _by_zero(tensor) else tensor.shape


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only a part of a tensor."""
    return _by_zero(tensor) or hasattr(tensor, "full_tensor")


def _by_zero(tensor: Tensor) -> bool:
    return hasattr(tensor, "ds_id") and hasattr(tensor, "ds_shape")


def whole(module: nn.Module) -> dict[str, Tensor]:
    """A module's state with whole tensors, on the CPU. All processes have to ask, where it is sharded."""
    partitioned = [parameter for parameter in module.parameters() if _by_zero(parameter)]
    with _gathered(partitioned):
        return {key: plain(value) for key, value in module.state_dict().items()}


def plain(tensor: Tensor) -> Tensor:
    """A whole copy of a tensor on the CPU."""
    return _full(tensor.detach()).cpu().contiguous().clone()


def _full(tensor: Tensor) -> Tensor:
    full: Any = cast(Any, tensor).full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return cast(Tensor, full.wait() if hasattr(full, "wait") else full)  # it may still be on its way


@contextlib.contextmanager
def _gathered(parameters: list[nn.Parameter]) -> Iterator[None]:
    """A block in which partitioned parameters are whole."""
    if not parameters:
        yield
        return
    with importlib.import_module("deepspeed").zero.GatheredParameters(parameters):
        yield


@contextlib.contextmanager
def running(model: nn.Module) -> Iterator[None]:
    """A block in which a partitioned model can run, module by module, before an engine has been made of it.

    That is how transformers loads it where a ZeRO-3 configuration is set before ``from_pretrained``.
    """
    handles: list[Any] = []
    for module in model.modules():
        own = [parameter for parameter in module._parameters.values() if parameter is not None and _by_zero(parameter)]
        if own:
            handles.append(module.register_forward_pre_hook(lambda *_, own=own: own[0].all_gather(own)))  # type: ignore[misc]
            handles.append(module.register_forward_hook(lambda *_, own=own: own[0].partition(own)))  # type: ignore[misc]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def hold(model: nn.Module, module: nn.Module) -> None:
    """Has ZeRO-3 keep a module's parameters together from a model's forward to the end of its backward.

    By itself it lets go of them when the module's own forward has ended and looks at what came out to know when they
    are needed again; what prompts hand over is no tensor that it would find.
    """
    if "deepspeed" not in sys.modules:
        return
    known = model.__dict__.get("_external_params", {})
    new = [parameter for parameter in module.parameters() if id(parameter) not in known]
    for parameter in new:
        importlib.import_module("deepspeed").zero.register_external_parameter(model, parameter)
    late: list[Any] = [parameter for parameter in new if _by_zero(parameter)]
    if late:  # the model's forward is under way, and began without them
        for parameter in late:
            parameter.ds_active_sub_modules.add(cast(Any, model).ds_id)
        late[0].all_gather(late)


def writes(module: nn.Module) -> bool:
    """Whether this process writes what `whole` gave: the first, where all of them had to ask for it."""
    if not any(map(is_sharded, module.parameters())):
        return True
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
