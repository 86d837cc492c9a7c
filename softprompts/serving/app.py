"""The HTTP endpoints."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import fastapi
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from softprompts.model.card import count_parameters
from softprompts.plotting import css
from softprompts.serving import schemas
from softprompts.serving.errors import RequestError
from softprompts.serving.jobs import LoadedPrompt, RequestRow
from softprompts.serving.middleware import BEARER, DOCS_FILES, KEY_HEADER, RequestMiddleware
from softprompts.serving.openai.routes import add_openai
from softprompts.serving.prompt_store import NAME
from softprompts.serving.requests import check_texts, generate_jobs, predict_jobs, score_jobs
from softprompts.serving.schemas import problems
from softprompts.serving.service import Service
from softprompts.serving.streaming import HEADERS, event_stream
from softprompts.serving.validation_errors import answer_error, check_content_type
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
_PromptName = Annotated[
    str, fastapi.Path(description="Name of a sub-folder of the prompts folder.", pattern=f"^{NAME}$")
]


def create_app(service: Service) -> RequestMiddleware:
    """The ASGI app of a service, whose threads start and end with it."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.close()

    app = FastAPIOffline(  # its viewers of the API load nothing from elsewhere
        static_url=DOCS_FILES,
        swagger_ui_parameters={"validatorUrl": None},
        title="softprompts",
        version=__version__,
        description=_ABOUT,
        lifespan=lifespan,
        redirect_slashes=False,
        exception_handlers=dict.fromkeys(
            (RequestError, RequestValidationError, HTTPException, Exception), answer_error
        ),
    )
    # The key is checked by the middleware; the dependencies put it into the OpenAPI document.
    router = APIRouter(dependencies=[Depends(BEARER), Depends(KEY_HEADER)] if service.settings.api_key else [])
    _add_state(app, router, service)
    _add_prompts(router, service)
    _add_rows(router, service)
    add_openai(router, service)
    app.include_router(router)
    for path, (file, media_type) in _PAGE_FILES.items():
        app.add_api_route(path, _file(_PAGE / file, media_type), include_in_schema=False)
    app.add_api_route("/palette.css", _palette, include_in_schema=False)
    return RequestMiddleware(app, service)


# --- rows -------------------------------------------------------------------------------------------------------------


def _add_rows(every: APIRouter, service: Service) -> None:
    router = APIRouter(dependencies=[Depends(check_content_type)])
    responses = problems(404, 413, 415, 422, 429, 500, 503, 504)
    most_tokens = service.settings.max_new_tokens

    @router.post("/v1/predict", response_model=schemas.PredictResponse, responses=responses, tags=["rows"])
    async def predict(request: Request, body: schemas.PredictRequest) -> Response:
        """Labels rows: classes, values, tags, choices or answers, each row under its own prompt."""
        pending = service.submit(_request_rows(service, body), predict_jobs)
        answers = await service.wait(pending, pending.future, request.receive)
        return JSONResponse({"answers": answers, "cut": sum(job.cut for job in pending.jobs)})

    @router.post("/v1/score", response_model=schemas.ScoreResponse, responses=responses, tags=["rows"])
    async def score(request: Request, body: schemas.ScoreRequest) -> Response:
        """Scores given continuations of texts under a language model."""
        pending = service.submit(_request_rows(service, body), partial(score_jobs, options=body))
        return JSONResponse({"answers": await service.wait(pending, pending.future, request.receive)})

    stream: dict[int | str, Any] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}

    @router.post(
        "/v1/generate", response_model=schemas.GenerateResponse, responses={**responses, **stream}, tags=["rows"]
    )
    async def generate(request: Request, body: schemas.GenerateRequest) -> Response:
        """Continues texts; with ``stream`` as server-sent events ``token``, ``done`` and ``error``."""
        if body.max_new_tokens > most_tokens:
            raise RequestError(f"max_new_tokens is {body.max_new_tokens}: at most {most_tokens}")
        rows = _request_rows(service, body)
        if not body.stream:
            pending = service.submit(rows, partial(generate_jobs, options=body))
            return JSONResponse({"answers": await service.wait(pending, pending.future, request.receive)})
        events = await event_stream(service, rows, body, request.receive)
        return StreamingResponse(events, media_type="text/event-stream", headers=HEADERS)

    every.include_router(router)


