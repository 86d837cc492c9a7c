"""The HTTP endpoints."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import fastapi
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from softprompts.model.saving import counted
from softprompts.serving import schemas
from softprompts.serving.errors import ClosingError, FailedError, HungUpError, RequestError
from softprompts.serving.jobs import LoadedPrompt, RequestRow
from softprompts.serving.middleware import BEARER, KEY_HEADER, RequestMiddleware
from softprompts.serving.prompt_store import NAME
from softprompts.serving.requests import generate_jobs, predict_jobs, score_jobs
from softprompts.serving.schemas import problems
from softprompts.serving.service import Service
from softprompts.serving.settings import ServerSettings
from softprompts.serving.streaming import EventStream
from softprompts.version import __version__

_ABOUT = """Many soft prompts on one frozen model. Rows of a request may each name a prompt of their own, and requests
that come together run in one pass. Errors are JSON with one line: `{"error": ...}`."""
_PAGE = Path(__file__).with_name("page")
_PAGE_FILES = {  # path: file, media type
    "/": ("playground.html", "text/html"),
    "/playground.css": ("playground.css", "text/css"),
    "/playground.js": ("playground.js", "text/javascript"),
}
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_NOT_JSON = "the body is not JSON"
_MAX_FIELD_NAME = 100  # characters, since errors repeat the name
_ROW_PROBLEMS = (404, 413, 422, 429, 500, 503, 504)
_PromptName = Annotated[
    str, fastapi.Path(description="Name of a sub-folder of the prompts folder.", pattern=f"^{NAME}$")
]


def create_app(service: Service) -> RequestMiddleware:
    """The ASGI app of a service.

    Args:
        service: with its prompts loaded; its threads start and end with the app.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.close()

    app = FastAPI(
        title="softprompts",
        version=__version__,
        description=_ABOUT,
        lifespan=lifespan,
        redirect_slashes=False,
        exception_handlers={
            RequestError: _request_error,
            RequestValidationError: _validation_error,
            HTTPException: _http_error,
            HungUpError: _hung_up,
            Exception: _unexpected_error,
        },
    )
    # The key is checked by the middleware; the dependencies put it into the OpenAPI document.
    key = [Depends(BEARER), Depends(KEY_HEADER)] if service.settings.api_key else []
    app.include_router(_server_routes(service))
    for routes in (_metrics_route, _prompt_routes, _row_routes):
        app.include_router(routes(service), dependencies=key)
    for path, (file, media_type) in _PAGE_FILES.items():
        app.add_api_route(path, _file(_PAGE / file, media_type), include_in_schema=False)
    return RequestMiddleware(app, service)


# --- rows -------------------------------------------------------------------------------------------------------------


def _row_routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["rows"])
    settings = service.settings

    @router.post("/predict", response_model=schemas.PredictResponse, responses=problems(*_ROW_PROBLEMS))
    async def predict(request: Request, body: schemas.PredictRequest) -> Response:
        """Labels rows: classes, values, tags, choices or answers, each row under its own prompt."""
        pending = service.submit(_request_rows(service, body), predict_jobs)
        answers = await service.answers(pending, request.receive)
        return JSONResponse({"answers": answers, "cut": sum(job.cut for job in pending.jobs)})

    @router.post("/score", response_model=schemas.ScoreResponse, responses=problems(*_ROW_PROBLEMS))
    async def score(request: Request, body: schemas.ScoreRequest) -> Response:
        """Scores given continuations of texts under a language model."""
        make_jobs = partial(score_jobs, end=body.end, template=body.template)
        pending = service.submit(_request_rows(service, body), make_jobs)
        return JSONResponse({"answers": await service.answers(pending, request.receive)})

    @router.post(
        "/generate",
        response_model=schemas.GenerateResponse,
        responses={
            **problems(*_ROW_PROBLEMS),
            200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
        },
    )
    async def generate(request: Request, body: schemas.GenerateRequest) -> Response:
        """Continues texts; with ``stream`` as server-sent events ``token``, ``done`` and ``error``."""
        if body.max_new_tokens > settings.max_new_tokens:
            raise RequestError(f"max_new_tokens is {body.max_new_tokens}: at most {settings.max_new_tokens}")
        rows = _request_rows(service, body)
        if not body.stream:
            pending = service.submit(rows, partial(generate_jobs, options=body))
            return JSONResponse({"answers": await service.answers(pending, request.receive)})
        events = await EventStream(service, rows, body).start(request.receive)
        return StreamingResponse(events, media_type="text/event-stream", headers=_STREAM_HEADERS)

    return router


def _request_rows(
    service: Service, body: schemas.PredictRequest | schemas.ScoreRequest | schemas.GenerateRequest
) -> list[RequestRow]:
    """The rows of a request with their prompts.

    Raises:
        RequestError: a row exceeds a limit or names an unknown prompt, or there are too many rows.
    """
    rows: Sequence[Any] = body.inputs
    limit = service.settings.max_rows
    count = sum(len(getattr(row, "choices", None) or getattr(row, "continuations", None) or "1") for row in rows)
    if count > limit:
        counted_as = "" if count == len(rows) else ", each choice and continuation counted"
        raise RequestError(f"{count} rows{counted_as}; a request has at most {limit}")
    return [_request_row(service, row, body.prompt) for row in rows]


