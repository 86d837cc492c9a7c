"""Measures attention to prefix tokens on rows of a task, layer by layer, with the prompt's mask on scores and without.

A further attention kernel, ``softprompts|observed``: it attends as ``eager`` does, and once more with the mask left
out, on the same queries, keys and values. What the layers get is the masked output.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from softprompts.analysis.sample import Sample
from softprompts.analysis.saved import Saved
from softprompts.attention.prefix import hold, implementation, let_go, prefix_at, prefix_heads, site_of
from softprompts.backbones.backbone import attention_of, restore_attention, set_attention
from softprompts.errors import SoftPromptError
from softprompts.tasks import collate
from softprompts.training.prediction import evaluating

OBSERVED = implementation("observed")
EDGES = np.linspace(-12, 12, 97)  # of the histogram of scores; what lies beyond counts to the ends


@dataclass(frozen=True)
class Attention:
    """Attention to a prefix, the mean over rows, heads and queries (all input tokens).

    Attributes:
        before: ``(S, l)``, the weight of each prefix token at each site without the mask (``exp(s)`` normalised).
        after: ``(S, l)``, with it (Eq. 6 of the Selective Prefix paper); the same where there is none.
        scores: ``(S, b)``, how many scores of prefix tokens fall between two of `EDGES`.
        negative: ``(S,)``, share of scores below 0, where the mask takes more than half of the weight.
        rows: number of rows.
        sites: names of the sites.
    """

    before: np.ndarray
    after: np.ndarray
    scores: np.ndarray
    negative: np.ndarray
    rows: int
    sites: tuple[str, ...]


@dataclass
class _Sums:
    before: dict[int, Tensor] = field(default_factory=dict)
    after: dict[int, Tensor] = field(default_factory=dict)
    scores: dict[int, np.ndarray] = field(default_factory=dict)
    negative: dict[int, list[int]] = field(default_factory=dict)
    queries: dict[int, int] = field(default_factory=dict)

    def add(self, site: int, scores: Tensor, before: Tensor, after: Tensor) -> None:
        """Adds one call of a site; each tensor is ``(1, heads, N, l)``."""
        # Every head of every query counts alike.
        for sums, part in ((self.before, before), (self.after, after)):
            sums[site] = sums.get(site, 0) + part.double().sum((0, 1, 2))
        counts, _ = np.histogram(scores.float().clamp(EDGES[0], EDGES[-1]).numpy(), EDGES)
        self.scores[site] = self.scores.get(site, 0) + counts
        below = self.negative.setdefault(site, [0, 0])
        below[0] += int((scores < 0).sum())
        below[1] += scores.numel()
        self.queries[site] = self.queries.get(site, 0) + before[..., 0].numel()


_WATCHED: ContextVar[_Sums | None] = ContextVar("watched", default=None)


def _observed(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    attend = ALL_ATTENTION_FUNCTIONS[implementation("eager")]
    prefix = prefix_at(module, query.shape[0])
    output, after = attend(module, query, key, value, mask, **kwargs)
    sums = _WATCHED.get()
    if prefix is None or sums is None:
        return output, after
    hold(module, dataclasses.replace(prefix, selectivity=None))
    try:
        _, before = attend(module, query, key, value, mask, **kwargs)
    finally:
        let_go(module)
    keys = prefix_heads(prefix, prefix.keys, key).repeat_interleave(query.shape[1] // key.shape[1], 1)
    scaling = kwargs.get("scaling")
    scores = query @ keys.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    length = keys.shape[2]
    sums.add(site_of(module), scores.cpu(), cast(Tensor, before)[..., :length].cpu(), after[..., :length].cpu())
    return output, after


AttentionInterface.register(OBSERVED, _observed)
AttentionMaskInterface.register(OBSERVED, ALL_MASK_ATTENTION_FUNCTIONS["eager"])


@contextmanager
def _watching(model: PreTrainedModel) -> Iterator[_Sums]:
    before, sums = attention_of(model), _Sums()
    token = _WATCHED.set(sums)
    try:
        if not set_attention(model, OBSERVED):
            raise SoftPromptError(f"{type(model).__name__} does not let its attention be looked at")
        yield sums
    finally:
        restore_attention(before)
        _WATCHED.reset(token)


def attention_maps(saved: Saved, rows: Sample) -> Attention:
    """Measures attention to the prefix of a saved prompt, one row after the other.

    Of a decoder beside an encoder, the first step is measured.

    Raises:
        SoftPromptError: it has no prefix, or the model's attention cannot be looked at.
    """
    model = saved.loaded.model
    prompt = model.prompts[saved.attached_name]
    if not prompt.sites:
        raise saved.lacks("has no prefix to attend to")
    with evaluating(model), _watching(model) as sums:
        for feature in rows.features:  # alone, so that there is no padding among the queries
            batch = {name: tensor.to(model.device) for name, tensor in collate([feature], rows.pad_id).items()}
            if model.backbone_kind == "encoder-decoder":
                first = model.config.decoder_start_token_id
                batch["decoder_input_ids"] = torch.tensor([[first]], device=model.device)
            if model.backbone_kind != "encoder":
                batch["use_cache"] = cast(Any, False)
            # Asking for hidden states keeps a classifier's last layer from leaving out all columns but the first.
            model(**batch, prompt_names=saved.attached_name, output_hidden_states=True)
    seen = [site for site in prompt.sites if site in sums.queries]
    places = [prompt.sites.index(site) for site in seen]
    return Attention(
        before=np.stack([(sums.before[site] / sums.queries[site]).numpy() for site in seen]),
        after=np.stack([(sums.after[site] / sums.queries[site]).numpy() for site in seen]),
        scores=np.stack([sums.scores[site] for site in seen]),
        negative=np.array([sums.negative[site][0] / sums.negative[site][1] for site in seen]),
        rows=len(rows.features),
        sites=tuple(saved.sites[place] for place in places),
    )