def _request_rows(service: Service, body: Any) -> list[RequestRow]:
    """The rows of a request with their prompts, within the limits."""
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
        check_texts(service.settings, [row] if isinstance(row, str) else row)
        return RequestRow(service.find(prompt), content)
    content = row.model_dump(exclude={"prompt", "continuations"}, exclude_none=True)
    continuations, choices = getattr(row, "continuations", ()), content.get("choices", ())
    count = max(len(choices), len(continuations))
    if count > service.settings.max_choices:
        raise RequestError(f"{count} choices or continuations; a row has at most {service.settings.max_choices}")
    fields = content.get("fields", {})
    single = [content[name] for name in ("text", "text_pair") if name in content]
    joined = ["".join(content.get("words", ())), "".join(choices)]
    check_texts(service.settings, [*single, *fields, *fields.values(), *joined, *continuations])
    return RequestRow(service.find(row.prompt or prompt), content, continuations)


# --- prompts ----------------------------------------------------------------------------------------------------------


def _add_prompts(router: APIRouter, service: Service) -> None:
    path = "/v1/prompts/{name}"

    @router.get("/v1/prompts", response_model=schemas.Prompts, responses=problems(503), tags=["prompts"])
    async def prompts() -> Response:
        """Lists the loaded prompts, and those that were left out with the reason."""
        listed = [_description(prompt) for _, prompt in sorted(service.prompts.items())]
        for name, error in sorted(service.left_out.items()):
            listed.append({"name": name, "loaded": False, "error": service.without_paths(error)})
        return JSONResponse({"model": service.engine.model_name, "kind": service.engine.kind, "prompts": listed})

    @router.get(path, response_model=schemas.Prompt, responses=problems(404, 422, 503), tags=["prompts"])
    async def prompt(name: _PromptName) -> Response:
        """Describes a loaded prompt."""
        return JSONResponse(_description(service.find(name)))

    change: dict[str, Any] = {
        "response_model": schemas.Change,
        "responses": problems(404, 409, 413, 422, 503),
        "tags": ["prompts"],
    }

    @router.put(path, operation_id="load_put", **change)
    @router.post(path, operation_id="load_post", **change)
    async def load(name: _PromptName) -> Response:
        """Loads a prompt of the folder; again where its files have changed. Rows under way end as they began."""
        return JSONResponse({"name": name, "status": await service.load(name)})

    @router.delete(path, response_model=schemas.Change, responses=problems(404, 422, 503), tags=["prompts"])
    async def unload(name: _PromptName) -> Response:
        """Unloads a prompt, once the rows under way are answered; its files stay."""
        await service.unload(name)
        return JSONResponse({"name": name, "status": "unloaded"})


def _description(prompt: LoadedPrompt) -> dict[str, Any]:
    reader = prompt.reader
    known = reader.knows_task or reader.kind == "encoder"
    return {
        "name": prompt.name,
        "loaded": True,
        "method": prompt.config["method"],
        "task": reader.task.name if reader.knows_task else None,
        "kind": reader.task.kind if known else None,
        "fields": list(reader.fields) if known else [],
        "labels": list(reader.labels),
        "column": _label_column(prompt.config),
        "max_length": reader.max_length,
        "parameters": count_parameters(prompt.config)[0],
    }


def _label_column(config: Mapping[str, Any]) -> str | None:
    """The column that a prompt of a user's file was trained to tell; of a task by name there is none to speak of."""
    data = (config.get("metadata") or {}).get("data")
    return data.get("label") if isinstance(data, Mapping) and data.get("task") is None else None


# --- the server itself ------------------------------------------------------------------------------------------------


def _add_state(app: FastAPI, router: APIRouter, service: Service) -> None:
    @app.get("/healthz", tags=["server"])
    async def healthz() -> dict[str, str]:
        """Says that the process runs."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: problems(503)[503]}, tags=["server"])
    async def readyz() -> dict[str, str]:
        """Says whether requests are answered."""
        if not service.ready:
            raise RequestError("the server is going down" if service.draining else "the model's thread has ended", 503)
        return {"status": "ready"}

    @router.get("/metrics", response_class=Response, responses=problems(503), tags=["server"])
    async def metrics() -> Response:
        """Metrics in the format of Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _file(path: Path, media_type: str) -> Callable[[], Response]:
    return lambda: FileResponse(path, media_type=media_type, headers=_PAGE_HEADERS)


def _palette() -> Response:
    return Response(css(), media_type="text/css", headers=_PAGE_HEADERS)
