"""What goes over the wire."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

# A list of wrong things ends with the first: telling them all would take the server's time and memory.
_Texts = Annotated[list[str], Field(fail_fast=True)]
Name = Annotated[str, Field(min_length=1, max_length=100, description="Name of a loaded prompt.", examples=["reviews"])]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Row(_Strict):
    """A row: a text, a text and a second one, fields by name, or words."""

    prompt: Name | None = Field(None, description="The row's own prompt, in place of the request's.")
    text: str | None = Field(None, description="The task's first field.")
    text_pair: str | None = Field(None, description="The task's second field.")
    fields: dict[str, str] | None = Field(None, description="The task's fields by name.")
    words: _Texts | None = Field(None, description="The words to tag; a text is cut at white space.")
    choices: _Texts | None = Field(None, description="What there is to choose from, where the task has no fields.")


Pair = Annotated[list[str], Field(fail_fast=True, min_length=2, max_length=2, description="A text and a second one.")]
Input = str | Pair | Row
Inputs = Annotated[list[Input], Field(fail_fast=True, min_length=1, description="Texts, pairs of texts, or rows.")]


class PredictRequest(_Strict):
    """Rows to be labelled."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"prompt": "reviews", "inputs": ["a film to remember", "two hours of my life, gone"]},
                {"inputs": [{"prompt": "reviews", "text": "good"}, {"prompt": "mrpc", "text": "a", "text_pair": "b"}]},
            ]
        },
    )
    prompt: Name | None = Field(None, description="The prompt of all rows that name none.")
    inputs: Inputs


class Answer(BaseModel):
    """What was predicted for a row."""

    prompt: str
    label: str = Field(description="The label; the text of a choice or an answer; the tags with blanks between.")
    probability: float | None = Field(None, description="Of the label.")
    probabilities: dict[str, float] | None = Field(None, description="Of every label.")
    value: float | None = Field(None, description="Of a regression.")
    tags: list[str] | None = Field(None, description="One for each word.")


class PredictResponse(BaseModel):
    """The answers, in the order of the rows."""

    answers: list[Answer]
    cut: int = Field(0, description="How many rows were too long for their prompt and have been cut.")


class ScoreRow(_Strict):
    """A text, and what may follow it."""

    prompt: Name | None = Field(None, description="The row's own prompt, in place of the request's.")
    text: str | None = Field(None, description="The task's first field, or the text itself.")
    text_pair: str | None = None
    fields: dict[str, str] | None = None
    continuations: _Texts = Field(min_length=1, description="Texts to be scored behind it.")


class ScoreRequest(_Strict):
    """Texts whose continuations are scored by a language model."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"prompt": "reviews", "inputs": [{"text": "good film", "continuations": ["great", "bad"]}]}]
        },
    )
    prompt: Name | None = None
    inputs: list[ScoreRow] = Field(min_length=1, fail_fast=True)
    end: bool = Field(True, description="Whether the end-of-text token behind a continuation is counted.")
    template: bool = Field(True, description="Whether texts are written out as in training; else read as they are.")


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


class GenerateRequest(_Strict):
    """Texts that a language model writes on."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"prompt": "titles", "inputs": ["the film was"], "max_new_tokens": 20}]},
    )
    prompt: Name | None = None
    inputs: Inputs
    max_new_tokens: int = Field(64, ge=1, description="Most tokens of each text.")
    temperature: float = Field(0.0, ge=0, le=100, allow_inf_nan=False, description="0 takes the likeliest token.")
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False, description="The likeliest tokens of this probability.")
    seed: int | None = Field(None, ge=0, lt=2**31, description="Makes draws repeatable, whatever else is asked.")
    template: bool = Field(True, description="Whether texts are written out as in training; else read as they are.")
    stream: bool = Field(False, description="Whether tokens are sent as they are written (server-sent events).")


class Written(BaseModel):
    """A text that was written."""

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
    kind: str | None = Field(None, description="What its task asks for.")
    fields: list[str] = []
    labels: list[str] = []
    max_length: int | None = Field(None, description="Most tokens of an input.")
    parameters: int | None = Field(None, description="How many numbers it trained.")
    error: str | None = Field(None, description="Why it is not loaded.")


class Prompts(BaseModel):
    """The loaded prompts, and those of the folder that are not."""

    model: str
    kind: str = Field(description='"encoder", "encoder-decoder" or "decoder".')
    prompts: list[Prompt]


class Change(BaseModel):
    """What became of a prompt."""

    name: str
    status: str = Field(description='"loaded", "reloaded", "unchanged" or "unloaded".')


class Problem(BaseModel):
    """What is wrong, in one line."""

    error: str = Field(examples=["inputs[0]: an empty text cannot be labelled"])


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Answers of an endpoint besides the usual one."""
    why = {
        400: "The request cannot be read.",
        401: "No API key, or a wrong one.",
        403: "A page of another site, or another name for the server than its own.",
        404: "No such prompt.",
        408: "The body took too long to arrive.",
        409: "The prompt is damaged, or for another backbone.",
        413: "The body is too large.",
        422: "Something in the request is wrong.",
        429: "Too many rows wait.",
        500: "The model failed on a row.",
        503: "The server is going down.",
        504: "The answer took too long.",
    }
    return {status: {"model": Problem, "description": why[status]} for status in (401, 403, *statuses)}
