"""Intrinsic prompt tuning: a few numbers that a frozen decoder, fitted to many trained prompts, turns into a prompt.

Qin, Wang, Su, Lin, Ding, Yi, Chen, Liu, Li, Hou, Li, Sun and Zhou, "Exploring Universal Intrinsic Task Subspace via
Prompt Tuning", https://arxiv.org/abs/2110.07867

    fitting:  z_j = Enc(P_j),  min sum_j |Dec(z_j) - P_j|^2    over the prompts P_j of many tasks
    tuning:   P = Dec(z),    X' = [P ; E(x)]
    linear (type 0):  Dec(z) = W z + b,                     Enc(P) = V P + c
    tanh (type 1):    Dec(z) = W_2 tanh(W_1 z + b_1) + b_2,  Enc(P) = V P + c

Trained: ``z``; ``di`` numbers. The decoder is saved with the prompt; folding leaves the prompt alone.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from softprompts.errors import SoftPromptError, require_whole
from softprompts.methods import sources
from softprompts.methods.about import PLAIN_FORMS, About
from softprompts.methods.contract import Component, Method, MethodConfig, Rows, Shape
from softprompts.methods.registry import register
from softprompts.methods.source_settings import FilesConfig
from softprompts.soft_prompt import SoftPrompt
from softprompts.storage.files import write_atomic
from softprompts.validation import PATH, settings

KINDS = ("linear", "tanh")
_FORMAT = "softprompts-autoencoder-1"
Layers = dict[str, Tensor]  # decoder.0.weight, decoder.0.bias and, of a tanh decoder, decoder.1.weight, decoder.1.bias


@register("intrinsic")
@settings
class IntrinsicConfig(FilesConfig):
    """Settings of intrinsic prompt tuning.

    Attributes:
        num_virtual_tokens: ``l``, that of the prompts that the auto-encoder was fitted to.
        autoencoder: the file that `fit_autoencoder` wrote.
        init_std: standard deviation of the starting ``z``; the codes of the fitted prompts have 1.
        restored: ``di`` and, behind it, the width inside a tanh decoder, of a saved prompt that is about to be loaded;
            saving sets it.
    """

    autoencoder: Annotated[str, PATH] | None = None
    init_std: Annotated[float, Field(ge=0)] = 0.02
    restored: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(max_length=2)] = ()

    uses_tokens = True
    paths = ("autoencoder",)
    about = About(
        line="a few numbers that a frozen decoder unfolds",
        paper="Qin et al., Exploring Universal Intrinsic Task Subspace via Prompt Tuning, "
        "https://arxiv.org/abs/2110.07867",
        equation="P = Dec(z), X' = [P ; E(x)]; Dec is the frozen decoder of an auto-encoder fitted to many prompts",
        trained="the code z",
        count="the width of the code",
        settings={"restored": (10,)},
        once="the prompt",
        folds_to="tokens",
        exports=PLAIN_FORMS,
        differs="The auto-encoder is fitted to reconstruct prompts only, without the loss on their tasks; a linear one "
        "in closed form, which is the minimum that training heads for. Codes are scaled to a standard deviation of 1.",
    )

    def fingerprint(self, path: str) -> str:
        """The hash of the auto-encoder's file."""
        return hashlib.sha256(_existing(path).read_bytes()).hexdigest()

    def build(self, shape: Shape) -> Method:
        """The module, with a fresh code and the decoder of the file."""
        length, width = self.num_virtual_tokens, shape.hidden_size
        if self.restored:
            sizes = [*self.restored, length * width]
            layers = {}
            for index, (inside, outside) in enumerate(itertools.pairwise(sizes)):
                layers[f"decoder.{index}.weight"] = sources.blank(outside, inside)
                layers[f"decoder.{index}.bias"] = sources.blank(outside)
            return Intrinsic(self, sources.blank(sizes[0]), layers)
        if self.autoencoder is None:
            raise SoftPromptError(f"{self.method}: name the file of fit_autoencoder in autoencoder")
        facts, layers = _read(self.autoencoder)
        for name, fitted, size in (("tokens", facts["length"], length), ("width", facts["width"], width)):
            self.require(
                fitted == size, f"the auto-encoder {self.autoencoder} is for prompts of {name} {fitted}, not {size}"
            )
        decoder = {key: value for key, value in layers.items() if key.startswith("decoder.")}
        return Intrinsic(self, torch.randn(facts["dim"]) * self.init_std, decoder)


