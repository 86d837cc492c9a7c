"""Saved prompts to start others from, and the methods that do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
import torch

import softprompts as sp

PLAIN = sp.PromptTuningConfig(num_virtual_tokens=3)


def saved(
    folder: Path, config: sp.MethodConfig = PLAIN, seed: int = 0, family: str = "bert", task: str = "", **model: Any
) -> str:
    """Saves a random prompt; of a BERT of width 8, that of the methods' tests, where nothing else is said."""
    model = model or ({"hidden_size": 8} if family == "bert" else {})
    made = sp.attach(tiny.model(family, torch.float32, **model))
    made.add_prompt("source", config, seed=seed)
    torch.manual_seed(seed)
    for parameter in made.prompts["source"].parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    made.save_prompt("source", folder, {"task": task} if task else None)
    return str(folder)


def sourced(folder: Path, family: str) -> dict[str, sp.MethodConfig]:
    """A config of every method that is built from files, with the files, for a family of `tiny`."""
    width: dict[str, Any] = {"hidden_size": 16} if family == "bert" else {}
    plain = [saved(folder / f"plain{i}", seed=i, family=family, **width) for i in range(3)]
    mpt = saved(folder / "mpt", sp.MPTConfig(num_virtual_tokens=3), family=family, **width)
    small = {"num_virtual_tokens": 3, "rank": 2, "max_length": 12}
    spaces = {"num_spaces": 2, "space_hidden_size": 4, "source_tokens": 6}
    ept = saved(folder / "ept", sp.EPTConfig(**small, **spaces), family=family, **width)
    dept = saved(folder / "dept", sp.DePTConfig(**small), family=family, **width)
    fit = sp.fit_autoencoder(plain, folder / "autoencoder.safetensors", 2, hidden_size=5, steps=20)
    return {
        "spot": sp.SPoTConfig(num_virtual_tokens=4, sources=tuple(plain[:2])),
        "attempt": sp.AttemptConfig(num_virtual_tokens=3, sources=tuple(plain), bottleneck=4, temperature=0.5),
        "mpt": sp.MPTConfig(num_virtual_tokens=3, sources=(mpt,)),
        "intrinsic": sp.IntrinsicConfig(num_virtual_tokens=3, autoencoder=str(fit.path)),
        "ept": sp.EPTConfig(**small, **spaces, source=ept),
        "dept": sp.DePTConfig(**small, source=dept),
    }
