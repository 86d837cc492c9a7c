"""A check of a frozen model when a first prompt of a form joins it: whether prompts act on it as they should.

A few tokens in two rows of different lengths go through the model, without gradients, and the model stays as it is:

- *input prompts*: one that holds the embeddings of tokens acts as these tokens typed in front;
- *prefixes*: each of its attention sites sees it; the row that has it is the same with and without padding;
- all: a row without a prompt is the plain model's, whatever the row beside it has; a step from the cache is the one
  without. Models that generate are run in two steps.

What differs by more than rounding is refused in one sentence.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from softprompts.backbones import sharded
from softprompts.backbones.backbone import Backbone, quiet
from softprompts.backbones.kinds import cache_in, differs, plain_ids, states_of, trial
from softprompts.errors import SoftPromptError, first_line
from softprompts.injection.batch_pass import Pass
from softprompts.injection.prompt import Prompt
from softprompts.injection.state import State
from softprompts.methods.contract import Method, MethodConfig, Rows
from softprompts.soft_prompt import SoftPrompt
from softprompts.validation import settings

_NAME = "checked"  # of the prompt in question, in the passes here


@settings
class _TypedConfig(MethodConfig):
    """An input prompt of given embeddings."""

    uses_tokens: ClassVar[bool] = True


class _Typed(Method, config=_TypedConfig):
    def __init__(self, config: MethodConfig, embeddings: Tensor):
        super().__init__(config)
        self.embeddings = embeddings

    def forward(self, rows: Rows | None = None) -> SoftPrompt:
        return SoftPrompt(tokens=self.embeddings[None])


class _Watched(Pass):
    """A pass that notes which attention sites ask for their prefix."""

    def __init__(self, prompt: Prompt, names: Sequence[str | None]):
        super().__init__({_NAME: prompt}, names)
        self.asked: set[int] = set()

    def prefix(self, site: int, rows: int) -> Any:
        """See `Pass`."""
        self.asked.add(site)
        return super().prefix(site, rows)


@dataclass
class _Batch:
    """Token ids of rows, padded to one length on one side, and what a decoder beside an encoder is given."""

    ids: Tensor
    mask: Tensor

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], pad: int, device: torch.device, left: bool = False) -> _Batch:
        length = max(map(len, rows))
        ids, mask = [], []
        for row in rows:
            padding, real = [pad] * (length - len(row)), [1] * len(row)
            ids.append([*padding, *row] if left else [*row, *padding])
            mask.append([*([0] * len(padding)), *real] if left else [*real, *([0] * len(padding))])
        return cls(torch.tensor(ids, device=device), torch.tensor(mask, device=device))

    def real(self, states: Tensor) -> list[Tensor]:
        """The states of each row's real tokens."""
        return [row[mask.bool()] for row, mask in zip(states, self.mask, strict=True)]


class _NotRunError(Exception):
    """The plain model cannot run the tokens of the check."""


def require_exact(state: State, prompt: Prompt) -> str:
    """Refuses a prompt whose form does not act as it should on an attached model; checked once for each form.

    Returns:
        "exact", or why nothing could be checked.

    Raises:
        SoftPromptError: what differs.
    """
    if state.checked is None:
        return "attach was told not to"
    forms: list[tuple[Any, Callable[[], None]]] = []
    check = _Check(state)
    if prompt.config.uses_tokens:
        placement = prompt.config.placement
        forms.append((("tokens", placement), lambda: check.tokens(placement, prompt.config.method)))
    if prompt.config.uses_prefix:
        forms.append(((type(prompt.method), prompt.config.positions, *prompt.sites), lambda: check.prefix(prompt)))
    results = []
    for form, run in forms:
        if form not in state.checked:
            state.checked[form] = check.cannot_run() or _outcome(run)
        results.append(state.checked[form])
    return next((result for result in results if result != "exact"), "exact")


def _outcome(run: Callable[[], None]) -> str:
    try:
        run()
    except _NotRunError as error:
        return str(error)
    return "exact"