class Intrinsic(Method):
    """The code ``(di,)`` and the layers of the decoder, which stay as they are."""

    config: IntrinsicConfig

    def __init__(self, config: IntrinsicConfig, code: Tensor, decoder: Layers):
        super().__init__(config)
        self.code = nn.Parameter(code)
        self.depth = len(decoder) // 2
        for key, value in decoder.items():
            self.register_buffer(key.replace(".", "_"), value)

    def forward(self, rows: Rows | None = None) -> SoftPrompt:
        """Tokens ``(1, l, d)``."""
        layers = {key.replace("_", "."): value for key, value in self.named_buffers()}
        tokens = decode(layers, self.code)
        return SoftPrompt(tokens=tokens.view(1, self.config.num_virtual_tokens, -1))

    def components(self) -> dict[str, Component]:
        """The code."""
        return {"code": Component([self.code], learning_rate=1e-1)}

    def stored(self) -> MethodConfig:
        """The config with the decoder's sizes in place of its file."""
        widths = [self.get_buffer(f"decoder_{index}_weight").shape[1] for index in range(self.depth)]
        return replace(self.config, autoencoder=None, restored=tuple(widths))


@dataclass(frozen=True)
class Fit:
    """How well an auto-encoder gives back the prompts it was fitted to.

    Attributes:
        path: its file.
        error: mean squared error of a number.
        explained: share of the prompts' variance around their mean that it keeps; 1 is all of it.
    """

    path: Path
    error: float
    explained: float


