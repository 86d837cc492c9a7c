"""Adapters that PEFT itself trains, saves and runs, on small random models."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import tiny
import torch
import transformers as tf
from torch import Tensor

LENGTH = 3
TASKS = {"encoder": "SEQ_CLS", "decoder": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM"}
CONFIGS: dict[str, Any] = {
    "prompt": peft.PromptTuningConfig,
    "p-tuning": peft.PromptEncoderConfig,
    "prefix": peft.PrefixTuningConfig,
    "multitask": peft.MultitaskPromptTuningConfig,
}


@contextlib.contextmanager
def double() -> Iterator[None]:
    """PEFT makes its parameters in the default type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's own advice
            yield
    finally:
        torch.set_default_dtype(before)


def backbone(family: str, task: str | None = None, **config: Any) -> Any:
    """A small random model; the same one every time."""
    if task == "SEQ_CLS" and family == "llama":
        torch.manual_seed(0)
        settings = tiny.FAMILIES[family][1]()
        settings.num_labels = 3
        return tf.LlamaForSequenceClassification(settings).double().eval()
    if family == "t5":
        config = {"num_layers": 4, "num_decoder_layers": 4, **config}
    return tiny.model(family, tokens=task == "TOKEN_CLS", **config)


def settings(family: str, kind: str, task: str | None = None, **more: Any) -> Any:
    """PEFT's config of an adapter for a family."""
    task = task or TASKS[tiny.FAMILIES[family][0]]
    if kind == "p-tuning":
        more.setdefault("encoder_hidden_size", 8)
    if kind == "prefix" and family == "t5":  # whose heads are not the model's width together
        more |= {"token_dim": 12, "num_attention_heads": 3}
    if kind != "prefix" and family == "electra":  # whose embeddings are narrower than its layers
        more["token_dim"] = 8
    if kind == "multitask":
        more.setdefault("num_ranks", 2)
    return CONFIGS[kind](task_type=task, num_virtual_tokens=LENGTH, **more)


def batch(family: str, task: str | None = None, labels: bool = True) -> dict[str, Tensor]:
    """Rows padded on the right."""
    inputs = tiny.batch(family)
    if task == "SEQ_CLS" and family == "llama":
        inputs["labels"] = torch.tensor([0, 1, 2])
    if task == "TOKEN_CLS" or not labels:
        inputs.pop("labels")
    return inputs


def trained(
    family: str, kind: str, folder: Path, task: str | None = None, steps: int = 3, base: str | None = None, **more: Any
) -> Any:
    """An adapter that PEFT has trained for a few steps and saved; returns PEFT's model, in evaluation mode."""
    plain, config = backbone(family, task), settings(family, kind, task, **more)
    config.base_model_name_or_path = base
    if base is not None:
        plain.name_or_path = base
    with double():
        torch.manual_seed(3)
        model = peft.get_peft_model(plain, config).double().eval()
        parameters = [p for p in model.parameters() if p.requires_grad]
        for parameter in parameters:  # far from the start, so that all of it matters
            parameter.data += 0.3 * torch.randn_like(parameter)
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        inputs = batch(family, task)
        for _ in range(steps):
            optimizer.zero_grad()
            output = run(model, inputs, task_id=0)
            loss = output.logits.square().mean() if output.loss is None else output.loss
            loss.backward()
            optimizer.step()
        model.save_pretrained(str(folder))
    return model


def run(model: Any, inputs: dict[str, Tensor], task_id: int | None = None) -> Any:
    """PEFT's model on a batch."""
    if model.active_peft_config.peft_type == "MULTITASK_PROMPT_TUNING":
        rows = len(inputs["input_ids"])
        inputs = {**inputs, "task_ids": torch.full((rows,), task_id or 0)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model(**inputs)


def logits(model: Any, inputs: dict[str, Tensor], task_id: int | None = None) -> Tensor:
    """PEFT's logits, without those of virtual tokens."""
    with torch.no_grad():
        found: Tensor = run(model, inputs, task_id).logits
    extra = found.shape[1] - inputs["input_ids"].shape[1]
    kind, task = model.active_peft_config.peft_type, model.active_peft_config.task_type
    wide = kind != "PREFIX_TUNING" and task in ("CAUSAL_LM", "TOKEN_CLS")
    assert not wide or extra == LENGTH
    return found[:, LENGTH:] if wide else found


def real(family: str, found: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """The logits that count: where there is one line per token, those of real ones."""
    mask = inputs["attention_mask"]
    return found[mask.bool()] if found.ndim == 3 and tiny.FAMILIES[family][0] != "encoder-decoder" else found


def loaded(family: str, folder: Path, task: str | None = None) -> Any:
    """PEFT's model with an adapter from a folder."""
    base = backbone(family, task)
    with double():
        return peft.PeftModel.from_pretrained(base, str(folder)).double().eval()
