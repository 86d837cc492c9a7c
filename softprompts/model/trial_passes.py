"""Passes of a few tokens through an attached model, for the check of prompts: states row by row, without padding."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softprompts.backbones.kinds import cache_in, differs, plain_ids, states_of
from softprompts.errors import SoftPromptError, first_line
from softprompts.injection.batch_pass import Pass
from softprompts.injection.state import State

_ANSWERS = 3  # tokens that the decoder of an encoder-decoder is given


@dataclass
class Batch:
    """Token ids of rows, padded to one length on one side."""

    ids: Tensor
    mask: Tensor

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], pad: int, device: torch.device, left: bool) -> Batch:
        """Rows padded on the right or on the left."""
        length = max(map(len, rows))

        def padded(row: Sequence[int], filler: int) -> list[int]:
            space = [filler] * (length - len(row))
            return [*space, *row] if left else [*row, *space]

        ids, mask = [padded(row, pad) for row in rows], [padded([1] * len(row), 0) for row in rows]
        return cls(torch.tensor(ids, device=device), torch.tensor(mask, device=device))

    def row(self, index: int) -> Batch:
        """One row, with its padding."""
        return Batch(self.ids[index : index + 1], self.mask[index : index + 1])

    def first(self, count: int) -> Batch:
        """The first rows, with their padding."""
        return Batch(self.ids[:count], self.mask[:count])


class NotRunError(Exception):
    """The plain model cannot run the tokens of the check."""


class TrialPasses:
    """Runs batches of a few tokens, each as a whole or in two steps."""

    def __init__(self, state: State):
        self.state, self.backbone, self.model = state, state.backbone, state.backbone.model
        self.name = state.model_class.__name__
        self.causal, self.seq2seq = (self.backbone.kind == kind for kind in ("decoder", "encoder-decoder"))

    def batch(self, rows: Sequence[Sequence[int]], left: bool = False) -> Batch:
        """Rows of token ids as a batch."""
        pad = getattr(self.model.config.get_text_config(), "pad_token_id", None)
        usable = isinstance(pad, int) and 0 <= pad < self.backbone.vocabulary_size
        return Batch.of(rows, pad if usable else 0, self.backbone.device, left)  # type: ignore[arg-type]

    def plain(self, batch: Batch) -> list[Tensor]:
        """The plain model's states of each row's real tokens; of an encoder-decoder, those of its decoder's tokens."""
        try:
            return self.stepwise(None, batch, steps=1)
        except Exception as error:
            try:  # some cannot run two rows, or padding
                alone = [
                    self.batch([row[mask.bool()].tolist()]) for row, mask in zip(batch.ids, batch.mask, strict=True)
                ]
                return [self.stepwise(None, one, steps=1)[0] for one in alone]
            except Exception:
                raise NotRunError(f"it cannot run a few tokens alone ({first_line(error)})") from error

    def prompted(
        self,
        pass_: Pass,
        batch: Batch,
        method: str,
        steps: int = 2,
    ) -> list[Tensor]:
        """The states of each row's real tokens under prompts."""
        try:
            return self.stepwise(pass_, batch, steps)
        except Exception as error:
            raise SoftPromptError(
                f"{method} cannot join {self.name}: a pass of a few tokens fails ({first_line(error)})"
            ) from error

    def stepwise(self, pass_: Pass | None, batch: Batch, steps: int = 2) -> list[Tensor]:
        """The states of each row's real tokens, in two steps where the model has a cache."""
        known = inspect.signature(self.model.base_model.forward).parameters
        caching = {"use_cache": steps > 1} if "use_cache" in known and self.backbone.kind != "encoder" else {}
        if self.seq2seq:
            return list(self._decoded(pass_, batch, caching))
        cut = batch.ids.shape[1] - (1 if caching and steps > 1 else 0)
        output = self._run(pass_, input_ids=batch.ids[:, :cut], attention_mask=batch.mask[:, :cut], **caching)
        states, cache = _states(output, batch.ids[:, :cut]), cache_in(output)
        if cut < batch.ids.shape[1] and cache is None:
            raise ValueError("no cache comes out")
        if cut < batch.ids.shape[1] and cache is not None:
            rest, more = batch.ids[:, cut:], {cache[0]: cache[1], **caching}
            later = self._run(pass_, input_ids=rest, attention_mask=batch.mask, **more)
            states = torch.cat([states, _states(later, rest)], 1)
        return [row[mask.bool()] for row, mask in zip(states, batch.mask, strict=True)]

    def _decoded(self, pass_: Pass | None, batch: Batch, caching: dict[str, bool]) -> Tensor:
        """The states of a decoder's tokens, with its encoder run by itself as ``generate`` does."""
        ids = self.answers(batch)["decoder_input_ids"]
        with self.state.activate(pass_):
            encoded = self.backbone.entry(input_ids=batch.ids, attention_mask=batch.mask)
        given: dict[str, Any] = {"encoder_outputs": encoded, "attention_mask": batch.mask, **caching}
        cut = _ANSWERS - (1 if caching.get("use_cache") else 0)
        output = self._run(pass_, input_ids=None, decoder_input_ids=ids[:, :cut], **given)
        states, cache = _states(output, ids[:, :cut]), cache_in(output)
        if cut < _ANSWERS and cache is None:
            return _states(self._run(pass_, input_ids=None, decoder_input_ids=ids, **given), ids)
        if cut < _ANSWERS and cache is not None:
            given[cache[0]] = cache[1]
            later = self._run(pass_, input_ids=None, decoder_input_ids=ids[:, cut:], **given)
            states = torch.cat([states, _states(later, ids[:, cut:])], 1)
        return states

    def _run(self, pass_: Pass | None, **inputs: Any) -> Any:
        """Runs the base model in a pass; without any prompt for None."""
        base, last_pass = self.model.base_model, self.state.last_pass
        if pass_ is None and base is self.model:
            inputs["prompt_names"] = [None]
        try:
            with self.state.activate(pass_, inside=base is not self.model):
                return base(return_dict=True, **inputs)
        finally:
            self.state.last_pass = last_pass

    def require(
        self, sentence: str, given: Tensor, expected: Tensor, by_same_call: Callable[[], Tensor] | None = None
    ) -> None:
        """Refuses states that are not the expected ones, nor those that the plain model makes in the same steps."""
        difference = differs(expected, given, self.model) if expected.shape == given.shape else float("nan")
        if difference is not None and by_same_call is not None:
            difference = differs(by_same_call(), given, self.model)
        if difference is not None:
            raise SoftPromptError(f"{sentence} (by {difference:.2g} of the largest value)")

    def answers(self, batch: Batch) -> dict[str, Tensor]:
        """Some tokens for the decoder of an encoder-decoder."""
        ids = torch.tensor([plain_ids(self.model, 10)[-_ANSWERS:]] * len(batch.ids), device=self.backbone.device)
        return {"decoder_input_ids": ids} if self.seq2seq else {}


def _states(output: Any, ids: Tensor) -> Tensor:
    states = states_of(output)
    if states is None or states.shape[:2] != ids.shape:
        shape = None if states is None else tuple(states.shape)
        raise ValueError(f"its output has states of shape {shape} for tokens {tuple(ids.shape)}")
    return states
