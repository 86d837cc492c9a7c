"""Reading adapters of the PEFT library: prompt tuning, P-tuning, prefix tuning, multitask prompt tuning, plain LoRA.

What PEFT computes is reproduced by two settings that our own prompts have too: ``placement="front"`` (prompt tokens
before [CLS], so that a pooler reads the first of them) and ``positions="shifted"`` (the prefix takes the first
positions, as it lies in the KV cache). Only JSON and safetensors are read; pickles are refused. Nothing is attached
unless all of an adapter fits.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from softprompts.backbones import packaged, task_head
from softprompts.backbones.backbone import Backbone
from softprompts.backbones.task_head import last_linear
from softprompts.errors import SoftPromptError, nearest
from softprompts.injection.classification_loss import wide
from softprompts.injection.prompt import new_prompt
from softprompts.injection.state import state_of
from softprompts.methods.baselines.prefix_tuning import PrefixTuningConfig
from softprompts.methods.baselines.prompt_tuning import PromptTuningConfig
from softprompts.methods.contract import MethodConfig, SiteKind
from softprompts.methods.folded import FoldedConfig
from softprompts.model.interop import peft_adapter, peft_lora
from softprompts.model.interop.peft_adapter import (
    CLASSES,
    COLUMNS,
    HEAD,
    LORA,
    PROMPT,
    ROWS,
    TYPES,
    Adapter,
    _line,
    _shown,
)
from softprompts.model.saving import fill
from softprompts.storage.names import ADAPTER_CONFIG, ADAPTER_TENSORS
from softprompts.storage.saved_prompt import FLOATS

PICKLE_FILE = "adapter_model.bin"
# What the tokens of an adapter that PEFT computes were trained with.
_SOURCES = {"P_TUNING": "p-tuning", "MULTITASK_PROMPT_TUNING": "mpt"}
_KINDS = {"SEQ_2_SEQ_LM": ("encoder-decoder",), "CAUSAL_LM": ("decoder",)}
_ONE_STACK = ("encoder", "decoder")
OF_CONFIG = ("local_files_only", "cache_dir", "token", "trust_remote_code")  # what a config is loaded with too


def read_adapter(folder: str | Path) -> Adapter:
    """The checked config and tensors of an adapter.

    Raises:
        SoftPromptError: something is missing, damaged, a pickle, or not of the four kinds.
    """
    path = Path(folder)
    config = _read_config(path)
    kind, task = config.get("peft_type"), config.get("task_type")
    if not isinstance(kind, str):
        raise SoftPromptError(f"{path / ADAPTER_CONFIG} has no peft_type: it is no PEFT adapter, or an edited one")
    if kind not in TYPES:
        raise SoftPromptError(
            f"{path}: a PEFT adapter of type {_shown(kind)} is not read; those that are: {', '.join(TYPES)}"
        )
    if (kind != LORA or task is not None) and (not isinstance(task, str) or task not in CLASSES):
        hint = nearest(task[:40], CLASSES) if isinstance(task, str) else f"one of {', '.join(CLASSES)}"
        raise SoftPromptError(
            f"{path}: task_type is {_shown(task)}, with which PEFT applies no prompt; it must be set: {hint}"
        )
    adapter = Adapter(path, kind, task or "", config, _read_tensors(path))
    if kind != LORA:
        adapter.number("num_virtual_tokens")
    known = {LORA: set[str](), "MULTITASK_PROMPT_TUNING": {PROMPT, COLUMNS, ROWS}}.get(kind, {PROMPT})
    start = peft_adapter.PREFIX if kind == LORA else HEAD
    for key in adapter.tensors:
        if key not in known and not key.startswith(start):
            raise SoftPromptError(f"{path}: {ADAPTER_TENSORS} has the unknown tensor {_shown(key)}")
    return adapter


def _read_config(path: Path) -> dict[str, Any]:
    file = path / ADAPTER_CONFIG
    if not file.is_file():
        raise SoftPromptError(f"{path} holds no PEFT adapter: {ADAPTER_CONFIG} is missing")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SoftPromptError(f"{file} is not valid JSON ({_line(error)}): the file is damaged") from error
    except OSError as error:
        raise SoftPromptError(f"{file} cannot be read ({error.strerror})") from error
    if not isinstance(config, dict):
        raise SoftPromptError(f"{file} holds no settings but a JSON {type(config).__name__}: it is no PEFT adapter")
    return config


def _read_tensors(path: Path) -> dict[str, Tensor]:
    file = path / ADAPTER_TENSORS
    if not file.is_file():
        if (path / PICKLE_FILE).is_file():
            raise SoftPromptError(
                f"{path} has its tensors in {PICKLE_FILE}, a pickle, which can run code and is not read: "
                "load it with PEFT where you trust it and save it with safe_serialization=True"
            )
        raise SoftPromptError(f"{file} is missing: the adapter is incomplete")
    try:
        tensors = load_tensors(file.read_bytes())
    except OSError as error:
        raise SoftPromptError(f"{file} cannot be read ({error.strerror})") from error
    except (SafetensorError, ValueError, KeyError, RuntimeError, OverflowError) as error:
        raise SoftPromptError(f"{file} is no safetensors file, or a damaged one ({_line(error)})") from error
    for key, value in tensors.items():
        if value.dtype not in FLOATS:
            name = str(value.dtype).removeprefix("torch.")
            raise SoftPromptError(
                f"{file}: {_shown(key)} holds {name}; an adapter holds float32, or another plain float"
            )
        if not torch.isfinite(value).all():
            raise SoftPromptError(f"{file}: {_shown(key)} holds values that are not finite")
    return tensors


# --- onto a model -------------------------------------------------------------------------------------------------


def load_adapter(model: Any, folder: str | Path, name: str | None = None, task_id: int | None = None) -> str:
    """Adds an adapter to an attached model as a prompt.

    Args:
        model: the attached model.
        folder: the adapter's.
        name: the prompt's; None: "default".
        task_id: which task of a multitask adapter; not needed where it has one.

    Returns:
        The prompt's name.

    Raises:
        SoftPromptError: the adapter is damaged, of another kind, or does not fit the model; nothing is added then.
    """
    stored = read_adapter(folder)
    # Half precision is for storing: what is trained further is in single, as in PEFT.
    tensors = {key: wide(value) for key, value in stored.tensors.items()}
    adapter = dataclasses.replace(stored, tensors=tensors)
    state = state_of(model)
    backbone, kind = state.backbone, type(model).__name__
    if adapter.task and backbone.kind not in _KINDS.get(adapter.task, _ONE_STACK):
        raise SoftPromptError(
            f"{adapter.path} is for another kind of model (task_type {adapter.task}) than {kind}, which is "
            f"{'an' if backbone.kind[0] == 'e' else 'a'} {backbone.kind}"
        )
    if task_id is not None and adapter.kind != "MULTITASK_PROMPT_TUNING":
        raise SoftPromptError(f"{adapter.path}: task_id is for multitask adapters; this one is of type {adapter.kind}")
    if adapter.kind == LORA:
        config, tensors = peft_lora.read_lora(adapter, backbone)
    elif adapter.kind == "PREFIX_TUNING":
        config, tensors = _prefix(adapter, backbone)
    else:
        config, tensors = _tokens(adapter, backbone, task_id)
    num_labels = _num_labels(adapter, model)
    name = name or "default"
    prompt = new_prompt(backbone, state.original_heads, state.labels[1], config, num_labels=num_labels, seed=0)
    tensors |= {f"head.{key}": value for key, value in adapter.head.items()}
    # What of a head the adapter has not is the model's.
    own = {key: value for key, value in prompt.state_dict().items() if key.startswith("head.")}
    fill(prompt, own | tensors, str(folder))
    model.place_prompt(name, prompt)
    return name


def _tokens(adapter: Adapter, backbone: Backbone, task_id: int | None) -> tuple[MethodConfig, dict[str, Tensor]]:
    length, copies = adapter.number("num_virtual_tokens"), adapter.submodules
    if copies > (2 if backbone.kind == "encoder-decoder" else 1):
        raise SoftPromptError(
            f"{adapter.path}: num_transformer_submodules is {copies}, with which PEFT itself does not run on "
            f"{type(backbone.model).__name__}"
        )
    table = adapter.tensor(PROMPT, length * copies, backbone.hidden_size)
    if adapter.kind == "MULTITASK_PROMPT_TUNING":
        table = table * _of_task(adapter, task_id, *table.shape)
    # On encoder-decoders PEFT makes as many rows again, which belong to the decoder and are used by none but MPT.
    table = table[:length].clone()
    if backbone.reads_first and getattr(backbone.model.config, "classifier_pooling", "cls") != "cls":
        raise SoftPromptError(
            f"{adapter.path}: the classifier of {type(backbone.model).__name__} takes a mean over all tokens, prompt "
            "tokens among them in PEFT; that cannot be reproduced"
        )
    placement: Literal["front", "behind-first"] = "front" if backbone.kind == "encoder" else "behind-first"
    if adapter.kind == "PROMPT_TUNING":
        plain = PromptTuningConfig(num_virtual_tokens=length, init="random", placement=placement)
        return plain, {"method.prompt": table}
    folded = FoldedConfig(
        num_virtual_tokens=length, source=_SOURCES[adapter.kind], has_tokens=True, placement=placement
    )
    return folded, {"method.tokens": table}


def _of_task(adapter: Adapter, task_id: int | None, rows: int, width: int) -> Tensor:
    """What the shared prompt is multiplied with for one task, ``(rows, width)``."""
    columns = adapter.tensor(COLUMNS, None, rows, None)
    tasks, _, rank = columns.shape
    factors = adapter.tensor(ROWS, tasks, rank, width)
    if task_id is None:
        if tasks != 1:
            raise SoftPromptError(f"{adapter.path} holds {tasks} tasks: choose one with task_id=0 to {tasks - 1}")
        task_id = 0
    if isinstance(task_id, bool) or not isinstance(task_id, int) or not 0 <= task_id < tasks:
        raise SoftPromptError(f"{adapter.path} has no task {_shown(task_id)}: task_id is 0 to {tasks - 1}")
    return columns[task_id] @ factors[task_id]


def _prefix(adapter: Adapter, backbone: Backbone) -> tuple[MethodConfig, dict[str, Tensor]]:
    length, copies, layers = adapter.number("num_virtual_tokens"), adapter.submodules, adapter.number("num_layers")
    kinds: tuple[SiteKind] = ("encoder.self",) if backbone.kind == "encoder" else ("decoder.self",)
    indices = backbone.chosen_sites(kinds, adapter.kind)
    sites = [backbone.sites[index] for index in indices]
    if backbone.fixed_positions(indices) is not None:
        raise SoftPromptError(
            f"{adapter.path}: PEFT's prefix takes the first positions, and {type(backbone.model).__name__} "
            f"{backbone.fixed_positions(indices)}: an adapter of tokens (PROMPT_TUNING) can be read"
        )
    name, wanted = type(backbone.model).__name__, 2 if backbone.kind == "encoder-decoder" else 1
    if copies != wanted:
        raise SoftPromptError(
            f"{adapter.path}: num_transformer_submodules is {copies}, with which PEFT itself does not run on {name}"
        )
    heads_, width = sites[0].kv_heads, sites[0].kv_heads * sites[0].head_dim
    for key, own in (("num_attention_heads", heads_), ("token_dim", width)):
        if adapter.number(key) != own:
            raise SoftPromptError(
                f"{adapter.path} was trained on another backbone: {key} is {adapter.number(key)}, keys of {name} "
                f"ask for {own}"
            )
    encoder_layers = sum(site.kind == "encoder.self" for site in backbone.sites)
    fitting = {len(sites)} if wanted == 1 else {len(sites), 2 * len(sites), max(encoder_layers, len(sites))}
    if layers not in fitting:
        raise SoftPromptError(
            f"{adapter.path} was trained on another backbone: num_layers is {layers}, {name} has {len(sites)}"
        )
    slots = adapter.tensor(PROMPT, length, 2 * layers * width).view(length, 2 * layers, width)
    if wanted == 2:
        # PEFT writes the slots down twice and deals out four to a layer, of which T5's attention uses two: with as
        # many layers as the model has, layers i and i + L/2 get the same ones, and half are never used.
        order = [(4 * layer + part) % (2 * layers) for layer in range(len(sites)) for part in (0, 1)]
        slots = slots[:, order]
    config = PrefixTuningConfig(num_virtual_tokens=length, sites=kinds, positions="shifted")
    return config, {"method.prefix": slots.reshape(length, -1).clone()}


def _num_labels(adapter: Adapter, model: Any) -> int | None:
    """The number of labels of an adapter's head, whose tensors all belong to the model's own."""
    head, originals = adapter.head, state_of(model).original_heads
    if not head:
        return None
    name = type(model).__name__
    if not originals:
        wanted = CLASSES.get(adapter.task, "a task head")
        raise SoftPromptError(
            f"{adapter.path} has a trained head, but {name} has none: load the backbone with {wanted}"
        )
    modules = nn.ModuleDict(dict(originals))
    known = modules.state_dict()
    for key in head:
        if key not in known:
            raise SoftPromptError(
                f"{adapter.path} holds {_shown(key)}, which is no part of the task head of {name}; "
                f"{nearest(key[:80], known)}"
            )
    last = last_linear(modules)
    weight = None if last is None else head.get(f"{last[0]}.weight")
    if weight is None:
        return None
    if weight.ndim != 2 or not len(weight):
        raise SoftPromptError(f"{adapter.path}: the weight of its head has shape {tuple(weight.shape)}")
    return len(weight)


def open_backbone(folder: str | Path, quantize: str | None = None, **kwargs: Any) -> Any:
    """The plain model that an adapter names, of the class that its task asks for.

    Args:
        folder: the adapter's.
        quantize: keep its weights in few bits, a key of `softprompts.backbones.quantized.BACKENDS`; None: as they come.
        **kwargs: go to ``from_pretrained``.

    Raises:
        SoftPromptError: the adapter cannot be read, names no backbone, or one that cannot be loaded.
    """
    adapter = read_adapter(folder)
    if not adapter.task:
        raise SoftPromptError(
            f"{adapter.path} has no task_type: load the model, then softprompts.attach(model, folder)"
        )
    base, revision = adapter.config.get("base_model_name_or_path"), adapter.config.get("revision")
    if base is None or base == "":
        raise SoftPromptError(
            f"{adapter.path} does not name its backbone: load the model, then softprompts.attach(model, folder)"
        )
    odd = not isinstance(base, str) or not base.isprintable() or ".." in Path(base).parts or base.startswith("~")
    if odd or not (revision is None or (isinstance(revision, str) and revision.isprintable())):
        raise SoftPromptError(f"{adapter.path}: base_model_name_or_path {_shown(base)} is no name of a model")
    kwargs.setdefault("trust_remote_code", False)  # or transformers may ask at the terminal
    counted = adapter.task in ("SEQ_CLS", "TOKEN_CLS") and bool(adapter.head) and "num_labels" not in kwargs
    try:
        auto, place = getattr(transformers, CLASSES[adapter.task]), packaged.resolve_model(base)
        if counted or quantize is not None:
            known = {key: kwargs[key] for key in OF_CONFIG if key in kwargs}
            config = transformers.AutoConfig.from_pretrained(place, revision=revision or "main", **known)
            if counted and (labels := _outputs(auto, config, adapter)) is not None:
                kwargs["num_labels"] = labels
            packed = "quantization_config" in kwargs or getattr(config, "quantization_config", None) is not None
            if quantize is not None and not packed:
                from softprompts.backbones.loading import quantizing

                kwargs = {**quantizing(auto, config, quantize), **kwargs}
        return auto.from_pretrained(place, revision=revision or "main", **kwargs)
    except SoftPromptError:
        raise
    except Exception as error:  # a dozen kinds, for what a name can be of
        raise SoftPromptError(
            f"{adapter.path}: its backbone {_shown(base)} cannot be loaded ({_line(error)})"
        ) from error


def _outputs(auto: Any, config: Any, adapter: Adapter) -> int | None:
    """How many labels the head of an adapter has: its tensors are in no order, only the model knows which is last."""
    with torch.device("meta"):
        empty = auto.from_config(config)
    last = last_linear(nn.ModuleDict({name: getattr(empty, name) for name in task_head.find(empty)}))
    weight = None if last is None else adapter.head.get(f"{last[0]}.weight")
    return len(weight) if weight is not None and weight.ndim == 2 and len(weight) else None


def described(folder: str | Path) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    """An adapter as `softprompts.storage.saved_prompt.read` gives a prompt of ours, as far as it says so much.

    Raises:
        SoftPromptError: see `read_adapter`.
    """
    adapter = read_adapter(folder)
    keys = (
        "task_type",
        "num_virtual_tokens",
        "num_transformer_submodules",
        "num_layers",
        "num_ranks",
        "num_tasks",
        "r",
    )
    settings = {key: adapter.config.get(key) for key in keys if isinstance(adapter.config.get(key), str | int)}
    name = adapter.config.get("base_model_name_or_path")
    types = {
        key: [str(value.dtype).removeprefix("torch."), list(value.shape)] for key, value in adapter.tensors.items()
    }
    config = {
        "method": f"{adapter.kind} of PEFT",
        "config": settings,
        "backbone": {
            "name": name if isinstance(name, str) and name.isprintable() else "",
            "class": CLASSES.get(adapter.task, "any class"),
        },
        "labels": None,
        "tensors": types,
        "metadata": {},
    }
    return config, adapter.tensors