class _Check:
    """The check on one model."""

    def __init__(self, state: State):
        self.state = state
        self.backbone: Backbone = state.backbone
        self.model = state.backbone.model
        self.name = state.model_class.__name__
        self.causal, self.seq2seq = (self.backbone.kind == kind for kind in ("decoder", "encoder-decoder"))

    def cannot_run(self) -> str:
        """Why the model cannot be run here; "" where it can."""
        if not self.backbone.text_input:
            return f"it takes {self.model.main_input_name}"
        if self.backbone.device.type == "meta" and not hasattr(self.backbone.embeddings, "_hf_hook"):
            return "it has no values (meta device)"
        if any(map(sharded.is_sharded, self.model.parameters())):
            return "each process holds a part of it"
        if len(plain_ids(self.model, 10)) < 10:
            return "its vocabulary has less than 10 tokens"
        return ""

    # --- input prompts ------------------------------------------------------------------------------------------

    def tokens(self, placement: Any, method: str) -> None:
        """Compares a prompt of two tokens' embeddings with the two tokens typed."""
        ids = plain_ids(self.model, 10)
        given, first, second = ids[:2], ids[2:6], ids[6:9]
        kept = 0 if placement == "front" or self.causal or self.seq2seq else self.backbone.keep_first
        typed = self._batch([[*first[:kept], *given, *first[kept:]], second])
        batch = self._batch([first, second], left=not self.seq2seq)
        with quiet(), trial(self.model):
            expected = self._plain(typed, 3)
            embeddings = self.backbone.embed(torch.tensor(given))
            method_of_check = _Typed(_TypedConfig(num_virtual_tokens=2, placement=placement), embeddings)
            prompt = Prompt(method_of_check.config, method_of_check, None, [])
            outputs = self._prompted(prompt, [_NAME, None], batch, f"{method}: input prompts")
        where = f"{method} cannot be exact on {self.name}"
        if not self.seq2seq:
            typed_row, plain_row = typed.real(expected)
            typed_row = torch.cat([typed_row[:kept], typed_row[kept + len(given) :]])
            pairs = [*zip((typed_row, plain_row), batch.real(outputs), strict=True)]
        else:
            pairs = [*zip(expected, outputs, strict=True)]
        self._require(*pairs[1], f"{where}: a row without a prompt changes beside one that has an input prompt")
        self._require(*pairs[0], f"{where}: a prompt of tokens' embeddings does not act as these tokens typed in front")

    # --- prefixes -----------------------------------------------------------------------------------------------

    def prefix(self, prompt: Prompt) -> None:
        """Looks whether a prefix reaches its sites, and leaves alone what is none of its row's."""
        ids = plain_ids(self.model, 10)
        method, left = prompt.config.method, self.causal
        batch = self._batch([ids[:3], ids[3:8]], left=left)
        training = prompt.training
        prompt.eval()
        try:
            with quiet(), trial(self.model):
                expected = self._plain(batch, 3)
                alone = self._batch([ids[:3]])
                plain_alone = self._plain(alone, 3)
                what = f"{method}: prefixes"
                watched = _Watched(prompt, [_NAME, None])
                outputs = self._prompted(prompt, [_NAME, None], batch, what, watched)
                unpadded = self._prompted(prompt, [_NAME], alone, what, _Watched(prompt, [_NAME]), steps=1)
        finally:
            prompt.train(training)
        where = f"{method} cannot be exact on {self.name}"
        missed = sorted(set(prompt.sites) - watched.asked)
        if missed:
            raise SoftPromptError(f"{where}: {len(missed)} of its {len(prompt.sites)} attention sites see no prefix")
        real = list if self.seq2seq else batch.real
        plain, rows = real(expected), real(outputs)
        own = unpadded[0]
        self._require(plain[1], rows[1], f"{where}: a row without a prompt changes beside one that has a prefix")
        if differs(plain[0], plain_alone[0], self.model) is None:  # so it is with the plain model
            self._require(own, rows[0], f"{where}: a row with a prefix changes with padding or with the cache")
        if torch.equal(plain_alone[0], own):
            raise SoftPromptError(f"{where}: its prefix has no effect")

    # --- running ------------------------------------------------------------------------------------------------

    def _batch(self, rows: Sequence[Sequence[int]], left: bool = False) -> _Batch:
        pad = getattr(self.model.config.get_text_config(), "pad_token_id", None)
        usable = isinstance(pad, int) and 0 <= pad < self.backbone.vocabulary_size
        return _Batch.of(rows, pad if usable else 0, self.backbone.device, left)  # type: ignore[arg-type]

    def _answers(self, rows: int, columns: int) -> Tensor:
        ids = plain_ids(self.model, 10)[-columns:]
        return torch.tensor([ids] * rows, device=self.backbone.device)

    def _plain(self, batch: _Batch, columns: int) -> Tensor:
        """The plain model's states of all tokens; of an encoder-decoder, of so many tokens of its decoder."""
        more = {"decoder_input_ids": self._answers(len(batch.ids), columns)} if self.seq2seq else {}
        try:
            output = self._run(None, input_ids=batch.ids, attention_mask=batch.mask, **more)
        except Exception as error:
            raise _NotRunError(f"it cannot run a few tokens alone ({first_line(error)})") from error
        states = states_of(output)
        shape = (len(batch.ids), columns if self.seq2seq else batch.ids.shape[1])
        if states is None or states.shape[:2] != shape or states.is_meta:
            raise _NotRunError("its output has no states of tokens")
        return states

    def _run(self, pass_: Pass | None, **inputs: Any) -> Any:
        """Runs the base model, in the pass."""
        base = self.model.base_model
        known = inspect.signature(base.forward).parameters
        if "return_dict" in known or any(each.kind is each.VAR_KEYWORD for each in known.values()):
            inputs["return_dict"] = True
        if pass_ is None and base is self.model:
            inputs["prompt_names"] = [None] * len(inputs["input_ids"])
        last_pass = self.state.last_pass
        try:
            with self.state.activate(pass_, inside=base is not self.model):
                return base(**inputs)
        finally:
            self.state.last_pass = last_pass

    def _prompted(
        self,
        prompt: Prompt,
        names: Sequence[str | None],
        batch: _Batch,
        what: str,
        pass_: Pass | None = None,
        steps: int = 2,
    ) -> Tensor:
        """The states of all tokens under prompts, in two steps where the model has a cache."""
        pass_ = Pass({_NAME: prompt}, names) if pass_ is None else pass_
        known = inspect.signature(self.model.base_model.forward).parameters
        caching = {"use_cache": True} if "use_cache" in known else {}
        in_steps = steps > 1 and bool(caching) and (self.causal or self.seq2seq)
        try:
            if self.seq2seq:
                return self._decoded(pass_, batch, caching, in_steps)
            if not in_steps:
                off = {"use_cache": False} if caching else {}
                return _states(self._run(pass_, input_ids=batch.ids, attention_mask=batch.mask, **off))
            output = self._run(pass_, input_ids=batch.ids[:, :-1], attention_mask=batch.mask[:, :-1], **caching)
            cache = cache_in(output)
            if cache is None:
                return _states(self._run(pass_, input_ids=batch.ids, attention_mask=batch.mask))
            more = {cache[0]: cache[1], **caching}
            later = self._run(pass_, input_ids=batch.ids[:, -1:], attention_mask=batch.mask, **more)
            return torch.cat([_states(output), _states(later)], 1)
        except SoftPromptError:
            raise
        except Exception as error:
            raise SoftPromptError(
                f"{what} cannot join {self.name}: a pass of a few tokens fails ({first_line(error)})"
            ) from error

    def _decoded(self, pass_: Pass, batch: _Batch, caching: dict[str, bool], in_steps: bool) -> Tensor:
        """The states of a decoder's tokens, its encoder run by itself as ``generate`` does."""
        answers, end = self._answers(len(batch.ids), 3), 2 if in_steps else 3
        with self.state.activate(pass_):
            encoded = self.backbone.entry(input_ids=batch.ids, attention_mask=batch.mask)
        given = {"encoder_outputs": encoded, "attention_mask": batch.mask, **caching}
        output = self._run(pass_, decoder_input_ids=answers[:, :end], **given)
        cache = cache_in(output)
        if not in_steps or cache is None:
            return _states(output)
        later = self._run(pass_, decoder_input_ids=answers[:, end:], **{cache[0]: cache[1]}, **given)
        return torch.cat([_states(output), _states(later)], 1)

    def _require(self, expected: Tensor, given: Tensor, sentence: str) -> None:
        if expected.shape != given.shape:
            raise SoftPromptError(f"{sentence} (states {tuple(given.shape)} in place of {tuple(expected.shape)})")
        difference = differs(expected, given, self.model)
        if difference is not None:
            raise SoftPromptError(f"{sentence} (by {difference:.2g} of the largest value)")


def _states(output: Any) -> Tensor:
    states = states_of(output)
    if states is None:
        raise ValueError("its output has no states of tokens")
    return states
