"""One named prompt, the prompts of a model by name, and how a new one is made for a backbone."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn

from softprompts.backbones import gguf, task_head
from softprompts.backbones.backbone import Backbone
from softprompts.errors import SoftPromptError, nearest
from softprompts.methods.contract import Component, Method, MethodConfig, Rows, Shape, Vocabulary
from softprompts.methods.contract_check import components_fault
from softprompts.soft_prompt import SoftPrompt

# Keys and values ``(S, l, w)`` that the attention sites of these indices see of ``l`` tokens.
PrefixOf = Callable[[Sequence[int], Sequence[int]], tuple[Tensor, Tensor]]


class Prompt(nn.Module):
    """One named prompt: a method's module, and the task head that belongs to it.

    Attributes:
        config: the method's config.
        method: the method's module.
        head: the trained copy of the model's task head; None where the model has none.
        labels: label names of the head, may be empty.
        sites: indices of the backbone's attention sites that the prefix goes to.
        sizes: width of their keys and values, and of the input embeddings.
        metadata: JSON values that it was saved with, such as task and score; empty for a new prompt.
    """

    method: Method
    head: nn.Module | None

    def __init__(
        self,
        config: MethodConfig,
        method: Method,
        head: nn.Module | None,
        sites: list[int],
        sizes: tuple[int, int],
    ):
        super().__init__()
        self.config = config
        self.method = method
        self.head = head
        self.sites = sites
        self.sizes = sizes
        self.labels: list[str] = []
        self.metadata: dict[str, Any] = {}

    @property
    def num_labels(self) -> int | None:
        """Number of outputs of the head; None without one."""
        return None if self.head is None else task_head.num_outputs(self.head)

    def run(self, rows: Rows | None, count: int) -> SoftPrompt:
        """What the method hands over for ``count`` rows; a `SoftPromptError` where it is not of the sizes promised."""
        soft = self.method(rows if self.method.per_row else None)
        width, hidden_size = self.sizes
        if not isinstance(soft, SoftPrompt):
            raise SoftPromptError(f"{self.config.method}: forward returned {type(soft).__name__}, not a SoftPrompt")
        if fault := soft.fault(count, len(self.sites), width, hidden_size):
            raise SoftPromptError(f"{self.config.method}: of what forward returned, {fault}")
        return soft

    def components(self) -> dict[str, Component]:
        """The groups of trained parameters: the method's, and "head"."""
        groups = dict(self.method.components())
        if self.head is not None:
            groups["head"] = Component(list(self.head.parameters()), self.config.head_learning_rate)
        return groups


