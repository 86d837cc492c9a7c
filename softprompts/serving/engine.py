"""The frozen model that all prompts share: loads prompts, scores rows and generates text.

Apart from reading prompts, everything runs in the thread that owns the model.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from softprompts.backbones import gguf, packaged
from softprompts.backbones.kinds import kind_of
from softprompts.backbones.loading import context_room, model_files
from softprompts.errors import SoftPromptError
from softprompts.injection.prompt import Prompt
from softprompts.injection.state import state_of
from softprompts.methods.folded import fold
from softprompts.model.attach import attach
from softprompts.model.saving import prompt_of
from softprompts.serving.errors import FailedError
from softprompts.serving.jobs import GenerationRow, LoadedPrompt, ScoringRow, TokenScore
from softprompts.storage.saved_prompt import read
from softprompts.tasks import padding_id
from softprompts.tasks.batches import collate
from softprompts.tasks.task_reader import TaskReader
from softprompts.training.prediction import score_rows

_DEFAULT_CLASS = {
    "encoder": "AutoModelForSequenceClassification",
    "encoder-decoder": "AutoModelForSeq2SeqLM",
    "decoder": "AutoModelForCausalLM",
}
_LENGTH_RATIO = 1.4  # a batch's longest row over its shortest, above which a batch of the shorter ones is worth it
_MIN_BATCH = 16  # fewest rows of a batch that is ended for the sake of that ratio

Scores = Tensor | FailedError


@dataclass(frozen=True)
class EngineOptions:
    """What an `Engine` is made of: a model's alias, folder or hub id, and how it is loaded."""

    model: str
    dtype: str = "auto"  # or the name of one of torch's
    device: str | None = None
    trust_remote_code: bool = False

    def engine(self) -> Engine:
        """Loads the model's config and tokenizer."""
        dtype = None if self.dtype == "auto" else getattr(torch, self.dtype)
        return Engine(self.model, dtype, self.device, self.trust_remote_code)


