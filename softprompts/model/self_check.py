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

    def first(self, count: int) -> _Batch:
        """The first rows, with their padding."""
        return _Batch(self.ids[:count], self.mask[:count])


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
        given, others, first = ids[:2], ids[2:4], ids[4:7]
        behind_first = self.backbone.kind == "encoder" and config.placement != "front"
        start = self.backbone.keep_first if behind_first else 0
        # Two rows of one length, which differ in what is typed in the first of them only.
        typed = self._batch([[*first[:start], *both, *first[start:]] for both in (given, others)])
        second, left = typed.ids[1].tolist(), not self.seq2seq
        batch = self._batch([first, second], left)
        aside = self._batch([*typed.ids.tolist(), [*second, *given]], left)  # the typed rows, padded as in the batch
        kept = int(config.placement == "front" and self.backbone.reads_first)  # a first column that is the prompt's

        def behind(states: Tensor) -> Tensor:
            """The states of a row without those of the typed prompt; a decoder beside an encoder has none of them."""
            if self.seq2seq:
                return states
            return torch.cat([states[: start + kept], states[start + kept + len(given) :]])

        with quiet(), trial(self.model):
            embeddings = self.backbone.embed(torch.tensor(given)).detach().requires_grad_()
            method = _Typed(_TypedConfig(num_virtual_tokens=len(given), placement=config.placement), embeddings)
            head = task_head.new(self.backbone.heads, None, self.model)
            prompt = Prompt(method.config, method, head, [], (0, self.backbone.hidden_size))
            self._require_own_input(first, where)
            whole, expected = self._whole_model(prompt, typed, first, start, kept, where)
            if expected is None:
                try:
                    expected = self._plain(typed)
                except _NotRunError:
                    if whole:  # base models that answer in another form
                        return
                    raise
            if torch.equal(behind(expected[0]), behind(expected[1])):
                raise SoftPromptError(f"{where}: no token changes with those in front of it, as it runs here")
            names, mixes = [_NAME, None], self.state.hooks.mixes_in_cache
            with torch.enable_grad():
                own, other = self._prompted(prompt, names, batch, config.method, steps=2 if mixes else 1)
                if not mixes:  # what the mixed batch is refused for, when it comes to that, a prompt of its own is not
                    (alone,) = self._prompted(prompt, [_NAME], self._batch([first]), config.method)
                    self._require(
                        f"{where}: a prompt of tokens' embeddings acts differently with a cache",
                        alone.detach(),
                        own.detach(),
                        lambda: behind(self._stepwise(None, typed.row(0))[0]),
                    )
            self._require_gradient(own, embeddings, where)
            self._require(
                f"{where}: a row without a prompt changes beside one that has an input prompt",
                other.detach(),
                expected[1],
                lambda: self._stepwise(None, aside.row(1))[0],
            )
            self._require(
                f"{where}: a prompt of tokens' embeddings does not act as these tokens typed in front",
                own.detach(),
                behind(expected[0]),
                lambda: behind(self._stepwise(None, aside.row(0))[0]),
            )

    def _require_gradient(self, states: Tensor, embeddings: Tensor, where: str) -> None:
        """Refuses models whose own way to compute gradients does not work in evaluation mode, in which they stay."""
        if self.model.backbone_dropout or not states.requires_grad or not _differentiates_by_itself(states):
            return
        try:
            torch.autograd.grad(states.sum(), embeddings)
        except Exception as error:
            raise SoftPromptError(
                f"{where}: it gives no gradients in evaluation mode ({first_line(error)}); attach it with "
                "backbone_dropout=True"
            ) from error

    def _require_own_input(self, first: list[int], where: str) -> None:
        """Refuses models whose ``generate`` adds tokens of its own to the input."""
        prepare = getattr(self.model, "prepare_inputs_for_generation", None)
        if prepare is None or self.seq2seq or not self.model.can_generate():
            return
        batch = self._batch([first])
        try:
            ids = prepare(batch.ids, attention_mask=batch.mask).get("input_ids")
        except Exception:  # not made to be called by itself
            return
        if isinstance(ids, Tensor) and ids.shape[1] > batch.ids.shape[1]:
            raise SoftPromptError(f"{where}: generate puts tokens of its own behind the input at every step")

    def _whole_model(
        self, prompt: Prompt, typed: _Batch, first: list[int], start: int, kept: int, where: str
    ) -> tuple[bool, list[Tensor] | None]:
        """Compares what the model around the base model makes of a typed prompt and of the same as embeddings.

        Heads may look at token ids too, such as where a question ends. Tells whether there was something to compare,
        and gives the plain base model's states of the typed rows, where that is what the pass has shown.
        """
        model, given = self.model, typed.ids[0, start : start + 2].tolist()
        if self.causal or (model.base_model is model and not self.seq2seq):
            return False, None
        named = (getattr(model.config.get_text_config(), f"{name}_token_id", None) for name in ("question", "sep"))
        question, end = (
            [one] if isinstance(one, int) and 0 <= one < self.backbone.vocabulary_size else [] for one in named
        )
        last_pass = self.state.last_pass
        try:
            compared, states = self._same_outputs(prompt, typed, first, start, kept, where)
            if question or end:  # a question, a context
                row = [*first[:2], *question, *end, *end, *first[2:], *end]
                one = self._batch([[*row[:start], *given, *row[start:]]])
                compared |= self._same_outputs(prompt, one, row, start, kept, where)[0]
        finally:
            self.state.last_pass = last_pass
        return compared, states

    def _same_outputs(
        self, prompt: Prompt, typed: _Batch, row: list[int], start: int, kept: int, where: str
    ) -> tuple[bool, list[Tensor] | None]:
        """Whether the model runs, and the base model's states of the typed rows; an error where outputs differ."""
        more: dict[str, Any] = {"return_dict": False}
        whole: Any = self.model
        if self.backbone.reads_first:  # the first token of all, or of the row: what goes into the head tells
            whole = self._into_head
        try:
            plain, seen = self._plain_whole(whole, typed, more)
        except Exception:
            try:
                plain, seen = self._plain_whole(whole, typed.row(0), more)
            except Exception:  # it wants more than a few tokens
                return False, None
        short = self._batch([row])
        try:
            with self.state.activate(Pass({_NAME: prompt}, [_NAME]), inside=False):
                own = whole(input_ids=short.ids, attention_mask=short.mask, **more, **self._answers(short))
        except Exception as error:
            raise SoftPromptError(f"{where}: a pass of a few tokens fails ({first_line(error)})") from error
        start, count = start + kept, 2  # a first column that is read is the prompt's
        for expected, ours in zip(plain, own, strict=False):
            if not (isinstance(expected, Tensor) and isinstance(ours, Tensor) and expected.is_floating_point()):
                continue
            if len(ours) == 1 < len(expected):
                expected = expected[:1]
            if expected.ndim > 1 and expected.shape[1] == typed.ids.shape[1] and ours.shape[1] == len(row):
                expected = torch.cat([expected[:, :start], expected[:, start + count :]], 1)
            told = (
                f"{where}: its head or its decoder takes a prompt of tokens' embeddings for something else than these"
            )
            self._require(f"{told} tokens typed in front", ours[..., None], expected[..., None])
        return True, seen

    def _plain_whole(self, whole: Any, typed: _Batch, more: dict[str, Any]) -> tuple[Any, list[Tensor] | None]:
        """What the plain model gives for typed rows, and what its base model does, row by row."""
        inputs, seen = more | self._answers(typed), list[Any]()
        with self.model.base_model.register_forward_hook(lambda module, given, output: seen.append(output)):
            output = whole(input_ids=typed.ids, attention_mask=typed.mask, prompt_names=[None], **inputs)
        states = states_of(seen[0]) if len(seen) == 1 else None
        tokens = inputs.get("decoder_input_ids", typed.ids)
        return output, None if states is None or states.shape[:2] != tokens.shape or len(states) < 2 else list(states)

    def _answers(self, batch: _Batch) -> dict[str, Tensor]:
        """Some tokens for the decoder of an encoder-decoder."""
        ids = torch.tensor([plain_ids(self.model, 10)[-_ANSWERS:]] * len(batch.ids), device=self.backbone.device)
        return {"decoder_input_ids": ids} if self.seq2seq else {}

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
        where = f"{prompt.config.method} cannot be exact on {self.name}"
        looks = prompt.method.per_row or prompt.method.reads_states  # at the input of the first step
        short, rows = self._batch([ids[:3]]), [ids[:3], ids[3:8]]
        names: list[str | None] = [_NAME, None]
        if (
            self.causal and not looks
        ):  # the first row again, without padding: its states do not change with what follows
            rows, names = [*rows, [*ids[:3], *ids[8:10]]], [*names, _NAME]
        batch, watched = self._batch(rows, left=self.causal), _Watched(prompt, names)
        prompt.eval()
        try:
            with quiet(), trial(self.model):
                plain = self._plain(batch.first(2))
                own, other, *longer = self._prompted(prompt, names, batch, prompt.config.method, watched)
                missed = len(set(prompt.sites) - watched.asked)
                if missed:
                    raise SoftPromptError(f"{where}: {missed} of {len(prompt.sites)} attention sites see no prefix")
                self._require(
                    f"{where}: a row without a prompt changes beside one that has a prefix",
                    other,
                    plain[1],
                    lambda: self._stepwise(None, batch.row(1))[0],
                )
                if torch.equal(plain[0], own):
                    raise SoftPromptError(f"{where}: its prefix has no effect")
                if longer and differs(longer[0][: len(own)], own, self.model) is None:
                    return
                (alone,) = self._prompted(prompt, [_NAME], short, prompt.config.method, steps=2 if looks else 1)
                if differs(alone, own, self.model) is not None:
                    # Where the plain model itself changes with padding or with its cache, so does this one.
                    plain_short, plain_own = self._plain(short)[0], self._stepwise(None, batch.row(0))[0]
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
            try:  # some cannot run two rows, or padding
                alone = [
                    self._batch([row[mask.bool()].tolist()]) for row, mask in zip(batch.ids, batch.mask, strict=True)
                ]
                return [self._stepwise(None, one, steps=1)[0] for one in alone]
            except Exception:
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
        known = list(inspect.signature(self.model.base_model.forward).parameters)
        if "kwargs" in known:  # handed on
            known += self.backbone.parameters
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
        ids = self._answers(batch)["decoder_input_ids"]
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


def _differentiates_by_itself(states: Tensor) -> bool:
    """Whether a model's code, and not only torch's and ours, has a backward of its own on the way to these states."""
    seen, left = set[Any](), [states.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        made_by = getattr(getattr(type(node), "_forward_cls", None), "__module__", "softprompts")
        if not made_by.startswith(("softprompts", "torch.")):
            return True
        left += [following for following, _ in node.next_functions]
    return False


def _states(output: Any, ids: Tensor) -> Tensor:
    states = states_of(output)
    if states is None or states.shape[:2] != ids.shape:
        shape = None if states is None else tuple(states.shape)
        raise ValueError(f"its output has states of shape {shape} for tokens {tuple(ids.shape)}")
    return states
