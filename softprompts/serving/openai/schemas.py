"""Bodies of requests and responses of OpenAI's interface, as the OpenAPI document describes them.

A parameter that is not listed is refused. One that only has a value which asks for nothing may be sent with this value.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from softprompts.serving.schemas import PROBLEMS
from softprompts.serving.validation_errors import UNSUPPORTED

_MOST_LOGPROBS = 20


def _neutral(*values: Any) -> Any:
    """The type of a parameter that is not supported, and accepted with None and values that ask for nothing."""

    def check(value: Any) -> Any:
        if value is not None and value not in values:
            allowed = f"; leave it out or send {' or '.join(map(repr, values))}" if values else ""
            raise PydanticCustomError(UNSUPPORTED, f"not supported{allowed}".replace("{", "{{").replace("}", "}}"))
        return value

    return Annotated[Any, AfterValidator(check), WithJsonSchema({"enum": [None, *values]})]


_Stop = Annotated[str, Field(min_length=1, max_length=200)]
_Model = Annotated[str, Field(min_length=1, max_length=300, description="One that GET /v1/models lists.")]


class StreamOptions(BaseModel, extra="forbid"):
    """Options of a stream."""

    include_usage: bool | None = Field(None, description="Whether a last chunk counts the tokens.")
    include_obfuscation: _neutral(False) = None  # type: ignore[valid-type]


class _TextRequest(BaseModel, extra="forbid"):
    model: _Model
    max_tokens: int | None = Field(None, ge=1, description="Most tokens of a choice.")
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False, description="0 takes the likeliest; or 1.")
    top_p: float | None = Field(
        None, ge=0, le=1, allow_inf_nan=False, description="Likeliest tokens to draw from; or 1."
    )
    n: int | None = Field(None, ge=1, le=128, description="Number of choices; or 1.")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="Makes draws repeatable, whatever else is asked.")
    stop: _Stop | Annotated[list[_Stop], Field(max_length=16)] | None = Field(
        None, description="Texts that end a choice, and are not part of it."
    )
    stream: bool | None = Field(None, description="Whether text is sent as it is written (server-sent events).")
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="Changes nothing.")
    frequency_penalty: _neutral(0) = None  # type: ignore[valid-type]
    presence_penalty: _neutral(0) = None  # type: ignore[valid-type]
    logit_bias: _neutral({}) = None  # type: ignore[valid-type]

    @property
    def choices(self) -> int:
        """Choices of each prompt."""
        return self.n or 1

    @property
    def stops(self) -> list[str]:
        """All stop strings."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


_Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, fail_fast=True)]


class CompletionRequest(_TextRequest):
    """Texts to be continued."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model": "titles", "prompt": "the film was", "max_tokens": 20}]}
    )
    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, fail_fast=True)]
        | _Ids
        | Annotated[list[_Ids], Field(min_length=1, fail_fast=True)]
    ) = Field(description="A text, texts, token ids, or lists of token ids.")
    logprobs: int | None = Field(None, ge=0, le=_MOST_LOGPROBS, description="How many tokens to list in each place.")
    template: bool = Field(
        False, description="Whether texts are written out as in training, not read as they are. Not one of OpenAI's."
    )
    best_of: _neutral(1) = None  # type: ignore[valid-type]
    echo: _neutral(False) = None  # type: ignore[valid-type]
    suffix: _neutral("") = None  # type: ignore[valid-type]

    @property
    def prompts(self) -> list[Any]:
        """Each text, or its token ids."""
        one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if one else list(self.prompt)

    @property
    def most_tokens(self) -> int | None:
        """Most tokens of a choice; None for as many as there is room for."""
        return self.max_tokens or 16

    @property
    def top_count(self) -> int | None:
        """How many tokens are listed in each place; None where log-probabilities are not wanted."""
        return self.logprobs


class TextPart(BaseModel, extra="forbid"):
    """A part of a message; only text is read."""

    type: Literal["text"]
    text: str


class Message(BaseModel, extra="forbid"):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant"] = Field(description="'developer' is read as 'system'.")
    content: str | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)] = Field(
        description="A text; of parts, each is a line."
    )
    name: _neutral() = None  # type: ignore[valid-type]
    refusal: _neutral() = None  # type: ignore[valid-type]
    audio: _neutral() = None  # type: ignore[valid-type]
    annotations: _neutral([]) = None  # type: ignore[valid-type]
    tool_calls: _neutral([]) = None  # type: ignore[valid-type]
    function_call: _neutral() = None  # type: ignore[valid-type]

    @property
    def text(self) -> str:
        """All of its text."""
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class ChatRequest(_TextRequest):
    """Messages to be answered."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "support", "messages": [{"role": "user", "content": "Where is my order?"}]}]
        }
    )
    messages: list[Message] = Field(min_length=1, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=1, description="Most tokens of a choice.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(
        None, ge=0, le=_MOST_LOGPROBS, description="How many tokens to list in each place."
    )
    response_format: _neutral({"type": "text"}) = None  # type: ignore[valid-type]
    modalities: _neutral(["text"]) = None  # type: ignore[valid-type]
    tools: _neutral([]) = None  # type: ignore[valid-type]
    tool_choice: _neutral("none") = None  # type: ignore[valid-type]
    functions: _neutral([]) = None  # type: ignore[valid-type]
    store: _neutral(False) = None  # type: ignore[valid-type]
    metadata: _neutral({}) = None  # type: ignore[valid-type]

    @property
    def most_tokens(self) -> int | None:
        """Most tokens of a choice; None for as many as there is room for."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def top_count(self) -> int | None:
        """How many tokens are listed in each place; None where log-probabilities are not wanted."""
        return (self.top_logprobs or 0) if self.logprobs else None


TextRequest = CompletionRequest | ChatRequest


# --- responses --------------------------------------------------------------------------------------------------------


class Model(BaseModel):
    """A prompt of a language model, or the model without one."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    parent: str | None = Field(description="The model that the prompt is for.")


class Models(BaseModel):
    """All models that generate text."""

    object: Literal["list"]
    data: list[Model]


class Usage(BaseModel):
    """Numbers of tokens: a prompt's own virtual tokens and what ended a text are not counted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class _Response(BaseModel):
    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage


class CompletionLogprobs(BaseModel):
    """Log-probabilities of a text's tokens, before temperature and top_p."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """A continuation."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(_Response):
    """The continuations, those of a prompt in turn."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class TopLogprob(BaseModel):
    """A token with its log-probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class ChatLogprob(TopLogprob):
    """A token of an answer with its log-probability, before temperature and top_p."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of an answer's tokens."""

    content: list[ChatLogprob]
    refusal: None


class Answer(BaseModel):
    """The message of the model."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    """An answer."""

    index: int
    message: Answer
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(_Response):
    """The answers."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class ErrorDetail(BaseModel):
    """An error, in one line."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """An error in OpenAI's form."""

    error: ErrorDetail


def openai_problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error responses of an endpoint, for its OpenAPI description."""
    texts = {**PROBLEMS, 400: PROBLEMS[422], 404: "No such model."}
    return {status: {"model": ErrorResponse, "description": texts[status]} for status in (401, 403, *statuses)}