class Engine:
    """A frozen model, by alias, folder or hub id, and its tokenizer; ``dtype`` None: as saved; ``device`` None: a GPU.

    A prompt whose head needs another class (labels for texts, tags for tokens) gets a model of that class, which shares
    the frozen weights: they are in memory once. A model that cannot be read raises a `SoftPromptError`.
    """

    def __init__(
        self, model: str, dtype: torch.dtype | None = None, device: str | None = None, trust_remote_code: bool = False
    ):
        self.name, self.trust_remote_code = model, trust_remote_code
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        with model_files(model) as (path, offline):
            place, file = gguf.located(path)
            source: dict[str, Any] = {
                "pretrained_model_name_or_path": place,
                "local_files_only": offline,
                "trust_remote_code": trust_remote_code,
                **file,
            }
            self.config = AutoConfig.from_pretrained(**source)
            self.kind = kind_of(self.config)
            self.tokenizer = AutoTokenizer.from_pretrained(**source)
        self._load_options = {**source, "use_safetensors": not file, **({} if dtype is None else {"dtype": dtype})}
        # A tokenizer is not thread-safe: the text thread has `tokenizer`, the event loop has `decoder`, and the model's
        # thread has `watcher`, which looks for stop strings.
        self.decoder, self.watcher = copy.deepcopy(self.tokenizer), copy.deepcopy(self.tokenizer)
        self.pad_id = padding_id(self.tokenizer)
        self.models: dict[str, Any] = {}
        self._loading = threading.Lock()
        self._numbers = itertools.count()

    @property
    def model_name(self) -> str:
        """The model's name, without the folder that it is in."""
        name = packaged.model_name(self.name)
        return Path(name).name if Path(name).exists() else name

    # --- prompts ------------------------------------------------------------------------------------------------------

    def model_for(self, name: str | None = None) -> Any:
        """The model of a class, or of any class; loads it on first use.

        Raises:
            SoftPromptError: the model has no such class.
        """
        with self._loading:
            cls: Any = getattr(transformers, name, None) if name else None
            if not (isinstance(cls, type) and issubclass(cls, PreTrainedModel)):
                if name and not self.trust_remote_code:
                    raise SoftPromptError(f"transformers has no model class '{name}'")
                if self.models:
                    return next(iter(self.models.values()))
                cls = getattr(transformers, _DEFAULT_CLASS[self.kind])
            elif not isinstance(self.config, getattr(cls, "config_class", None) or ()):
                raise SoftPromptError(
                    f"it was trained on another backbone: its class {name} is none for {self.config.model_type}"
                )
            elif name in self.models:
                return self.models[name]
            with model_files(self.name):
                model = gguf.as_plain(cls.from_pretrained(**self._load_options), packaged.resolve_model(self.name))
            if self.models:
                _share_weights(next(iter(self.models.values())), model)
            attach(model.to(self.device), None)
            model.eval()
            self.models[state_of(model).model_class.__name__] = model
            return model

    def read(self, folder: Path) -> tuple[Any, Prompt, dict[str, Any]]:
        """Reads a saved prompt, for any thread: the model of the class that it needs, the prompt, and its config.

        Raises:
            SoftPromptError: it is damaged, or for another backbone.
        """
        with _refusing_damage(folder):
            config, tensors = read(folder)
            model = self.model_for(config["backbone"].get("class"))
            prompt = prompt_of(model, config, tensors, str(folder))
            # A prompt that is computed from other parameters is replaced by the result of that computation.
            if prompt.method.cannot_fold() is None:
                prompt.config, prompt.method = fold(prompt.method)
            prompt.eval().requires_grad_(False)
            return model, prompt, config

    def with_reader(self, name: str, stamp: Any, model: Any, prompt: Prompt, config: dict[str, Any]) -> LoadedPrompt:
        """A prompt from `read` with the reader of its task; for the thread that uses the tokenizer."""
        with _refusing_damage(name):
            room = context_room(model, self.tokenizer, prompt.config.input_tokens)
            reader = TaskReader(config, prompt.labels, self.tokenizer, self.kind, room, name)
        return LoadedPrompt(name, f"p{next(self._numbers)}", model, prompt, reader, config, room, stamp)

    def bare(self) -> LoadedPrompt | None:
        """The model without a prompt, where one of its classes that is loaded generates text."""
        model = next((model for model in self.models.values() if model.can_generate()), None)
        if model is None or self.kind == "encoder":
            return None
        room = context_room(model, self.tokenizer, 0)
        reader = TaskReader({"backbone": {}, "labels": []}, (), self.tokenizer, self.kind, room, self.model_name)
        return LoadedPrompt(self.model_name, "", model, None, reader, {}, room, None)

    # --- scores -------------------------------------------------------------------------------------------------------

    def score(self, rows: Sequence[ScoringRow], max_rows: int, max_tokens: int) -> list[Scores]:
        """The scores of rows of any prompts, see `score_rows`, or the error of a row; for the limits see `batches`."""
        split = [_split_answers(row, max_rows, max_tokens) for row in rows]
        parts = [part for parts in split for part in parts]
        scores: list[Scores] = [FailedError("not run")] * len(parts)
        for model in dict.fromkeys(part.prompt.model for part in parts):
            indices = [index for index, part in enumerate(parts) if part.prompt.model is model]
            limit = state_of(model).backbone.max_tokens
            for batch in batches([parts[i] for i in indices], max_rows, max_tokens, limit):
                batch = [indices[i] for i in batch]
                for i, result in zip(batch, self._score_batch(model, [parts[i] for i in batch]), strict=True):
                    scores[i] = result
        results = iter(scores)
        return [_join([next(results) for _ in parts]) for parts in split]

    def _score_batch(self, model: Any, rows: list[ScoringRow]) -> list[Scores]:
        try:
            # A generation may be under way, between whose steps rows are scored: its prompts are set aside.
            with torch.inference_mode(), state_of(model).activate(None, inside=False, aside=True):
                scores = score_rows(
                    model,
                    [row.feature for row in rows],
                    [row.prompt.key for row in rows],
                    pad_id=self.pad_id,
                    label_ids=None if rows[0].answers is None else [row.answers or [] for row in rows],
                )
        except Exception as error:
            if len(rows) > 1:  # only the row at fault fails
                return [self._score_batch(model, [row])[0] for row in rows]
            return [_failure(rows[0].prompt, error)]
        finite = bool(torch.cat([values.flatten() for values in scores]).isfinite().all())
        return [
            values
            if finite or values.isfinite().all()
            else FailedError(f"'{row.prompt.name}' gives scores that are not numbers")
            for row, values in zip(rows, scores, strict=True)
        ]

    # --- text ---------------------------------------------------------------------------------------------------------

    def generate(self, rows: Sequence[GenerationRow], between_steps: Callable[[], None]) -> Exception | None:
        """Generates the text of rows that fit into one batch, see `fits`; ``between_steps`` is called after each token.

        Returns:
            The error of the rows that are still unfinished.
        """
        try:
            with torch.inference_mode():
                self._generate(list(rows), between_steps)
        except Exception as error:
            if len(rows) == 1 or any(row.tokens for row in rows):
                return _failure(rows[0].prompt, error)
            errors = [self.generate([row], between_steps) for row in rows]
            return next((error for error in errors if error is not None), None)
        return None

    def _generate(self, rows: list[GenerationRow], between_steps: Callable[[], None]) -> None:
        model = rows[0].prompt.model
        padding_side = "left" if self.kind == "decoder" else "right"
        batch = collate([{"input_ids": row.input_ids} for row in rows], self.pad_id, padding_side)
        processors = [_Choosing(rows)] if any(row.sampler or row.top_logprobs is not None for row in rows) else []
        model.generate(
            **{name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")},
            prompt_names=[row.prompt.key or None for row in rows],
            max_new_tokens=max(row.max_new_tokens for row in rows),
            do_sample=False,
            num_beams=1,
            pad_token_id=self.pad_id,
            stopping_criteria=StoppingCriteriaList(
                [_TokenWatch(rows, model.generation_config.eos_token_id, self.watcher, between_steps)]
            ),
            logits_processor=transformers.LogitsProcessorList(processors),
        )

    def fits(self, rows: Sequence[GenerationRow], row: GenerationRow) -> bool:
        """Whether a row fits into a batch with others: the longest input, prompt and answer must fit together."""
        if not rows:
            return True
        if rows[0].prompt.model is not row.prompt.model:
            return False
        limit = state_of(row.prompt.model).backbone.max_tokens
        if limit is None:
            return True
        batch = [*rows, row]
        generated = max(row.max_new_tokens for row in batch) if self.kind == "decoder" else 0
        return max(len(row.input_ids) for row in batch) + max(r.prompt.input_tokens for r in batch) + generated <= limit


class _TokenWatch(StoppingCriteria):  # type: ignore[misc]
    """Stores and emits each generated token, and stops rows that are finished."""

    def __init__(
        self,
        rows: list[GenerationRow],
        end: int | list[int] | None,
        tokenizer: Any,
        between_steps: Callable[[], None],
    ):
        self.rows, self.between_steps = rows, between_steps
        self.texts = [row.text(tokenizer) if row.stops else None for row in rows]
        self.ends = {end} if isinstance(end, int) else set(end or ())

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        for row, text, token in zip(self.rows, self.texts, input_ids[:, -1].tolist(), strict=True):
            if not row.unfinished:
                continue
            if token in self.ends or token in row.ends:
                row.ended = True
                continue
            row.tokens.append(token)
            if row.emit is not None:
                row.emit(token)
            if text is not None:
                text.add(token)
                row.ended = text.stopped
        self.between_steps()
        return torch.tensor([not row.unfinished for row in self.rows], device=input_ids.device)


class _Choosing(transformers.LogitsProcessor):  # type: ignore[misc]
    """Draws the tokens of rows with a sampler, and notes log-probabilities where a row wants them.

    Only the token that is chosen keeps a finite logit, so that it is taken.
    """

    def __init__(self, rows: list[GenerationRow]):
        self.rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        for index, row in enumerate(self.rows):
            if not row.unfinished or (row.sampler is None and row.top_logprobs is None):
                continue
            token = int(scores[index].argmax()) if row.sampler is None else row.sampler.draw(scores[index])
            if row.top_logprobs is not None:
                row.scores.append(_token_score(scores[index], token, row.top_logprobs))
            scores[index] = float("-inf")
            scores[index, token] = 0.0
        return scores


def _token_score(logits: Tensor, token: int, count: int) -> TokenScore:
    """The score of a token among logits ``(V,)``, before temperature and top_p."""
    logprobs = logits.float().log_softmax(-1)
    top = logprobs.topk(min(count, len(logprobs)))
    return TokenScore(float(logprobs[token]), list(zip(top.indices.tolist(), top.values.tolist(), strict=True)))


def _split_answers(row: ScoringRow, max_rows: int, max_tokens: int) -> list[ScoringRow]:
    """The row once for every group of its answers that fits into a forward pass."""
    if row.answers is None:
        return [row]
    size = max(1, min(max_rows, max_tokens // max(1, row.width + row.prompt.input_tokens)))
    starts = range(0, len(row.answers), size)
    return [ScoringRow(row.prompt, row.feature, row.answers[start : start + size]) for start in starts]


def _join(parts: list[Scores]) -> Scores:
    """The scores of a row from those of its groups of answers."""
    error = next((part for part in parts if isinstance(part, FailedError)), None)
    return error or torch.cat([part for part in parts if isinstance(part, Tensor)], 1)


def batches(rows: Sequence[ScoringRow], max_rows: int, max_tokens: int, limit: int | None) -> Iterator[list[int]]:
    """Groups rows of one model class by length into forward passes, and yields the indices of each pass's rows.

    A pass has at most ``max_rows`` rows and ``max_tokens`` tokens with its padding; a single row may have more. Its
    longest input and its longest prompt share the ``limit`` positions of the model.
    """
    widths, prompts, counts = zip(*((row.width, row.prompt.input_tokens, row.count) for row in rows), strict=True)
    order = sorted(range(len(rows)), key=lambda index: (rows[index].answers is None, widths[index] + prompts[index]))
    batch: list[int] = []
    count = shortest = width = prompt = 0
    for index in order:
        length = widths[index] + prompts[index]
        new_count, new_width, new_prompt = count + counts[index], max(width, widths[index]), max(prompt, prompts[index])
        if batch and (
            new_count > max_rows
            or new_count * (new_width + new_prompt) > max_tokens
            or (limit is not None and new_width + new_prompt > limit)
            or (count >= _MIN_BATCH and len(order) > 2 * _MIN_BATCH and length > _LENGTH_RATIO * shortest)
            or (rows[batch[0]].answers is None) != (rows[index].answers is None)
        ):
            yield batch
            batch, new_count, new_width, new_prompt = [], counts[index], widths[index], prompts[index]
        if not batch:
            shortest = length
        batch.append(index)
        count, width, prompt = new_count, new_width, new_prompt
    yield batch


@contextlib.contextmanager
def _refusing_damage(source: str | Path) -> Iterator[None]:
    """Turns any error of reading an edited prompt into one line, so that the other prompts can be served."""
    try:
        yield
    except (SoftPromptError, OSError):
        raise
    except Exception as error:
        raise SoftPromptError(f"{source} is damaged ({type(error).__name__}); was it edited?") from error


def _share_weights(first: Any, other: Any) -> None:
    """Replaces the weights of a model by those of another wherever name and shape agree."""
    weights: Mapping[str, Any] = dict(first.base_model.named_parameters())
    for path, parameter in list(other.base_model.named_parameters()):
        weight = weights.get(path)
        if weight is not None and weight.shape == parameter.shape:
            parent, _, name = path.rpartition(".")
            other.base_model.get_submodule(parent)._parameters[name] = weight


def _failure(prompt: LoadedPrompt, error: Exception) -> FailedError:
    reason = str(error).strip().partition("\n")[0][:200] if isinstance(error, SoftPromptError) else type(error).__name__
    return FailedError(f"the model failed on a row of '{prompt.name}' ({reason})")
