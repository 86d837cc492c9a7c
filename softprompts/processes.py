"""Several processes that train one run together (``accelerate launch``): agreement, evaluation in parts, random draws.

All processes run the same program and see the same rows, and each takes every ``world``-th row of a batch. Run folders
must lie where all of them can read; only the main process writes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    broadcast,
    broadcast_object_list,
    gather_object,
    parse_flag_from_env,
)
from torch import nn

from softprompts.errors import SoftPromptError

T = TypeVar("T")


def shared_state() -> PartialState:
    """Accelerate's state, which the first to ask makes for good, and which must be on the CPU if that was asked for.

    An `Accelerator` sees to that itself, but is not the first here.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def is_main() -> bool:
    """Whether this process writes and prints: the only one, or the first of several."""
    return bool(shared_state().is_main_process)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A block that fails in all processes when it fails in one, and that none leaves before all have come to its end.

    Without it, a process whose disk is full would leave the others waiting for its gradients.

    Raises:
        SoftPromptError: in the processes where the block went well, naming one where it did not.
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
    told = None if failure is None else (" ".join(str(failure).split()) or type(failure).__name__)
    everywhere: list[str | None] = gather_object([told])
    if failure is not None:
        raise failure
    for index, message in enumerate(everywhere):
        if message is not None:
            raise SoftPromptError(f"process {index} failed: {message}")


def of_main(make: Callable[[], T]) -> T:
    """What ``make`` gives in the main process, in all of them; it runs in the main process alone.

    Raises:
        SoftPromptError: it failed there.
    """
    state = shared_state()
    if state.num_processes == 1:
        return make()
    value: list[Any] = [None]
    with together():
        if state.process_index == 0:
            value = [make()]
    broadcast_object_list(value, from_process=0)
    return value[0]  # type: ignore[no-any-return]


def alike(module: nn.Module, accelerator: Accelerator) -> None:
    """Gives a module the main process's values everywhere: unseeded prompts and heads start from other ones in each."""
    if accelerator.num_processes > 1:
        for tensor in module.state_dict().values():
            tensor.copy_(broadcast(tensor.detach().contiguous().to(accelerator.device), from_process=0))


def end() -> None:
    """Leaves the group of processes, which torch wants before a program ends."""
    if torch.distributed.is_initialized():
        shared_state().destroy_process_group()


_SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}


def require_whole(environment: Mapping[str, str]) -> None:
    """Makes sure that accelerate was not told to shard a run of our own loop.

    Raises:
        SoftPromptError: it was.
    """
    for variable, name in _SHARDING.items():
        if environment.get(variable, "false").lower() == "true":
            raise SoftPromptError(
                f"softprompts' own loop does not shard a model: launch it without {name}, or train under "
                "transformers.Trainer, which does (docs/sharded.md)"
            )
