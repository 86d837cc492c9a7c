"""Tiny random models of every class in transformers' auto mappings that takes text.

Configs shrink by `rules.yaml`, by the names of their attributes; what needs more is in `exceptions.yaml`. No code here
knows a model type.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from transformers import PreTrainedConfig
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

HERE = Path(__file__).parent
RULES = [(re.compile(pattern), value) for pattern, value in yaml.safe_load((HERE / "rules.yaml").read_text())]
EXCEPTIONS: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "exceptions.yaml").read_text()) or {}
# Tables of classes, and the tasks that their checks differ by.
TABLES = {
    "SEQ_TO_SEQ_CAUSAL_LM": "seq2seq",
    "CAUSAL_LM": "causal",
    "MASKED_LM": "tokens",
    "SEQUENCE_CLASSIFICATION": "rows",
    "TOKEN_CLASSIFICATION": "tokens",
    "QUESTION_ANSWERING": "spans",
    "MULTIPLE_CHOICE": "choice",
    "IMAGE_TEXT_TO_TEXT": "causal",
    "MULTIMODAL_LM": "causal",
    "SPEECH_SEQ_2_SEQ": "causal",
}
VOCABULARY, FIRST_SPECIAL = 100, 84  # special tokens of images and sounds have the ids from here on
_SPECIAL = re.compile(
    r".*(image|video|audio|vision|img|boi|eoi|mask|speech|user|frame).*(token_(id|index)|_id)|.*_token_(id|index)"
)
_NAMES_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth")


class NotBuiltError(Exception):
    """Why there is no tiny model of a class."""


@functools.cache
def classes() -> dict[str, dict[str, str]]:
    """By model type, its classes and the task of each; a class that several types share belongs to the first."""
    found: dict[str, dict[str, str]] = {}
    for table, task in TABLES.items():
        for model_type, names in getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES").items():
            for name in names if isinstance(names, tuple) else (names,):
                found.setdefault(model_type, {}).setdefault(name, task)
    seen: set[str] = set()
    for model_type in sorted(found, key=lambda name: (name not in CONFIG_MAPPING, len(name), name)):
        found[model_type] = {name: task for name, task in found[model_type].items() if name not in seen}
        seen |= set(found[model_type])
    return {model_type: found[model_type] for model_type in sorted(found) if found[model_type]}


def exception(model_type: str, key: str, default: Any = None) -> Any:
    """What `exceptions.yaml` says of a model type."""
    return EXCEPTIONS.get(model_type, {}).get(key, default)


def config_of(model_type: str) -> PreTrainedConfig:
    """The tiny config of a model type."""
    if exception(model_type, "not built"):
        raise NotBuiltError(exception(model_type, "not built"))
    special = iter(range(FIRST_SPECIAL, VOCABULARY))
    ids: dict[str, int] = {}
    values = _shrunk(CONFIG_MAPPING[model_type], model_type, exception(model_type, "config", {}), special, ids)
    return CONFIG_MAPPING[model_type](**values)


def _shrunk(
    kind: type[PreTrainedConfig], model_type: str, own: dict[str, Any], special: Any, ids: dict[str, int]
) -> dict[str, Any]:
    """The arguments of a tiny config: each default by the rules, then what is ``own`` to the type."""
    try:
        default = kind(
            **{
                key: value
                for key, value in own.items()
                if key in ("text_config", "vision_config", "encoder", "decoder") and "model_type" in value
            }
        )
    except Exception as error:
        raise NotBuiltError(f"its config has no defaults ({type(error).__name__}: {first_line(error)})") from error
    values: dict[str, Any] = {}
    layers = _layers_of(default)
    lists: dict[str, list[Any]] = {}
    for field in dataclasses.fields(kind):
        name = field.name
        value = (
            getattr(default, "per_layer_config_defaults", {}).get(name)
            if name not in default.__dict__
            else default.__dict__[name]
        )
        if isinstance(value, PreTrainedConfig):
            part = own.get(name, {})
            inner_type = part.get("model_type", value.model_type) if isinstance(part, dict) else value.model_type
            inner = type(value) if inner_type == value.model_type else CONFIG_MAPPING[inner_type]
            general = exception(inner_type, "config", {})
            values[name] = _shrunk(inner, inner_type, {**general, **part}, special, ids)
            if inner.model_type:
                values[name]["model_type"] = inner.model_type
        elif isinstance(value, bool) or value is None:
            continue
        elif isinstance(value, (int, list)) and _SPECIAL.fullmatch(name) and _rule(name) is None and value:
            if isinstance(value, int):
                values[name] = ids[name] if name in ids else ids.setdefault(name, next(special))
        elif isinstance(value, int):
            field_default = field.default
            small = _rule(name)
            if (
                small is not None
                and (isinstance(field_default, int) or field_default is dataclasses.MISSING)
                and value > 0
            ):
                values[name] = small if name.endswith("_id") or name.endswith("_index") else min(small, value)
            if name.endswith("_id") and small is not None:
                values[name] = small
        elif isinstance(value, list | tuple) and layers and len(value) == layers[1] and name != "id2label":
            lists[name] = list(value)
        elif isinstance(value, list | tuple) and value and name in ("image_size", "patch_size") and len(value) == 2:
            values[name] = type(value)([_rule(name)] * 2)
        elif name in ("initializer_range", "init_std", "init_range") and isinstance(value, float):
            values[name] = 0.2
        elif "drop" in name and isinstance(value, float):
            values[name] = 0.0
    if lists and layers:
        kept: dict[tuple[str, ...], int] = {}
        for index in range(layers[1]):
            kept.setdefault(tuple(str(entries[index]) for entries in lists.values()), index)
        indices = sorted(kept.values())[:4]
        if len(indices) == 1:
            indices *= 2
        values |= {name: [entries[index] for index in indices] for name, entries in lists.items()}
        values[layers[0]] = len(indices)
    if "kv_lora_rank" in values and "num_key_value_heads" in values:  # all heads share what is compressed
        values["num_key_value_heads"] = values.get("num_attention_heads", 4)
    if "rope_parameters" in default.__dict__:
        rope = _rope(default.rope_parameters, values)
        if rope is not None:
            values["rope_parameters"] = rope
    for name, value in own.items():
        if not isinstance(values.get(name), dict) or name == "rope_parameters" or not isinstance(value, dict):
            values[name] = value
    return values


def _layers_of(config: PreTrainedConfig) -> tuple[str, int] | None:
    for name in _NAMES_LAYERS:
        if isinstance(config.__dict__.get(name), int):
            return name, config.__dict__[name]
    return None


def _rule(name: str) -> Any:
    return next((value for pattern, value in RULES if pattern.fullmatch(name)), None)


def _rope(given: Any, values: dict[str, Any]) -> Any:
    """Rotary sections of several axes, cut to the half of a tiny head; None where there are none."""
    if not isinstance(given, dict) or not isinstance(given.get("mrope_section"), list):
        return None
    head = values.get("head_dim") or values.get("hidden_size", 32) // values.get("num_attention_heads", 4)
    half = int(head * given.get("partial_rotary_factor", 1.0)) // 2
    count = len(given["mrope_section"])
    sections = [half // count + (index < half % count) for index in range(count)]
    return {**given, "mrope_section": sections}


def first_line(error: BaseException) -> str:
    """The first line of an error that says something."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip()[:200] if lines else ""


