"""The application as a deployment of Ray Serve: replicas of the model, on any number of machines, behind one address.

A front passes each request on to a replica. Where the replica dies before its answer has begun, the front asks another:
nothing is changed by a request, so it may be answered twice. Ray starts a new replica in its place.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Message

from softprompts.errors import SoftPromptError
from softprompts.serving.app import create_app
from softprompts.serving.engine import EngineOptions
from softprompts.serving.errors import RequestError
from softprompts.serving.prompt_store import PromptStore
from softprompts.serving.server import listen
from softprompts.serving.service import Service, open_service
from softprompts.serving.settings import ServerSettings

APP, REPLICA, FRONT = "softprompts", "replica", "front"
_PAUSE = 0.05  # seconds until another replica is asked
_STARTS = 3  # times that Ray Serve may take longer to start than it waits, a minute
_SHUT = {"/v1/prompts/": "replicas load their prompts when they start: restart the server to change them"}
_SCOPE = ("method", "path", "raw_path", "query_string", "headers", "http_version", "scheme", "client", "server")


class Replica:
    """The application with a model of its own."""

    def __init__(self, options: EngineOptions, folder: Path, settings: ServerSettings, strict: bool):
        self._problem, self._started = "", False
        try:
            self._service: Service = open_service(options, PromptStore(folder), settings, strict)
            self._app = create_app(self._service)
        except (SoftPromptError, OSError) as error:  # Ray would show a traceback, and try again
            self._problem = str(error)

    def describe(self) -> dict[str, Any]:
        """The model's name, the number of prompts, and those left out with the reason; or ``problem`` alone."""
        if self._problem:
            return {"problem": self._problem}
        service = self._service
        return {"model": service.engine.model_name, "count": len(service.prompts), "left_out": service.left_out}

    def check_health(self) -> None:
        """Raises where the replica cannot answer; Ray calls it."""
        if self._problem or (self._started and not self._service.ready):
            raise RuntimeError(self._problem or "the model's thread has ended")

    async def answer(self, scope: Mapping[str, Any], body: bytes) -> AsyncIterator[Message]:
        """The messages, by the ASGI protocol, that answer a request."""
        if not self._started:
            self._service.start()
            self._started = True
        request: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        messages: asyncio.Queue[Message | None] = asyncio.Queue()

        async def receive() -> Message:
            return request.pop() if request else await asyncio.Future()  # a client that hangs up cancels the call

        async def run() -> None:
            try:
                await self._app(dict(scope), receive, messages.put)
            finally:
                messages.put_nowait(None)

        task = asyncio.ensure_future(run())
        try:
            while (message := await messages.get()) is not None:
                yield message
        finally:
            task.cancel()


class Front:
    """Passes requests on to replicas."""

    def __init__(self, replicas: Any, settings: ServerSettings):
        self._replicas, self._settings = replicas.options(stream=True), settings
        self._lost: Any = importlib.import_module("ray.exceptions").RayActorError

    async def __call__(self, request: Request) -> Response:
        """Answers a request by one replica, or by another where that one dies first."""
        path = request.scope["path"]
        for begin, text in _SHUT.items():
            if path.startswith(begin) and request.method != "GET":
                return RequestError(text, 409).response()
        body = await self._body(request)
        scope = {"type": "http", "asgi": {"version": "3.0"}, "root_path": ""}
        scope |= {name: request.scope[name] for name in _SCOPE if name in request.scope}
        until = time.monotonic() + self._settings.timeout
        while True:
            messages = self._replicas.answer.remote(scope, body)
            try:
                first = await anext(messages)
                break
            except self._lost:
                if time.monotonic() > until:
                    return RequestError("no replica answers", 503, {"Retry-After": "5"}).response(path)
                await asyncio.sleep(_PAUSE)
        response = StreamingResponse(self._rest(messages, path), first["status"])
        response.raw_headers = [(bytes(name), bytes(value)) for name, value in first["headers"]]
        return response

    async def _body(self, request: Request) -> bytes:
        """The body, no more of it than shows the replica that it is too long."""
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._settings.max_body:
                break
        return bytes(body)

    async def _rest(self, messages: Any, path: str) -> AsyncIterator[bytes]:
        try:
            async for message in messages:
                yield message.get("body", b"")
        except self._lost:  # in the middle of a stream
            yield RequestError("the replica that wrote this has died; ask again", 503).event(path)