class PromptSet(nn.Module, Mapping[str, Prompt]):
    """The prompts of a model by name; any valid name works, also those of `torch.nn.Module`'s own attributes."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "training":  # a flag of every module, also where a prompt has that name
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def __getitem__(self, name: str) -> Prompt:
        return cast(Prompt, self._modules[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    # A module is equal to itself only, also where it is a mapping.
    __eq__ = nn.Module.__eq__
    __hash__ = nn.Module.__hash__


def require(prompts: Mapping[str, Prompt], name: str) -> Prompt:
    """The prompt of that name; where there is none, a `SoftPromptError` names the nearest."""
    if name not in prompts:
        raise SoftPromptError(f"unknown prompt '{name}'; {nearest(name, prompts)}")
    return prompts[name]


def new_prompt(
    backbone: Backbone,
    config: MethodConfig,
    *,
    num_labels: int | None = None,
    labels: Sequence[str] | None = None,
    tokenizer: Any = None,
    seed: int | None = None,
    prefix_of: PrefixOf | None = None,
) -> Prompt:
    """A freshly initialised prompt, not part of its model yet, made as `PromptModel.add_prompt` is told.

    Without ``prefix_of`` it starts from zeros where others start from tokens: its tensors are loaded next.

    Raises:
        SoftPromptError: the method or the labels do not fit the model.
    """
    if labels is not None and num_labels is None:
        num_labels = len(labels)
    name, device = type(backbone.model).__name__, backbone.device
    sites = _fitting_sites(backbone, config)
    shape = shape_of(backbone, config, sites, _vocabulary(backbone, tokenizer), prefix_of)
    with seeded(seed), torch.device(device):
        try:
            method = config.build(shape)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, SoftPromptError) or "memory" not in f"{type(error).__name__} {error}".lower():
                raise
            raise SoftPromptError(
                f"{config.method}: no memory for a prompt of this size: set num_virtual_tokens (or its rank) lower"
            ) from error
        if (config.uses_tokens or method.per_row) and not backbone.text_input:
            raise SoftPromptError(
                f"{config.method} looks at the input's tokens or adds some, but {name} takes "
                f"{backbone.model.main_input_name}: use a plain prefix"
            )
        head = task_head.new(backbone.heads, num_labels, backbone.model)
    if head is None and num_labels is not None:
        raise SoftPromptError(f"{name} has no task head: load the model with AutoModelForSequenceClassification")
    if fault := components_fault(method):
        raise SoftPromptError(f"{config.method}: {fault}")
    prompt = Prompt(config, method.to(device), head, sites, (shape.kv_width, shape.hidden_size))
    for parameter in prompt.parameters():
        parameter.data = task_head.wide(parameter.data)
    if prompt.num_labels is not None:
        _, known, _ = backbone.labels
        if len(known) != prompt.num_labels:
            known = {}
        numbered = [str(known.get(number, f"LABEL_{number}")) for number in range(prompt.num_labels)]
        prompt.labels = numbered if labels is None else list(labels)
        if len(prompt.labels) != prompt.num_labels:
            raise SoftPromptError(f"{len(prompt.labels)} label names for {prompt.num_labels} labels")
    return prompt


def _fitting_sites(backbone: Backbone, config: MethodConfig) -> list[int]:
    """The attention sites of a new prompt; raises a `SoftPromptError` where the method does not fit the model."""
    name, limit = type(backbone.model).__name__, backbone.max_tokens
    if config.uses_tokens and backbone.no_tokens_reason:
        raise SoftPromptError(
            f"{config.method} needs input prompts, which {name} cannot take: {backbone.no_tokens_reason}"
        )
    sites = backbone.chosen_sites(config.sites, config.method) if config.uses_prefix else []
    if sites and config.changes_scores and backbone.only_keys:
        other = "sdpa" if getattr(backbone.model, "_supports_sdpa", True) else "eager"
        raise SoftPromptError(
            f"{config.method} changes the scores of its prefix, which {backbone.only_keys} does not show: load "
            f"{name} with attn_implementation='{other}'"
        )
    if sites and backbone.unreached:
        left_out = ", ".join(backbone.unreached)
        warnings.warn(f"{config.method}: the prefix does not reach {left_out} of {name}", stacklevel=2)
    if sites and config.positions == "shifted":
        reason = backbone.fixed_positions(sites)
        if reason is not None:
            raise SoftPromptError(f"{config.method}: positions='shifted': {name} {reason}; use 'kept'")
    if limit is not None and config.input_tokens >= limit:
        raise SoftPromptError(
            f"{config.method}: {config.input_tokens} virtual tokens leave no room for the input in the "
            f"{limit} positions of {name}"
        )
    return sites


def shape_of(
    backbone: Backbone,
    config: MethodConfig,
    sites: list[int],
    vocabulary: Vocabulary,
    prefix_of: PrefixOf | None = None,
) -> Shape:
    """What a method gets to know of a backbone: the sizes at the attention sites that its prefix goes to.

    Without ``prefix_of`` all values of the backbone are zeros.
    """
    first = backbone.sites[sites[0]] if sites else None
    shape = Shape(
        hidden_size=backbone.hidden_size,
        num_sites=len(sites),
        kv_width=0 if first is None else first.kv_heads * first.head_dim,
        vocabulary=vocabulary,
        site_width=backbone.width_of(sites),
        causal=backbone.kind == "decoder",
        identity=backbone.identity,
        parts=backbone.described_parts(config.method) if config.uses_parts else (),
        prefix_of=None if prefix_of is None else functools.partial(prefix_of, sites),
    )
    return shape.blank() if prefix_of is None else shape


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draws repeatably within this context, and leaves the global random state as it was; nothing for None."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _vocabulary(backbone: Backbone, tokenizer: Any) -> Vocabulary:
    def encode(text: str) -> list[int]:
        source = tokenizer
        if source is None:
            try:
                place, file = gguf.located(backbone.model.config._name_or_path)
                source = transformers.AutoTokenizer.from_pretrained(place, **file)
            except Exception as error:
                raise SoftPromptError("initialisation from text needs the tokenizer: pass tokenizer=...") from error
        return list(source(text, add_special_tokens=False)["input_ids"])

    special = backbone.special_ids | set(() if tokenizer is None else tokenizer.all_special_ids)
    return Vocabulary(backbone.embed, backbone.num_tokens, special, encode)
