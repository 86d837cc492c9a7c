"""A check of a frozen model when a first prompt of a form joins it: whether prompts act on it as they should.

A few tokens in two rows of different lengths go through the model, without gradients, and the model stays as it is:

- *input prompts*: one that holds the embeddings of tokens acts as these tokens typed in front;
- *prefixes*: each of its attention sites sees it, and the row that has it is the same with and without padding;
- *both*: a row without a prompt is the plain model's, whatever the row beside it has.

Models that cache run in two steps. What differs by more than rounding is refused in one sentence.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from softprompts.backbones import sharded, task_head
from softprompts.backbones.backbone import quiet
from softprompts.backbones.kinds import cache_in, differs, plain_ids, states_of, trial
from softprompts.errors import SoftPromptError, first_line
from softprompts.injection.batch_pass import Pass
from softprompts.injection.prompt import Prompt
from softprompts.injection.state import State
from softprompts.methods.contract import Method, MethodConfig, Rows
from softprompts.soft_prompt import SoftPrompt
from softprompts.validation import settings

_NAME = "checked"  # of the prompt in question, in the passes here
_ANSWERS = 3  # tokens that the decoder of an encoder-decoder is given


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
    """Token ids of rows, padded to one length on one side."""

    ids: Tensor
    mask: Tensor

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], pad: int, device: torch.device, left: bool) -> _Batch:
        length = max(map(len, rows))

        def padded(row: Sequence[int], filler: int) -> list[int]:
            space = [filler] * (length - len(row))
            return [*space, *row] if left else [*row, *space]

        ids, mask = [padded(row, pad) for row in rows], [padded([1] * len(row), 0) for row in rows]
        return cls(torch.tensor(ids, device=device), torch.tensor(mask, device=device))

    def row(self, index: int) -> _Batch:
        """One row, with its padding."""
        return _Batch(self.ids[index : index + 1], self.mask[index : index + 1])


class _NotRunError(Exception):
    """The plain model cannot run the tokens of the check."""


def require_exact(state: State, prompt: Prompt) -> None:
    """Refuses a prompt whose form does not act as it should on an attached model.

    Each form is checked once a model, and what was found is kept in ``state.checked``: "exact", or why the model could
    not be run.

    Raises:
        SoftPromptError: what differs.
    """
    if state.checked is None:
        return
    check, config = _Check(state), prompt.config
    forms: dict[Any, Callable[[], None]] = {}
    if config.uses_tokens:
        forms["tokens", config.placement] = lambda: check.tokens(config)
    if config.uses_prefix:
        forms[type(prompt.method), config.positions, *prompt.sites] = lambda: check.prefix(prompt)
    for form, run in forms.items():
        if form not in state.checked:
            with state.backbone.device:  # whatever the default device is
                state.checked[form] = check.cannot_run() or _outcome(run, check.name, refuse=form[0] == "tokens")


def _outcome(run: Callable[[], None], name: str, refuse: bool) -> str:
    try:
        run()
    except _NotRunError as error:
        if refuse:
            raise SoftPromptError(
                f"whether input prompts are exact on {name} cannot be told: {error}; check=False attaches all the same"
            ) from error
        warnings.warn(f"{name} was not checked with prompts: {error}", stacklevel=2)
        return str(error)
    return "exact"


class _Check:
    """The check of prompts on one model."""

    def __init__(self, state: State):
        self.state, self.backbone, self.model = state, state.backbone, state.backbone.model
        self.name = state.model_class.__name__
        self.causal, self.seq2seq = (self.backbone.kind == kind for kind in ("decoder", "encoder-decoder"))

    def cannot_run(self) -> str:
        """Why the model is not run here; "" where it is."""
        if not self.backbone.text_input:
            return f"it takes {self.model.main_input_name}"
        if self.backbone.device.type == "meta" and not hasattr(self.backbone.embeddings, "_hf_hook"):
            return "it has no values (meta device)"
        if any(map(sharded.is_sharded, self.model.parameters())):
            return "each process holds a part of it"
        return "" if len(plain_ids(self.model, 10)) == 10 else "its vocabulary has less than 10 tokens"

    # --- input prompts ------------------------------------------------------------------------------------------

    def tokens(self, config: MethodConfig) -> None:
        """Compares a prompt of two tokens' embeddings with the two tokens typed."""
        ids, where = plain_ids(self.model, 10), f"{config.method} cannot be exact on {self.name}"
        given, first, second = ids[:2], ids[2:6], ids[6:9]
        behind_first = self.backbone.kind == "encoder" and config.placement != "front"
        start = self.backbone.keep_first if behind_first else 0
        typed = self._batch([[*first[:start], *given, *first[start:]], second])
        batch = self._batch([first, second], left=not self.seq2seq)

        reads_first = config.placement == "front" and self.backbone.reads_first  # whose first column is the prompt's

        def behind(states: Tensor) -> Tensor:
            """The states of a row without those of the typed prompt; a decoder beside an encoder has none of them."""
            if self.seq2seq:
                return states
            kept = int(reads_first)
            return torch.cat([states[: start + kept], states[start + len(given) + kept :]])

        with quiet(), trial(self.model):
            method = _Typed(
                _TypedConfig(num_virtual_tokens=len(given), placement=config.placement),
                self.backbone.embed(torch.tensor(given)),
            )
            head = task_head.new(self.backbone.heads, None, self.model)
            prompt = Prompt(method.config, method, head, [], (0, self.backbone.hidden_size))
            whole = self._whole_model(prompt, given, first, start, int(reads_first), where)
            try:
                expected = self._plain(typed)
            except _NotRunError:
                if whole:  # base models that answer in another form
                    return
                raise
            own, other = self._prompted(prompt, [_NAME, None], batch, config.method)
            self._require(
                f"{where}: a row without a prompt changes beside one that has an input prompt",
                other,
                expected[1],
                lambda: self._stepwise(None, batch.row(1))[0],
            )
            self._require(
                f"{where}: a prompt of tokens' embeddings does not act as these tokens typed in front",
                own,
                behind(expected[0]),
                lambda: behind(self._stepwise(None, typed.row(0))[0]),
            )

    def _whole_model(
        self, prompt: Prompt, given: list[int], first: list[int], start: int, kept: int, where: str
    ) -> bool:
        """Compares what the model around the base model makes of a typed prompt and of the same as embeddings.

        Heads may look at token ids too, such as where a question ends, and `generate` may add tokens of its own. Tells
        whether there was something to compare.
        """
        model = self.model
        if model.base_model is model and not self.seq2seq:
            return False
        prepare = getattr(model, "prepare_inputs_for_generation", None)
        batch = self._batch([first])
        if prepare is not None and self.backbone.kind != "encoder-decoder" and model.can_generate():
            try:
                prepared = prepare(batch.ids, attention_mask=batch.mask)
            except Exception:  # not made to be called by itself
                prepared = {}
            ids = prepared.get("input_ids")
            if isinstance(ids, Tensor) and ids.shape[1] > batch.ids.shape[1]:
                raise SoftPromptError(f"{where}: generate puts tokens of its own behind the input at every step")
        if self.causal:
            return False
        named = (getattr(model.config.get_text_config(), f"{name}_token_id", None) for name in ("question", "sep"))
        question, end = (
            [one] if isinstance(one, int) and 0 <= one < self.backbone.vocabulary_size else [] for one in named
        )
        special = [*first[:2], *question, *end, *end, *first[2:], *end]  # a question, a context
        rows = [first, special] if len(special) > len(first) else [first]
        last_pass = self.state.last_pass
        try:
            outcomes = [self._same_outputs(prompt, given, row, start, kept, where) for row in rows]
        finally:
            self.state.last_pass = last_pass
        return any(outcomes)

    def _same_outputs(
        self, prompt: Prompt, given: list[int], row: list[int], start: int, kept: int, where: str
    ) -> bool:
        """Whether the model runs; a `SoftPromptError` where what it says differs."""
        model = self.model
        typed = self._batch([[*row[:start], *given, *row[start:]]])
        more: dict[str, Any] = {"return_dict": False}
        if self.seq2seq:
            more["decoder_input_ids"] = torch.tensor([plain_ids(model, 10)[-_ANSWERS:]], device=self.backbone.device)
        whole: Any = model
        if self.backbone.reads_first:  # the first token of all, or of the row: what goes into the head tells
            whole = self._into_head
        try:
            plain = whole(input_ids=typed.ids, attention_mask=typed.mask, prompt_names=[None], **more)
        except Exception:  # it wants more than a few tokens
            return False
        short = self._batch([row])
        try:
            with self.state.activate(Pass({_NAME: prompt}, [_NAME]), inside=False):
                own = whole(input_ids=short.ids, attention_mask=short.mask, **more)
        except Exception as error:
            raise SoftPromptError(f"{where}: a pass of a few tokens fails ({first_line(error)})") from error
        kept, count = start + kept, len(given)  # a first column that is read is the prompt's
        for expected, ours in zip(plain, own, strict=False):
            if not (isinstance(expected, Tensor) and isinstance(ours, Tensor) and expected.is_floating_point()):
                continue
            if expected.ndim > 1 and expected.shape[1] == typed.ids.shape[1] and ours.shape[1] == len(row):
                expected = torch.cat([expected[:, :kept], expected[:, kept + count :]], 1)
            told = (
                f"{where}: its head or its decoder takes a prompt of tokens' embeddings for something else than these"
            )
            self._require(f"{told} tokens typed in front", ours[..., None], expected[..., None])
        return True

    def _into_head(self, **inputs: Any) -> tuple[Tensor | None]:
        """The states that the base model hands to the head."""
        seen: list[Any] = []
        with self.model.base_model.register_forward_hook(lambda module, given, output: seen.append(output)):
            cast(Any, self.model)(**inputs)
        return (states_of(seen[0]),)

    # --- prefixes -----------------------------------------------------------------------------------------------

    def prefix(self, prompt: Prompt) -> None:
        """Looks whether a prefix reaches its sites, and leaves alone what is none of its row's."""
        ids, training = plain_ids(self.model, 10), prompt.training
        batch, short = self._batch([ids[:3], ids[3:8]], left=self.causal), self._batch([ids[:3]])
        where, watched = f"{prompt.config.method} cannot be exact on {self.name}", _Watched(prompt, [_NAME, None])
        prompt.eval()
        try:
            with quiet(), trial(self.model):
                plain, plain_short = self._plain(batch), self._plain(short)[0]
                own, other = self._prompted(prompt, [_NAME, None], batch, prompt.config.method, watched)
                missed = len(set(prompt.sites) - watched.asked)
                if missed:
                    raise SoftPromptError(f"{where}: {missed} of {len(prompt.sites)} attention sites see no prefix")
                self._require(
                    f"{where}: a row without a prompt changes beside one that has a prefix",
                    other,
                    plain[1],
                    lambda: self._stepwise(None, batch.row(1))[0],
                )
                # What looks at the input sees that of the first step.
                steps = 2 if prompt.method.per_row or prompt.method.reads_states else 1
                (alone,) = self._prompted(prompt, [_NAME], short, prompt.config.method, steps=steps)
                if torch.equal(plain_short, alone):
                    raise SoftPromptError(f"{where}: its prefix has no effect")
                if differs(alone, own, self.model) is not None:
                    # Where the plain model itself changes with padding or with its cache, so does this one.
                    plain_own = self._stepwise(None, batch.row(0))[0]
                    if differs(plain_short, plain_own, self.model) is None:
                        sentence = f"{where}: a row with a prefix changes with padding or with the cache"
                        self._require(sentence, own, alone)
        finally:
            prompt.train(training)

    # --- running ------------------------------------------------------------------------------------------------

    def _batch(self, rows: Sequence[Sequence[int]], left: bool = False) -> _Batch:
        pad = getattr(self.model.config.get_text_config(), "pad_token_id", None)
        usable = isinstance(pad, int) and 0 <= pad < self.backbone.vocabulary_size
        return _Batch.of(rows, pad if usable else 0, self.backbone.device, left)  # type: ignore[arg-type]

    def _plain(self, batch: _Batch) -> list[Tensor]:
        """The plain model's states of each row's real tokens; of an encoder-decoder, those of its decoder's tokens."""
        try:
            return self._stepwise(None, batch, steps=1)
        except Exception as error:
            raise _NotRunError(f"it cannot run a few tokens alone ({first_line(error)})") from error

    def _prompted(
        self,
        prompt: Prompt,
        names: Sequence[str | None],
        batch: _Batch,
        method: str,
        pass_: Pass | None = None,
        steps: int = 2,
    ) -> list[Tensor]:
        """The states of each row's real tokens under prompts."""
        try:
            return self._stepwise(pass_ or Pass({_NAME: prompt}, names), batch, steps)
        except Exception as error:
            raise SoftPromptError(
                f"{method} cannot join {self.name}: a pass of a few tokens fails ({first_line(error)})"
            ) from error

    def _stepwise(self, pass_: Pass | None, batch: _Batch, steps: int = 2) -> list[Tensor]:
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

    def _decoded(self, pass_: Pass | None, batch: _Batch, caching: dict[str, bool]) -> Tensor:
        """The states of a decoder's tokens, with its encoder run by itself as ``generate`` does."""
        ids = torch.tensor([plain_ids(self.model, 10)[-_ANSWERS:]] * len(batch.ids), device=self.backbone.device)
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

    def _require(
        self, sentence: str, given: Tensor, expected: Tensor, by_same_call: Callable[[], Tensor] | None = None
    ) -> None:
        """Refuses states that are not the expected ones, nor those that the plain model makes in the same steps."""
        difference = differs(expected, given, self.model) if expected.shape == given.shape else float("nan")
        if difference is not None and by_same_call is not None:
            difference = differs(by_same_call(), given, self.model)
        if difference is not None:
            raise SoftPromptError(f"{sentence} (by {difference:.2g} of the largest value)")


def _states(output: Any, ids: Tensor) -> Tensor:
    states = states_of(output)
    if states is None or states.shape[:2] != ids.shape:
        shape = None if states is None else tuple(states.shape)
        raise ValueError(f"its output has states of shape {shape} for tokens {tuple(ids.shape)}")
    return states
