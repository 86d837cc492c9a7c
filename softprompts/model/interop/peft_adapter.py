"""TODO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from softprompts.errors import SoftPromptError
from softprompts.model.interop import peft_adapter
from softprompts.storage.names import ADAPTER_CONFIG, ADAPTER_TENSORS

PROMPT = "prompt_embeddings"
COLUMNS, ROWS = "prefix_task_cols", "prefix_task_rows"
HEAD = "base_model."  # begins the names of a trained head's tensors
LORA = "LORA"
TYPES = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", LORA)
CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}


_LARGEST = 2**31


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter of PEFT's."""
    return (Path(folder) / ADAPTER_CONFIG).is_file()


@dataclass(frozen=True)
class Adapter:
    """What the files of an adapter say, checked as far as that goes without a model.

    Attributes:
        path: its folder.
        kind: PEFT's ``peft_type``.
        task: PEFT's ``task_type``; "" where LoRA does without.
        config: ``adapter_config.json``.
        tensors: ``adapter_model.safetensors``, finite floats.
    """

    path: Path
    kind: str
    task: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def number(self, key: str, default: int | None = None) -> int:
        """A whole number of at least 1 from the config."""
        value = self.config.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < _LARGEST:
            raise SoftPromptError(f"{self.path}: {key} must be a whole number of at least 1, not {_shown(value)}")
        return value

    @property
    def submodules(self) -> int:
        """How often the rows of virtual tokens are there: twice for an encoder and a decoder."""
        return self.number("num_transformer_submodules", 2 if self.task == "SEQ_2_SEQ_LM" else 1)

    @property
    def head(self) -> dict[str, Tensor]:
        """The tensors of the trained head, by their names in the model."""
        start = peft_adapter.PREFIX if self.kind == LORA else HEAD
        own = {key: value for key, value in self.tensors.items() if key.startswith(start)}
        return {
            key.removeprefix(start): own[key] for key in own if not (self.kind == LORA and peft_adapter.is_product(key))
        }

    def tensor(self, key: str, *shape: int | None) -> Tensor:
        """A tensor of an expected shape, None for any size.

        Raises:
            SoftPromptError: it is not there, or has another shape.
        """
        value = self.tensors.get(key)
        if value is None:
            raise SoftPromptError(f"{self.path}: {ADAPTER_TENSORS} lacks '{key}'; it is no {self.kind} adapter")
        fits = len(shape) == value.ndim and all(b in (None, a) for a, b in zip(value.shape, shape, strict=True))
        if not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise SoftPromptError(
                f"{self.path}: '{key}' has shape {tuple(value.shape)}; its config and the model ask for ({wanted})"
            )
        return value


def _shown(value: Any) -> str:
    """A value of unknown size as a short piece of one line."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]


PREFIX = "base_model.model."
_ENDS = {".lora_A.weight": "a", ".lora_B.weight": "b"}


def is_product(name: str) -> bool:
    """Whether a tensor of an adapter is one of a product's two."""
    return name.startswith(PREFIX) and name.endswith(tuple(_ENDS))
