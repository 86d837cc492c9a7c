"""Parameters of which each process holds a part: FSDP2 (torch's ``fully_shard``) and DeepSpeed's ZeRO-3.

Both change parameters in place. FSDP2 makes each a `DTensor` that knows its whole shape; ZeRO-3 leaves an empty tensor
that knows its whole shape too, and fills it while its module runs. Prompts are sharded with the rest, and gathered to
be saved.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn


def shape_of(tensor: Tensor) -> torch.Size:
    """Returns the whole shape of a parameter, of which this process may hold a part."""
    return cast(torch.Size, cast(Any, tensor).ds_shape) if _by_zero(tensor) else tensor.shape


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds only a part of a tensor."""
    return _by_zero(tensor) or hasattr(tensor, "full_tensor")


def _by_zero(tensor: Tensor) -> bool:
    return hasattr(tensor, "ds_id") and hasattr(tensor, "ds_shape")


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """Returns a module's state with whole tensors, on the CPU. All processes must call it if the module is sharded."""
    partitioned = [parameter for parameter in module.parameters() if _by_zero(parameter)]
    gather = importlib.import_module("deepspeed").zero.GatheredParameters if partitioned else contextlib.nullcontext
    with gather(partitioned):
        return {key: whole_tensor(value) for key, value in module.state_dict().items()}


def whole_tensor(tensor: Tensor) -> Tensor:
    """Returns a whole copy of a tensor on the CPU."""
    full: Any = tensor.detach()
    full = full.full_tensor() if hasattr(full, "full_tensor") else full
    full = full.wait() if hasattr(full, "wait") else full  # it may not have been received yet
    return cast(Tensor, full.cpu().contiguous().clone())


@contextlib.contextmanager
def running(model: nn.Module) -> Iterator[None]:
    """Lets a partitioned model run within this context, module by module, before an engine has been made of it.

    That is how transformers loads it where a ZeRO-3 configuration is set before ``from_pretrained``.
    """
    with contextlib.ExitStack() as hooks:
        for module in model.modules():
            parts: list[Any] = [value for value in module._parameters.values() if value is not None and _by_zero(value)]
            if parts:
                gather, release = parts[0].all_gather, parts[0].partition
                hooks.enter_context(module.register_forward_pre_hook(functools.partial(_call, gather, parts)))
                hooks.enter_context(module.register_forward_hook(functools.partial(_call, release, parts)))
        yield


def _call(function: Callable[[Any], Any], parts: list[Any], *_: Any) -> None:
    function(parts)


def hold(model: nn.Module, module: nn.Module) -> None:
    """Makes ZeRO-3 keep a module's parameters whole from a model's forward to the end of its backward.

    Otherwise ZeRO-3 releases them after the module's own forward, and finds out by the tensors that come out when they
    are needed again; the output of a prompt's module holds no tensor that it would find.
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


def writes_files(module: nn.Module) -> bool:
    """Whether this process is the one that writes a module's state: the first, if the module is sharded."""
    if not any(map(is_sharded, module.parameters())):
        return True
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
