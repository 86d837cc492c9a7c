"""Several processes that train one run together (``accelerate launch``): common failures, values of the main process.

All processes run the same program and see the same rows, and each takes every ``world``-th row of a batch. Run folders
must lie where all of them can read; only the main process writes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast, broadcast_object_list, gather_object, parse_flag_from_env
from torch import nn

from softprompts.errors import SoftPromptError

T = TypeVar("T")
_SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}


def shared_state() -> PartialState:
    """Accelerate's state of this process, on the CPU if the environment says so.

    The first caller decides the device for good. An `Accelerator` reads the environment itself, but is not the first.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def is_main() -> bool:
    """Whether this process writes and prints: the only one, or the first of several."""
    return bool(shared_state().is_main_process)


@contextlib.contextmanager
def synchronized() -> Iterator[None]:
    """A block that fails in all processes when it fails in one, and that none leaves before all have reached its end.

    Without it, a process whose disk is full would leave the others waiting for its gradients. Where the block
    succeeded, the error names a process where it did not.
    """
    state = shared_state()
    if state.num_processes == 1:
        yield
        return
    failure: BaseException | None = None
    try:
        yield
    except BaseException as error:
        failure = error
    message = None if failure is None else (" ".join(str(failure).split()) or type(failure).__name__)
    messages: list[str | None] = gather_object([message])
    if failure is not None:
        raise failure
    for index, message in enumerate(messages):
        if message is not None:
            raise SoftPromptError(f"process {index} failed: {message}")


def on_main(make: Callable[[], T]) -> T:
    """Calls ``make`` in the main process alone; returns its result in all processes, or fails in all."""
    value: list[Any] = [None]
    with synchronized():
        if is_main():
            value = [make()]
    broadcast_object_list(value, from_process=0)
    return value[0]  # type: ignore[no-any-return]


def copy_from_main(module: nn.Module, accelerator: Accelerator) -> None:
    """Gives a module the main process's values: unseeded prompts and heads differ from process to process."""
    if accelerator.num_processes > 1:
        for tensor in module.state_dict().values():
            tensor.copy_(broadcast(tensor.detach().contiguous().to(accelerator.device), from_process=0))


def leave_group() -> None:
    """Leaves the group of processes, as torch requires before a program ends."""
    if torch.distributed.is_initialized():
        shared_state().destroy_process_group()


def require_unsharded(environment: Mapping[str, str]) -> None:
    """Raises a `SoftPromptError` if accelerate was told to shard a run of our own loop."""
    for variable, name in _SHARDING.items():
        if environment.get(variable, "false").lower() == "true":
            raise SoftPromptError(
                f"softprompts' own loop does not shard a model: launch it without {name}, or train under "
                "transformers.Trainer, which does (docs/sharded.md)"
            )
