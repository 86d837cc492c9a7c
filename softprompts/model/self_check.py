"""A check of a frozen model when a first prompt of a form joins it: whether prompts act on it as they should.

A few tokens in rows of different lengths go through the model, and the model stays as it is:

- *input prompts*: one that holds the embeddings of tokens acts as these tokens typed in front, changes what is behind
  it, and gets gradients where the model computes these in its own way;
- *prefixes*: each of its attention sites sees it, and the row that has it is the same with and without padding;
- *both*: a row without a prompt is the plain model's, whatever the row beside it has.

Models that cache run in two steps. What differs by more than rounding is refused in one sentence.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from softprompts.backbones import sharded, task_head
from softprompts.backbones.backbone import attention_of, quiet
from softprompts.backbones.kinds import differs, plain_ids, states_of, trial
from softprompts.errors import SoftPromptError, first_line
from softprompts.injection.batch_pass import Pass
from softprompts.injection.prompt import Prompt
from softprompts.injection.state import State
from softprompts.methods.contract import Method, MethodConfig, Rows
from softprompts.model.trial_passes import Batch, NotRunError, TrialPasses
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


def require_exact(state: State, prompt: Prompt) -> None:
    """Refuses a prompt whose form does not act as it should on an attached model.

    Each form is checked once a model, and what was found is kept in ``state.checked``: "exact", or why the model could
    not be run. Models that are alike, but for their numbers, share it while the process runs (see `note_alike`).

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
    before = {} if state.alike is None or state.alike.marks != _marks(state) else state.alike.found
    for form, run in forms.items():
        if form in before:
            state.checked[form] = before[form]
        if form not in state.checked:
            with state.backbone.device:  # whatever the default device is
                state.checked[form] = check.cannot_run() or _outcome(run, check.name, refuse=form[0] == "tokens")
            before[form] = state.checked[form]


@dataclass
class Alike:
    """What was found out about models of one class, config, type and kernel.

    Attributes:
        found: by the form of a prompt, as in ``state.checked``.
        marks: what the model had of its own at its modules when it was attached; a later change is checked anew.
    """

    found: dict[Any, str]
    marks: Any = None


_FOUND: dict[Any, dict[Any, str]] = {}  # by `_likeness`


def alike(model: PreTrainedModel) -> Alike | None:
    """What is known of models like this one, which is not attached yet; None where somebody has changed its modules."""
    if any(
        "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks for module in model.modules()
    ):
        return None
    kernels = [name for _, name in attention_of(model)]
    tensors = {(str(tensor.dtype), tensor.device.type, type(tensor)) for tensor in model.parameters()}
    config = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
    likeness = (
        type(model),
        json.dumps(config, sort_keys=True, default=str),
        tuple(map(type, model.modules())),
        (*kernels, *sorted(map(str, tensors))),
    )
    return Alike(_FOUND.setdefault(likeness, {}))


def note_alike(state: State, known: Alike | None) -> None:
    """Lets the checks of a model that has just been attached use what is known of its like."""
    state.alike = known
    if known is not None:
        known.marks = _marks(state)


def _marks(state: State) -> Any:
    modules = [module for module in state.backbone.model.modules() if module is not state.prompts]
    own = [(id(module), vars(module).get("forward")) for module in modules if "forward" in vars(module)]
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)
    return own, hooks, [name for _, name in attention_of(state.backbone.model)], state.backbone.model.backbone_dropout


def _outcome(run: Callable[[], None], name: str, refuse: bool) -> str:
    try:
        run()
    except NotRunError as error:
        if refuse:
            raise SoftPromptError(
                f"whether input prompts are exact on {name} cannot be told: {error}; check=False attaches all the same"
            ) from error
        warnings.warn(f"{name} was not checked with prompts: {error}", stacklevel=2)
        return str(error)
    return "exact"


