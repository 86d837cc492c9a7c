"""The frozen model that all prompts share, and what is asked of it: scores of rows, and text.

Everything here but `Engine.read` runs in the thread that owns the model.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from softprompts.backbones import packaged
from softprompts.backbones.backbone import kind_of
from softprompts.backbones.loading import context_room, model_files
from softprompts.errors import SoftPromptError
from softprompts.injection.prompt import Prompt
from softprompts.injection.state import state_of
from softprompts.methods.folded import fold
from softprompts.model.attach import attach
from softprompts.model.saving import prompt_of
from softprompts.serving.errors import FailedError
from softprompts.serving.sampling import Sampler
from softprompts.storage.saved_prompt import read
from softprompts.tasks import padding_id
from softprompts.tasks.batches import collate, inputs_of, length_of
from softprompts.tasks.task_reader import TaskReader
from softprompts.training.prediction import score_rows

_DEFAULT_CLASS = {
    "encoder": "AutoModelForSequenceClassification",
    "encoder-decoder": "AutoModelForSeq2SeqLM",
    "decoder": "AutoModelForCausalLM",
}
_WASTE = 1.4  # times the shortest row of a pass that its longest may be before shorter ones are better run apart
_WORTHWHILE = 16  # rows from which a pass of its own pays


@dataclass(eq=False)
class Loaded:
    """A prompt in memory.

    Attributes:
        name: by which requests ask for it.
        key: its name in the model, never used twice: a prompt that takes another's place does not disturb its rows.
        model: the class of model whose head it has.
        prompt: its module.
        reader: what it does with rows.
        config: of the saved prompt.
        room: tokens that the model has for an input beside it; None for any number.
        stamp: tells its files from changed ones.
        in_flight: rows that are being answered; kept by the event loop.
        retired: whether it goes once these are answered.
    """

    name: str
    key: str
    model: str
    prompt: Prompt
    reader: TaskReader
    config: Mapping[str, Any]
    room: int | None = None
    stamp: Any = None
    in_flight: int = 0
    retired: bool = False


@dataclass(eq=False)
class Line:
    """A row to be scored.

    Attributes:
        owner: its prompt.
        feature: its token ids, see `softprompts.tasks.batches.collate`.
        answers: token ids of the answers that a language model is to score; None where a head scores.
    """

    owner: Loaded
    feature: Mapping[str, Any]
    answers: Sequence[Sequence[int]] | None = None

    @property
    def width(self) -> int:
        """Tokens of its input, without the prompt."""
        return length_of(self.feature) + max(map(len, self.answers or [[]]))

    @property
    def count(self) -> int:
        """How many rows of the model it takes."""
        return len(inputs_of(self.feature)) if self.answers is None else len(self.answers)


@dataclass(eq=False)
class Written:
    """A row whose answer is written.

    Attributes:
        owner: its prompt.
        input_ids: what is read.
        max_new_tokens: most tokens to write.
        sampler: draws tokens; None: the likeliest is taken.
        emit: called in the model's thread with each token; None: nobody looks before the end.
        tokens: what was written, without the end-of-text token.
        ended: whether the model came to an end by itself.
        dropped: set by anyone: nobody waits for it any more.
    """

    owner: Loaded
    input_ids: list[int]
    max_new_tokens: int
    sampler: Sampler | None = None
    emit: Callable[[int], None] | None = None
    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    dropped: bool = False

    @property
    def open(self) -> bool:
        """Whether there is more to write."""
        return not (self.dropped or self.ended or len(self.tokens) >= self.max_new_tokens)


class Engine:
    """A frozen model and its tokenizer.

    Prompts with heads of other classes (a label for a text, a tag for a token) get a model of that class, with the same
    frozen weights: they are in memory once.

    Args:
        model: alias, folder or hub id.
        dtype: of the weights; None: as saved.
        device: where they go; None: the GPU if there is one.
        trust_remote_code: whether code that comes with the model may run.

    Raises:
        SoftPromptError: there is no such model, or it cannot be read.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: torch.dtype | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
    ):
        self.name = model
        self._options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
        self._trust: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        with model_files(model) as (path, offline):
            self._place: dict[str, Any] = {"pretrained_model_name_or_path": path, "local_files_only": offline}
            self.config = AutoConfig.from_pretrained(**self._place, **self._trust)
            self.kind = kind_of(self.config)
            self.tokenizer = AutoTokenizer.from_pretrained(**self._place, **self._trust)
        # Tokenizers are not to be used by two threads at once: this one is the event loop's.
        self.decoder = copy.deepcopy(self.tokenizer)
        self.pad_id = padding_id(self.tokenizer)
        self.models: dict[str, Any] = {}
        self._making = threading.Lock()
        self._numbers = itertools.count()

    @property
    def shown(self) -> str:
        """What the model is called, without where it lies."""
        name = packaged.model_name(self.name)
        return Path(name).name if Path(name).is_dir() else name

    # --- prompts ------------------------------------------------------------------------------------------------------

    def model_for(self, name: str | None = None) -> tuple[str, Any]:
        """The model of a class, and the class's name; made where there is none yet.

        Raises:
            SoftPromptError: no class of that name fits the model.
        """
        with self._making:
            cls: Any = getattr(transformers, name, None) if name else None
            known = isinstance(cls, type) and issubclass(cls, PreTrainedModel)
            if name and not known and not self._trust["trust_remote_code"]:
                raise SoftPromptError(f"transformers has no model class '{name}'")
            if known and not isinstance(self.config, getattr(cls, "config_class", None) or ()):
                raise SoftPromptError(
                    f"it was trained on another backbone: its class {name} is none for {self.config.model_type}"
                )
            if known and name in self.models:
                return name, self.models[name]
            if not known:
                if self.models:
                    return next(iter(self.models.items()))
                cls = getattr(transformers, _DEFAULT_CLASS[self.kind])
            with model_files(self.name):
                made = cls.from_pretrained(**self._place, **self._trust, **self._options, use_safetensors=True)
            if self.models:
                _share(next(iter(self.models.values())), made)
            attach(made.to(self.device), None)
            made.eval()
            own = state_of(made).model_class.__name__
            self.models[own] = made
            return own, made

    def read(self, folder: Path) -> tuple[str, Prompt, dict[str, Any]]:
        """A saved prompt, not yet known to the model; for any thread.

        Returns:
            The class of model that it is for, the prompt, and its config.

        Raises:
            SoftPromptError: it is damaged, or for another backbone.
        """
        try:
            return self._read(folder)
        except (SoftPromptError, OSError):
            raise
        except Exception as error:  # an edited file fails anywhere, and the other prompts are to be served
            raise SoftPromptError(f"{folder} cannot be read ({type(error).__name__}); was it edited?") from error

    def _read(self, folder: Path) -> tuple[str, Prompt, dict[str, Any]]:
        config, tensors = read(folder)
        cls, model = self.model_for(config["backbone"].get("class"))
        prompt = prompt_of(model, config, tensors, str(folder))
        # What is trained may be computed from other numbers; only what comes out is needed here.
        if prompt.method.cannot_fold() is None:
            prompt.config, prompt.method = fold(prompt.method)
        prompt.eval().requires_grad_(False)
        return cls, prompt, config

    def reader(self, cls: str, prompt: Prompt, config: dict[str, Any], name: str) -> Loaded:
        """A prompt that was read, with its task; for the thread that uses the tokenizer.

        Raises:
            SoftPromptError: what it says of its task is damaged.
        """
        room = context_room(self.models[cls], self.tokenizer, prompt.config.input_tokens)
        try:
            made = TaskReader(config, prompt.labels, self.tokenizer, self.kind, room, name)
        except SoftPromptError:
            raise
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise SoftPromptError(f"'{name}': what it says of its task is damaged ({error})") from error
        return Loaded(name, f"p{next(self._numbers)}", cls, prompt, made, config, room)

    def place(self, loaded: Loaded) -> None:
        """Makes a prompt known to its model."""
        self.models[loaded.model].place_prompt(loaded.key, loaded.prompt)

    def drop(self, loaded: Loaded) -> None:
        """Forgets a prompt."""
        self.models[loaded.model].delete_prompt(loaded.key)

    # --- scores -------------------------------------------------------------------------------------------------------

    def score(self, lines: Sequence[Line], max_rows: int, max_tokens: int) -> list[Tensor | FailedError]:
        """What the model says of rows, see `softprompts.training.prediction.score_rows`; what went wrong with some."""
        split = [_parts(line, max_rows, max_tokens) for line in lines]
        scores = iter(self._score([part for parts in split for part in parts], max_rows, max_tokens))
        return [_whole([next(scores) for _ in parts]) for parts in split]

    def _score(self, lines: Sequence[Line], max_rows: int, max_tokens: int) -> list[Tensor | FailedError]:
        found: list[Tensor | FailedError] = [FailedError("not run")] * len(lines)
        for cls in dict.fromkeys(line.owner.model for line in lines):
            model = self.models[cls]
            own = [index for index, line in enumerate(lines) if line.owner.model == cls]
            limit = state_of(model).backbone.max_tokens
            for index in passes([lines[i] for i in own], max_rows, max_tokens, limit):
                chosen = [own[i] for i in index]
                for i, one in zip(chosen, self._scored(model, [lines[i] for i in chosen]), strict=True):
                    found[i] = one
        return found

    def _scored(self, model: Any, lines: list[Line]) -> list[Tensor | FailedError]:
        try:
            with torch.inference_mode(), _apart(model):
                scores = score_rows(
                    model,
                    [line.feature for line in lines],
                    [line.owner.key for line in lines],
                    pad_id=self.pad_id,
                    label_ids=None if lines[0].answers is None else [line.answers or [] for line in lines],
                )
        except Exception as error:
            if len(lines) > 1:  # those beside the row that cannot be run are not to suffer
                return [self._scored(model, [line])[0] for line in lines]
            return [_failed(lines[0].owner, error)]
        whole = bool(torch.cat([one.flatten() for one in scores]).isfinite().all())
        if whole:
            return list(scores)
        return [
            one if bool(one.isfinite().all()) else FailedError(f"'{line.owner.name}' gives scores that are not numbers")
            for line, one in zip(lines, scores, strict=True)
        ]

    # --- text ---------------------------------------------------------------------------------------------------------

    def write(self, rows: Sequence[Written], between: Callable[[], None]) -> Exception | None:
        """Writes on behind some rows, which fit into one batch (`fits`); they are changed in place.

        Args:
            rows: rows of one class of model.
            between: called between steps.
        """
        model = self.models[rows[0].owner.model]
        try:
            with torch.inference_mode():
                self._write(model, list(rows), between)
        except Exception as error:
            if len(rows) == 1 or any(row.tokens for row in rows):
                return _failed(rows[0].owner, error)
            problems = [self.write([row], between) for row in rows]
            return next((problem for problem in problems if problem is not None), None)
        return None

    def _write(self, model: Any, rows: list[Written], between: Callable[[], None]) -> None:
        decoder = self.kind == "decoder"
        batch = collate([{"input_ids": row.input_ids} for row in rows], self.pad_id, "left" if decoder else "right")
        inputs = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
        watch = _Watch(rows, model.generation_config.eos_token_id, between)
        model.generate(
            **inputs,
            prompt_names=[row.owner.key for row in rows],
            max_new_tokens=max(row.max_new_tokens for row in rows),
            do_sample=False,
            num_beams=1,
            pad_token_id=self.pad_id,
            stopping_criteria=StoppingCriteriaList([watch]),
            logits_processor=transformers.LogitsProcessorList([_Draw(rows)]) if any(r.sampler for r in rows) else None,
        )

    def fits(self, rows: Sequence[Written], more: Written) -> bool:
        """Whether a row can be written beside others: the longest input, prompt and answer must fit together."""
        if not rows:
            return True
        if rows[0].owner.model != more.owner.model:
            return False
        limit = state_of(self.models[more.owner.model]).backbone.max_tokens
        if limit is None:
            return True
        every = [*rows, more]
        written = max(row.max_new_tokens for row in every) if self.kind == "decoder" else 0
        prompt = max(row.owner.prompt.config.input_tokens for row in every)
        return max(len(row.input_ids) for row in every) + prompt + written <= limit


