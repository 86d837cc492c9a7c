"""How many lanes share a forward pass: by the tokens of a pass, and by the memory that a step takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from softprompts.tasks.batches import collate, inputs_of, length_of
from softprompts.training.extra_passes import training_losses
from softprompts.training.lane import Lane, StepBatches
from softprompts.training.memory import free_memory, out_of_memory, step_memory
from softprompts.training.prediction import Feature

SHARE = 0.6  # of the free memory; the rest is for evaluation, fragmentation and other programs
# Tokens of a row up to which plain products beat the backward of torch's kernel for CPUs in bfloat16.
PLAIN_ATTENTION = 512
CPU_TOKENS = 2048  # of a pass, beyond which sharing it saves nothing on a CPU (benchmarks/lanes.py)


class PassSize:
    """How many lanes a forward pass may have.

    Args:
        lanes: most lanes in a pass; fewer after memory has run out.
        device: where it runs. On a CPU a pass of several lanes has at most `CPU_TOKENS` tokens, padding included.
    """

    def __init__(self, lanes: int, device: torch.device):
        self.lanes = lanes
        self.tokens = CPU_TOKENS if device.type == "cpu" else None

    def parts(self, lanes: Sequence[Lane], batches: Sequence[StepBatches]) -> list[list[tuple[Lane, StepBatches]]]:
        """Cuts lanes, with their batches of a step, into parts that each share passes."""
        parts: list[list[tuple[Lane, StepBatches]]] = []
        rows = width = 0
        for lane, step in zip(lanes, batches, strict=True):
            count = max(sum(len(inputs_of(row)) for row in batch) for batch in step)
            length = max(length_of(row) for batch in step for row in batch)
            full = not parts or len(parts[-1]) == self.lanes
            if full or (self.tokens is not None and (rows + count) * max(width, length) > self.tokens):
                parts.append([])
                rows = width = 0
            parts[-1].append((lane, step))
            rows, width = rows + count, max(width, length)
        return parts


def lanes_that_fit(model: Any, lane: Lane, *, pad_id: int, padding_side: str = "right") -> int:
    """How many lanes like this one should be trained together; at least 1.

    Takes one step of its longest batch, without an update, to see what memory it needs, and compares that with what
    is free. On the CPU no more than it takes to fill a pass of `CPU_TOKENS` tokens with their average batches: those
    keep all cores busy.

    Args:
        model: a model with the lane's prompt attached.
        lane: a run that has not begun.
        pad_id: fills shorter rows.
        padding_side: "right" or "left".
    """
    accelerator = Accelerator()
    place(model, accelerator)
    prompt = model.prompts[lane.name]
    rows: list[Feature] = lane.longest_batch()
    batch = collate(rows, pad_id, padding_side)

    def step() -> Tensor:
        with precision(accelerator, lane.config.bf16, batch["input_ids"].shape[-1]):
            losses = training_losses(model, batch, [lane.name] * len(rows), {lane.name: lane.teacher})
            return losses.rows.sum() + sum(losses.extra.values())

    cuda = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(cuda), train_mode(model, lane.config.backbone_dropout):
        try:
            needed = step_memory(step, model, accelerator.device)
        except Exception as error:
            if not out_of_memory(error) or accelerator.num_processes > 1:
                raise
            return 1
        finally:
            for parameter in prompt.parameters():
                parameter.grad = None
    # Gradient, two moments and the best prompt so far.
    kept = 4 * sum(parameter.numel() * parameter.element_size() for parameter in prompt.parameters())
    count = int(SHARE * free_memory(accelerator.device) / (needed + kept))
    if accelerator.device.type == "cpu":
        count = min(count, round(CPU_TOKENS / lane.tokens))
    if accelerator.num_processes > 1:  # all must train the same lanes
        count = int(accelerator.gather(torch.tensor([count], device=accelerator.device)).min())
    return max(1, count)


def place(model: Any, accelerator: Accelerator) -> None:
    """Moves a model to the device it is trained on, unless it was spread over devices or quantised there."""
    placed = getattr(model, "hf_device_map", None) is not None or getattr(model, "is_quantized", False)
    if not placed and model.device != accelerator.device:
        model.to(accelerator.device)


@contextlib.contextmanager
def train_mode(model: Any, backbone_dropout: bool | None) -> Iterator[None]:
    """Puts prompts into train mode (the backbone stays as the model decides), and restores the old mode afterwards."""
    before, dropout = model.training, model.backbone_dropout
    model.backbone_dropout = dropout if backbone_dropout is None else backbone_dropout
    model.train()
    try:
        yield
    finally:
        model.backbone_dropout = dropout
        model.train(before)


@contextlib.contextmanager
def precision(accelerator: Accelerator, bf16: bool, columns: int | None = None) -> Iterator[None]:
    """The context in which forward passes run.

    Args:
        accelerator: with the device.
        bf16: whether in bfloat16.
        columns: tokens of a row, of a pass that is going to have a backward; None for others.
    """
    if not bf16:
        with accelerator.autocast():
            yield
        return
    device = accelerator.device.type
    plain = device == "cpu" and columns is not None and columns <= PLAIN_ATTENTION
    # Not Accelerator(mixed_precision=...): its state is one per process, so two runs could not differ in it.
    with (
        torch.autocast(device, dtype=torch.bfloat16),
        sdpa_kernel(SDPBackend.MATH) if plain else contextlib.nullcontext(),
    ):
        yield