def run_replicas(
    options: EngineOptions,
    folder: Path,
    settings: ServerSettings,
    strict: bool,
    count: int,
    host: str,
    port: int,
    tell: Callable[[str, int, Mapping[str, str], int], None],
) -> None:
    """Serves by replicas in the Ray cluster of ``RAY_ADDRESS``, else in one on this machine, until a signal to end.

    Args:
        options: the model of each replica.
        folder: the prompts; all machines must see it.
        settings: limits of each replica.
        strict: whether to end where a prompt cannot be loaded.
        count: number of replicas.
        host: address to listen at.
        port: its port; 0 takes a free one.
        tell: called with the model, the number of prompts, what was left out and the port, when requests are accepted.

    Raises:
        SoftPromptError: Ray, the address, the model or a prompt cannot be used, or the cluster is too small.
    """
    ray, serve = _ray()
    with listen(host, port) as listener:  # Ray would wait for an address that is taken
        port = listener.getsockname()[1]
    own = _start(ray, count)
    gpus = 1 if ray.cluster_resources().get("GPU") and options.device != "cpu" else 0
    try:
        room = int(ray.cluster_resources().get("GPU" if gpus else "CPU", 0))
        if count > room:
            raise SoftPromptError(f"--replicas {count}: the cluster has {room} {'GPUs' if gpus else 'cores'}")
        _start_serve(serve, host, port)
        replica = serve.deployment(Replica, name=REPLICA).options(
            num_replicas=count,
            max_ongoing_requests=settings.queue,
            ray_actor_options={"num_cpus": 0 if gpus else 1, "num_gpus": gpus},
            graceful_shutdown_timeout_s=settings.timeout,
        )
        front = serve.deployment(Front, name=FRONT).options(
            max_ongoing_requests=2 * count * settings.queue, ray_actor_options={"num_cpus": 0}
        )
        bound = front.bind(replica.bind(options, folder, settings, strict), settings)
        serve.run(bound, name=APP, route_prefix="/")
        found = serve.get_deployment_handle(REPLICA, APP).describe.remote().result()
        if "problem" in found:
            raise SoftPromptError(found["problem"])
        ended = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())
        tell(found["model"], found["count"], found["left_out"], port)
        ended.wait()
    finally:
        if own:
            serve.shutdown()
            ray.shutdown()
        else:
            serve.delete(APP)


def _start_serve(serve: Any, host: str, port: int) -> None:
    """Starts Ray Serve, whose patience with its own processes is too short for a busy machine."""
    for left in range(_STARTS - 1, -1, -1):
        try:
            serve.start(http_options={"host": host, "port": port}, logging_config={"log_level": "ERROR"})
            return
        except Exception as error:  # of many kinds
            if not (left and isinstance(error, TimeoutError)):
                raise SoftPromptError(f"Ray Serve does not start ({' '.join(str(error).split())[:200]})") from error


def _ray() -> tuple[Any, Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # On a busy machine five seconds are too few to start a proxy; Ray would kill it and start it again, for ever.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "120")
    try:
        return importlib.import_module("ray"), importlib.import_module("ray.serve")  # an extra
    except ImportError as error:
        raise SoftPromptError("--engine ray needs Ray Serve: pip install 'ray[serve]'") from error


def _start(ray: Any, count: int) -> bool:
    """Joins the cluster, or starts one with a core for each replica; returns whether it was started here."""
    address = os.environ.get("RAY_ADDRESS")
    size = {} if address else {"num_cpus": max(count, os.cpu_count() or 1), "include_dashboard": False}
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    try:
        ray.init(address=address or "local", **quiet, **size)
    except Exception as error:
        raise SoftPromptError(f"Ray cannot be started or reached ({' '.join(str(error).split())[:200]})") from error
    return not address
