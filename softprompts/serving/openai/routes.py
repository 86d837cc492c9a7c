"""The endpoints of OpenAI's interface."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from softprompts.serving.errors import OPENAI_PATHS, RequestError
from softprompts.serving.jobs import LoadedPrompt, PendingRequest, RequestRow
from softprompts.serving.openai import schemas
from softprompts.serving.openai.choices import ChatFormat, ChoiceWriter, CompletionFormat
from softprompts.serving.openai.requests import text_jobs
from softprompts.serving.openai.schemas import ChatRequest, CompletionRequest, TextRequest, openai_problems
from softprompts.serving.requests import check_texts
from softprompts.serving.service import Service
from softprompts.serving.streaming import HEADERS, Tokens, open_stream
from softprompts.serving.validation_errors import check_content_type
from softprompts.version import __version__

_FINGERPRINT = f"softprompts-{__version__}"
_STREAM: dict[int | str, Any] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}


def add_openai(router: APIRouter, service: Service) -> None:
    """Adds the endpoints to a router."""
    problems = openai_problems(400, 404, 413, 415, 429, 500, 503, 504)
    started = int(time.time())

    @router.get("/v1/models", response_model=schemas.Models, responses=openai_problems(503), tags=["openai"])
    async def models() -> Response:
        """Lists the prompts that generate text, and the model without a prompt."""
        data = [_description(service, name, model, started) for name, model in _models(service).items()]
        return JSONResponse({"object": "list", "data": data})

    @router.get(
        "/v1/models/{model:path}",
        response_model=schemas.Model,
        responses=openai_problems(400, 404, 503),
        tags=["openai"],
    )
    async def model(model: str) -> Response:
        """Describes a prompt that generates text, or the model without a prompt."""
        return JSONResponse(_description(service, model, _find(service, model), started))

    posts = APIRouter(dependencies=[Depends(check_content_type)], tags=["openai"])

    @posts.post("/v1/completions", response_model=schemas.Completion, responses={**problems, **_STREAM})
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """Continues texts, as they are."""
        texts = [text for text in body.prompts if isinstance(text, str)]
        return await _answer(service, request, body, body.prompts, texts, CompletionFormat())

    @posts.post("/v1/chat/completions", response_model=schemas.ChatCompletion, responses={**problems, **_STREAM})
    async def chat(request: Request, body: ChatRequest) -> Response:
        """Answers messages, written out by the chat template of the model's tokenizer."""
        if body.top_logprobs is not None and not body.logprobs:
            raise RequestError("top_logprobs: needs 'logprobs': true", param="top_logprobs")
        if body.max_tokens and body.max_completion_tokens and body.max_tokens != body.max_completion_tokens:
            text = "max_tokens: is another name for max_completion_tokens; send one of them"
            raise RequestError(text, param="max_tokens")
        texts = [message.text for message in body.messages]
        return await _answer(service, request, body, [body.messages], texts, ChatFormat())

    router.include_router(posts)


# --- models -----------------------------------------------------------------------------------------------------------


def _models(service: Service) -> dict[str, LoadedPrompt]:
    """What generates text, by name."""
    models = {name: prompt for name, prompt in sorted(service.prompts.items()) if prompt.writes}
    return models if service.bare is None else {**models, _bare_name(service): service.bare}


def _bare_name(service: Service) -> str:
    """The name of the model without a prompt, which a prompt may have too."""
    name = service.engine.model_name
    return f"base/{name}" if name in service.prompts else name


def _find(service: Service, name: str) -> LoadedPrompt:
    models = _models(service)
    if name in models:
        return models[name]
    if name in service.prompts:
        text = f"'{name}' labels texts and generates none: ask it at /v1/predict"
        raise RequestError(text, param="model", code="model_not_supported")
    text = f"there is no model {name[:100]!a}; GET /v1/models lists those that generate text"
    raise RequestError(text, 404, param="model", code="model_not_found")


def _description(service: Service, name: str, model: LoadedPrompt, started: int) -> dict[str, Any]:
    created = started if model.stamp is None else model.stamp[0][0] // 10**9
    parent = None if model.module is None else _bare_name(service)
    return {"id": name, "object": "model", "created": created, "owned_by": "softprompts", "parent": parent}


# --- text -------------------------------------------------------------------------------------------------------------


async def _answer(
    service: Service,
    request: Request,
    body: TextRequest,
    contents: Sequence[Any],
    texts: Sequence[str],
    form: CompletionFormat | ChatFormat,
) -> Response:
    """Answers a request with a choice or more for each of its contents."""
    prompt, settings = _find(service, body.model), service.settings
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options: only with 'stream': true", param="stream_options")
    if (body.most_tokens or 0) > settings.max_new_tokens:
        name = "max_completion_tokens" if getattr(body, "max_completion_tokens", None) else "max_tokens"
        raise RequestError(f"{name}: {body.most_tokens}; at most {settings.max_new_tokens}", param=name)
    count = len(contents) * body.choices
    if count > settings.max_rows:
        raise RequestError(f"n: {count} choices; a request has at most {settings.max_rows}", param="n")
    check_texts(settings, [*texts, *body.stops])
    rows = [RequestRow(prompt, content) for content in contents for _ in range(body.choices)]
    make_jobs = partial(text_jobs, body, settings.max_new_tokens)
    head = {
        "id": f"{form.prefix}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": body.model,
        "system_fingerprint": _FINGERPRINT,
    }
    if body.stream:
        pending, tokens = await open_stream(service, rows, make_jobs, request.receive)
        events = _events(service, pending, tokens, body, {**head, "object": form.part}, form)
        return StreamingResponse(events, media_type="text/event-stream", headers=HEADERS)
    pending = service.submit(rows, make_jobs)
    answers = await service.wait(pending, pending.future, request.receive)
    choices = [form.choice(index, answer["choice"]) for index, answer in enumerate(answers)]
    return JSONResponse({**head, "object": form.whole, "choices": choices, "usage": _usage(answers, body.choices)})


async def _events(
    service: Service,
    request: PendingRequest,
    tokens: Tokens,
    body: TextRequest,
    head: dict[str, Any],
    form: CompletionFormat | ChatFormat,
) -> AsyncIterator[bytes]:
    """The events of a stream: chunks of the choices as they are written, each ending with its reason."""
    writers = [ChoiceWriter(service.engine.decoder, row) for job in request.jobs for row in job.generation]
    usage = {"usage": None} if body.include_usage else {}

    def chunk(choice: dict[str, Any]) -> bytes:
        return _event({**head, "choices": [choice], **usage})

    try:
        for index in range(len(writers)):
            if opening := form.opening(index):
                yield chunk(opening)
        async for index, token in tokens:
            if piece := writers[index].add(token):
                yield chunk(form.delta(index, piece))
        answers = await request.future
        for index, writer in enumerate(writers):
            yield chunk(form.delta(index, writer.end()))
        if body.include_usage:
            yield _event({**head, "choices": [], "usage": _usage(answers, body.choices)})
        yield b"data: [DONE]\n\n"
    except RequestError as error:
        yield error.event(OPENAI_PATHS[0])
    finally:
        request.dropped = True


def _usage(answers: Sequence[dict[str, Any]], choices: int) -> dict[str, int]:
    """Numbers of tokens; the input of several choices is counted once."""
    read = sum(answer["input_tokens"] for answer in answers[::choices])
    written = sum(answer["tokens"] for answer in answers)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _event(data: Any) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False, allow_nan=False)}\n\n".encode()
