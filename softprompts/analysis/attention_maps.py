"""Measures attention to prefix tokens on rows of a task, layer by layer, with the prompt's mask on scores and without.

A further attention kernel, ``softprompts|observed``: it attends as ``eager`` does, and once more with the mask left
out, on the same queries, keys and values. What the layers get is the masked output.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from softprompts.analysis.sample import Sample
from softprompts.analysis.saved import Saved
from softprompts.attention.kernels import ATTENTION
from softprompts.attention.prefix import attend_with, implementation, prefix_at, prefix_heads, site_of
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


# By attention site, of each call: the weights of each prefix token before and after the mask, summed over heads and
# queries; the histogram of the scores; how many of them are negative; and the number of heads times queries.
_Calls = dict[int, list[tuple[Any, ...]]]
_WATCHED: ContextVar[_Calls | None] = ContextVar("watched", default=None)


def _observed(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    prefix, calls = prefix_at(module, query.shape[0]), _WATCHED.get()
    if prefix is None or calls is None:
        return ATTENTION["eager"](module, query, key, value, mask, **kwargs)
    output, after = attend_with(prefix, "eager", module, query, key, value, mask, **kwargs)
    unmasked = dataclasses.replace(prefix, selectivity=None)
    _, before = attend_with(unmasked, "eager", module, query, key, value, mask, **kwargs)
    keys = prefix_heads(prefix, prefix.keys, key).repeat_interleave(query.shape[1] // key.shape[1], 1)
    scaling = kwargs.get("scaling")
    scores = (query @ keys.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)).cpu()
    shares = (cast(Tensor, weights)[..., : keys.shape[2]].cpu().double().sum((0, 1, 2)) for weights in (before, after))
    counts, _ = np.histogram(scores.float().clamp(EDGES[0], EDGES[-1]).numpy(), EDGES)
    calls.setdefault(site_of(module), []).append((*shares, counts, int((scores < 0).sum()), scores[..., 0].numel()))
    return output, after


AttentionInterface.register(OBSERVED, _observed)
AttentionMaskInterface.register(OBSERVED, ALL_MASK_ATTENTION_FUNCTIONS["eager"])


@contextmanager
def _watching(model: PreTrainedModel) -> Iterator[_Calls]:
    before, calls = attention_of(model), _Calls()
    token = _WATCHED.set(calls)
    try:
        if not set_attention(model, OBSERVED):
            raise SoftPromptError(f"{type(model).__name__} does not let its attention be looked at")
        yield calls
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
    with evaluating(model), _watching(model) as calls:
        for feature in rows.features:  # alone, so that there is no padding among the queries
            batch = {name: tensor.to(model.device) for name, tensor in collate([feature], rows.pad_id).items()}
            if model.backbone_kind == "encoder-decoder":
                first = model.config.decoder_start_token_id
                batch["decoder_input_ids"] = torch.tensor([[first]], device=model.device)
            if model.backbone_kind != "encoder":
                batch["use_cache"] = cast(Any, False)
            # Asking for hidden states keeps a classifier's last layer from leaving out all columns but the first.
            model(**batch, prompt_names=saved.attached_name, output_hidden_states=True)
    seen = [(place, calls[site]) for place, site in enumerate(prompt.sites) if site in calls]
    totals = [[np.asarray(sum(numbers)) for numbers in zip(*site, strict=True)] for _, site in seen]
    before, after, scores, negative, queries = (np.stack(numbers) for numbers in zip(*totals, strict=True))
    return Attention(
        before=before / queries[:, None],
        after=after / queries[:, None],
        scores=scores,
        negative=negative / scores.sum(1),
        rows=len(rows.features),
        sites=tuple(saved.sites[place] for place, _ in seen),
    )
