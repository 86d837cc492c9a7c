"""Small random models of many families, and batches for them."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers as tf
from torch import Tensor

import softprompts as sp

_COMMON: dict[str, Any] = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_BERT: dict[str, Any] = {
    **_COMMON,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
}
_DECODER: dict[str, Any] = {**_BERT, "num_key_value_heads": 2, "head_dim": 4}
_BART: dict[str, Any] = {
    **_COMMON,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 40,
    "init_std": 0.3,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
_T5: dict[str, Any] = {
    **_COMMON,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 3,
    "decoder_start_token_id": 0,
    "initializer_factor": 1.0,
}

FAMILIES: dict[str, tuple[str, Any]] = {
    "bert": ("encoder", lambda: tf.BertConfig(**_BERT)),
    "roberta": ("encoder", lambda: tf.RobertaConfig(**{**_BERT, "pad_token_id": 1, "bos_token_id": 0})),
    "distilbert": (
        "encoder",
        lambda: tf.DistilBertConfig(
            vocab_size=60,
            dim=16,
            n_layers=2,
            n_heads=4,
            hidden_dim=24,
            max_position_embeddings=40,
            initializer_range=0.3,
        ),
    ),
    "modernbert": (
        "encoder",
        lambda: tf.ModernBertConfig(
            **{**_BERT, "global_attn_every_n_layers": 2, "local_attention": 8, "cls_token_id": 1, "sep_token_id": 2}
        ),
    ),
    "electra": ("encoder", lambda: tf.ElectraConfig(**{**_BERT, "embedding_size": 8})),
    "t5": ("encoder-decoder", lambda: tf.T5Config(**_T5)),
    "bart": ("encoder-decoder", lambda: tf.BartConfig(**_BART)),
    "llama": ("decoder", lambda: tf.LlamaConfig(**_DECODER)),
    "gemma3": (
        "decoder",
        lambda: tf.Gemma3TextConfig(
            **{**_DECODER, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
        ),
    ),
    "qwen3": ("decoder", lambda: tf.Qwen3Config(**_DECODER)),
    "gpt2": (
        "decoder",
        lambda: tf.GPT2Config(
            vocab_size=60,
            n_embd=16,
            n_layer=2,
            n_head=4,
            n_positions=40,
            bos_token_id=1,
            eos_token_id=2,
            initializer_range=0.3,
        ),
    ),
}
ENCODERS = [name for name, (kind, _) in FAMILIES.items() if kind == "encoder"]
DECODERS = [name for name, (kind, _) in FAMILIES.items() if kind == "decoder"]
SEQ2SEQ = [name for name, (kind, _) in FAMILIES.items() if kind == "encoder-decoder"]

METHODS: dict[str, sp.MethodConfig] = {
    "prompt-tuning": sp.PromptTuningConfig(num_virtual_tokens=3),
    "prefix-tuning": sp.PrefixTuningConfig(num_virtual_tokens=4, init_std=0.5),
    "prefix-mlp": sp.PrefixTuningConfig(num_virtual_tokens=2, reparameterize=True, mlp_hidden_size=8, init_std=0.5),
    "superpos": sp.SuperPosConfig(num_virtual_tokens=2, num_sampled_tokens=5),
    "ept": sp.EPTConfig(
        num_virtual_tokens=3, rank=2, max_length=16, num_spaces=2, space_hidden_size=4, source_tokens=6
    ),
    "dept": sp.DePTConfig(num_virtual_tokens=3, rank=2, max_length=16),
    "residual": sp.ResidualConfig(num_virtual_tokens=2, bottleneck=4),
    "smop": sp.SMoPConfig(num_virtual_tokens=3, num_prompts=2, router_noise=False, router_dropout=0.0),
    "multi-mask": sp.MultiMaskConfig(num_virtual_tokens=3, num_masks=2, router_dropout=0.0),
    "adaptive-prefix": sp.AdaptivePrefixConfig(num_virtual_tokens=3),
    "selective-prefix": sp.SelectivePrefixConfig(num_virtual_tokens=3, alpha=4.0, selective_loss=1e-2),
    "lora": sp.LoraConfig(rank=2, dropout=0.0, targets=("query", "value", "ffn.in")),
    "adapter": sp.AdapterConfig(reduction=4),
    "full": sp.FullConfig(),
}


def model(family: str, dtype: torch.dtype = torch.float64, tokens: bool = False, **config: Any) -> Any:
    """A random model in evaluation mode: for encoders a classifier (of ``tokens``), a language model otherwise."""
    torch.manual_seed(0)
    kind, make = FAMILIES[family]
    settings = make()
    settings.classifier_dropout = 0.0  # of the heads that have their own, which train with the prompt
    for key, value in config.items():
        setattr(settings, key, value)
    if kind == "encoder":
        settings.num_labels = config.get("num_labels", 3)
        auto = tf.AutoModelForTokenClassification if tokens else tf.AutoModelForSequenceClassification
        made = auto.from_config(settings)
    elif kind == "encoder-decoder":
        made = tf.AutoModelForSeq2SeqLM.from_config(settings)
    else:
        made = tf.AutoModelForCausalLM.from_config(settings)
    if kind != "encoder":
        made.generation_config.pad_token_id = settings.pad_token_id if settings.pad_token_id is not None else 0
    return made.to(dtype).eval()


_without_prompts: dict[str, Any] = {}  # attached in float64, by their settings: attaching takes longer than most tests


def attached(family: str, *names: str, dtype: torch.dtype = torch.float64, **config: Any) -> Any:
    """A model with the named methods of `METHODS` on it, their parameters shaken so that all of them matter."""
    if dtype == torch.float64:
        key = f"{family} {config}"
        if key not in _without_prompts:
            _without_prompts[key] = sp.attach(model(family, dtype, **config))
        made = copy.deepcopy(_without_prompts[key])
    else:  # where products of frozen weights may be faster ones, by what the machine is
        made = sp.attach(model(family, dtype, **config))
    for i, name in enumerate(names):
        made.add_prompt(name, METHODS[name], seed=i)
    made.prompts.to(dtype)
    shake(made)
    return made.eval()


def shake(made: Any, scale: float = 0.2) -> None:
    """Moves every trained tensor a little, so that zero starts hide nothing."""
    torch.manual_seed(7)
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.data += scale * torch.randn_like(parameter)


def batch(family: str, rows: int = 3, columns: int = 7, seed: int = 1) -> dict[str, Tensor]:
    """Random inputs with padding on the right in all rows but the first; labels included."""
    torch.manual_seed(seed)
    kind = FAMILIES[family][0]
    ids = torch.randint(5, 60, (rows, columns))
    mask = torch.ones_like(ids)
    for row in range(1, rows):
        mask[row, columns - row :] = 0
    pad = 1 if family == "roberta" else 0
    inputs = {"input_ids": ids.masked_fill(mask == 0, pad), "attention_mask": mask}
    if kind == "encoder":
        inputs["labels"] = torch.randint(0, 3, (rows,))
    elif kind == "decoder":
        labels = inputs["input_ids"].masked_fill(mask == 0, -100)
        labels[:, :3] = -100
        inputs["labels"] = labels
    else:
        inputs["labels"] = torch.randint(5, 60, (rows, 4))
    return inputs


def pad_left(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same rows with their padding moved to the left."""
    moved = dict(inputs)
    for key in ("input_ids", "attention_mask", "labels"):
        if key in inputs and inputs[key].shape == inputs["input_ids"].shape:
            shifted = [
                torch.cat([row[mask == 0], row[mask == 1]])
                for row, mask in zip(inputs[key], inputs["attention_mask"], strict=True)
            ]
            moved[key] = torch.stack(shifted)
    return moved


