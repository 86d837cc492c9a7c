"""The random numbers that prompts draw while they train: each lane has a sequence of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from softprompts.injection.state import state_of
from softprompts.training.lane import Lane
from softprompts.training.row_draws import RowDraws, from_main


class Randomness:
    """What prompts draw while they train (dropout, noise of a router, dropout of a head), from torch's generators.

    Several lanes each have a sequence of their own, swapped in while their modules run and while they are evaluated: a
    lane draws what it would alone. A single lane has the generators to itself. A sequence begins at its lane's seed,
    or where the checkpoint left it; the caller's generators are given back as they were in the end.

    With dropout in the backbone, the lanes share one sequence, which begins at the first one's seed: that dropout is
    drawn for all rows at once, so several lanes differ from the runs alone whatever their prompts draw. The same goes
    for a plug-in that draws per column of the padded batch, whose width lanes share; no method here does.
    """

    def __init__(self, model: Any, lanes: list[Lane], accelerator: Accelerator):
        self.lanes = lanes
        self.accelerator = accelerator
        device = accelerator.device
        self.device = device if device.type == "cuda" else None
        self.own: dict[str, _Sequence] = {}
        self._state = state_of(model)
        self._apart = (len(lanes) > 1 or accelerator.num_processes > 1) and not model.backbone_dropout
        self._fork = torch.random.fork_rng([] if self.device is None else [self.device])

    def __enter__(self) -> Randomness:
        self._fork.__enter__()
        for lane in reversed(self.lanes if self._apart else self.lanes[:1]):
            torch.manual_seed(lane.config.seed)
            _set_random_state(lane.random_state, self.device)
            if self._apart:
                self.own[lane.name] = _Sequence(_random_state(self.device), self.device)
        if not self._apart and self.accelerator.process_index:
            # Else all processes would drop the same of each row.
            torch.manual_seed(int(torch.randint(2**62, ())) + self.accelerator.process_index)
        self._state.draws = self.own or None
        return self

    def __exit__(self, *error: Any) -> None:
        self._state.draws = None
        self._fork.__exit__(*error)

    def of_rows(self, lanes: list[Lane], counts: list[int]) -> None:
        """Says how many rows of each lane the next pass has in all processes together."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        if self._apart and world > 1:
            for lane, count in zip(lanes, counts, strict=True):
                self.own[lane.name].rows = RowDraws(rank, world, count)

    def catch_up(self, lanes: list[Lane], counts: list[int]) -> None:
        """After a pass: lanes with too few rows for all processes go on from where they are in the main one."""
        for lane, count in zip(lanes, counts, strict=True):
            if self._apart and 0 < count < self.accelerator.num_processes:
                sequence = self.own[lane.name]
                sequence.state = from_main(sequence.state, self.accelerator.device)

    def of(self, name: str) -> contextlib.AbstractContextManager[Any]:
        """The context in which a lane does things for itself alone."""
        return self.own.get(name) or contextlib.nullcontext()

    def mark(self) -> dict[str, dict[str, Tensor]]:
        """Where all sequences are now, for `back`."""
        return {name: sequence.state for name, sequence in self.own.items()}

    def back(self, mark: dict[str, dict[str, Tensor]]) -> None:
        """Takes the sequences back, so that a step that failed can be taken again."""
        for name, state in mark.items():
            self.own[name].state = state

    def state(self, lane: Lane) -> dict[str, Tensor]:
        """Where a lane's sequence is now."""
        return dict(self.own[lane.name].state) if self._apart else _random_state(self.device)


class _Sequence:
    """A random sequence: within this context, torch's generators go on with it. May be entered again inside."""

    def __init__(self, state: dict[str, Tensor], device: torch.device | None):
        self.state = state
        self.device = device
        self.rows: RowDraws | None = None
        self._depth = 0
        self._outside: dict[str, Tensor] = {}

    def __enter__(self) -> None:
        if not self._depth:
            self._outside = _random_state(self.device)
            _set_random_state(self.state, self.device)
        self._depth += 1

    def __exit__(self, *error: Any) -> None:
        self._depth -= 1
        if not self._depth:
            self.state = _random_state(self.device)
            _set_random_state(self._outside, self.device)

    @contextlib.contextmanager
    def drawing(self, by_row: bool) -> Iterator[None]:
        """See `softprompts.injection.batch_pass.Draws`."""
        with self, self.rows if by_row and self.rows is not None else contextlib.nullcontext():
            yield


def _random_state(device: torch.device | None) -> dict[str, Tensor]:
    """The state of torch's generators: that of the CPU and, where there is one, of the GPU."""
    states = {"cpu": torch.get_rng_state()}
    if device is not None:
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_random_state(states: dict[str, Tensor], device: torch.device | None) -> None:
    """Sets those generators whose state is given."""
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if device is not None and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
