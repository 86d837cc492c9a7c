"""What may be asked of prompts, and what becomes of it: rows to token ids, and what the model says to answers.

Used by the one thread that uses the tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from softprompts.errors import SoftPromptError
from softprompts.serving.engine import Engine, Line, Loaded, Written
from softprompts.serving.errors import FailedError, RequestError
from softprompts.serving.sampling import Sampler
from softprompts.tasks.kinds.texts import continuation_ids
from softprompts.tasks.task_reader import Answer
from softprompts.training.prediction import Prediction, prediction_of


@dataclass(frozen=True)
class Asked:
    """A row of a request.

    Attributes:
        owner: its prompt.
        text: a text, a pair, or a mapping with some of ``text``, ``text_pair``, ``fields``, ``words``, ``choices``.
        continuations: what is to be scored behind it.
    """

    owner: Loaded
    text: Any
    continuations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Writing:
    """How text is written.

    Attributes:
        max_new_tokens: most tokens.
        temperature: 0 takes the likeliest token; else one is drawn.
        top_p: the likeliest tokens that together have this probability are drawn from.
        seed: makes draws repeatable.
        template: whether inputs are written out as the prompt's task says, where it says so; else they are read as
            they are.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    template: bool = True


@dataclass(eq=False)
class Part:
    """Rows of a request that are answered together.

    Attributes:
        index: which of its rows.
        lines: what is scored for them.
        written: what is written for them.
        finish: turns the scores, or the rows written, into an answer for each row.
        cut: how many of the rows were too long and have been cut.
    """

    index: list[int]
    lines: list[Line] = field(default_factory=list)
    written: list[Written] = field(default_factory=list)
    finish: Callable[[list[Any]], list[dict[str, Any]]] = lambda found: found
    cut: int = 0


Reading = Callable[[Engine, Sequence[Asked]], list[Part]]


def predicted(engine: Engine, asked: Sequence[Asked]) -> list[Part]:
    """Rows to be labelled; those of a prompt are read together.

    Raises:
        RequestError: a row that its prompt does not read; names the row.
    """
    groups: dict[Loaded, list[int]] = {}
    for index, row in enumerate(asked):
        groups.setdefault(row.owner, []).append(index)
    return [part for owner, index in groups.items() for part in _predicted(owner, index, asked)]


def _predicted(owner: Loaded, index: list[int], asked: Sequence[Asked]) -> list[Part]:
    reader = owner.reader
    if not reader.reads:
        raise RequestError(f"'{owner.name}' does not say how its texts are written out; use /v1/generate or /v1/score")
    texts = [_at(i, partial(_row, owner, asked[i].text)) for i in index]
    try:
        rows = reader.encode(texts)
    except SoftPromptError as error:
        for i, text in zip(index, texts, strict=True):  # which of them was it?
            _at(i, partial(reader.encode, [text]))
        raise RequestError(f"'{owner.name}': {error}") from error
    features = rows.encoded.features
    cut = rows.encoded.truncated

    def told(prediction: Prediction) -> list[dict[str, Any]]:
        return [_answer(owner, answer) for answer in reader.answers(rows, prediction)]

    if reader.new_tokens is not None:
        written = [Written(owner, list(feature["input_ids"]), reader.new_tokens) for feature in features]
        return [Part(index, [], written, lambda found: told(Prediction([], None, tokens=found)), cut)]
    valued = reader.label_ids is None and owner.prompt.num_labels == 1
    lines = [Line(owner, feature, reader.label_ids) for feature in features]
    return [Part(index, lines, [], lambda found: told(prediction_of(features, found, valued)), cut)]


def _answer(owner: Loaded, answer: Answer) -> dict[str, Any]:
    made: dict[str, Any] = {"prompt": owner.name, "label": answer.label}
    if answer.probability is not None:
        made["probability"] = answer.probability
    if answer.probabilities:
        made["probabilities"] = dict(answer.probabilities)
    if answer.value is not None:
        made["value"] = answer.value
    if owner.reader.task.kind == "tagging":
        made["tags"] = list(answer.tags)
    return made


