"""What Hugging Face's trainers and pipelines are given in tests: rows, arguments and a tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
import transformers as tf
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor


def rows(family: str, count: int = 8) -> Dataset:
    return Dataset.from_dict({key: value.tolist() for key, value in tiny.batch(family, rows=count, columns=9).items()})


def arguments(folder: Path, **more: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "learning_rate": 0.1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 0,
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
    }
    return defaults | more


def prompt_state(model: Any) -> dict[str, Tensor]:
    """What is trained; buffers are not."""
    return {key: value.detach().clone() for key, value in model.prompts.named_parameters()}


def tokenizer(**more: Any) -> Any:
    words = {f"word{i}": i for i in range(3, 60)} | {"[PAD]": 0, "[CLS]": 1, "[UNK]": 2}
    core = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = Whitespace()
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        cls_token="[CLS]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "attention_mask"],
        **more,
    )
