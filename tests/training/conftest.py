"""A tiny random BERT, data that it can learn, and a method that draws random numbers while it trains.

Also run by the tests' own subprocesses (with runpy), so it must not need pytest's machinery for more than fixtures.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

import softprompts as sp
from softprompts.training import Evaluation, Lane, TrainConfig

PAD = 0


def features(count: int, seed: int, classes: int = 2) -> list[dict[str, Any]]:
    """Rows of random tokens; the most frequent of the tokens 5, 6, ... gives the class."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        label = draw.choices(range(classes), weights=[2] + [1] * (classes - 1))[0]
        ids = [draw.randrange(20, 100) for _ in range(draw.randrange(3, 9))]
        for _ in range(len(ids)):
            ids.insert(draw.randrange(len(ids) + 1), 5 + label)
        rows.append({"input_ids": ids, "label": label})
    return rows


def model(seed: int = 0, double: bool = False) -> Any:
    """An attached tiny BERT without prompts."""
    torch.manual_seed(seed)
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=100,
        max_position_embeddings=64,
        initializer_range=0.2,  # at the usual 0.02, a random model this small hardly looks at its input
        num_labels=2,
    )
    bert = BertForSequenceClassification(config)
    return sp.attach(bert.double() if double else bert)


def add(
    model: Any, name: str, method: str = "prompt-tuning", seed: int = 0, double: bool = False, **fields: Any
) -> Any:
    """Adds a prompt of four tokens."""
    make = NoisyConfig if method == "noisy" else functools.partial(sp.make_config, method)
    model.add_prompt(name, make(num_virtual_tokens=4, **fields), num_labels=2, seed=seed)
    if double:
        model.prompts[name].double()
    return model


TRAIN, VALIDATION = features(48, seed=1), features(32, seed=2)


def lane(name: str = "a", folder: Any = None, train: Any = TRAIN, validation: Any = VALIDATION, **config: Any) -> Lane:
    """A lane on the toy data."""
    return Lane(
        name,
        TrainConfig(**{"batch_size": 8, "epochs": 3, **config}),
        train,
        validation=None if validation is None else Evaluation(validation),
        folder=folder,
    )


@dataclass(frozen=True, kw_only=True)
class NoisyConfig(sp.MethodConfig):
    """Prompt tuning with dropout on the prompt. Not registered, so that other tests do not meet it."""

    method: ClassVar[str] = "noisy"
    uses_tokens: ClassVar[bool] = True

    def build(self, shape: Any) -> sp.Method:
        return Noisy(self, shape)


class Noisy(sp.Method):
    """Draws from torch's random state in every training step."""

    def __init__(self, config: NoisyConfig, shape: Any):
        super().__init__(config)
        self.prompt = nn.Parameter(torch.randn(config.num_virtual_tokens, shape.hidden_size))
        self.dropout = nn.Dropout(0.3)

    def forward(self, rows: Any = None) -> sp.SoftPrompt:
        prompt = self.dropout(self.prompt)
        return sp.SoftPrompt(tokens=prompt.unsqueeze(0), penalty=1e-3 * prompt.square().mean())

    def components(self) -> dict[str, sp.Component]:
        return {"prompt": sp.Component([self.prompt], learning_rate=5e-2)}


class Toy:
    """The above, for tests."""

    pad = PAD
    train, validation = TRAIN, VALIDATION
    features = staticmethod(features)
    model = staticmethod(model)
    add = staticmethod(add)
    lane = staticmethod(lane)


@pytest.fixture
def toy() -> type[Toy]:
    return Toy


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Tiny matrices gain nothing from threads, and other tests may run beside these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
