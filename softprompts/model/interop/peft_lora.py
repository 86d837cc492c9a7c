"""LoRA adapters of the PEFT library, read and written: products beside linear layers, and a trained head."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from softprompts.backbones.backbone import Backbone
from softprompts.errors import SoftPromptError
from softprompts.methods.baselines.lora import TARGETS, LoraConfig
from softprompts.methods.contract import Method, MethodConfig
from softprompts.methods.modules import key
from softprompts.model.interop.peft_adapter import LORA_START, PRODUCT, Adapter, is_product
from softprompts.soft_prompt import Part

# Settings that do not change what is computed, or that are read below; any other has to be unset.
_KNOWN = {
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "peft_version"),
    *("auto_mapping", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "modules_to_save"),
    *("fan_in_fan_out", "use_rslora", "bias", "init_lora_weights", "layers_to_transform", "layers_pattern"),
    *("loftq_config", "eva_config", "qalora_group_size", "megatron_core", "runtime_config", "ensure_weight_tying"),
}
# Other initialisations change the backbone's weights too, and the adapter means nothing without that.
_PLAIN = {"bias": ("none",), "init_lora_weights": (None, True, False, "gaussian", "orthogonal", "eva")}


def read_lora(adapter: Adapter, backbone: Backbone) -> tuple[MethodConfig, dict[str, Tensor]]:
    """Returns the config and tensors of our method for an adapter of PEFT.

    Raises:
        SoftPromptError: it does more than plain LoRA, or to other layers than our method's.
    """
    config, where, model_name = adapter.config, adapter.path, type(backbone.model).__name__
    for name, value in config.items():
        if (value not in _PLAIN[name]) if name in _PLAIN else (value and name not in _KNOWN):
            raise SoftPromptError(f"{where}: LoRA with {str(name)[:40]}={str(value)[:40]} is not read; plain LoRA is")
    rank = adapter.number("r")
    products: dict[str, dict[str, Tensor]] = {}
    for name, value in adapter.tensors.items():
        for end, factor in PRODUCT.items():
            if is_product(name) and name.endswith(end):
                products.setdefault(name.removeprefix(LORA_START).removesuffix(end), {})[factor] = value
    parts = {path: part for path, part in _parts(backbone).items() if {*part.roles} & {*TARGETS}}
    for path, factors in products.items():
        if path not in parts:
            raise SoftPromptError(
                f"{where} changes '{path[:80]}', which is no query, key, value, attention output or feed-forward layer "
                f"of {model_name}"
            )
        shapes = {"a": (rank, parts[path].in_features), "b": (parts[path].out_features, rank)}
        if {factor: tuple(value.shape) for factor, value in factors.items()} != shapes:
            raise SoftPromptError(
                f"{where}: the product at '{path}' is incomplete or of other sizes than r={rank} and {model_name} ask "
                "for"
            )
    roles = {role for path in products for role in parts[path].roles if role in TARGETS}
    missing = [path for path, part in parts.items() if part.by_row and roles & {*part.roles} and path not in products]
    if not products or missing:
        reason = f"leaves out '{min(missing)}'" if missing else "has no products"
        raise SoftPromptError(f"{where} {reason}; only LoRA on all layers of a kind is read")
    tensors = {
        f"method.{factor}.{key(parts[path].path)}": value
        for path, factors in products.items()
        for factor, value in factors.items()
    }
    # Our products are scaled by alpha / rank.
    alpha = adapter.real("lora_alpha", 8) * (math.sqrt(rank) if config.get("use_rslora") else 1)
    targets = tuple(role for role in TARGETS if role in roles)
    return LoraConfig(rank=rank, alpha=alpha, dropout=adapter.real("lora_dropout", 0.0), targets=targets), tensors


def _parts(backbone: Backbone) -> dict[str, Part]:
    """Returns the parts of a backbone, by the names that their modules have in the whole model."""
    names = {module: name for name, module in backbone.model.named_modules()}
    return {names[module]: part for part, module in backbone.parts if module in names}


def lora_adapter(method: Method, backbone: Backbone) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the settings and tensors of a LoRA adapter of PEFT for a prompt of our method, without its head."""
    config = method.config
    assert isinstance(config, LoraConfig)
    changed = {path: part for path, part in _parts(backbone).items() if part.path in method.changes}
    state = method.state_dict()
    tensors = {
        f"{LORA_START}{path}{end}": state[f"{factor}.{key(part.path)}"]
        for path, part in changed.items()
        for end, factor in PRODUCT.items()
    }
    settings = {
        "peft_type": "LORA",
        "r": config.rank,
        "lora_alpha": config.rank if config.alpha is None else config.alpha,
        "lora_dropout": config.dropout,
        "bias": "none",
        "fan_in_fan_out": any(part.kind == "conv1d" for part in changed.values()),
        "target_modules": _short([*changed], backbone.model),
    }
    return settings, tensors


def _short(targets: list[str], model: nn.Module) -> list[str]:
    """Returns the last parts of the names if no other module has such a name, as people write them, or whole names."""
    last = sorted({path.rpartition(".")[2] for path in targets})
    names = [name for name, _ in model.named_modules() if not name.startswith("prompts.")]
    meant = {name for name in names if name.rpartition(".")[2] in last}
    return last if meant == set(targets) else targets
