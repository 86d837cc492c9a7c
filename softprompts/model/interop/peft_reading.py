"""Puts adapters of the PEFT library on models: prompt, prefix, P- and multitask prompt tuning, plain LoRA.

What PEFT computes is reproduced by two settings of our prompts: ``placement="front"`` (prompt tokens before [CLS], so
that a pooler reads the first of them) and ``positions="shifted"`` (the prefix takes the first positions, as it lies in
the KV cache). Nothing is attached unless all of an adapter fits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn

from softprompts.backbones import task_head
from softprompts.backbones.backbone import Backbone
from softprompts.backbones.loading import load_for_prompt
from softprompts.backbones.quantized import AS_TRAINED
from softprompts.errors import SoftPromptError, nearest, shown
from softprompts.injection.prompt import new_prompt
from softprompts.injection.state import state_of
from softprompts.methods.baselines.prefix_tuning import PrefixTuningConfig
from softprompts.methods.baselines.prompt_tuning import PromptTuningConfig
from softprompts.methods.contract import MethodConfig, SiteKind
from softprompts.methods.folded import FoldedConfig
from softprompts.model.interop import peft_adapter
from softprompts.model.interop.peft_adapter import MULTITASK, PROMPT, TOKENS, Adapter
from softprompts.model.interop.peft_lora import read_lora
from softprompts.model.saving import fill
from softprompts.storage.saved_prompt import types_of

# The methods that the tokens of an adapter were trained with where PEFT computes them.
_SOURCES = {peft_adapter.P_TUNING: "p-tuning", MULTITASK: "mpt"}
_SHOWN = ("task_type", "num_virtual_tokens", "num_transformer_submodules", "num_layers", "num_ranks", "num_tasks", "r")
_KINDS = {"SEQ_2_SEQ_LM": ("encoder-decoder",), "CAUSAL_LM": ("decoder",)}  # of backbones, by task; others: one stack


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter that was read; offers what `softprompts.model.formats.SavedPrompt` does.

    Attributes:
        adapter: its files.
        task_id: which task of a multitask adapter; not needed if it has one.
    """

    adapter: Adapter
    task_id: int | None = None

    def describe(self) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
        """Returns its config in the form of a saved prompt's, as far as it says so much, and its tensors."""
        adapter = self.adapter
        name = adapter.config.get("base_model_name_or_path")
        backbone = {
            "name": name if isinstance(name, str) and name.isprintable() else "",
            "class": peft_adapter.CLASSES.get(adapter.task, "any class"),
        }
        config = {
            "method": f"{adapter.kind} of PEFT",
            "config": {key: adapter.config[key] for key in _SHOWN if isinstance(adapter.config.get(key), str | int)},
            "backbone": backbone,
            "labels": None,
            "tensors": types_of(adapter.tensors),
            "metadata": {},
        }
        return config, adapter.tensors

    def add_to(self, model: Any, name: str | None = None) -> str:
        """Adds the adapter to an attached model as a prompt, and returns the prompt's name.

        Raises:
            SoftPromptError: the adapter does not fit the model; nothing is added then.
        """
        # Half precision is for storing: what is trained further is in single, as in PEFT.
        tensors = {key: task_head.wide(value) for key, value in self.adapter.tensors.items()}
        adapter = dataclasses.replace(self.adapter, tensors=tensors)
        backbone = state_of(model).backbone
        if adapter.task and backbone.kind not in _KINDS.get(adapter.task, ("encoder", "decoder")):
            raise SoftPromptError(
                f"{adapter.path} is for another kind of model (task_type {adapter.task}) than {type(model).__name__}, "
                f"which is {'an' if backbone.kind[0] == 'e' else 'a'} {backbone.kind}"
            )
        if self.task_id is not None and adapter.kind != MULTITASK:
            raise SoftPromptError(f"{adapter.path}: task_id is for multitask adapters; this one is {adapter.kind}")
        if adapter.kind == peft_adapter.LORA:
            config, tensors = read_lora(adapter, backbone)
        elif adapter.kind == peft_adapter.PREFIX:
            config, tensors = _prefix(adapter, backbone)
        else:
            config, tensors = _tokens(adapter, backbone, self.task_id)
        num_labels = _num_labels(adapter, model)
        prompt = new_prompt(backbone, config, num_labels=num_labels, seed=0)
        # The head's tensors that the adapter lacks are the model's.
        head = {key: value for key, value in prompt.state_dict().items() if key.startswith("head.")}
        head |= {f"head.{key}": value for key, value in adapter.head.items()}
        fill(prompt, head | tensors, str(adapter.path))
        model.place_prompt(name or "default", prompt)
        return name or "default"

    def load_backbone(self, quantize: str | None = None, place: str | None = None, **kwargs: Any) -> Any:
        """Loads the plain model that the adapter names, of the class that its task asks for.

        Args:
            quantize: keep its weights in few bits, a key of `softprompts.backbones.quantized.BACKENDS`; None, or
                `AS_TRAINED`, which an adapter does not tell: as they come.
            place: where the model is, in place of the name in the adapter.
            **kwargs: go to ``from_pretrained``.

        Raises:
            SoftPromptError: the adapter names no backbone, or one that cannot be loaded.
        """
        adapter, where = self.adapter, str(self.adapter.path)
        base, revision = adapter.config.get("base_model_name_or_path"), adapter.config.get("revision")
        if place is not None:
            base, revision = str(Path(place).expanduser()), None
        if not adapter.task or base is None or base == "":
            lack = "does not name its backbone" if adapter.task else "has no task_type"
            raise SoftPromptError(f"{where} {lack}: load the model, then softprompts.attach(model, folder)")
        odd = not isinstance(base, str) or not base.isprintable() or ".." in Path(base).parts or base.startswith("~")
        if odd or not (revision is None or (isinstance(revision, str) and revision.isprintable())):
            raise SoftPromptError(f"{where}: base_model_name_or_path {shown(base)} is no name of a model")
        kwargs.setdefault("trust_remote_code", False)  # or transformers may ask at the terminal
        auto = getattr(transformers, peft_adapter.CLASSES[adapter.task])
        has_labels = adapter.task in ("SEQ_CLS", "TOKEN_CLS") and bool(adapter.head) and "num_labels" not in kwargs

        def labels_of(config: Any) -> dict[str, Any]:
            """The head's tensors are in no order: only the model knows which layer of its head is last."""
            with torch.device("meta"):
                model = auto.from_config(config)
            number = _outputs(adapter, nn.ModuleDict({name: getattr(model, name) for name in task_head.find(model)}))
            return {} if number is None else {"num_labels": number}

        quantize = None if quantize == AS_TRAINED else quantize
        return load_for_prompt(auto, base, revision, where, quantize, labels_of if has_labels else None, **kwargs)


