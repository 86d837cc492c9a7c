"""Default rates, start values and places of every method, read off a prompt on a small random T5 as wide as T5-base.

Nothing here is told: rates are those of `Method.components`, starts are recognised in the tensors of a new prompt, and
where a prompt acts is seen in the `SoftPrompt` that it hands over.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from torch.nn import functional

from softprompts.injection.state import state_of
from softprompts.methods.contract import MethodConfig, Rows
from softprompts.model.attach import attach
from softprompts.soft_prompt import SoftPrompt

WIDTH = 768
_COPY = "the frozen model"
_FEW = 64


@dataclass(frozen=True)
class ComponentDefaults:
    """A group of a method's parameters as it starts.

    Attributes:
        name: its name.
        learning_rate: its default.
        weight_decay: its own; None: the run's.
        start: how its tensors start, in words; "" where it has none.
    """

    name: str
    learning_rate: float
    weight_decay: float | None
    start: str


@dataclass(frozen=True)
class MethodDefaults:
    """What a method does where nothing else is said.

    Attributes:
        components: its groups of parameters, the main one first.
        acts_on: where it acts, in words.
    """

    components: tuple[ComponentDefaults, ...]
    acts_on: str


@functools.cache
def _model() -> Any:
    config = transformers.T5Config(
        vocab_size=600, d_model=WIDTH, d_kv=64, num_heads=12, d_ff=256, num_layers=2, decoder_start_token_id=0
    )
    config.num_decoder_layers = 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return attach(transformers.T5ForConditionalGeneration(config))


def defaults_of(config: MethodConfig) -> MethodDefaults:
    """What a method's settings come to."""
    model = _model()
    with torch.random.fork_rng(devices=[]):
        model.add_prompt("asked", config, seed=0)
        method = model.prompts["asked"].method
        names = {id(parameter): _short(name) for name, parameter in method.named_parameters()}
        components = []
        for name, each in method.components().items():
            tensors = [(names[id(parameter)], parameter.detach().float()) for parameter in each.parameters]
            components.append(ComponentDefaults(name, each.learning_rate, each.weight_decay, start_of(tensors)))
        acts_on = _places(method, config)
    model.delete_prompt("asked")
    return MethodDefaults(tuple(components), acts_on)


def start_of(tensors: Sequence[tuple[str, Tensor]]) -> str:
    """How tensors start, by their names: "N(2.5, 0.5^2) (masks)", "token embeddings (prompt)", "0 (biases)", ..."""
    names: dict[str, dict[str, None]] = {}
    for name, value in tensors:
        if kind := _kind(value):
            names.setdefault(kind, {})[name] = None
    copied = names.get(_COPY, {})  # norms start at 1, as those that they are copies of
    names = {kind: alike for kind, alike in names.items() if kind == _COPY or not alike.keys() <= copied.keys()}
    return "; ".join(f"{kind} ({', '.join(alike)})" for kind, alike in names.items())


def _short(name: str) -> str:
    """What to call a parameter: its own name, "weights" or "biases" in a layer, that of the list or dict it is in."""
    *parents, last = name.split(".")
    return {"weight": "weights", "bias": "biases"}.get(last, parents[-1] if parents else last)


def _kind(value: Tensor) -> str:
    """How a tensor starts, as far as its numbers tell; "" for a few numbers that may be anything."""
    if value.isnan().any():
        return "the sources"
    first = float(value.flatten()[0])
    if bool((value == first).all()):
        return f"{first:.3g}"
    if any(value.shape == part.shape and torch.equal(value, part.float()) for part in _frozen()):
        return _COPY
    if value.numel() < _FEW:
        return ""
    if value.shape[-1] == WIDTH:
        rows = value.reshape(-1, WIDTH)
        if _rows_in_table(rows, standardised=False):
            return "token embeddings"
        if _rows_in_table(rows, standardised=True):
            return "standardised token embeddings"
    flat = value.ndim == 2 and len(value) <= value.shape[1]
    if flat and torch.allclose(value @ value.T, torch.eye(len(value)), atol=1e-4):
        return "orthogonal rows of norm 1"
    mean, std = float(value.mean()), float(value.std())
    centred = abs(mean) < 4 * std / value.numel() ** 0.5
    kurtosis = float(((value - mean) / std).pow(4).mean())
    if abs(kurtosis - 1.8) < 0.2 and centred:
        return f"U(+-{float(value.abs().max()):.2g})"
    if abs(kurtosis - 3) < 0.5:
        count = value.numel()
        place = "0" if centred else _simplest(mean, std / count**0.5)
        return f"N({place}, {_simplest(std, std / (2 * count) ** 0.5)}^2)"
    return f"numbers of deviation {std:.1g}"


def _simplest(value: float, error: float) -> str:
    """An estimate with one digit if that is within two standard errors, else with two."""
    text = f"{value:.1g}"
    return text if abs(float(text) - value) <= 2 * error else f"{value:.2g}"


def _frozen() -> list[Tensor]:
    return [parameter.detach() for name, parameter in _model().base_model.named_parameters() if "prompts." not in name]


def _rows_in_table(rows: Tensor, standardised: bool) -> bool:
    """Whether all rows are among the token embeddings; with ``standardised``, in direction from their mean."""
    table = state_of(_model()).backbone.embeddings.weight.detach().float()
    if standardised:
        cosines = functional.normalize(rows, dim=-1) @ functional.normalize(table - table.mean(0), dim=-1).T
        return bool(cosines.amax(1).min() > 0.9999)
    known = {row.numpy().tobytes() for row in table}
    return all(row.numpy().tobytes() in known for row in rows)


def _places(method: Any, config: MethodConfig) -> str:
    """Where a prompt acts, from what it hands over."""
    rows = Rows(torch.randn(2, 5, WIDTH), torch.ones(2, 5, dtype=torch.bool))
    with torch.no_grad():
        prompt: SoftPrompt = method(rows if method.per_row else None)
    places = []
    if prompt.tokens is not None:
        where = " (behind the first token where a pooler reads it)" if config.placement == "behind-first" else ""
        places.append(f"{prompt.tokens.shape[1]} tokens in front of the input{where}")
    if prompt.update is not None:
        places.append(f"embeddings of the first {prompt.update.shape[1]} tokens")
    if prompt.keys is not None:
        kinds = dict.fromkeys(site.kind for site in state_of(_model()).backbone.sites)
        chosen = [kind for kind in kinds if config.sites is None or kind in config.sites]
        places.append(f"{prompt.keys.shape[2]} keys and values at {', '.join(chosen)} (positions {config.positions})")
    if prompt.modules:
        ends = dict.fromkeys(path.rpartition(".")[2] for path in prompt.modules)
        places.append(f"modules {', '.join(f'`{end}`' for end in ends)}" if len(ends) < 10 else "all modules")
    return "; ".join(places) or "the task head alone"
