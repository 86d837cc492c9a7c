"""What is right for a model with prompts, found without softprompts: by the plain model, and row by row.

- An input prompt that holds embeddings of tokens acts as these tokens typed in front of the input.
- Whatever the prompt, a row is as it is alone, without padding, without a cache; a row without a prompt is the plain
  model's.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import softprompts as sp
from softprompts.errors import SoftPromptError
from tests.models.factory import NotBuiltError, classes, exception, first_line, model_of
from tests.models.images import with_image
from tests.models.rows import NEW, PROMPT, SHORT, Batch, Row, ShapeError, batch_of, difference, rows_of, said, span_loss

TOLERANCE = 1e-5  # models compute in float64, but for what they always do in float32
IN_FLOAT32 = 2e-4
INPUT = "prompt"
METHODS: dict[str, sp.MethodConfig] = {
    INPUT: sp.PromptTuningConfig(num_virtual_tokens=len(PROMPT), init="text", init_text="long"),
    "prefix": sp.PrefixTuningConfig(num_virtual_tokens=4, init_std=0.5),
    "multi-mask": sp.MultiMaskConfig(num_virtual_tokens=3, num_masks=2, router_dropout=0.0),
    "selective": sp.SelectivePrefixConfig(num_virtual_tokens=3, alpha=4.0, selective_loss=1e-2),
    "lora-prompt": sp.compose(
        sp.LoraConfig(rank=2, dropout=0.0), sp.PromptTuningConfig(num_virtual_tokens=len(PROMPT))
    ),
}
_OF_PROMPTS = ("logits", "loss", "image")  # checks that need a plain model to which tokens are typed
_OF_ALL = ("right", "left", "mixed", "gradient", "checkpointing")
_OF_GENERATION = ("generate", "no cache", "mixed generate")
GENERATING = ("causal", "seq2seq")


def checks_of(task: str) -> list[str]:
    """The names of all checks of a class."""
    names = []
    for method in METHODS:
        kinds = [*(_OF_PROMPTS if method == INPUT else ()), *_OF_ALL]
        kinds += _OF_GENERATION if task in GENERATING else ()
        if method not in (INPUT, "prefix") and "no cache" in kinds:  # what these add is the same without one
            kinds.remove("no cache")
        if task not in GENERATING and "image" in kinds:
            kinds.remove("image")
        names += [f"{method}: {kind}" for kind in kinds]
    return [*names, "detach"]


@dataclass
class Cell:
    """One model class and one check.

    Attributes:
        verdict: "exact"; "refused"; "none" where the plain model cannot do it; "not built"; "WRONG"; "crash".
        difference: the largest, as a share of the largest number.
        note: the sentence of a refusal; what went wrong.
    """

    verdict: str
    difference: float | None = None
    note: str = ""


class UnableError(Exception):
    """The plain model cannot do what a check asks for."""


class _Tokenizer:
    """Gives the texts "long" and "short" the tokens of the two prompts."""

    all_special_ids = ()

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        return {"input_ids": list(PROMPT if text == "long" else SHORT)}


class Subject:
    """A plain model and an attached copy of it."""

    def __init__(self, model_type: str, name: str):
        self.model_type, self.task = model_type, classes()[model_type][name]
        self.plain = model_of(model_type, name)
        self.tolerance = TOLERANCE
        if self.task in ("causal", "seq2seq"):
            self.task = "seq2seq" if self.plain.config.is_encoder_decoder else "causal"
        # Classes whose decoder is given the input too: tokens are typed for the encoder only, as prompts are.
        takes_states = "encoder_outputs" in inspect.signature(self.plain.forward).parameters
        self.only_encoder = self.task in ("rows", "spans", "tokens") and takes_states
        self.rows = rows_of(self.task, exception(model_type, "ids") or range(5, 80))
        if self.plain.config.is_encoder_decoder and self.task == "rows":  # read at the end of a text
            for row in self.rows:
                row.ids[0].append(2)
        self._dress(exception(model_type, "inputs", {}))
        if not self._runs():  # some parts know float32 only
            self.plain, double = model_of(model_type, name, dtype=torch.float32), self.plain
            if self._runs():
                self.tolerance = IN_FLOAT32
            else:
                self.plain = double
        self.places: int | None = None
        self.refused: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.ready = False

    def _dress(self, given: dict[str, Any]) -> None:
        """Gives the rows what a type needs besides tokens: numbers of a shape, or so many for each token."""
        generator = torch.Generator().manual_seed(11)
        for row in self.rows:
            for name, shape in given.items():
                if name == "end":
                    row.ids = [[*ids, *shape] for ids in row.ids]
                elif isinstance(shape, list):
                    values = torch.randn([1, *shape], generator=generator, dtype=torch.float64)
                    row.extra[name] = values.to(self.plain.dtype)
                else:  # corners of boxes, as whole numbers or as shares
                    drawn = torch.randint(1, 30, (len(row.ids[0]), int(shape)), generator=generator).sort(1).values
                    row.marks[name] = drawn.tolist() if isinstance(shape, int) else (drawn / 30).tolist()
        self.tokens = self.plain.main_input_name == "input_ids" or bool(exception(self.model_type, "tokens"))

    def _runs(self) -> bool:
        try:
            self.call(self.plain, self.rows[:1])
            if self.task in GENERATING:
                self.generated(self.plain, self.rows[:1])
            left = self.call(self.plain, self.rows, "left") if self.tokens else []
        except Exception:
            return False
        return not any(bool(row.isnan().any()) for row in left)  # the masks of eager attention are, in float32 only

    def attach(self) -> None:
        """Attaches all prompts; those that are refused are noted with their sentence."""
        self.attached = copy.deepcopy(self.plain)
        self.before = {key: value.clone() for key, value in self.attached.state_dict().items()}
        sp.attach(self.attached)
        for number, (method, config) in enumerate(METHODS.items()):
            try:
                self.attached.add_prompt(method, config, tokenizer=_Tokenizer(), seed=number)
            except SoftPromptError as error:
                self.refused[method] = str(error)
        if INPUT not in self.refused:
            short = sp.PromptTuningConfig(num_virtual_tokens=len(SHORT), init="text", init_text="short")
            self.attached.add_prompt("short", short, tokenizer=_Tokenizer())
        self.attached.set_prompt(None)
        self.attached.prompts.to(self.plain.dtype)
        torch.manual_seed(7)
        for key, parameter in self.attached.prompts.named_parameters():
            if key.split(".")[0] not in (INPUT, "short") and parameter.requires_grad:
                parameter.data += 0.2 * torch.randn_like(parameter)
        self.attached.eval()

    # --- calls --------------------------------------------------------------------------------------------------

    def call(
        self, model: Any, rows: Sequence[Row], pad: str = "right", skip: tuple[int, int] = (0, 0), **named: Any
    ) -> list[Tensor]:
        """What a model says of each row.

        With ``skip`` before the first token (-1, ...), rows read their own first token in place of the first typed one.
        """
        if skip[0] < 0:
            with cut(model.base_model, skip[1] + 1):
                return self.call(model, rows, pad, (0, skip[1] + 1), **named)
        batch, skip = self.batch(model, rows, pad, skip, masked=len(rows) > 1)
        with torch.no_grad():
            return said(model(**batch.inputs, **named), batch, self.task, skip)

    def batch(
        self, model: Any, rows: Sequence[Row], pad: str, skip: tuple[int, int], **how: Any
    ) -> tuple[Batch, tuple[int, int]]:
        """The inputs of rows in which the columns ``skip`` are typed, and which columns of the output these are."""
        batch = batch_of(rows, self.task, pad, skip, **how)
        if not self.tokens:
            for name in ("input_ids", "attention_mask"):
                batch.inputs.pop(name, None)
        if not self.only_encoder or skip[0] == skip[1]:
            return batch, skip
        own = batch_of([row.without(skip) for row in rows], self.task, pad, labels=how.get("labels", False))
        given = {key: batch.inputs.get(key) for key in ("input_ids", "attention_mask")}
        with torch.no_grad():
            states = model.get_encoder()(**given)
        own.inputs |= {"attention_mask": batch.inputs.get("attention_mask"), "encoder_outputs": states}
        return own, (0, 0)

    def loss(
        self, model: Any, rows: Sequence[Row], skip: tuple[int, int] = (0, 0), pad: str = "right", **named: Any
    ) -> Tensor:
        """The loss of a batch."""
        task = self.task
        if skip[0] < 0:
            with cut(model.base_model, skip[1] + 1):
                return self.loss(model, rows, (0, skip[1] + 1), pad, **named)
        batch, skip = self.batch(model, rows, pad, skip, labels=True)
        if task == "spans":
            output = model(**batch.inputs, **named)
            logits = torch.stack([output.start_logits, output.end_logits], -1)
            own = [
                torch.cat([row[real][: skip[0]], row[real][skip[1] :]])
                for row, real in zip(logits, batch.real, strict=True)
            ]
            return span_loss(own)
        output = model(**batch.inputs, **named)
        if getattr(output, "loss", None) is None:
            raise UnableError("gives no loss")
        return output.loss

    def generated(self, model: Any, rows: Sequence[Row], cache: bool = True, **named: Any) -> list[Tensor]:
        """The logits ``(new tokens, vocabulary)`` and the tokens of greedy generation, row by row."""
        batch, _ = self.batch(model, rows, "left", (0, 0), masked=True)
        inputs = {key: value for key, value in batch.inputs.items() if key not in ("decoder_input_ids", "labels")}
        wanted = {"max_new_tokens": NEW, "do_sample": False, "use_cache": cache, "num_beams": 1}
        with torch.no_grad():
            output = model.generate(**inputs, **wanted, output_logits=True, return_dict_in_generate=True, **named)
        if isinstance(output, Tensor):
            tokens, logits = output, None
        else:
            tokens, logits = output.sequences, getattr(output, "logits", None)
        if logits is None:
            return list(tokens[:, -NEW:].double())
        by_row = torch.stack(list(logits), 1)
        return [
            torch.cat([row.double(), new[-len(row) :, None].double()], 1)
            for row, new in zip(by_row, tokens, strict=True)
        ]

    # --- what is right --------------------------------------------------------------------------------------------

    @functools.cache  # noqa: B019
    def alone(self, number: int, method: str | None, typed: tuple[int, ...] = (), place: int = 0) -> Tensor:
        """What the plain model (or, for a method, the attached one) says of a row by itself."""
        row = self.rows[number]
        if method is None:
            row = row.typed(typed, max(place, 0)) if typed else row
            return plainly(lambda: self.call(self.plain, [row], skip=(place, place + len(typed)))[0])
        return self.call(self.attached, [row], prompt_names=method)[0]

    @functools.cache  # noqa: B019
    def alone_generated(self, number: int, method: str | None, typed: tuple[int, ...] = ()) -> Tensor:
        """The same of generation."""
        row = self.rows[number]
        if method is None:
            row = row.typed(typed, 0) if typed else row
            return plainly(lambda: self.generated(self.plain, [row])[0])
        return self.generated(self.attached, [row], cache=False, prompt_names=method)[0]

    @property
    def place(self) -> int:
        """Behind how many tokens of the input a prompt stands, as far as can be told from what comes out.

        0, or 1 on encoders whose first token is read, or -1: in front, and the first token is read behind it.
        """
        if self.places is None:
            gaps = {}
            ours = [self.alone(i, INPUT) for i in range(len(self.rows))]
            for place in {"tokens": (0, 1), "spans": (0, 1), "rows": (0, 1, -1), "choice": (0, 1, -1)}.get(
                self.task, (0,)
            ):
                with contextlib.suppress(UnableError, ShapeError):
                    right = [self.alone(i, None, PROMPT, place) for i in range(len(self.rows))]
                    gaps[place] = difference(ours, right)
            self.places = min(gaps, key=lambda place: gaps[place], default=0)
        return self.places

    def expected(self, number: int, name: str | None) -> Tensor:
        """What is right for a row with this prompt, or without one."""
        if name == INPUT:
            return self.alone(number, None, PROMPT, self.place)
        if name == "short":
            return self.alone(number, None, SHORT, self.place)
        return self.alone(number, name)

    def expected_generated(self, number: int, name: str | None) -> Tensor:
        """The same of generation."""
        typed = {INPUT: PROMPT, "short": SHORT}.get(name or "")
        return self.alone_generated(number, None if typed else name, typed or ())

    def padded(self, names: Sequence[str | None], pad: str) -> list[Tensor]:
        """What the plain model says in a padded batch, tokens typed; to see what padding does to it."""
        if any(names) and (self.only_encoder or self.place < 0):
            raise UnableError("no plain batch is the same")
        rows, places = [], []
        for row, name in zip(self.rows, names, strict=True):
            typed = {INPUT: PROMPT, "short": SHORT}.get(name or "", ())
            rows.append(row.typed(typed, self.place if typed else 0))
            places.append(len(typed))
        batch, _ = self.batch(self.plain, rows, pad, (0, 0))
        with torch.no_grad():
            found = plainly(lambda: said(self.plain(**batch.inputs), batch, self.task))
        if self.task in ("rows", "choice", "seq2seq"):
            return found
        return [
            torch.cat([row[: self.place if n else 0], row[(self.place if n else 0) + n :]])
            for row, n in zip(found, places, strict=True)
        ]


@contextlib.contextmanager
def cut(base: Any, count: int) -> Iterator[None]:
    """Within this context, a plain base model's output lacks its first columns."""

    def shorten(_: Any, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0][:, count:], *output[1:])
        output.last_hidden_state = output.last_hidden_state[:, count:]
        return output

    handle = base.register_forward_hook(shorten)
    try:
        yield
    finally:
        handle.remove()