class _Check(TrialPasses):
    """The check of prompts on one model."""

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
        typed = self.batch([[*first[:start], *both, *first[start:]] for both in (given, others)])
        kept = int(config.placement == "front" and self.backbone.reads_first)  # a first column that is the prompt's
        second, left = typed.ids[1].tolist(), not (self.seq2seq or kept)  # such a head wants its padding on the right
        batch = self.batch([first, second], left)
        # The typed rows, padded as in the batch, where an encoder's padding goes to the right.
        aside = self.batch([*typed.ids.tolist(), [*second, *given]], left=self.causal)

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
                    expected = self.plain(typed)
                except NotRunError:
                    if whole:  # base models that answer in another form
                        return
                    raise
            if _same(behind(expected[0]), behind(expected[1])):
                raise SoftPromptError(f"{where}: no token changes with those in front of it, as it runs here")
            names, mixes = [_NAME, None], self.state.hooks.mixes_in_cache
            with torch.enable_grad():
                own, other = self.prompted(Pass({_NAME: prompt}, names), batch, config.method, steps=2 if mixes else 1)
                if not mixes:  # what the mixed batch is refused for, when it comes to that, a prompt of its own is not
                    (alone,) = self.prompted(Pass({_NAME: prompt}, [_NAME]), self.batch([first]), config.method)
                    self.require(
                        f"{where}: a prompt of tokens' embeddings acts differently with a cache",
                        alone.detach(),
                        own.detach(),
                        lambda: behind(self.stepwise(None, typed.row(0))[0]),
                    )
            self.require(
                f"{where}: a row without a prompt changes beside one that has an input prompt",
                other.detach(),
                expected[1],
                lambda: self.stepwise(None, aside.row(1))[0],
            )
            self.require(
                f"{where}: a prompt of tokens' embeddings does not act as these tokens typed in front",
                own.detach(),
                behind(expected[0]),
                lambda: behind(self.stepwise(None, aside.row(0))[0]),
            )
            self._require_gradient(own, embeddings, where)
            self._require_whole(prompt, batch.row(0), config.method)

    def _require_whole(self, prompt: Prompt, batch: Batch, method: str) -> None:
        """Refuses causal models whose head cannot bear that the prompt's columns are cut before it."""
        if not self.causal or self.model.base_model is self.model:
            return
        model, inputs = cast(Any, self.model), {"input_ids": batch.ids, "attention_mask": batch.mask}
        last_pass = self.state.last_pass
        try:
            with self.state.activate(Pass({_NAME: prompt}, [_NAME]), inside=False):
                model(**inputs)
        except Exception as error:
            try:
                model(**inputs, prompt_names=[None])
            except Exception:  # it wants more than a few tokens
                return
            raise SoftPromptError(
                f"{method} cannot join {self.name}: a pass of a few tokens fails ({first_line(error)})"
            ) from error
        finally:
            self.state.last_pass = last_pass

    def _require_gradient(self, states: Tensor, embeddings: Tensor, where: str) -> None:
        """Refuses models whose own way to compute gradients does not work in evaluation mode, in which they stay."""
        if self.model.backbone_dropout or not states.requires_grad or not _differentiates_by_itself(states):
            return
        try:
            with torch.enable_grad():
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
        batch = self.batch([first])
        try:
            ids = prepare(batch.ids, attention_mask=batch.mask).get("input_ids")
        except Exception:  # not made to be called by itself
            return
        if isinstance(ids, Tensor) and ids.shape[1] > batch.ids.shape[1]:
            raise SoftPromptError(f"{where}: generate puts tokens of its own behind the input at every step")

    def _whole_model(
        self, prompt: Prompt, typed: Batch, first: list[int], start: int, kept: int, where: str
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
                one = self.batch([[*row[:start], *given, *row[start:]]])
                compared |= self._same_outputs(prompt, one, row, start, kept, where)[0]
        finally:
            self.state.last_pass = last_pass
        return compared, states

    def _same_outputs(
        self, prompt: Prompt, typed: Batch, row: list[int], start: int, kept: int, where: str
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
        short = self.batch([row])
        try:
            with self.state.activate(Pass({_NAME: prompt}, [_NAME]), inside=False):
                own = whole(input_ids=short.ids, attention_mask=short.mask, **more, **self.answers(short))
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
            self.require(f"{told} tokens typed in front", ours[..., None], expected[..., None])
        return True, seen

    def _plain_whole(self, whole: Any, typed: Batch, more: dict[str, Any]) -> tuple[Any, list[Tensor] | None]:
        """What the plain model gives for typed rows, and what its base model does, row by row."""
        inputs, seen = more | self.answers(typed), list[Any]()
        with self.model.base_model.register_forward_hook(lambda module, given, output: seen.append(output)):
            output = whole(input_ids=typed.ids, attention_mask=typed.mask, prompt_names=[None], **inputs)
        states = states_of(seen[0]) if len(seen) == 1 else None
        tokens = inputs.get("decoder_input_ids", typed.ids)
        return output, None if states is None or states.shape[:2] != tokens.shape or len(states) < 2 else list(states)

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
        short, rows = self.batch([ids[:3]]), [ids[:3], ids[3:8]]
        names: list[str | None] = [_NAME, None]
        if (
            self.causal and not looks
        ):  # the first row again, without padding: its states do not change with what follows
            rows, names = [*rows, [*ids[:3], *ids[8:10]]], [*names, _NAME]
        batch, watched = self.batch(rows, left=self.causal), _Watched(prompt, names)
        prompt.eval()
        try:
            with quiet(), trial(self.model):
                plain = self.plain(batch.first(2))
                own, other, *longer = self.prompted(watched, batch, prompt.config.method)
                missed = len(set(prompt.sites) - watched.asked)
                if missed:
                    raise SoftPromptError(f"{where}: {missed} of {len(prompt.sites)} attention sites see no prefix")
                self.require(
                    f"{where}: a row without a prompt changes beside one that has a prefix",
                    other,
                    plain[1],
                    lambda: self.stepwise(None, batch.row(1))[0],
                )
                if torch.equal(plain[0], own):
                    raise SoftPromptError(f"{where}: its prefix has no effect")
                if longer and differs(longer[0][: len(own)], own, self.model) is None:
                    return
                (alone,) = self.prompted(
                    Pass({_NAME: prompt}, [_NAME]), short, prompt.config.method, steps=2 if looks else 1
                )
                if differs(alone, own, self.model) is not None:
                    # Where the plain model itself changes with padding or with its cache, so does this one.
                    plain_short, plain_own = self.plain(short)[0], self.stepwise(None, batch.row(0))[0]
                    if differs(plain_short, plain_own, self.model) is None:
                        sentence = f"{where}: a row with a prefix changes with padding or with the cache"
                        self.require(sentence, own, alone)
        finally:
            prompt.train(training)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether states are the same numbers; in the finer types, but for the order of sums."""
    coarse = one.dtype not in (torch.float32, torch.float64)
    size = 0.0 if coarse else 8 * torch.finfo(one.dtype).eps * float(one.nan_to_num().abs().max())
    return bool((one.nan_to_num() - other.nan_to_num()).abs().max() <= size)


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