def _request_row(service: Service, row: Any, prompt: str | None) -> RequestRow:
    if isinstance(row, str | list):
        content: Any = row if isinstance(row, str) else tuple(row)
        _check_texts(service.settings, [row] if isinstance(row, str) else row)
        return RequestRow(service.find(prompt), content)
    content = row.model_dump(exclude={"prompt", "continuations"}, exclude_none=True)
    continuations, choices = getattr(row, "continuations", ()), content.get("choices", ())
    if max(len(choices), len(continuations)) > service.settings.max_choices:
        count = max(len(choices), len(continuations))
        raise RequestError(f"{count} choices or continuations; a row has at most {service.settings.max_choices}")
    fields = content.get("fields", {})
    if any(len(name) > _MAX_FIELD_NAME for name in fields):
        raise RequestError(f"a field's name has more than {_MAX_FIELD_NAME} characters")
    single = [content[name] for name in ("text", "text_pair") if name in content]
    joined = ["".join(content.get("words", ())), "".join(choices)]
    _check_texts(service.settings, [*single, *fields, *fields.values(), *joined, *continuations])
    return RequestRow(service.find(row.prompt or prompt), content, continuations)


def _check_texts(settings: ServerSettings, texts: Sequence[str]) -> None:
    longest = max(map(len, texts), default=0)
    if longest > settings.max_text:
        raise RequestError(f"a text of {longest:,} characters; at most {settings.max_text:,} are read")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:  # JSON can hold one half of a surrogate pair
        raise RequestError("a text has half a character (a lone surrogate) in it") from error


# --- prompts ----------------------------------------------------------------------------------------------------------


def _prompt_routes(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1/prompts", tags=["prompts"])

    @router.get("", response_model=schemas.Prompts, responses=problems(503))
    async def prompts() -> Response:
        """Lists the loaded prompts, and those that were left out with the reason."""
        listed = [_description(prompt) for _, prompt in sorted(service.prompts.items())]
        for name, error in sorted(service.left_out.items()):
            listed.append({"name": name, "loaded": False, "error": service.without_paths(error)})
        return JSONResponse({"model": service.engine.model_name, "kind": service.engine.kind, "prompts": listed})

    @router.get("/{name}", response_model=schemas.Prompt, responses=problems(404, 422, 503))
    async def prompt(name: _PromptName) -> Response:
        """Describes a loaded prompt."""
        return JSONResponse(_description(service.find(name)))

    async def load(name: _PromptName) -> Response:
        """Loads a prompt of the folder; again where its files have changed. Rows under way end as they began."""
        return JSONResponse({"name": name, "status": await service.load(name)})

    for method in ("PUT", "POST"):
        router.add_api_route(
            "/{name}",
            load,
            methods=[method],
            response_model=schemas.Change,
            responses=problems(404, 409, 413, 422, 503),
            operation_id=f"load_{method.lower()}",
        )

    @router.delete("/{name}", response_model=schemas.Change, responses=problems(404, 422, 503))
    async def unload(name: _PromptName) -> Response:
        """Unloads a prompt, once the rows under way are answered; its files stay."""
        await service.unload(name)
        return JSONResponse({"name": name, "status": "unloaded"})

    return router


def _description(prompt: LoadedPrompt) -> dict[str, Any]:
    reader = prompt.reader
    known = reader.told or reader.kind == "encoder"
    return {
        "name": prompt.name,
        "loaded": True,
        "method": prompt.config["method"],
        "task": reader.task.name if reader.told else None,
        "kind": reader.task.kind if known else None,
        "fields": list(reader.fields) if known else [],
        "labels": list(reader.labels),
        "max_length": reader.max_length,
        "parameters": counted(prompt.config)[0],
    }


# --- the server itself ------------------------------------------------------------------------------------------------


def _server_routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["server"])

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Says that the process runs."""
        return {"status": "ok"}

    @router.get("/readyz", responses={503: problems(503)[503]})
    async def readyz() -> dict[str, str]:
        """Says whether requests are answered."""
        if not service.ready:
            raise ClosingError("the server is going down" if service.draining else "the model's thread has ended")
        return {"status": "ready"}

    return router


def _metrics_route(service: Service) -> APIRouter:
    router = APIRouter(tags=["server"])

    @router.get("/metrics", response_class=Response, responses=problems(503))
    async def metrics() -> Response:
        """Metrics in the format of Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _file(path: Path, media_type: str) -> Callable[[], Response]:
    return lambda: FileResponse(path, media_type=media_type, headers=_PAGE_HEADERS)


# --- errors -----------------------------------------------------------------------------------------------------------


async def _request_error(_: Request, error: Any) -> Response:
    return error.response()  # type: ignore[no-any-return]


async def _validation_error(_: Request, error: Any) -> Response:
    return RequestError(_validation_text(error.errors())).response()


async def _http_error(_: Request, error: Any) -> Response:
    if error.status_code == 400:  # no text, or too deeply nested
        return RequestError(_NOT_JSON).response()
    return RequestError(str(error.detail), error.headers, error.status_code).response()


async def _hung_up(_: Request, error: Any) -> Response:
    return Response(status_code=499)


async def _unexpected_error(_: Request, error: Any) -> Response:
    return FailedError(f"the request failed ({type(error).__name__})").response()


def _validation_text(errors: Sequence[Any]) -> str:
    """One line about a body that does not follow its schema; of a row's alternatives, about the one tried furthest."""
    deepest = max(errors, key=lambda error: len(error["loc"]))
    if deepest["type"] == "json_invalid":
        return _NOT_JSON
    place = ""
    for part in deepest["loc"][1:]:
        if isinstance(part, int):
            place += f"[{part}]"
        elif part not in ("str", "Row") and not part.startswith(("list[", "constrained")):  # names of alternatives
            place += f".{part}" if place else part
    text = " ".join((f"{place[:200]}: {deepest['msg']}" if place else deepest["msg"]).split())
    return text if text.isascii() else ascii(text)[1:-1]
