"""Makes jobs for the model from the rows of a request, and answers from their results.

Runs in the one thread that uses the tokenizer. A row that cannot be read raises a `RequestError` with its number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from softprompts.errors import SoftPromptError
from softprompts.serving.engine import Engine
from softprompts.serving.errors import RequestError
from softprompts.serving.jobs import Answers, GenerationRow, Job, LoadedPrompt, RequestRow, ScoringRow
from softprompts.serving.sampling import Sampler
from softprompts.serving.schemas import GenerateRequest, ScoreRequest
from softprompts.serving.settings import ServerSettings
from softprompts.tasks.kinds.texts import continuation_ids
from softprompts.tasks.task_reader import Answer
from softprompts.training.prediction import Prediction, prediction_of


def check_texts(settings: ServerSettings, texts: Sequence[str]) -> None:
    """Raises a `RequestError` for texts that are too long or no Unicode; for any thread."""
    longest = max(map(len, texts), default=0)
    if longest > settings.max_text:
        raise RequestError(f"a text of {longest:,} characters; at most {settings.max_text:,} are read")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:  # JSON can hold one half of a surrogate pair
        raise RequestError("a text has half a character (a lone surrogate) in it") from error


def predict_jobs(engine: Engine, rows: Sequence[RequestRow]) -> list[Job]:
    """Jobs that label rows, one for each prompt."""
    indices: dict[LoadedPrompt, list[int]] = {}
    for index, row in enumerate(rows):
        indices.setdefault(row.prompt, []).append(index)
    return [_predict_job(prompt, numbers, [rows[i].content for i in numbers]) for prompt, numbers in indices.items()]


def _predict_job(prompt: LoadedPrompt, indices: Sequence[int], contents: Sequence[Any]) -> Job:
    reader = prompt.reader
    if not reader.reads:
        raise RequestError(f"'{prompt.name}' does not say how its texts are written out; use /v1/generate or /v1/score")
    texts = []
    for index, content in zip(indices, contents, strict=True):
        with _naming_row(index):
            texts.append(_task_row(prompt, content))
    try:
        encoded = reader.encode(texts)
    except SoftPromptError as error:
        for index, text in zip(indices, texts, strict=True):  # finds the row at fault
            with _naming_row(index):
                reader.encode([text])
        raise RequestError(f"'{prompt.name}': {error}") from error
    features, cut = encoded.encoded.features, encoded.encoded.truncated
    # Which of several rows were cut is looked up only where some were.
    was_cut = [cut > 0 and (len(texts) == 1 or reader.encode([text]).encoded.truncated > 0) for text in texts]
    regression = reader.label_ids is None and prompt.module is not None and prompt.module.num_labels == 1
    limit = reader.new_tokens

    def read(results: list[Any]) -> Answers:
        generated = Prediction([], None, tokens=results)
        prediction = generated if limit is not None else prediction_of(features, results, regression)
        answers = reader.answers(encoded, prediction)
        return [_prediction(prompt, answer, short) for answer, short in zip(answers, was_cut, strict=True)]

    if limit is not None:
        generation = [GenerationRow(prompt, list(feature["input_ids"]), limit) for feature in features]
        return Job(indices, read, generation=generation, cut=cut)
    return Job(indices, read, [ScoringRow(prompt, feature, reader.label_ids) for feature in features], cut=cut)


def _prediction(prompt: LoadedPrompt, answer: Answer, was_cut: bool) -> dict[str, Any]:
    """An answer as `softprompts.serving.schemas.Answer` has it; fields without a value are left out."""
    fields = {
        "prompt": prompt.name,
        "label": answer.label,
        "probability": answer.probability,
        "probabilities": dict(answer.probabilities) or None,
        "value": answer.value,
        "labels": list(answer.labels) if prompt.reader.task.kind == "multi-label" else None,
        "tags": list(answer.tags) if prompt.reader.task.kind == "tagging" else None,
        "cut": was_cut or None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def score_jobs(engine: Engine, rows: Sequence[RequestRow], options: ScoreRequest) -> list[Job]:
    """Jobs that score the continuations of rows under a language model, one for each row."""
    jobs = []
    for index, row in enumerate(rows):
        input_ids = _input_ids(engine, index, row, options.template)
        answers = [continuation_ids(text, engine.tokenizer, engine.kind, options.end) for text in row.continuations]
        if not all(answers):
            raise RequestError(f"inputs[{index}]: a continuation is empty")
        longest, limit = max(map(len, answers)), row.prompt.max_input_tokens
        needed = len(input_ids) + longest if engine.kind == "decoder" else max(len(input_ids), longest)
        if limit is not None and needed > limit:
            raise RequestError(f"inputs[{index}]: {len(input_ids)} tokens and a continuation of {longest} are too long")
        scoring = [ScoringRow(row.prompt, {"input_ids": input_ids}, answers)]
        jobs.append(Job([index], partial(_continuations, row, answers), scoring))
    return jobs


def _continuations(row: RequestRow, answers: Sequence[Sequence[int]], results: list[Any]) -> Answers:
    values = results[0][0].tolist()
    scores = [
        {"text": text, "log_likelihood": value, "tokens": len(ids)}
        for text, value, ids in zip(row.continuations, values, answers, strict=True)
    ]
    return [{"prompt": row.prompt.name, "scores": scores, "best": row.continuations[values.index(max(values))]}]


def generate_jobs(
    engine: Engine, rows: Sequence[RequestRow], options: GenerateRequest, emit: Callable[[int, int], None] | None = None
) -> list[Job]:
    """Jobs that generate text by a language model, one for each row.

    ``emit`` is called in the model's thread with the number of a row and each of its tokens.
    """
    jobs = []
    for index, row in enumerate(rows):
        input_ids = _input_ids(engine, index, row, options.template)
        count, limit = options.max_new_tokens, row.prompt.max_input_tokens
        if limit is not None:
            left = limit - len(input_ids) if engine.kind == "decoder" else limit
            if len(input_ids) > limit or left < 1:
                text = f"{len(input_ids)} tokens are too long; there is room for {limit - 1}"
                raise RequestError(f"inputs[{index}]: {text}")
            count = min(count, left)
        seed = None if options.seed is None else options.seed + index
        sampler = Sampler(options.temperature, options.top_p, seed) if options.temperature else None
        on_token = None if emit is None else partial(emit, index)
        generated = GenerationRow(row.prompt, input_ids, count, sampler, on_token)
        jobs.append(Job([index], partial(_text, engine, generated), generation=[generated]))
    return jobs


def _text(engine: Engine, row: GenerationRow, results: list[Any]) -> Answers:
    text = engine.tokenizer.decode(row.tokens, skip_special_tokens=True)
    finish = "stop" if row.ended else "length"
    return [{"prompt": row.prompt.name, "text": text, "tokens": len(row.tokens), "finish": finish}]


def _input_ids(engine: Engine, index: int, row: RequestRow, template: bool) -> list[int]:
    """Token ids of a row's text, written out by the template of its prompt's task or taken as it is."""
    if engine.kind == "encoder":
        raise RequestError("the model is an encoder, which writes no text; use /v1/predict")
    content, reader = row.content, row.prompt.reader
    with _naming_row(index):
        if template and reader.knows_task:
            ids = task_ids(row)
        else:
            if isinstance(content, Mapping) and not any(value for name, value in content.items() if name != "text"):
                content = content.get("text")
            if not isinstance(content, str):
                raise SoftPromptError(f"'{row.prompt.name}' reads single texts, as they are")
            ids = plain_ids(engine, content)
        if not ids:
            raise SoftPromptError("an empty text cannot be read")
    return ids


def task_ids(row: RequestRow) -> list[int]:
    """Token ids of a row that is written out by the template of its prompt's task."""
    encoded = row.prompt.reader.encode([_task_row(row.prompt, row.content)]).encoded
    return list(encoded.features[0]["input_ids"])


def plain_ids(engine: Engine, text: str) -> list[int]:
    """Token ids of a text as it is, without the end-of-text token where it is to be continued."""
    ids = list(engine.tokenizer(text, verbose=False)["input_ids"])
    if engine.kind == "decoder" and ids and ids[-1] == engine.tokenizer.eos_token_id:
        ids.pop()
    return ids


def _task_row(prompt: LoadedPrompt, content: Any) -> Any:
    """The content of a row as the prompt's reader takes it."""
    if not isinstance(content, Mapping):
        return content
    if content.get("words") is not None:
        if prompt.reader.task.kind != "tagging":
            raise SoftPromptError(f"'{prompt.name}' does not label words; give a text")
        return {"words": list(content["words"])}
    return prompt.reader.row(
        content.get("text"), content.get("text_pair"), content.get("fields"), content.get("choices") or ()
    )


@contextlib.contextmanager
def _naming_row(index: int) -> Iterator[None]:
    """Puts the number of a row before errors about it."""
    try:
        yield
    except RequestError:
        raise
    except SoftPromptError as error:
        raise RequestError(f"inputs[{index}]: {error}") from error
