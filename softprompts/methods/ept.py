"""EPT: a short prompt and a low-rank change of the input embeddings, with prompt fusion and several spaces.

Lan, Yang, Liu, Guo, Zhao and Wang, "Efficient Prompt Tuning by Multi-Space Projection and Prompt Fusion", AAAI 2025,
https://arxiv.org/abs/2405.11464

    decomposition: P_s = first s rows of P;  A, B = rank-r SVD of P aligned to (m, d);  I = E(x) + A B    (Eq. 2)
    fusion:        P_f = P_s + W (A B),  W = softmax(P_s (A B)^T / sqrt(d))                               (Eq. 3-4)
    multi-space:   P_amend = sum_i G_i(P_s) E_i(P_s),  E_i = linear(ReLU(linear)),  G = softmax(linear)   (Eq. 5-7)
    input:         [P_amend + P_f ; I]                                                                    (Eq. 8-9)

By default all of it on standardised embeddings, and with ``I = E(x) + c A B``: see ``units`` of `EPTConfig`.

Trained: ``s*d + (m+d)*r`` numbers, and ``N*(2*d*h + h + d) + N*(d+1)`` in the spaces, dropped after training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from softprompts.methods.about import About, Space, View, Vital
from softprompts.methods.common import sampled_rows
from softprompts.methods.contract import Component, Method, Rows, Shape
from softprompts.methods.registry import register
from softprompts.methods.source_settings import StartedConfig
from softprompts.soft_prompt import SoftPrompt
from softprompts.validation import settings


@register("ept")
@settings
class EPTConfig(StartedConfig):
    """Settings of EPT, of which no code was released; fusion needs the decomposition, which leaves six variants.

    Attributes:
        num_virtual_tokens: ``s``, length of the prompt kept; 0 leaves the change of the embeddings alone.
        decomposition, fusion, multi_space: the paper's three parts.
        source_tokens: length of the prompt ``P`` that is decomposed, drawn from the vocabulary.
        rank: ``r``; 0 leaves a plain prompt (and the spaces), with nothing to fuse.
        max_length: ``m``, how many input tokens get a change.
        num_spaces, space_hidden_size: ``N`` and ``h``, the width inside; None for ``m``, as the paper's sizes suggest.
        fusion_mode: "values_ab" is attention from the prompt to the rows of ``A B``. "literal" is Eq. 4 as printed,
            whose weights sum to 1: ``P_f = 2 P_s``. "axis_p" normalises over the prompt: each token is scaled.
        align: how ``P`` becomes ``m`` rows: "zero" pads with zeros, which fusion then attends to as well; "tile"
            repeats it, so that fusion finds each token itself; "sample" draws ``m`` fresh rows.
        svd_scale: "sqrt" shares out the singular values: ``A B`` approximates the ``m`` rows best. "none" takes the
            singular vectors as they are, so rows of ``A B`` have norm 1 at most, however large embeddings are.
        units: "embeddings" applies all equations to standardised embeddings ``(E - center) / u``, with the mean of all
            embeddings and the root mean square of what they differ from it by, and undoes that at the end: scores of
            fusion, shares of the parts and what a learning rate does are then alike on every backbone. "raw": to
            embeddings as they are, as in the paper.
        update_scale: ``c``: the input is ``E(x) + c A B``; 1 in the paper. Fusion attends to ``A B`` whatever it is.
        spaces_init: "zeros": the last layer of each space starts at zero, so that spaces say nothing at first;
            "linear": as layers of torch do.
        vocabulary_limit: draw from this many first tokens only (5,000 in the paper); None for all.
        source: folder of a saved ept prompt with the same sizes (or run folder, or hub id) that all tensors start from,
            as in the paper's few-shot experiments; None: a start from the vocabulary.
        source_spaces: take the spaces and their gate from the source too; False: prompt and factors alone, which are
            all that the paper names.
    """

    num_virtual_tokens: Annotated[int, Field(ge=0)] = 60
    decomposition: bool = True
    fusion: bool = True
    multi_space: bool = True
    source_tokens: Annotated[int, Field(ge=1)] = 100
    rank: Annotated[int, Field(ge=0)] = 30
    max_length: Annotated[int, Field(ge=1)] = 256
    num_spaces: Annotated[int, Field(ge=1)] = 4
    space_hidden_size: Annotated[int, Field(ge=1)] | None = None
    fusion_mode: Literal["values_ab", "literal", "axis_p"] = "values_ab"
    align: Literal["zero", "tile", "sample"] = "sample"
    svd_scale: Literal["none", "sqrt"] = "sqrt"
    units: Literal["embeddings", "raw"] = "embeddings"
    update_scale: Annotated[float, Field(gt=0)] = 0.3
    spaces_init: Literal["zeros", "linear"] = "zeros"
    vocabulary_limit: Annotated[int, Field(ge=1)] | None = None
    source_spaces: bool = True

    uses_tokens = True
    absent: ClassVar[Mapping[str, Any]] = {
        "units": "raw", "update_scale": 1.0, "spaces_init": "linear", "source_spaces": True,
    }  # fmt: skip
    ignored_without: ClassVar[Mapping[str, tuple[str, ...]]] = {"source": ("source", "source_spaces")}
    decisive = ("fusion", "fusion_mode", "units", "update_scale")
    searched: ClassVar[Space] = {"num_virtual_tokens": (20, 60, 100), "rank": (10, 30, 60)}
    about = About(
        line="as dept, with prompt fusion and several spaces",
        paper="Lan, Yang, Liu, Guo, Zhao and Wang, AAAI 2025, https://arxiv.org/abs/2405.11464",
        equation="[P_s + W (A B) + sum_i G_i(P_s) E_i(P_s) ; E(x) + c A B], W = softmax(P_s (A B)^T / sqrt(d))",
        trained="P_s (s, d), A (m, r), B (r, d), N networks d-h-d and their gate",
        count="s*d + (m + d)*r + N*(2*d*h + h + d) + N*(d + 1)",
        symbols={
            "s": "num_virtual_tokens",
            "m": "max_length",
            "r": "rank",
            "N": "num_spaces",
            "h": ("space_hidden_size", "max_length"),
        },
        sizes=({"multi_space": False}, {"num_virtual_tokens": 40, "rank": 45, "multi_space": False}),
        once="A B, fusion and the networks",
        per_row="the sum E(x) + A B",
        folds_to="tokens (s, d) and update (m, d)",
        differs="No code was released. Eq. 3-4 as printed give P_f = 2 P_s and no gradient to A and B: the default "
        "attends to the rows of A B (`fusion_mode`). The equations hold for standardised embeddings (`units`; paper: "
        "as they are), so that fusion is neither uniform nor the same for all tokens on any backbone. The m rows that "
        "are decomposed are drawn afresh (`align`; the paper aligns P and does not say how), with their singular "
        "values (`svd_scale`; paper: singular vectors), and A B goes into the input times 0.3 (`update_scale`; paper: "
        "1), since vectors as large as embeddings drown the words. The networks' last layers start at zero "
        "(`spaces_init`; the paper does not say), the gate is per prompt token, the networks are m wide. The paper's "
        "76.8K leave the networks out, which are dropped after training.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.decomposition or not self.fusion, "fusion needs decomposition=True; set fusion=False as well")
        if self.decomposition and self.rank:
            self.require(self.num_virtual_tokens <= self.source_tokens, "num_virtual_tokens is more than source_tokens")
            most = self.max_length if self.align == "sample" else min(self.max_length, self.source_tokens)
            self.require(self.rank <= most, f"rank={self.rank} is more than the {most} rows that are decomposed")
        else:  # a change of the embeddings needs no prompt
            self.require(self.num_virtual_tokens > 0, "num_virtual_tokens must be at least 1 without a decomposition")
        alone = self.source_spaces or self.source is not None
        self.require(alone, "source_spaces=False is about a source: name one in source")
        object.__setattr__(self, "uses_tokens", self.num_virtual_tokens > 0)

    def without_files(self, **changes: Any) -> Self:
        """The config without the source; ``source_spaces`` has no meaning without one."""
        return super().without_files(source_spaces=True, **changes)

    def build(self, shape: Shape) -> Method:
        """The module, freshly initialised."""
        method = EPT(self, shape)
        fresh = [] if self.source_spaces else [n for n in method.state_dict() if n.startswith(("spaces.", "gate."))]
        return self.started(method, shape, fresh)


class EPT(Method):
    """Prompt ``(s, d)``, factors ``A (m, r)`` and ``B (r, d)``, the spaces and their gate; None for what is off."""

    config: EPTConfig
    center: Tensor
    unit: Tensor

    def __init__(self, config: EPTConfig, shape: Shape):
        super().__init__(config)
        length, width = config.num_virtual_tokens, shape.hidden_size
        low_rank = config.decomposition and config.rank > 0
        source = sampled_rows(shape, config.source_tokens if low_rank else length, config.vocabulary_limit)
        center, unit = (
            standard(shape) if config.units == "embeddings" else (source.new_zeros(width), source.new_ones(()))
        )
        self.register_buffer("center", center, persistent=config.units == "embeddings")
        self.register_buffer("unit", unit, persistent=config.units == "embeddings")
        source = (source - center) / unit
        self.prompt = nn.Parameter(source[:length].clone()) if length else None
        factors = factorize(source, config, shape, center, unit) if low_rank else (None, None)
        self.a: nn.Parameter | None = factors[0]
        self.b: nn.Parameter | None = factors[1]
        hidden = config.space_hidden_size or config.max_length
        spaces = config.num_spaces if config.multi_space and length else 0
        networks = ((nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width)) for _ in range(spaces))
        self.spaces = nn.ModuleList(nn.Sequential(*layers) for layers in networks)
        self.gate = nn.Linear(width, spaces) if spaces else None
        if config.spaces_init == "zeros":
            for space in self.spaces:
                for parameter in list(space.parameters())[2:]:  # of the last layer
                    nn.init.zeros_(parameter)

    def forward(self, rows: Rows | None = None) -> SoftPrompt:
        """Tokens ``(1, s, d)`` and update ``(1, m, d)``."""
        update = None if self.a is None or self.b is None else self.a @ self.b
        result = SoftPrompt()
        if update is not None:
            result.update = self.config.update_scale * self.unit * update.unsqueeze(0)
        if self.prompt is not None:
            prompt = self.prompt if update is None or not self.config.fusion else self.fuse(self.prompt, update)
            if self.gate is not None:
                spaces = torch.stack([space(self.prompt) for space in self.spaces])
                prompt = prompt + torch.einsum("pn,npd->pd", self.gate(self.prompt).softmax(-1), spaces)
            result.tokens = self.center + self.unit * prompt.unsqueeze(0)
        return result

    def views(self, rows: Rows | None = None) -> list[View]:
        """What each prompt token takes from each space (the paper's Figure 8)."""
        if self.gate is None or self.prompt is None:
            return []
        return [View("gates", self.gate(self.prompt).softmax(-1), ("token", "space"))]

    def vitals(self, rows: Rows | None = None) -> list[Vital]:
        """What fusion and spaces add, relative to the prompt's norm; how unlike the weights ``W`` of a token are.

        "fusion.spread" is their standard deviation relative to their mean, "fusion.empty" the share of those on rows of
        under a tenth of the longest.
        """
        vitals = []
        if self.a is not None and self.b is not None:
            update = self.a @ self.b
            vitals.append(Vital("update.norm", None, 0.01, "decomposition: the embeddings stay as they are"))
            if self.prompt is not None and self.config.fusion:
                added = (self.fuse(self.prompt, update) - self.prompt).norm() / self.prompt.norm()
                sizes = update.norm(dim=1)
                weights = self.fusion_weights(self.prompt, update)
                spread = (weights.std(1, correction=0) / weights.mean(1)).mean()
                empty = weights[:, sizes < sizes.max() / 10].sum() / weights.sum()
                vitals += [
                    Vital("fusion.norm", added, 0.01, "fusion: adds nothing to the prompt"),
                    Vital("fusion.spread", spread, 0.1, "fusion: attends to all rows alike"),
                    Vital("fusion.empty", empty),
                ]
        if self.prompt is not None and self.gate is not None:
            shares = self.gate(self.prompt).softmax(-1)
            added = torch.einsum("pn,npd->pd", shares, torch.stack([space(self.prompt) for space in self.spaces]))
            idle = "spaces: add nothing to the prompt"
            vitals.append(Vital("spaces.norm", added.norm() / self.prompt.norm(), 0.01, idle))
        return vitals

    def fuse(self, prompt: Tensor, update: Tensor) -> Tensor:
        """``P_f (s, d)`` from ``P_s (s, d)`` and ``A B (m, d)`` (Eq. 3-4)."""
        weights = self.fusion_weights(prompt, update)
        values = self.config.fusion_mode == "values_ab"
        return prompt + (weights @ update if values else weights.sum(1, keepdim=True) * prompt)

    def fusion_weights(self, prompt: Tensor, update: Tensor) -> Tensor:
        """``W (s, m)`` (Eq. 4)."""
        axis = 0 if self.config.fusion_mode == "axis_p" else 1
        return (prompt @ update.T / math.sqrt(prompt.shape[1])).softmax(axis)

    def components(self) -> dict[str, Component]:
        """The prompt, the factors and the spaces, as far as they are in use."""
        prompt, low_rank = (2e-2, 1e-3) if self.config.units == "raw" else (0.1, 3e-3)
        parts: dict[str, Component] = {}
        if self.prompt is not None:
            parts["prompt"] = Component([self.prompt], learning_rate=prompt)
        if self.a is not None and self.b is not None:
            parts["low_rank"] = Component([self.a, self.b], learning_rate=low_rank)
        if self.gate is not None:
            parts["spaces"] = Component([*self.spaces.parameters(), *self.gate.parameters()], learning_rate=1e-3)
        return parts


def standard(shape: Shape) -> tuple[Tensor, Tensor]:
    """Mean of all embeddings ``(d,)``, and the root mean square of what they differ from it by."""
    center, spread = shape.vocabulary.statistics()
    return center, spread.square().mean().sqrt().clamp(min=1e-12)


def factorize(
    source: Tensor, config: EPTConfig, shape: Shape, center: Tensor, unit: Tensor
) -> tuple[nn.Parameter, nn.Parameter]:
    """``A (m, r)`` and ``B (r, d)`` from the SVD of the source prompt aligned to ``m`` rows."""
    length, rank, width = config.max_length, config.rank, shape.hidden_size
    config.require(rank <= width, f"rank={rank} is more than the embedding width {width}")
    if config.align == "sample":
        source = (sampled_rows(shape, length, config.vocabulary_limit) - center) / unit
    elif config.align == "tile":
        source = source.repeat(math.ceil(length / len(source)), 1)
    left, values, right = torch.linalg.svd(source[:length], full_matrices=False)
    scale = values[:rank] ** (0.5 if config.svd_scale == "sqrt" else 0)
    a, b = left[:, :rank] * scale, scale.unsqueeze(1) * right[:rank]
    # Zero rows of a matrix are zero rows of its left singular vectors.
    return nn.Parameter(torch.cat([a, a.new_zeros(length - len(a), rank)])), nn.Parameter(b)