def model_of(
    model_type: str, name: str, config: PreTrainedConfig | None = None, dtype: torch.dtype = torch.float64
) -> Any:
    """A tiny random model of a class, in evaluation mode, with the same numbers each time.

    Raises:
        NotBuiltError: there is none.
    """
    kind, task = getattr(transformers, name), classes()[model_type][name]
    config = config if config is not None else config_of(model_type)
    if not isinstance(config, kind.config_class):  # the text model of one that sees and hears
        config = next((part for part in _configs(config) if isinstance(part, kind.config_class)), config)
    for part in _configs(config):
        if task in ("rows", "tokens", "spans", "choice"):
            part.num_labels = 2 if task == "spans" else 3
        for key, value in (("pad_token_id", 0), ("bos_token_id", 1), ("eos_token_id", 2)):
            if getattr(part, key, None) is None:
                setattr(part, key, value)
        if config.is_encoder_decoder and getattr(part, "decoder_start_token_id", None) is None:
            part.decoder_start_token_id = 1
    if (
        task == "causal"
        and hasattr(config, "is_decoder")
        and name in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    ):
        config.is_decoder = True
    for key, value in exception(model_type, "classes", {}).get(name, {}).items():
        setattr(config, key, value)
    torch.manual_seed(0)
    try:
        model = kind(config)
    except ImportError as error:
        raise NotBuiltError(f"{first_line(error)}") from error
    if getattr(config, "_experts_implementation", None) is not None:
        model.set_experts_implementation("eager")  # grouped products know no float64
    model = model.to(dtype).eval()
    generation = getattr(model, "generation_config", None)
    if generation is not None:
        generation.eos_token_id, generation.pad_token_id = None, 0
        generation.forced_eos_token_id = generation.forced_bos_token_id = None
        generation.suppress_tokens = generation.begin_suppress_tokens = None
        generation.num_beams, generation.max_length, generation.do_sample = 1, None, False
    return model


def _configs(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    found = [config]
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            found += _configs(value)
    return found
