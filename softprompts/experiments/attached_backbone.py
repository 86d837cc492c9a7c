"""A frozen backbone, loaded once, and the prompts that experiments put on it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from softprompts.backbones.loading import context_room, load_backbone
from softprompts.errors import SoftPromptError
from softprompts.methods.contract import MethodConfig
from softprompts.model.attach import attach
from softprompts.tasks import Task, padding_id
from softprompts.tasks.kinds import KINDS

LEAST_ROOM = 8  # tokens of input that a prompt must leave room for


class AttachedBackbone:
    """A model with its tokenizer, attached; an encoder has a classifier of ``tokens`` or of rows."""

    def __init__(self, name: str, tokens: bool, backbone_dropout: bool, quantize: str | None):
        self.name, self.quantize = name, quantize
        self.tokenizer: PreTrainedTokenizerBase
        self.tokenizer, model, self._missing = load_backbone(name, tokens, quantize)
        self.model = attach(model, backbone_dropout=backbone_dropout)
        self.kind: str = self.model.backbone_kind
        self.pad_id = padding_id(self.tokenizer)

    def room(self, config: MethodConfig) -> int | None:
        """Tokens that a prompt leaves for the input, at least `LEAST_ROOM`; None where nothing limits them."""
        taken = config.input_tokens
        room = context_room(self.model, self.tokenizer, taken)
        if room is not None and room < LEAST_ROOM:
            raise SoftPromptError(
                f"{config.method}: {taken} virtual tokens leave no room for the input in the context of "
                f"{room + taken} tokens of {self.name}; set num_virtual_tokens lower"
            )
        return room

    def room_beside_answers(self, room: int, tokens: int, longest: str) -> int:
        """How many of ``room`` tokens are left for an input where answers have so many; ``longest`` names one of these.

        Raises:
            SoftPromptError: too few.
        """
        left = room - tokens if self.kind == "decoder" else room
        if min(left, room - tokens) < (LEAST_ROOM if self.kind == "decoder" else 0):
            raise SoftPromptError(
                f"answers of up to {tokens} tokens ({longest}) are too long for {self.name}, which takes {room} beside "
                "the prompt: leave such rows out, or lower --max-new-tokens where you gave it"
            )
        return left

    def add(self, name: str, method: MethodConfig, task: Task, seed: int) -> None:
        """Puts a prompt for a task on the model, its head drawn by the seed."""
        encoder = self.kind == "encoder"
        self.model.add_prompt(
            name,
            method,
            num_labels=KINDS[task.kind].outputs(task.form) if encoder else None,
            labels=list(task.label_names) or None if encoder else None,
            tokenizer=self.tokenizer,
            seed=seed,
        )
        self._draw_head(name, seed)
        if not any(True for _ in self.model.prompts[name].parameters()):
            self.model.forget_prompt(name)
            raise SoftPromptError(f"{method.method}: there is nothing to train on {self.name}, which has no task head")

    def _draw_head(self, name: str, seed: int) -> None:
        """Draws by the seed those weights of a head that the backbone's files lack: they differ from load to load."""
        head = self.model.prompts[name].head
        if head is None:
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for path, module in head.named_modules():
                if isinstance(module, nn.Linear) and f"{path}.weight" in self._missing:
                    std = getattr(self.model.config, "initializer_range", 0.02)
                    module.weight.data.copy_(torch.randn(module.weight.shape) * std)
                    if module.bias is not None:
                        module.bias.data.zero_()

    def drop(self, *names: str) -> None:
        """Takes prompts off the model, as far as they are on it."""
        for name in names:
            if name in self.model.prompts:
                self.model.forget_prompt(name)

    @contextlib.contextmanager
    def trial(self, name: str, method: MethodConfig, task: Task, seed: int = 0) -> Iterator[None]:
        """Has a prompt on the model within this context, and a teacher that is put beside it."""
        self.add(name, method, task, seed)
        try:
            yield
        finally:
            self.drop(name, teacher_of(name))


def teacher_of(name: str) -> str:
    """The name of a prompt's teacher on the model."""
    return f"{name}-teacher"