def _tokens(adapter: Adapter, backbone: Backbone, task_id: int | None) -> tuple[MethodConfig, dict[str, Tensor]]:
    """Returns the config and tensors of our method for an adapter of tokens in the input."""
    length = adapter.number("num_virtual_tokens")
    _check_submodules(adapter, backbone, {1, 2} if backbone.kind == "encoder-decoder" else {1})
    table = adapter.tensor(PROMPT, length * adapter.submodules, backbone.hidden_size)
    if adapter.kind == MULTITASK:
        table = table * _of_task(adapter, task_id, *table.shape)
    # On encoder-decoders PEFT makes as many rows again, which belong to the decoder and are used by none but MPT.
    table = table[:length].clone()
    if backbone.reads_first and getattr(backbone.model.config, "classifier_pooling", "cls") != "cls":
        raise SoftPromptError(
            f"{adapter.path}: the classifier of {type(backbone.model).__name__} takes a mean over all tokens, prompt "
            "tokens among them in PEFT; that cannot be reproduced"
        )
    placement: Literal["front", "behind-first"] = "front" if backbone.kind == "encoder" else "behind-first"
    if adapter.kind == TOKENS:
        plain = PromptTuningConfig(num_virtual_tokens=length, init="random", placement=placement)
        return plain, {"method.prompt": table}
    source = _SOURCES[adapter.kind]
    folded = FoldedConfig(num_virtual_tokens=length, source=source, has_tokens=True, placement=placement)
    return folded, {"method.tokens": table}


def _check_submodules(adapter: Adapter, backbone: Backbone, allowed: set[int]) -> None:
    if adapter.submodules not in allowed:
        raise SoftPromptError(
            f"{adapter.path}: num_transformer_submodules is {adapter.submodules}, with which PEFT itself does not run "
            f"on {type(backbone.model).__name__}"
        )