def plainly(call: Callable[[], Any]) -> Any:
    """What a call of the plain model gives.

    Raises:
        UnableError: it fails.
    """
    try:
        return call()
    except UnableError:
        raise
    except Exception as error:
        raise UnableError(f"{type(error).__name__}: {first_line(error)}") from error


# --- the checks ----------------------------------------------------------------------------------------------------


def judged(subject: Subject, gap: float, note: str = "") -> Cell:
    """The cell of a difference."""
    exact = gap <= subject.tolerance
    return Cell("exact" if exact else "WRONG", gap, "" if exact else note)


def _rows(subject: Subject, ours: list[Tensor], names: Sequence[str | None], pad: str) -> Cell:
    right = [subject.expected(number, name) for number, name in enumerate(names)]
    gaps = [difference([one], [other]) for one, other in zip(ours, right, strict=True)]
    if max(gaps) <= subject.tolerance:
        return judged(subject, max(gaps))
    plain_names = [name if name in (INPUT, "short") else None for name in names]
    with contextlib.suppress(UnableError):
        padded = subject.padded(plain_names, pad)
        for number, name in enumerate(names):
            if name in (INPUT, "short", None):  # the plain model, given the same padding, is as right
                gaps[number] = min(gaps[number], difference([ours[number]], [padded[number]]))
    if max(gaps) > subject.tolerance:
        own = [subject.alone(i, None) for i in range(len(names))]
        moved = difference(subject.padded([None] * len(names), pad), own)
        if moved > subject.tolerance:
            return Cell("none", moved, f"padding on the {pad} changes the plain model's own rows")
    worst = gaps.index(max(gaps))
    return judged(subject, max(gaps), f"row {worst} ({names[worst] or 'no prompt'})")


