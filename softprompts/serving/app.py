"""The HTTP endpoints."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from importlib.resources import files
from typing import Annotated, Any

from fastapi import FastAPI, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from softprompts.model.card import count_parameters
from softprompts.serving import schemas
from softprompts.serving.engine import Loaded
from softprompts.serving.errors import ClosingError, RequestError
from softprompts.serving.middleware import Gate
from softprompts.serving.prompt_store import NAME
from softprompts.serving.requests import Asked, Writing, likelihoods, predicted, texts
from softprompts.serving.schemas import problems
from softprompts.serving.service import GoneError, Service, Ticket
from softprompts.serving.settings import Settings
from softprompts.serving.streaming import Stream
from softprompts.version import __version__

_ABOUT = """Many soft prompts on one frozen model. Rows of a request may each name a prompt of their own, and requests
that come together run in one pass. Errors are JSON with one line: `{"error": ...}`."""
_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_NO_JSON = "the body is not JSON"
_FIELD = 100  # most characters of a field's name, which errors tell
_ASKING = (404, 413, 422, 429, 500, 503, 504)
_Named = Annotated[str, Path(description="Name of a sub-folder of the prompts folder.", pattern=f"^{NAME}$")]


def create_app(service: Service) -> Gate:
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
    )
    _handle_errors(app)
    _add_state(app, service)
    _add_prompts(app, service)
    _add_asking(app, service)
    _add_playground(app)
    if service.settings.api_key:
        _say_key(app)
    return Gate(app, service)


# --- what is asked of prompts -----------------------------------------------------------------------------------------


def _add_asking(app: FastAPI, service: Service) -> None:
    settings = service.settings

    @app.post("/v1/predict", response_model=schemas.PredictResponse, responses=problems(*_ASKING), tags=["rows"])
    async def predict(request: Request, body: schemas.PredictRequest) -> Response:
        """Labels rows: classes, values, tags, choices or answers, each row under its own prompt."""
        asked = [_asked(service, row, body.prompt) for row in _few(body.inputs, settings.max_rows)]
        ticket = service.submit(asked, functools.partial(predicted, service.engine))
        answers = await _answers(service, ticket, request)
        return _json({"answers": answers, "cut": sum(part.cut for part in ticket.parts)})

    @app.post("/v1/score", response_model=schemas.ScoreResponse, responses=problems(*_ASKING), tags=["rows"])
    async def score(request: Request, body: schemas.ScoreRequest) -> Response:
        """Scores given continuations of texts under a language model."""
        asked = []
        for row in _few(body.inputs, settings.max_rows):
            _check_count(settings, row.continuations)
            _check(settings, row.continuations)
            one = _asked(service, row, body.prompt)
            asked.append(Asked(one.owner, one.text, tuple(row.continuations)))
        read = functools.partial(likelihoods, service.engine, end=body.end, template=body.template)
        return _json({"answers": await _answers(service, service.submit(asked, read), request)})

    @app.post(
        "/v1/generate",
        response_model=schemas.GenerateResponse,
        responses={**problems(*_ASKING), 200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
        tags=["rows"],
    )
    async def generate(request: Request, body: schemas.GenerateRequest) -> Response:
        """Writes on behind texts; with ``stream`` as server-sent events ``token``, ``done`` and ``error``."""
        if body.max_new_tokens > settings.max_new_tokens:
            raise RequestError(f"max_new_tokens is {body.max_new_tokens}: at most {settings.max_new_tokens}")
        asked = [_asked(service, row, body.prompt) for row in _few(body.inputs, settings.max_rows)]
        writing = Writing(body.max_new_tokens, body.temperature, body.top_p, body.seed, body.template)
        if not body.stream:
            read = functools.partial(texts, service.engine, writing=writing)
            return _json({"answers": await _answers(service, service.submit(asked, read), request)})
        stream = Stream(service, len(asked), _until(service))
        stream.start(service.submit(asked, functools.partial(texts, service.engine, writing=writing, emit=stream.emit)))
        await stream.first(request.receive)  # what is wrong with the request is told by its status
        return StreamingResponse(
            stream.events(),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )


def _until(service: Service) -> float:
    return asyncio.get_running_loop().time() + service.settings.timeout


async def _answers(service: Service, ticket: Ticket, request: Request) -> list[dict[str, Any]]:
    return await service.outcome(ticket, request.receive, _until(service))


def _few(rows: Sequence[Any], limit: int) -> Sequence[Any]:
    count = sum(len(getattr(row, "choices", None) or getattr(row, "continuations", None) or "1") for row in rows)
    if count > limit:
        beside = "" if count == len(rows) else ", each choice and continuation counted"
        raise RequestError(f"{count} rows{beside}; a request has at most {limit}")
    return rows


def _asked(service: Service, row: Any, prompt: str | None) -> Asked:
    """A row with its prompt, within the limits."""
    settings = service.settings
    if isinstance(row, str):
        _check(settings, [row])
        return Asked(service.find(prompt), row)
    if isinstance(row, list):
        _check(settings, row)
        return Asked(service.find(prompt), tuple(row))
    values = row.model_dump(exclude={"prompt", "continuations"}, exclude_none=True)
    _check_count(settings, values.get("choices") or ())
    single = [values[name] for name in ("text", "text_pair") if name in values]
    listed = ["".join(values.get(name) or ()) for name in ("words", "choices")]
    fields = values.get("fields") or {}
    if any(len(name) > _FIELD for name in fields):
        raise RequestError(f"a field's name has more than {_FIELD} characters")
    _check(settings, [*single, *fields, *fields.values(), *listed])
    return Asked(service.find(row.prompt or prompt), values)


def _check_count(settings: Settings, found: Sequence[str]) -> None:
    if len(found) > settings.max_choices:
        raise RequestError(f"{len(found)} choices or continuations; a row has at most {settings.max_choices}")


def _check(settings: Settings, found: Sequence[str]) -> None:
    longest = max(map(len, found), default=0)
    if longest > settings.max_text:
        raise RequestError(f"a text of {longest:,} characters; at most {settings.max_text:,} are read")
    try:
        "".join(found).encode()
    except UnicodeEncodeError as error:  # JSON can name halves of characters
        raise RequestError("a text has half a character (a lone surrogate) in it") from error


# --- prompts ----------------------------------------------------------------------------------------------------------


def _add_prompts(app: FastAPI, service: Service) -> None:
    @app.get("/v1/prompts", response_model=schemas.Prompts, responses=problems(503), tags=["prompts"])
    async def prompts() -> Response:
        """Lists the loaded prompts, and those that were left out with the reason."""
        found = [_told(loaded) for _, loaded in sorted(service.prompts.items())]
        for name, error in sorted(service.left_out.items()):
            found.append({"name": name, "loaded": False, "error": service.without_paths(error)})
        return _json({"model": service.engine.shown, "kind": service.engine.kind, "prompts": found})

    @app.get("/v1/prompts/{name}", response_model=schemas.Prompt, responses=problems(404, 422, 503), tags=["prompts"])
    async def prompt(name: _Named) -> Response:
        """Tells about a loaded prompt."""
        return _json(_told(service.find(name)))

    async def load(name: _Named) -> Response:
        """Loads a prompt of the folder; again where its files have changed. Rows under way end as they began."""
        there = name in service.prompts
        _, done = await service.load(name)
        return _json({"name": name, "status": ("reloaded" if there else "loaded") if done else "unchanged"})

    for method in ("PUT", "POST"):
        app.add_api_route(
            "/v1/prompts/{name}",
            load,
            methods=[method],
            response_model=schemas.Change,
            responses=problems(404, 409, 413, 422, 503),
            tags=["prompts"],
            operation_id=f"load_{method.lower()}",
        )

    @app.delete(
        "/v1/prompts/{name}", response_model=schemas.Change, responses=problems(404, 422, 503), tags=["prompts"]
    )
    async def unload(name: _Named) -> Response:
        """Forgets a prompt, once the rows under way are answered; its files stay."""
        await service.unload(name)
        return _json({"name": name, "status": "unloaded"})


def _told(loaded: Loaded) -> dict[str, Any]:
    reader = loaded.reader
    known = reader.told or reader.kind == "encoder"
    return {
        "name": loaded.name,
        "loaded": True,
        "method": loaded.config["method"],
        "task": reader.task.name if reader.told else None,
        "kind": reader.task.kind if known else None,
        "fields": list(reader.fields) if known else [],
        "labels": list(reader.labels),
        "max_length": reader.max_length,
        "parameters": count_parameters(loaded.config)[0],
    }


# --- the server itself ------------------------------------------------------------------------------------------------


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", tags=["server"])
    async def healthz() -> dict[str, str]:
        """Says that the process is there."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: problems(503)[503]}, tags=["server"])
    async def readyz() -> dict[str, str]:
        """Says whether requests are answered."""
        if not service.ready:
            raise ClosingError("the server is going down" if service.draining else "the model's thread has ended")
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response, responses=problems(503), tags=["server"])
    async def metrics() -> Response:
        """Counts, in the format of Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_playground(app: FastAPI) -> None:
    page = files("softprompts.serving") / "page"
    kinds = {
        "": ("playground.html", "text/html"),
        "playground.css": ("", "text/css"),
        "playground.js": ("", "text/javascript"),
    }
    for path, (file, media) in kinds.items():
        content = (page / (file or path)).read_bytes()
        headers = {
            "Content-Security-Policy": _POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        app.add_api_route(
            f"/{path}", _fixed(content, f"{media}; charset=utf-8", headers), methods=["GET"], include_in_schema=False
        )


def _fixed(content: bytes, media: str, headers: Mapping[str, str]) -> Callable[[], Response]:
    def answer() -> Response:
        return Response(content, media_type=media, headers=dict(headers))

    return answer


def _handle_errors(app: FastAPI) -> None:
    async def problem(_: Request, error: RequestError) -> Response:
        return JSONResponse({"error": str(error)}, error.status, error.headers)

    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return JSONResponse({"error": _first_of(error.errors())}, 422)

    async def other(_: Request, error: HTTPException) -> Response:
        if error.status_code == 400:  # bytes that are no text, or brackets without end
            return JSONResponse({"error": _NO_JSON}, 422)
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    async def gone(_: Request, error: GoneError) -> Response:
        return Response(status_code=499)

    for kind, handler in (
        (RequestError, problem),
        (RequestValidationError, invalid),
        (HTTPException, other),
        (GoneError, gone),
    ):
        app.add_exception_handler(kind, handler)  # type: ignore[arg-type]


def _first_of(errors: Sequence[Any]) -> str:
    """One line about what is wrong with a request; of the forms that a row may have, the one that comes nearest."""
    first = max(errors, key=lambda error: len(error.get("loc", ())))
    if first.get("type") == "json_invalid":
        return _NO_JSON
    place = ""
    for part in first.get("loc", ())[1:]:
        if isinstance(part, int):
            place += f"[{part}]"
        elif part in ("str", "Row") or part.startswith(("list[", "constrained")):
            continue  # which form was tried
        else:
            place += f".{part}" if place else part
    text = f"{place[:200]}: {first.get('msg', 'not what is expected')}" if place else str(first.get("msg", ""))
    return ascii(" ".join(text.split()))[1:-1] if not text.isascii() else " ".join(text.split())


def _json(content: Any) -> Response:
    """An answer; what is no number in JSON is an error, never sent."""
    return Response(json.dumps(content, ensure_ascii=False, allow_nan=False).encode(), media_type="application/json")


def _say_key(app: FastAPI) -> None:
    """Tells the documentation that a key is needed."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        found = made()
        found.setdefault("components", {})["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"key": []}]
        return found

    app.openapi = openapi  # type: ignore[method-assign]