def _of_task(adapter: Adapter, task_id: int | None, rows: int, width: int) -> Tensor:
    """Returns the factor ``(rows, width)`` of the shared prompt for one task."""
    columns = adapter.tensor(peft_adapter.COLUMNS, None, rows, None)
    tasks, _, rank = columns.shape
    factors = adapter.tensor(peft_adapter.ROWS, tasks, rank, width)
    if task_id is None and tasks != 1:
        raise SoftPromptError(f"{adapter.path} holds {tasks} tasks: choose one with task_id=0 to {tasks - 1}")
    task_id = 0 if task_id is None else task_id
    if isinstance(task_id, bool) or not isinstance(task_id, int) or not 0 <= task_id < tasks:
        raise SoftPromptError(f"{adapter.path} has no task {shown(task_id)}: task_id is 0 to {tasks - 1}")
    return columns[task_id] @ factors[task_id]


def _prefix(adapter: Adapter, backbone: Backbone) -> tuple[MethodConfig, dict[str, Tensor]]:
    """Returns the config and tensors of our method for an adapter of keys and values."""
    length, layers = adapter.number("num_virtual_tokens"), adapter.number("num_layers")
    kinds: tuple[SiteKind] = ("encoder.self",) if backbone.kind == "encoder" else ("decoder.self",)
    indices = backbone.chosen_sites(kinds, adapter.kind)
    sites, name = [backbone.sites[index] for index in indices], type(backbone.model).__name__
    if backbone.fixed_positions(indices) is not None:
        raise SoftPromptError(
            f"{adapter.path}: PEFT's prefix takes the first positions, and {name} "
            f"{backbone.fixed_positions(indices)}: an adapter of tokens ({TOKENS}) can be read"
        )
    twice = backbone.kind == "encoder-decoder"
    _check_submodules(adapter, backbone, {2} if twice else {1})
    width = sites[0].kv_heads * sites[0].head_dim
    for key, expected in (("num_attention_heads", sites[0].kv_heads), ("token_dim", width)):
        if adapter.number(key) != expected:
            raise SoftPromptError(
                f"{adapter.path} was trained on another backbone: {key} is {adapter.number(key)}, keys of {name} "
                f"ask for {expected}"
            )
    encoder_layers = sum(site.kind == "encoder.self" for site in backbone.sites)
    fitting = {len(sites), 2 * len(sites), max(encoder_layers, len(sites))} if twice else {len(sites)}
    if layers not in fitting:
        raise SoftPromptError(f"{adapter.path} is of another backbone: num_layers is {layers}, {name} has {len(sites)}")
    slots = adapter.tensor(PROMPT, length, 2 * layers * width).view(length, 2 * layers, width)
    if twice:
        # PEFT writes the slots down twice and deals out four to a layer, of which T5's attention uses two: with as
        # many layers as the model has, layers i and i + L/2 get the same ones, and half are never used.
        slots = slots[:, [(4 * layer + part) % (2 * layers) for layer in range(len(sites)) for part in (0, 1)]]
    config = PrefixTuningConfig(num_virtual_tokens=length, sites=kinds, positions="shifted", init="normal")
    return config, {"method.prefix": slots.reshape(length, -1).clone()}


def _num_labels(adapter: Adapter, model: Any) -> int | None:
    """Returns the number of labels of an adapter's head, whose tensors must all be part of the model's head."""
    head, originals = adapter.head, state_of(model).backbone.heads
    if not head:
        return None
    name = type(model).__name__
    if not originals:
        wanted = peft_adapter.CLASSES.get(adapter.task, "a task head")
        raise SoftPromptError(f"{adapter.path} has a trained head, but {name} has none: load it with {wanted}")
    modules = nn.ModuleDict(dict(originals))
    known = modules.state_dict()
    for key in head:
        if key not in known:
            raise SoftPromptError(
                f"{adapter.path} holds {shown(key)}, which is no part of the task head of {name}; "
                f"{nearest(key[:80], known)}"
            )
    return _outputs(adapter, modules)


def _outputs(adapter: Adapter, head: nn.Module) -> int | None:
    """Returns the number of outputs of an adapter's head, by the model's last layer; None if it lacks that one."""
    last = task_head.last_linear(head)
    weight = None if last is None else adapter.head.get(f"{last[0]}.weight")
    if weight is not None and (weight.ndim != 2 or not len(weight)):
        raise SoftPromptError(f"{adapter.path}: the weight of its head has shape {tuple(weight.shape)}")
    return None if weight is None else len(weight)