def _mixed_names(subject: Subject, method: str) -> list[str | None]:
    other = next((name for name in ("short", "prefix") if name not in subject.refused and name != method), None)
    if other == "short" and INPUT in subject.refused:
        other = None if "prefix" in subject.refused or method == "prefix" else "prefix"
    return [method, None, other]


def check_logits(subject: Subject, method: str) -> Cell:
    """Each row alone: the prompt's tokens typed."""
    ours = [subject.alone(i, INPUT) for i in range(len(subject.rows))]
    right = [subject.alone(i, None, PROMPT, subject.place) for i in range(len(subject.rows))]
    return judged(subject, difference(ours, right))


def check_loss(subject: Subject, method: str) -> Cell:
    """The model's loss of each row."""
    place, worst = subject.place, 0.0
    for row in subject.rows:
        typed, skip = row.typed(PROMPT, max(place, 0)), (place, place + len(PROMPT))
        with torch.no_grad():
            right = plainly(lambda typed=typed, skip=skip: subject.loss(subject.plain, [typed], skip))
            ours = subject.loss(subject.attached, [row], prompt_names=INPUT)
        worst = max(worst, difference([ours.reshape(1)], [right.reshape(1)]))
    return judged(subject, worst)


def check_right(subject: Subject, method: str) -> Cell:
    """A batch padded on the right: each row as alone."""
    return check_padded(subject, method, "right")


