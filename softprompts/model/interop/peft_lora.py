"""LoRA adapters of the PEFT library, both ways: products beside linear layers, with nothing else to them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from softprompts.backbones.backbone import Backbone
from softprompts.errors import SoftPromptError
from softprompts.methods.baselines.lora import TARGETS, LoraConfig, Target
from softprompts.methods.contract import Method, MethodConfig
from softprompts.methods.modules import LINEAR, key
from softprompts.model.interop.peft_adapter import _ENDS, PREFIX, is_product
from softprompts.soft_prompt import Part

if TYPE_CHECKING:
    from softprompts.model.interop.peft_adapter import Adapter

# What the config may say without a change of what is computed; anything else has to be unset.
_KNOWN = {
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode", "peft_version"),
    *("auto_mapping", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "modules_to_save"),
    *("fan_in_fan_out", "use_rslora", "bias", "init_lora_weights", "layers_to_transform", "layers_pattern"),
    *("loftq_config", "eva_config", "qalora_group_size", "megatron_core", "runtime_config", "ensure_weight_tying"),
}
# Other starts change the backbone's weights too, and the adapter means nothing without that.
_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")


def read_lora(adapter: Adapter, backbone: Backbone) -> tuple[MethodConfig, dict[str, Tensor]]:
    """The config and tensors of our method for an adapter of PEFT's.

    Raises:
        SoftPromptError: it does more than plain LoRA, or to other layers than our method's.
    """
    config, where = adapter.config, adapter.path
    for setting, value in config.items():
        if setting not in _KNOWN and value:
            raise SoftPromptError(f"{where}: LoRA with {str(setting)[:40]} is not read; plain LoRA is")
    if config.get("bias", "none") != "none" or config.get("init_lora_weights") not in _STARTS:
        setting = "bias" if config.get("bias", "none") != "none" else "init_lora_weights"
        raise SoftPromptError(f"{where}: LoRA with {setting}={str(config[setting])[:40]} is not read; plain LoRA is")
    rank = adapter.number("r")
    alpha, dropout = (_real(adapter, name, default) for name, default in (("lora_alpha", 8), ("lora_dropout", 0.0)))
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in adapter.tensors.items():
        for end, which in _ENDS.items():
            if is_product(name) and name.endswith(end):
                found.setdefault(name.removeprefix(PREFIX).removesuffix(end), {})[which] = value
    known = {path: part for part, path in _paths(backbone)}
    for path, pair in found.items():
        if path not in known or known[path].kind not in LINEAR or not set(known[path].roles) & set(TARGETS):
            raise SoftPromptError(
                f"{where} changes '{path[:80]}', which is no query, key, value, attention output or feed-forward layer "
                f"of {type(backbone.model).__name__}"
            )
        part = known[path]
        shapes = {"a": (rank, part.in_features), "b": (part.out_features, rank)}
        if {which: tuple(value.shape) for which, value in pair.items()} != shapes:
            raise SoftPromptError(
                f"{where}: the product at '{path}' is incomplete or of other sizes than r={rank} and "
                f"{type(backbone.model).__name__} ask for"
            )
    roles = _roles(adapter, set(found), known)
    tensors = {f"method.{which}.{key(known[path].path)}": pair[which] for path, pair in found.items() for which in pair}
    # Our product counts alpha / r.
    scaled = alpha * math.sqrt(rank) if config.get("use_rslora") else alpha
    return LoraConfig(rank=rank, alpha=scaled, dropout=dropout, targets=roles), tensors


def _real(adapter: Adapter, name: str, default: float) -> float:
    value = adapter.config.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise SoftPromptError(f"{adapter.path}: {name} must be a number from 0, not {repr(value)[:40]}")
    return float(value)


def _paths(backbone: Backbone) -> list[tuple[Part, str]]:
    """The parts of a backbone, with the names that their modules have in the whole model."""
    names = {module: name for name, module in backbone.model.named_modules()}
    return [(part, names[module]) for part, module in backbone.parts if module in names]


def _roles(adapter: Adapter, paths: set[str], known: Mapping[str, Part]) -> tuple[Target, ...]:
    """The kinds of layers that an adapter changes, all of each."""
    linear = {path: set(part.roles) & set(TARGETS) for path, part in known.items() if part.kind in LINEAR}
    wanted = {role for path in paths for role in linear[path]}
    missing = sorted(
        path for path, roles in linear.items() if roles & wanted and known[path].by_row and path not in paths
    )
    if not paths or missing:
        why = f"leaves out '{missing[0]}'" if missing else "has no products"
        raise SoftPromptError(f"{adapter.path} {why}; only LoRA on all layers of a kind is read")
    return tuple(role for role in TARGETS if role in wanted)


def lora_adapter(method: Method, backbone: Backbone) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings and tensors of a LoRA adapter of PEFT's for a prompt of our method, without its head.

    Args:
        method: the trained module.
        backbone: what it is for.
    """
    config = method.config
    assert isinstance(config, LoraConfig)
    paths = {part.path: path for part, path in _paths(backbone)}
    state, tensors = method.state_dict(), {}
    for own in method.changes:
        for end, which in _ENDS.items():
            tensors[f"{PREFIX}{paths[own]}{end}"] = state[f"{which}.{key(own)}"]
    targets = [paths[own] for own in method.changes]
    parts = {part.path: part for part, _ in _paths(backbone)}
    settings = {
        "peft_type": "LORA",
        "r": config.rank,
        "lora_alpha": config.rank if config.alpha is None else config.alpha,
        "lora_dropout": config.dropout,
        "bias": "none",
        "fan_in_fan_out": any(parts[own].kind == "conv1d" for own in method.changes),
        "target_modules": _short(targets, backbone.model),
    }
    return settings, tensors


def _short(targets: list[str], model: nn.Module) -> list[str]:
    """Last parts of the names where they mean the same modules, as people write them; else whole names."""
    last = sorted({path.rpartition(".")[2] for path in targets})
    names = [name for name, _ in model.named_modules() if not name.startswith("prompts.")]
    meant = {name for name in names if name.rpartition(".")[2] in last}
    return last if meant == set(targets) else targets