def fit_autoencoder(
    prompts: Sequence[str | PathLike[str]] | Tensor,
    path: str | PathLike[str],
    dim: int,
    *,
    kind: str = "tanh",
    hidden_size: int = 768,
    steps: int = 2000,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> Fit:
    """Fits an auto-encoder to trained prompts, by the squared error of their reconstruction, and writes it to a file.

    Of the paper's two terms this is one; the loss of the reconstructed prompts on their tasks is left out.

    Args:
        prompts: folders of saved prompts of one length (or run folders, or hub ids); or the prompts, ``(t, l, d)``.
        path: the file; a safetensors file.
        dim: ``di``, numbers of a code.
        kind: "tanh", with a hidden layer in the decoder, or "linear", whose optimum is that of principal components.
        hidden_size: width of the hidden layer.
        steps: updates, each on all prompts (Adam, the rate going down to 0 linearly); "linear" needs none.
        learning_rate: its first rate.
        seed: of the network's start.

    Raises:
        SoftPromptError: fewer than two prompts, prompts of different sizes, or settings out of range.
    """
    owner = "fit_autoencoder"
    if kind not in KINDS:
        raise SoftPromptError(f"{owner}: kind must be one of {', '.join(KINDS)}, not {kind!r}")
    for name, value in (("dim", dim), ("hidden_size", hidden_size), ("steps", steps)):
        require_whole(owner, name, value, 1)
    data = prompts if isinstance(prompts, Tensor) else _stacked(owner, [str(one) for one in prompts])
    if data.ndim != 3 or len(data) < 2:
        raise SoftPromptError(f"{owner}: there must be at least two prompts (t, l, d), not {tuple(data.shape)}")
    if kind == "linear" and dim >= len(data):
        raise SoftPromptError(f"{owner}: {len(data)} prompts span {len(data) - 1} dimensions, dim={dim} is more")
    length, width = data.shape[1:]
    flat = data.detach().float().cpu().flatten(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = _linear(flat, dim) if kind == "linear" else _trained(flat, dim, hidden_size, steps, learning_rate)
    rebuilt = decode(layers, encode(layers, flat))
    error = (rebuilt - flat).square().mean().item()
    if not torch.isfinite(rebuilt).all():
        raise SoftPromptError(f"{owner}: the auto-encoder has diverged; set learning_rate lower")
    # One key, as several are written in any order, and equal files are to have equal hashes.
    facts = {_FORMAT: json.dumps({"length": length, "width": width, "dim": dim})}
    write_atomic(Path(path), dump_tensors({key: value.contiguous() for key, value in layers.items()}, metadata=facts))
    return Fit(Path(path), error, 1 - error / (flat - flat.mean(0)).square().mean().item())


def encode(layers: Layers, prompts: Tensor) -> Tensor:
    """Codes ``(..., di)`` of flat prompts ``(..., l*d)``."""
    return nn.functional.linear(prompts, layers["encoder.weight"], layers["encoder.bias"])


def decode(layers: Layers, codes: Tensor) -> Tensor:
    """Flat prompts ``(..., l*d)`` of codes ``(..., di)``."""
    first = nn.functional.linear(codes, layers["decoder.0.weight"], layers["decoder.0.bias"])
    if "decoder.1.weight" not in layers:
        return first
    return nn.functional.linear(first.tanh(), layers["decoder.1.weight"], layers["decoder.1.bias"])


def _linear(flat: Tensor, dim: int) -> Layers:
    """The best linear auto-encoder: the principal components, scaled to codes of variance 1."""
    mean = flat.mean(0)
    _, values, right = torch.linalg.svd(flat - mean, full_matrices=False)
    # A direction without variance stays as it is.
    scale = (values[:dim] / (len(flat) - 1) ** 0.5).clamp(min=1e-12)
    axes = right[:dim]
    weight = axes / scale.unsqueeze(1)
    return {
        "encoder.weight": weight,
        "encoder.bias": -weight @ mean,
        "decoder.0.weight": (axes * scale.unsqueeze(1)).T,
        "decoder.0.bias": mean,
    }


def _trained(flat: Tensor, dim: int, hidden_size: int, steps: int, learning_rate: float) -> Layers:
    """A linear encoder and a tanh decoder, trained on all prompts at once."""
    mean, spread = flat.mean(0), (flat - flat.mean(0)).square().mean().sqrt().clamp(min=1e-12)
    scaled = (flat - mean) / spread  # prompts of any size train alike
    encoder = nn.Linear(flat.shape[1], dim)
    decoder = nn.ModuleList([nn.Linear(dim, hidden_size), nn.Linear(hidden_size, flat.shape[1])])
    layers: Layers = {}
    for name, module in (("encoder", encoder), ("decoder", decoder)):
        layers |= {f"{name}.{key}": value for key, value in module.named_parameters()}
    optimizer = torch.optim.Adam(layers.values(), lr=learning_rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
        optimizer.zero_grad()
        with torch.enable_grad():
            (decode(layers, encode(layers, scaled)) - scaled).square().mean().backward()
        optimizer.step()

    # The same auto-encoder for prompts as they are, with codes of mean 0 and variance 1.
    layers = {key: value.detach() for key, value in layers.items()}
    codes = encode(layers, scaled)
    center, scale = codes.mean(0), codes.std(0).clamp(min=1e-12)
    weight, bias = layers["encoder.weight"], layers["encoder.bias"]
    first = layers["decoder.0.weight"]
    return {
        "encoder.weight": weight / spread / scale.unsqueeze(1),
        "encoder.bias": (bias - weight @ (mean / spread) - center) / scale,
        "decoder.0.weight": first * scale,
        "decoder.0.bias": layers["decoder.0.bias"] + first @ center,
        "decoder.1.weight": layers["decoder.1.weight"] * spread,
        "decoder.1.bias": layers["decoder.1.bias"] * spread + mean,
    }


def _stacked(owner: str, paths: Sequence[str]) -> Tensor:
    if len(paths) < 2:
        raise SoftPromptError(f"{owner}: there must be at least two prompts to fit to, not {len(paths)}")
    width = sources.saved_config(paths[0])["backbone"].get("hidden_size")
    prompts = sources.load_tokens(owner, paths, width)
    length = len(prompts[0])
    for path, tokens in zip(paths, prompts, strict=True):
        if len(tokens) != length:
            raise SoftPromptError(
                f"{owner}: {path} has {len(tokens)} tokens, {paths[0]} has {length}: they must be of one length"
            )
    return torch.stack(prompts)


def _existing(path: str) -> Path:
    if not Path(path).is_file():
        raise SoftPromptError(f"intrinsic: the auto-encoder {path} is not there: fit_autoencoder writes one")
    return Path(path)


def _read(path: str) -> tuple[dict[str, int], Layers]:
    """Sizes and layers of an auto-encoder's file."""
    try:
        with safe_open(_existing(path), "pt") as file:
            metadata = file.metadata() or {}
            layers = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise SoftPromptError(f"intrinsic: the auto-encoder {path} cannot be read ({error})") from error
    if _FORMAT not in metadata:
        raise SoftPromptError(f"intrinsic: {path} holds no auto-encoder of fit_autoencoder")
    facts: dict[str, int] = json.loads(metadata[_FORMAT])
    return facts, layers
