"""What is in saved prompts and in CSV texts, read past everything of ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

Train = Callable[..., Path]


def raw(folder: Path) -> dict[str, np.ndarray]:
    """The saved tensors in float64, past everything of ours."""
    return {
        name: value.astype(np.float64) for name, value in load_file(folder / "prompt/softprompt.safetensors").items()
    }


def softmax(scores: np.ndarray) -> np.ndarray:
    return np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)


def numbers(text: str) -> list[list[str]]:
    """The lines of a CSV without its header."""
    return [line.split(",") for line in text.strip().splitlines()[1:]]