def check_left(subject: Subject, method: str) -> Cell:
    """A batch padded on the left: each row as alone."""
    return check_padded(subject, method, "left")


def check_padded(subject: Subject, method: str, pad: str) -> Cell:
    """A padded batch: each row as alone."""
    plainly(lambda: subject.call(subject.plain, subject.rows, pad))
    names = [method] * len(subject.rows)
    return _rows(subject, subject.call(subject.attached, subject.rows, pad, prompt_names=method), names, pad)


def check_mixed(subject: Subject, method: str) -> Cell:
    """Rows with this prompt, without one, and with another: each as alone."""
    names = _mixed_names(subject, method)
    plainly(lambda: subject.call(subject.plain, subject.rows))
    return _rows(subject, subject.call(subject.attached, subject.rows, prompt_names=names), names, "right")


@functools.cache
def _gradients(subject: Subject, method: str, checkpointing: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss in training mode, and the gradient of each parameter of a prompt."""
    model = subject.attached
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        return _backward(subject, method)
    finally:
        if checkpointing:
            model.gradient_checkpointing_disable()
        model.eval()


def _backward(subject: Subject, method: str) -> tuple[Tensor, dict[str, Tensor]]:
    model, parameters = subject.attached, dict(subject.attached.prompts[method].named_parameters())
    for parameter in parameters.values():
        parameter.grad = None
    loss = subject.loss(model, subject.rows, prompt_names=method)
    if not loss.requires_grad:
        raise AssertionError("the loss has no gradient")
    loss.backward()
    found = {
        key: p.grad.clone() if p.grad is not None else torch.zeros_like(p)
        for key, p in parameters.items()
        if p.requires_grad
    }
    for parameter in parameters.values():
        parameter.grad = None
    return loss.detach(), found


def _require_loss(subject: Subject) -> None:
    if not bool(plainly(lambda: subject.loss(subject.plain, subject.rows)).isfinite()):
        raise UnableError("the loss of random weights is not finite")


def check_gradient(subject: Subject, method: str) -> Cell:
    """Every parameter of the prompt has a gradient."""
    _require_loss(subject)
    _, gradients = _gradients(subject, method, False)
    if subject.task in ("choice", "spans"):  # a constant in all logits changes no loss
        gradients = {key: value for key, value in gradients.items() if not key.startswith("head.")}
    missing = [
        key for key, value in gradients.items() if not float(value.abs().max()) > 0 or not bool(value.isfinite().all())
    ]
    return Cell("WRONG", None, f"no gradient: {', '.join(missing)[:150]}") if missing else Cell("exact")


def check_checkpointing(subject: Subject, method: str) -> Cell:
    """Loss and gradients with gradient checkpointing are those without."""
    if not getattr(subject.plain, "supports_gradient_checkpointing", False):
        raise UnableError("has no gradient checkpointing")
    _require_loss(subject)
    loss, gradients = _gradients(subject, method, False)
    again, repeated = _gradients(subject, method, True)
    gap = difference([again.reshape(1), *repeated.values()], [loss.reshape(1), *gradients.values()])
    return judged(subject, gap)


def check_generate(subject: Subject, method: str) -> Cell:
    """Greedy generation of a batch with different lengths: each row as alone."""
    return check_generated(subject, [method] * len(subject.rows), True)


def check_no_cache(subject: Subject, method: str) -> Cell:
    """The same without a cache."""
    return check_generated(subject, [method] * len(subject.rows), False)


def check_mixed_generate(subject: Subject, method: str) -> Cell:
    """Generation of rows with this prompt, without one, and with another."""
    return check_generated(subject, _mixed_names(subject, method), True)


def check_generated(subject: Subject, names: Sequence[str | None], cache: bool) -> Cell:
    """Greedy generation of a batch with different lengths: each row as alone."""
    typed = {INPUT: PROMPT, "short": SHORT}
    rows = [row.typed(typed[name], 0) if name in typed else row for row, name in zip(subject.rows, names, strict=True)]
    plain = plainly(lambda: subject.generated(subject.plain, rows, cache))
    ours = subject.generated(subject.attached, subject.rows, cache, prompt_names=list(names))
    looked = range(len(names)) if len(set(names)) > 1 or names[0] == INPUT else (1,)
    gaps = [0.0] * len(names)
    for number in looked:
        gaps[number] = difference([ours[number]], [subject.expected_generated(number, names[number])])
    for number, name in enumerate(names):
        if name is None or name in typed:
            gaps[number] = min(gaps[number], difference([ours[number]], [plain[number]]))
    worst = gaps.index(max(gaps))
    if max(gaps) > subject.tolerance:
        own = [plainly(lambda row=row: subject.generated(subject.plain, [row], cache=False)[0]) for row in subject.rows]
        moved = difference(plainly(lambda: subject.generated(subject.plain, subject.rows, cache)), own)
        if moved > subject.tolerance:
            return Cell("none", moved, "the plain model's rows depend on padding or cache in generate")
    return judged(subject, max(gaps), f"row {worst} ({names[worst] or 'no prompt'})")


def check_image(subject: Subject, method: str) -> Cell:
    """A row with an image: the prompt's tokens typed in front, in logits and in greedy generation."""
    try:
        row = with_image(subject)
    except LookupError as error:
        raise UnableError(error.args[0]) from error
    typed = row.typed(PROMPT, 0)
    skip = (0, len(PROMPT))
    right = plainly(lambda: subject.call(subject.plain, [typed], skip=skip))
    gap = difference(subject.call(subject.attached, [row], prompt_names=INPUT), right)
    if gap <= subject.tolerance:
        right = plainly(lambda: subject.generated(subject.plain, [typed]))
        gap = difference(subject.generated(subject.attached, [row], prompt_names=INPUT), right)
    return judged(subject, gap)


def check_detach(subject: Subject, _: str) -> Cell:
    """Class, weights and outputs as before, bit for bit."""
    model = subject.attached
    sp.detach(model)
    if type(model) is not type(subject.plain):
        return Cell("WRONG", None, "another class")
    now = model.state_dict()
    if list(now) != list(subject.before):
        return Cell("WRONG", None, "other tensors in the state dict")
    changed = [key for key, value in now.items() if not torch.equal(value, subject.before[key])]
    if changed:
        return Cell("WRONG", None, f"changed: {', '.join(changed)[:150]}")
    flags = [
        (a.requires_grad, b.requires_grad) for a, b in zip(model.parameters(), subject.plain.parameters(), strict=True)
    ]
    if any(one != other for one, other in flags):
        return Cell("WRONG", None, "other trainable flags")
    right = plainly(lambda: subject.call(subject.plain, subject.rows))
    ours = subject.call(model, subject.rows)
    same = all(torch.allclose(*both, rtol=0, atol=0, equal_nan=True) for both in zip(ours, right, strict=True))
    return Cell("exact", 0.0) if same else Cell("WRONG", difference(ours, right), "other outputs")


def cells(model_type: str, name: str, only: set[str] | None = None) -> Iterator[tuple[str, Cell]]:
    """Every check of a class and its cell; only those named, if any are."""
    wanted = [check for check in checks_of(classes()[model_type][name]) if only is None or check in only]
    try:
        subject = Subject(model_type, name)
    except NotBuiltError as error:
        yield "build", Cell("not built", None, str(error))
        return
    except Exception as error:
        yield "build", Cell("not built", None, f"{type(error).__name__}: {first_line(error)}")
        return
    try:
        plainly(lambda: subject.call(subject.plain, subject.rows[:1]))
    except UnableError as error:
        yield "build", Cell("not built", None, f"the plain model does not run: {error}")
        return
    yield "build", Cell("exact")
    try:
        subject.attach()
    except SoftPromptError as error:
        for check in wanted:
            yield check, Cell("refused", None, str(error))
        return
    except Exception as error:
        for check in wanted:
            yield check, Cell("crash", None, f"attach: {_told(error)}")
        return
    for check in wanted:
        method, _, kind = check.partition(": ")
        function = globals()["check_" + (kind or method).replace(" ", "_")]
        if method in subject.refused:
            yield check, Cell("refused", None, subject.refused[method])
            continue
        try:
            yield check, function(subject, method)
        except UnableError as error:
            yield check, Cell("none", None, str(error))
        except SoftPromptError as error:
            yield check, Cell("refused", None, str(error))
        except AssertionError as error:
            yield check, Cell("WRONG", None, first_line(error))
        except Exception as error:
            yield check, Cell("crash", None, _told(error))


def _told(error: Exception) -> str:
    """An error and where in softprompts, else in the last frame, it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/softprompts/" in frame.filename]
    at = (ours or frames)[-1]
    return f"{type(error).__name__}: {first_line(error)} [{at.filename.rsplit('/', 1)[-1]}:{at.lineno}]"
