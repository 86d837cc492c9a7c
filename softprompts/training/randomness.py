"""The random numbers that prompts draw while they train: each lane has a sequence of its own."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from softprompts.injection.state import state_of
from softprompts.training.lane import Lane


class Randomness:
    """What prompts draw while they train (dropout, noise of a router, dropout of a head), from torch's generators.

    Several lanes each have a sequence of their own, swapped in while their modules run and while they are evaluated: a
    lane draws what it would draw alone. A single lane has the generators to itself. A sequence begins at its lane's
    seed, or where the checkpoint left it. The caller's generators are restored in the end.

    With dropout in the backbone, the lanes share one sequence, which begins at the first one's seed: that dropout is
    drawn for all rows at once, so several lanes differ from the runs alone whatever their prompts draw. The same holds
    for a plug-in that draws per column of the padded batch, whose width lanes share; no method here does.

    With several processes the main one draws as a single process would. The others start a new sequence in every step,
    from seed, step and process: they drop other units than the main process does, and a checkpoint need not hold their
    state.
    """

    def __init__(self, model: Any, lanes: list[Lane], accelerator: Accelerator):
        self.lanes = lanes
        self.process = accelerator.process_index
        self.device = accelerator.device if accelerator.device.type == "cuda" else None
        self.sequences: dict[str, _Sequence] = {}
        self._state = state_of(model)
        self._apart = len(lanes) > 1 and not model.backbone_dropout
        self._fork = torch.random.fork_rng([] if self.device is None else [self.device])

    def __enter__(self) -> Randomness:
        self._fork.__enter__()
        for lane in reversed(self.lanes if self._apart else self.lanes[:1]):
            torch.manual_seed(lane.config.seed)
            _set_random_state(lane.random_state, self.device)
            if self._apart:
                self.sequences[lane.name] = _Sequence(self.device)
        self._state.random_contexts = self.sequences or None
        return self

    def __exit__(self, *error: Any) -> None:
        self._state.random_contexts = None
        self._fork.__exit__(*error)

    def start_step(self, lanes: list[Lane]) -> None:
        """Gives the lanes new sequences for a step, in all processes but the main one."""
        if self.process:
            for lane in lanes if self._apart else lanes[:1]:
                with self.of(lane.name):
                    seed = random.Random(f"{lane.config.seed} {lane.step} {self.process}").getrandbits(62)
                    torch.manual_seed(seed)

    def of(self, name: str) -> contextlib.AbstractContextManager[Any]:
        """The context in which a lane does things for itself alone."""
        return self.sequences.get(name) or contextlib.nullcontext()

    def mark(self) -> dict[str, dict[str, Tensor]]:
        """The states of all sequences, for `restore`."""
        return {name: sequence.state for name, sequence in self.sequences.items()}

    def restore(self, mark: dict[str, dict[str, Tensor]]) -> None:
        """Takes the sequences back, so that a step that failed can be taken again."""
        for name, state in mark.items():
            self.sequences[name].state = state

    def state(self, lane: Lane) -> dict[str, Tensor]:
        """The state of a lane's sequence."""
        return dict(self.sequences[lane.name].state) if self._apart else _random_state(self.device)


class _Sequence:
    """A random sequence from torch's present state: within this context, its generators continue the sequence.

    It may be entered again inside.
    """

    def __init__(self, device: torch.device | None):
        self.state, self.device = _random_state(device), device
        self._depth = 0

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
