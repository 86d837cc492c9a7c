"""Bodies of requests and responses, as the OpenAPI document describes them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

# `fail_fast` ends the check of a list at its first error: an error for each item would take time and memory.
_Texts = Annotated[list[str], Field(fail_fast=True)]
_Name = Annotated[
    str, Field(min_length=1, max_length=100, description="Name of a loaded prompt.", examples=["reviews"])
]
_FieldName = Annotated[str, Field(max_length=100)]


def _examples(*bodies: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": list(bodies)})


class _RowFields(BaseModel, extra="forbid"):
    prompt: _Name | None = Field(None, description="The row's own prompt, in place of the request's.")
    text: str | None = Field(None, description="The task's first field, or the text itself.")
    text_pair: str | None = Field(None, description="The task's second field.")
    fields: dict[_FieldName, str] | None = Field(None, description="The task's fields by name.")


class Row(_RowFields):
    """A row: a text, a text and a second one, fields by name, or words."""

    words: _Texts | None = Field(None, description="The words to tag; a text is cut at white space.")
    choices: _Texts | None = Field(None, description="What there is to choose from, where the task has no fields.")


class ScoreRow(_RowFields):
    """A text, and its possible continuations."""

    continuations: _Texts = Field(min_length=1, description="Texts that are scored as its continuation.")


_Pair = Annotated[list[str], Field(fail_fast=True, min_length=2, max_length=2, description="A text and a second one.")]
_Inputs = Annotated[
    list[str | _Pair | Row], Field(fail_fast=True, min_length=1, description="Texts, pairs of texts, or rows.")
]


class _Request(BaseModel, extra="forbid"):
    prompt: _Name | None = Field(None, description="The prompt of all rows that name none.")


class _TextRequest(_Request):
    template: bool = Field(True, description="Whether texts are written out as in training; else read as they are.")


class PredictRequest(_Request):
    """Rows to be labelled."""

    model_config = _examples(
        {"prompt": "reviews", "inputs": ["a film to remember", "two hours of my life, gone"]},
        {"inputs": [{"prompt": "reviews", "text": "good"}, {"prompt": "mrpc", "text": "a", "text_pair": "b"}]},
    )
    inputs: _Inputs


class Answer(BaseModel):
    """The prediction for a row."""

    prompt: str
    label: str = Field(
        description="The label, or several joined; the text of a choice or an answer; the tags with blanks between."
    )
    labels: list[str] | None = Field(None, description="All labels of a row that may have several, or none.")
    probability: float | None = Field(None, description="Of the label.")
    probabilities: dict[str, float] | None = Field(None, description="Of every label.")
    value: float | None = Field(None, description="Of a regression.")
    tags: list[str] | None = Field(None, description="One for each word.")
    cut: bool | None = Field(None, description="True where the row was too long for its prompt and has been cut.")


class PredictResponse(BaseModel):
    """The answers, in the order of the rows."""

    answers: list[Answer]
    cut: int = Field(0, description="How many rows were too long for their prompt and have been cut.")


class ScoreRequest(_TextRequest):
    """Texts whose continuations are scored by a language model."""

    model_config = _examples(
        {"prompt": "reviews", "inputs": [{"text": "good film", "continuations": ["great", "bad"]}]}
    )
    inputs: list[ScoreRow] = Field(min_length=1, fail_fast=True)
    end: bool = Field(True, description="Whether the end-of-text token behind a continuation is counted.")


class Continuation(BaseModel):
    """A continuation with its score."""

    text: str
    log_likelihood: float
    tokens: int


class ScoreAnswer(BaseModel):
    """The scores of a row."""

    prompt: str
    best: str
    scores: list[Continuation]


class ScoreResponse(BaseModel):
    """The scores, in the order of the rows."""

    answers: list[ScoreAnswer]


class GenerateRequest(_TextRequest):
    """Texts that a language model continues."""

    model_config = _examples({"prompt": "titles", "inputs": ["the film was"], "max_new_tokens": 20})
    inputs: _Inputs
    max_new_tokens: int = Field(64, ge=1, description="Most tokens of each text.")
    temperature: float = Field(0.0, ge=0, le=100, allow_inf_nan=False, description="0 takes the likeliest token.")
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False, description="The likeliest tokens of this probability.")
    seed: int | None = Field(None, ge=0, lt=2**31, description="Makes draws repeatable, whatever else is asked.")
    stream: bool = Field(False, description="Whether tokens are sent as they are written (server-sent events).")


class Written(BaseModel):
    """A generated text."""

    prompt: str
    text: str
    tokens: int
    finish: str = Field(description='"stop" where the model ended it, "length" at the limit.')


class GenerateResponse(BaseModel):
    """The texts, in the order of the rows."""

    answers: list[Written]


class Prompt(BaseModel):
    """A prompt."""

    name: str
    loaded: bool
    method: str | None = None
    task: str | None = None
    kind: str | None = Field(None, description="The kind of its task.")
    fields: list[str] = []
    labels: list[str] = []
    column: str | None = Field(None, description="The column of the user's file that it was trained to tell.")
    max_length: int | None = Field(None, description="Most tokens of an input.")
    parameters: int | None = Field(None, description="Number of trained parameters.")
    error: str | None = Field(None, description="Why it is not loaded.")


class Prompts(BaseModel):
    """The loaded prompts, and those of the folder that are not."""

    model: str
    kind: str = Field(description='"encoder", "encoder-decoder" or "decoder".')
    prompts: list[Prompt]


class Change(BaseModel):
    """What was done with a prompt."""

    name: str
    status: str = Field(description='"loaded", "reloaded", "unchanged" or "unloaded".')


class Problem(BaseModel):
    """An error, in one line."""

    error: str = Field(examples=["inputs[0]: an empty text cannot be labelled"])


PROBLEMS = {
    401: "No API key, or a wrong one.",
    403: "A page of another site, or another name for the server than its own.",
    404: "No such prompt.",
    409: "The prompt is damaged, or for another backbone.",
    413: "The body is too large.",
    415: "The body does not say that it is JSON.",
    422: "Something in the request is wrong.",
    429: "Too many rows wait.",
    500: "The model failed on a row.",
    503: "The server is going down.",
    504: "The answer took too long.",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error responses of an endpoint, for its OpenAPI description."""
    return {status: {"model": Problem, "description": PROBLEMS[status]} for status in (401, 403, *statuses)}
