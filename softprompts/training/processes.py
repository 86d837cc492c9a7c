"""Several processes that train one run together (``accelerate launch``): agreement, evaluation in parts, random draws.

All processes run the same program and see the same rows, and each takes every ``world``-th row of a batch. Run folders
must lie where all of them can read; only the main process writes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast, broadcast_object_list, gather_object, parse_flag_from_env
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

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


def from_main(state: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The main process's values of some byte tensors on the CPU, the same shapes everywhere."""
    joined = torch.cat([value.flatten() for value in state.values()])
    received = broadcast(joined.to(device), from_process=0).cpu()
    parts = received.split([value.numel() for value in state.values()])
    return {name: part.view_as(value).clone() for (name, value), part in zip(state.items(), parts, strict=True)}


class RowDraws(TorchDispatchMode):
    """Random numbers for all rows of a batch, of which a process with every ``world``-th row keeps its own.

    Within this context an operation that draws for a tensor with as many rows as the process has draws for the whole
    batch: the process gets what one process would have drawn for these rows, and its generators end up where that
    one's would.

    Args:
        rank: the process.
        world: number of processes.
        total: rows of the batch.
    """

    def __init__(self, rank: int, world: int, total: int):
        super().__init__()  # type: ignore[no-untyped-call]
        self.own = slice(rank, None, world)
        self.rows = len(range(rank, total, world))
        self.total = total

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags or not args:
            return func(*args, **kwargs)
        given = args[0]
        if isinstance(given, Tensor) and given.dim() and given.shape[0] == self.rows:
            # The other rows' values are not known here, and any that are valid do: they decide no draw of ours.
            whole = given[:1].repeat(self.total, *[1] * (given.dim() - 1))
            whole[self.own] = given
            drawn = func(whole, *args[1:], **kwargs)
            if drawn is whole:  # in place
                return given.copy_(whole[self.own])
            return tuple(map(self._take, drawn)) if isinstance(drawn, tuple | list) else self._take(drawn)
        if isinstance(given, list | tuple) and given and given[0] == self.rows:  # torch.rand and its like
            return self._take(func([self.total, *given[1:]], *args[1:], **kwargs))
        return func(*args, **kwargs)

    def _take(self, drawn: Any) -> Any:
        return drawn[self.own].clone() if isinstance(drawn, Tensor) and drawn.dim() else drawn