class _Watch(StoppingCriteria):  # type: ignore[misc]
    """Hands on each token as it is written, and ends the rows that are done or that nobody waits for."""

    def __init__(self, rows: list[Written], end: int | list[int] | None, between: Callable[[], None]):
        self.rows, self.between = rows, between
        self.ends = {end} if isinstance(end, int) else set(end or ())

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        last = input_ids[:, -1].tolist()
        for row, token in zip(self.rows, last, strict=True):
            if not row.open:
                continue
            if token in self.ends:
                row.ended = True
                continue
            row.tokens.append(token)
            if row.emit is not None:
                row.emit(token)
        self.between()
        return torch.tensor([not row.open for row in self.rows], device=input_ids.device)


class _Draw(transformers.LogitsProcessor):  # type: ignore[misc]
    """Leaves rows that are drawn with only the token that was drawn: what another row draws does not matter to them."""

    def __init__(self, rows: list[Written]):
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        for index, row in enumerate(self.rows):
            if row.sampler is not None and row.open:
                token = row.sampler.draw(scores[index])
                scores[index] = float("-inf")
                scores[index, token] = 0.0
        return scores


def _parts(line: Line, max_rows: int, max_tokens: int) -> list[Line]:
    """A row with some of its answers each, where all of them would be too much for a pass."""
    if line.answers is None:
        return [line]
    size = max(1, min(max_rows, max_tokens // max(1, line.width + line.owner.prompt.config.input_tokens)))
    starts = range(0, len(line.answers), size)
    return [Line(line.owner, line.feature, line.answers[start : start + size]) for start in starts]


def _whole(found: list[Tensor | FailedError]) -> Tensor | FailedError:
    """The scores of a row from those of its parts."""
    scores = [one for one in found if isinstance(one, Tensor)]
    failed = [one for one in found if isinstance(one, FailedError)]
    return failed[0] if failed else torch.cat(scores, 1)


def passes(lines: Sequence[Line], max_rows: int, max_tokens: int, limit: int | None) -> Iterator[list[int]]:
    """Which rows run together: those of similar length, as many as fit.

    Args:
        lines: rows of one class of model.
        max_rows: most rows of a pass; one line may have more.
        max_tokens: most tokens of a pass with its padding; one line may have more.
        limit: positions of the model, for the longest input beside the longest prompt.
    """
    tokens = [line.owner.prompt.config.input_tokens for line in lines]
    widths, counts = [line.width for line in lines], [line.count for line in lines]
    order = sorted(range(len(lines)), key=lambda index: (lines[index].answers is None, widths[index] + tokens[index]))
    own: list[int] = []
    rows = shortest = width = prompt = 0
    for index in order:
        wider, longer = max(width, widths[index]), max(prompt, tokens[index])
        more, whole = rows + counts[index], widths[index] + tokens[index]
        if own and (
            more > max_rows
            or more * (wider + longer) > max_tokens
            or (limit is not None and wider + longer > limit)
            or (rows >= _WORTHWHILE and len(order) > 2 * _WORTHWHILE and whole > _WASTE * shortest)
            or (lines[own[0]].answers is None) != (lines[index].answers is None)
        ):
            yield own
            own, more, wider, longer = [], counts[index], widths[index], tokens[index]
        if not own:
            shortest = whole
        own.append(index)
        rows, width, prompt = more, wider, longer
    if own:
        yield own


@contextlib.contextmanager
def _apart(model: Any) -> Iterator[None]:
    """Scores between the steps of a generation: its prompts are not theirs."""
    with state_of(model).activate(None, inside=False):
        yield


def _share(first: Any, other: Any) -> None:
    """Gives a model the weights of another, wherever they have the same."""
    known = dict(first.base_model.named_parameters())
    for path, parameter in list(other.base_model.named_parameters()):
        same = known.get(path)
        if same is not None and same.shape == parameter.shape:
            parent, _, name = path.rpartition(".")
            other.base_model.get_submodule(parent)._parameters[name] = same


def _failed(owner: Loaded, error: Exception) -> FailedError:
    reason = str(error).strip().partition("\n")[0][:200] if isinstance(error, SoftPromptError) else type(error).__name__
    return FailedError(f"the model failed on a row of '{owner.name}' ({reason})")
