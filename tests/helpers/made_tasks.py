"""The made tasks, by the method that each is about. Their words are ids without meaning, as the models are random."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import torch
from made import Arm, MadeTask, Row, bert

import softprompts as sp
from softprompts.injection.prompt import Prompt
from softprompts.methods.contract import Rows
from softprompts.soft_prompt import SoftPrompt

GOOD, BAD, FILL = range(10, 12), range(14, 16), range(20, 60)
KINDS = (2, 3)  # the tokens that say of which kind a row is


# --- Rows of two kinds, that need opposite answers to the same words --------------------------------------------------


def blind() -> Any:
    """A model whose layers do not read which kind a row is of: it stands in two dimensions that no weight is for."""
    model = bert(seed=1)
    inputs = model.bert.embeddings
    words = inputs.word_embeddings.weight.data
    for table in (words, inputs.position_embeddings.weight.data, inputs.token_type_embeddings.weight.data):
        table[:, :2] = 0
    words[list(KINDS)] = 0
    words[KINDS[0], :2] = torch.tensor([20.0, -20.0])  # of mean zero, so that normalising moves no other dimension
    words[KINDS[1], :2] = torch.tensor([-20.0, 20.0])
    for layer in model.bert.encoder.layer:
        attention = layer.attention
        for reads in (attention.self.query, attention.self.key, attention.self.value, layer.intermediate.dense):
            reads.weight.data[:, :2] = 0
        for writes in (attention.output.dense, layer.output.dense):
            writes.weight.data[:2] = 0
            writes.bias.data[:2] = 0
    return model


def two_kinds(draw: random.Random) -> Row:
    """A good or a bad word, the kind, and others; the label is whether the word is good, or the opposite."""
    kind, good = draw.randrange(2), draw.randrange(2)
    ids = [KINDS[kind], draw.choice(GOOD if good else BAD), *draw.choices(FILL, k=3)]
    draw.shuffle(ids)
    return ids, good ^ kind


def multi_mask(masks: int, routes: str = "learned") -> Arm:
    config = sp.MultiMaskConfig(num_virtual_tokens=8, num_masks=masks, router_dropout=0.0, routes=routes)
    return Arm(config, 0.1, {"masks": 0.3, "router": 0.03})


MULTI_MASK = MadeTask(
    "two kinds of rows with opposite answers, which the frozen layers cannot tell apart",
    blind,
    two_kinds,
    {
        "on": multi_mask(2),
        "off": multi_mask(1),
        "disconnected": multi_mask(2, "uniform"),
        "shuffled": multi_mask(2, "shuffled"),
    },
    steps=300,
    batch_size=32,
)


# --- An answer that depends on where a word stands --------------------------------------------------------------------


def placeless() -> Any:
    """A model that does not see where a token stands."""
    model = bert()
    model.bert.embeddings.position_embeddings.weight.data.zero_()
    return model


def word_at_a_place(draw: random.Random) -> Row:
    """Good and bad words; the label is whether the third is a good one."""
    ids = [draw.choice(GOOD if draw.randrange(2) else BAD) for _ in range(6)]
    return ids, int(ids[2] in GOOD)


def without_update(prompt: Prompt) -> None:
    """Keeps a method's change of the input embeddings from the model."""
    made = prompt.method.forward

    def forward(rows: Rows | None = None) -> SoftPrompt:
        return dataclasses.replace(made(rows), update=None)

    prompt.method.forward = forward  # type: ignore[method-assign]


_RATES = {"low_rank": 0.02}
_LOW_RANK: dict[str, Any] = {"num_virtual_tokens": 3, "rank": 2, "max_length": 8}
_EPT = sp.EPTConfig(**_LOW_RANK, source_tokens=8, num_spaces=2, space_hidden_size=16)
# 6 * 32 numbers are more than the 3 * 32 + (8 + 32) * 2 of the others, spaces apart.
_AS_MANY = sp.PromptTuningConfig(num_virtual_tokens=6)


def place_task(title: str, config: sp.MethodConfig, **more: Arm) -> MadeTask:
    arms = {
        "on": Arm(config, 0.03, _RATES),
        "off": Arm(_AS_MANY, 0.03),
        "disconnected": Arm(config, 0.03, _RATES, change=without_update),
    }
    return MadeTask(title, placeless, word_at_a_place, {**arms, **more}, steps=100)


DEPT = place_task("the answer is the third word's, to a model that sees no positions", sp.DePTConfig(**_LOW_RANK))
EPT = place_task(
    "the same",
    _EPT,
    **{
        "without fusion": Arm(dataclasses.replace(_EPT, fusion=False), 0.03, _RATES),
        "without spaces": Arm(dataclasses.replace(_EPT, multi_space=False), 0.03, _RATES),
        "without both": Arm(dataclasses.replace(_EPT, fusion=False, multi_space=False), 0.03, _RATES),
    },
)

MADE = {"multi-mask": MULTI_MASK, "dept": DEPT, "ept": EPT}
