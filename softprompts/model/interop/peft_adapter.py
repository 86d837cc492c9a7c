"""An adapter of the PEFT library as files: their keys and names, and the checks that need no model.

Only JSON and safetensors are read; pickles are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softprompts.errors import SoftPromptError, nearest, shown
from softprompts.storage.files import read_json
from softprompts.storage.names import ADAPTER_CONFIG, ADAPTER_TENSORS
from softprompts.storage.saved_prompt import FLOATS, tensors_in

PICKLE_FILE = "adapter_model.bin"
PROMPT = "prompt_embeddings"
COLUMNS, ROWS = "prefix_task_cols", "prefix_task_rows"
LORA, PREFIX, P_TUNING = "LORA", "PREFIX_TUNING", "P_TUNING"
MULTITASK, TOKENS = "MULTITASK_PROMPT_TUNING", "PROMPT_TUNING"
# The tensors of an adapter of each type, beside those of a trained head and of LoRA's products.
TENSORS = {TOKENS: {PROMPT}, P_TUNING: {PROMPT}, PREFIX: {PROMPT}, MULTITASK: {PROMPT, COLUMNS, ROWS}, LORA: set[str]()}
CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}
LORA_START = "base_model.model."  # begins the names of all tensors of a LoRA adapter
PRODUCT = {".lora_A.weight": "a", ".lora_B.weight": "b"}  # ends the names of a product's two factors
_LARGEST = 2**31


def is_product(name: str) -> bool:
    """Whether a tensor of a LoRA adapter is a factor of a product."""
    return name.startswith(LORA_START) and name.endswith(tuple(PRODUCT))


def head_start(kind: str) -> str:
    """Returns what the names of a trained head's tensors begin with in an adapter of a type."""
    return LORA_START if kind == LORA else "base_model."


@dataclass(frozen=True)
class Adapter:
    """The content of an adapter's files, checked as far as that goes without a model.

    Attributes:
        path: its folder.
        kind: PEFT's ``peft_type``.
        task: PEFT's ``task_type``; "" for LoRA without one.
        config: ``adapter_config.json``.
        tensors: ``adapter_model.safetensors``, finite floats.
    """

    path: Path
    kind: str
    task: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def number(self, key: str, default: int | None = None) -> int:
        """Returns a whole number of at least 1 from the config."""
        value = self.config.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < _LARGEST:
            raise SoftPromptError(f"{self.path}: {key} must be a whole number of at least 1, not {shown(value)}")
        return value

    def real(self, key: str, default: float) -> float:
        """Returns a number of at least 0 from the config."""
        value = self.config.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _LARGEST:
            raise SoftPromptError(f"{self.path}: {key} must be a number from 0, not {shown(value)}")
        return float(value)

    @property
    def submodules(self) -> int:
        """How often the rows of virtual tokens are there: twice for an encoder and a decoder."""
        return self.number("num_transformer_submodules", 2 if self.task == "SEQ_2_SEQ_LM" else 1)

    @property
    def head(self) -> dict[str, Tensor]:
        """The tensors of the trained head, by their names in the model."""
        start = head_start(self.kind)
        return {
            key.removeprefix(start): value
            for key, value in self.tensors.items()
            if key.startswith(start) and not (self.kind == LORA and is_product(key))
        }

    def tensor(self, key: str, *shape: int | None) -> Tensor:
        """Returns a tensor of an expected shape, None for any size.

        Raises:
            SoftPromptError: it is not there, or has another shape.
        """
        value = self.tensors.get(key)
        if value is None:
            raise SoftPromptError(f"{self.path}: {ADAPTER_TENSORS} lacks '{key}'; it is no {self.kind} adapter")
        if len(shape) != value.ndim or any(size not in (None, n) for n, size in zip(value.shape, shape, strict=True)):
            expected = ", ".join("any" if size is None else str(size) for size in shape)
            raise SoftPromptError(
                f"{self.path}: '{key}' has shape {tuple(value.shape)}; its config and the model ask for ({expected})"
            )
        return value


def read_adapter(path: Path) -> Adapter:
    """Reads and checks the config and tensors of the adapter in a folder.

    Raises:
        SoftPromptError: something is missing, damaged, a pickle, or of a type that is not read.
    """
    try:
        config, tensors = read_json(path / ADAPTER_CONFIG), _read_tensors(path)
    except OSError as error:
        raise SoftPromptError(f"{path}: the adapter's files cannot be read ({error.strerror})") from error
    kind, task = config.get("peft_type"), config.get("task_type")
    if not isinstance(kind, str):
        raise SoftPromptError(f"{path / ADAPTER_CONFIG} has no peft_type: it is no PEFT adapter, or an edited one")
    if kind not in TENSORS:
        raise SoftPromptError(f"{path}: a PEFT adapter of type {shown(kind)} is not read, only {', '.join(TENSORS)}")
    if (kind != LORA or task is not None) and (not isinstance(task, str) or task not in CLASSES):
        hint = nearest(task[:40], CLASSES) if isinstance(task, str) else f"one of {', '.join(CLASSES)}"
        raise SoftPromptError(f"{path}: task_type is {shown(task)}, with which PEFT applies no prompt; set it: {hint}")
    adapter = Adapter(path, kind, task or "", config, tensors)
    if kind != LORA:
        adapter.number("num_virtual_tokens")
    for key in adapter.tensors:
        if key not in TENSORS[kind] and not key.startswith(head_start(kind)):
            raise SoftPromptError(f"{path}: {ADAPTER_TENSORS} has the unknown tensor {shown(key)}")
    return adapter


def _read_tensors(path: Path) -> dict[str, Tensor]:
    file = path / ADAPTER_TENSORS
    if not file.is_file():
        if (path / PICKLE_FILE).is_file():
            raise SoftPromptError(
                f"{path} has its tensors in {PICKLE_FILE}, a pickle, which can run code and is not read: "
                "load it with PEFT where you trust it and save it with safe_serialization=True"
            )
        raise SoftPromptError(f"{file} is missing: the adapter is incomplete")
    tensors = tensors_in(file.read_bytes(), file)
    for key, value in tensors.items():
        if value.dtype not in FLOATS:
            kind = str(value.dtype).removeprefix("torch.")
            raise SoftPromptError(f"{file}: {shown(key)} holds {kind}; an adapter holds float32, or another float")
        if not torch.isfinite(value).all():
            raise SoftPromptError(f"{file}: {shown(key)} holds values that are not finite")
    return tensors