def row(inputs: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    """One row alone, without its padding."""
    mask = inputs["attention_mask"][index].bool()
    alone = {}
    for key, value in inputs.items():
        same = value.ndim == 2 and value.shape == inputs["attention_mask"].shape
        alone[key] = value[index][mask][None] if same else value[index : index + 1]
    return alone


def loss_of(made: Any, inputs: dict[str, Tensor], **kwargs: Any) -> Tensor:
    """The model's own loss on a batch."""
    return made(**inputs, **kwargs).loss


def real_logits(family: str, logits: Tensor, mask: Tensor) -> list[Tensor]:
    """Per row, the logits at real positions (all of them where there is no such thing)."""
    if FAMILIES[family][0] != "decoder":
        return list(logits)
    return [row[m.bool()] for row, m in zip(logits, mask, strict=True)]


def with_prompts(made: Any, *names: str) -> Any:
    """Attaches a model with a prompt of each method, without the check at attach, in float64 and shaken."""
    made = sp.attach(made, check=False)
    for seed, name in enumerate(names):
        made.add_prompt(name, METHODS[name], seed=seed)
    made.prompts.double()
    shake(made)
    return made.eval()


def unlabelled(family: str, padding: str) -> dict[str, Tensor]:
    """A batch without labels, of rows that are padded on the "right", on the "left", or not ("none")."""
    inputs = batch(family)
    inputs.pop("labels")
    if padding == "none":
        inputs = {"input_ids": torch.randint(5, 60, (3, 7))}
    elif padding == "left":
        inputs = pad_left(inputs)
    if family in SEQ2SEQ:
        inputs["decoder_input_ids"] = torch.randint(5, 60, (3, 4))
    return inputs
