"""Calls of one model from many threads, compared with the same calls one by one."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import tiny
import torch
from torch import Tensor

NEW = 3


def calls(family: str, names: Sequence[str], seed: int = 0) -> list[dict[str, Any]]:
    """Arguments of calls: forward and generate, of each prompt, of none, and of rows that differ."""
    draw = random.Random(seed)
    owners: list[Any] = [*names, None, *[[draw.choice([*names, None]) for _ in range(2)] for _ in range(6)]]
    drawn = []
    for number, name in enumerate(owners):
        inputs = tiny.batch(family, rows=2, columns=draw.choice([5, 6, 7]), seed=number)
        labels = inputs.pop("labels")
        if tiny.FAMILIES[family][0] == "decoder":
            inputs = tiny.pad_left(inputs)
        given = {"prompt_names": [None, None] if name is None else name}
        if tiny.FAMILIES[family][0] != "encoder":
            settings = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None}
            drawn.append({"generate": True, **inputs, **given, **settings})
        drawn.append({"generate": False, **inputs, **given, "labels": labels})
    return drawn


@torch.no_grad()
def answer(model: Any, call: dict[str, Any]) -> list[Tensor]:
    """What one call gives."""
    arguments = {name: value for name, value in call.items() if name != "generate"}
    if call["generate"]:
        return [model.generate(**arguments)]
    output = model(**arguments)
    return [output.loss, output.logits]


def wrong(model: Any, made: Sequence[dict[str, Any]], count: int, threads: int = 8, seed: int = 1) -> int:
    """How many of ``count`` calls, drawn from ``made``, differ by a bit from the same call alone."""
    alone = [answer(model, call) for call in made]
    chosen = random.Random(seed).choices(range(len(made)), k=count)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads take turns as often as they can
    try:
        with ThreadPoolExecutor(threads) as pool:
            answers = list(pool.map(lambda index: answer(model, made[index]), chosen))
    finally:
        sys.setswitchinterval(interval)
    pairs = zip(answers, chosen, strict=True)
    return sum(not all(map(torch.equal, given, alone[index])) for given, index in pairs)