def likelihoods(engine: Engine, asked: Sequence[Asked], end: bool, template: bool) -> list[Part]:
    """Rows whose continuations are scored.

    Args:
        engine: the model, which must be a language model.
        asked: the rows.
        end: whether a continuation's end-of-text token is counted.
        template: see `Writing`.

    Raises:
        RequestError: an encoder, or a row that cannot be read; names the row.
    """
    _require_language_model(engine)
    parts = []
    for i, row in enumerate(asked):
        ids = _at(i, partial(_input_ids, engine, row, template))
        answers = [continuation_ids(text, engine.tokenizer, engine.kind, end) for text in row.continuations]
        if not all(answers):
            raise RequestError(f"inputs[{i}]: a continuation is empty")
        longest = max(map(len, answers))
        room = None if row.owner.room is None else row.owner.room - (longest if engine.kind == "decoder" else 0)
        if room is not None and (len(ids) > room or longest > row.owner.room):  # type: ignore[operator]
            raise RequestError(f"inputs[{i}]: {len(ids)} tokens and a continuation of {longest} are too long")
        line = Line(row.owner, {"input_ids": ids}, answers)
        parts.append(Part([i], [line], finish=partial(_scored, row, answers)))
    return parts


def _scored(row: Asked, answers: Sequence[Sequence[int]], found: list[Any]) -> list[dict[str, Any]]:
    values = found[0][0].tolist()
    scores = [
        {"text": text, "log_likelihood": value, "tokens": len(ids)}
        for text, value, ids in zip(row.continuations, values, answers, strict=True)
    ]
    return [{"prompt": row.owner.name, "scores": scores, "best": row.continuations[values.index(max(values))]}]


def texts(
    engine: Engine,
    asked: Sequence[Asked],
    writing: Writing,
    emit: Callable[[int, int], None] | None = None,
) -> list[Part]:
    """Rows that are written on.

    Args:
        engine: the model, which must be a language model.
        asked: the rows.
        writing: how.
        emit: told each row's number and token, in the model's thread.

    Raises:
        RequestError: an encoder, or a row that cannot be read; names the row.
    """
    _require_language_model(engine)
    parts = []
    for i, row in enumerate(asked):
        ids = _at(i, partial(_input_ids, engine, row, writing.template))
        count, room = writing.max_new_tokens, row.owner.room
        if room is not None:
            left = room - len(ids) if engine.kind == "decoder" else room
            if len(ids) > room or left < 1:
                raise RequestError(f"inputs[{i}]: {len(ids)} tokens are too long; there is room for {room - 1}")
            count = min(count, left)
        seed = None if writing.seed is None else writing.seed + i
        sampler = Sampler(writing.temperature, writing.top_p, seed) if writing.temperature else None
        own = None if emit is None else partial(emit, i)
        written = Written(row.owner, ids, count, sampler, own)

        def finish(found: list[Any], row: Asked = row, written: Written = written) -> list[dict[str, Any]]:
            text = engine.tokenizer.decode(found[0], skip_special_tokens=True)
            ended = "stop" if written.ended else "length"
            return [{"prompt": row.owner.name, "text": text, "tokens": len(found[0]), "finish": ended}]

        parts.append(Part([i], written=[written], finish=finish))
    return parts


def _require_language_model(engine: Engine) -> None:
    if engine.kind == "encoder":
        raise RequestError("the model is an encoder, which writes no text; use /v1/predict")


def _input_ids(engine: Engine, row: Asked, template: bool) -> list[int]:
    """What a language model reads of a row: its task's writing, or the text as it is."""
    reader = row.owner.reader
    if template and reader.knows_task:
        ids = list(reader.encode([_row(row.owner, row.text)]).encoded.features[0]["input_ids"])
    else:
        if not isinstance(row.text, str):
            text = row.text.get("text") if isinstance(row.text, Mapping) else None
            if text is None or any(value for name, value in row.text.items() if name != "text"):
                raise SoftPromptError(f"'{row.owner.name}' reads single texts, as they are")
        else:
            text = row.text
        ids = list(engine.tokenizer(text, verbose=False)["input_ids"])
        if engine.kind == "decoder" and ids and ids[-1] == engine.tokenizer.eos_token_id:
            ids.pop()
    if not ids:
        raise SoftPromptError("an empty text cannot be read")
    return ids


def _row(owner: Loaded, text: Any) -> Any:
    """A row as the prompt's reader takes it."""
    if not isinstance(text, Mapping):
        return text
    if text.get("words") is not None:
        if owner.reader.task.kind != "tagging":
            raise SoftPromptError(f"'{owner.name}' does not label words; give a text")
        return {"words": list(text["words"])}
    return owner.reader.row(text.get("text"), text.get("text_pair"), text.get("fields"), text.get("choices") or ())


def _at(index: int, function: Callable[[], Any]) -> Any:
    """Calls a function for a row, which an error names."""
    try:
        return function()
    except RequestError:
        raise
    except SoftPromptError as error:
        raise RequestError(f"inputs[{index}]: {error}") from error


def first_failure(found: Sequence[Any]) -> FailedError | None:
    """What went wrong with some rows, if anything did."""
    return next((one for one in found if isinstance(one, FailedError)), None)
