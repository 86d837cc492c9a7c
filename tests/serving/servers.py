"""Saved prompts of all kinds on tiny models, servers on the loopback address, and light clients."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import uvicorn
from saved import model_folder

import softprompts as sp
from softprompts.backbones.loading import load_backbone
from softprompts.serving.app import create_app
from softprompts.serving.engine import Engine
from softprompts.serving.prompt_store import PromptStore
from softprompts.serving.server import Server
from softprompts.serving.service import Service
from softprompts.serving.settings import ServerSettings
from softprompts.tasks import Form

WORDS = ["the", "film", "plot", "was", "good", "bad", "very", "nice", "awful", "first", "second", "fine"]
LABELS = ("negative", "positive")
FORMS = {
    "two": Form(labels=LABELS),
    "pair": Form(labels=("0", "1", "2"), fields=("first", "second")),
    "score": Form(kind="regression"),
    "choice": Form(kind="choice", fields=("question",)),
    "tags": Form(kind="tagging", labels=("O", "B-X", "I-X"), fields=("words",)),
    "span": Form(kind="span", fields=("question", "context")),
    "writes": Form(kind="span", fields=("question", "context")),
}
METHODS = {
    "prompt": sp.PromptTuningConfig(num_virtual_tokens=3),
    "prefix": sp.PrefixTuningConfig(num_virtual_tokens=4),
    "mask": sp.MultiMaskConfig(num_virtual_tokens=2),
    "dept": sp.DePTConfig(num_virtual_tokens=3, rank=2),
    "smop": sp.SMoPConfig(num_virtual_tokens=2),
    "lora": sp.LoraConfig(rank=2),
}
ENCODER_TASKS = ("two", "pair", "score", "choice", "tags", "span")
WRITER_TASKS = ("two", "pair", "writes")


def save(family: str, folder: Path, name: str, task: str, method: sp.MethodConfig, seed: int = 0) -> Path:
    """Saves a random prompt."""
    form = FORMS[task]
    encoder = family == "bert"
    tokens = encoder and form.kind in ("tagging", "span")
    model = sp.attach(load_backbone(model_folder(family), tokens)[1])
    count = {"regression": 1, "choice": 1, "span": 2}.get(form.kind)
    labels = list(form.labels) or None
    model.add_prompt("p", method, labels=labels if encoder else None, num_labels=count if encoder else None, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.prompts["p"].parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=draw)
    model.save_prompt("p", folder / name, {"task": name, "task_form": form.to_dict(), "max_length": 24})
    return folder / name


def save_all(family: str, folder: Path, tasks: Sequence[str]) -> list[str]:
    """Saves a prompt of each method for each task."""
    names = []
    for number, (method, task) in enumerate((method, task) for task in tasks for method in METHODS):
        names.append(save(family, folder, f"{method}-{task}", task, METHODS[method], number).name)
    return names


def service_of(family: str, folder: Path, *, strict: bool = True, **settings: Any) -> Service:
    """A service with the prompts of a folder; unless strict, without those that cannot be loaded."""
    service = Service(Engine(model_folder(family)), PromptStore(folder), ServerSettings(**settings))
    service.load_all(strict=strict)
    return service


class Running:
    """A server in a thread.

    Attributes:
        port: where it listens.
        service: what it serves.
        server: it.
    """

    def __init__(self, service: Service):
        self.service = service
        self.port = 0
        self.listening = threading.Event()
        config = uvicorn.Config(create_app(service), port=0, access_log=False, log_level="warning")
        config.timeout_graceful_shutdown = 5
        self.server = Server(service, config, self._listening)
        self.thread = threading.Thread(target=self.server.run)

    def _listening(self) -> None:
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.listening.set()

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, **more: Any
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, content (from JSON where it is JSON) and headers of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            content = body if body is None or isinstance(body, bytes | Iterator) else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json", **(headers or {})}, **more)
            answer = connection.getresponse()
            found: Any = answer.read()
            if "json" in (answer.getheader("content-type") or ""):
                found = json.loads(found, parse_constant=_no_constant)
            return answer.status, found, {name.lower(): value for name, value in answer.getheaders()}
        finally:
            connection.close()

    def post(self, path: str, body: Any) -> Any:
        """The content of an answer that must be a good one."""
        status, content, _ = self.ask("POST", path, body)
        assert status == 200, content
        return content


def _no_constant(name: str) -> Any:
    raise AssertionError(f"{name} is no JSON")


@contextlib.contextmanager
def running(service: Service) -> Iterator[Running]:
    """Serves on the loopback address."""
    made = Running(service)
    made.thread.start()
    try:
        assert made.listening.wait(60)
        yield made
    finally:
        made.server.handle_exit(15, None)
        made.thread.join(60)
        assert not made.thread.is_alive()


async def ask_together(port: int, bodies: Sequence[Any], clients: int) -> list[Any]:
    """What many clients that share some requests are answered."""
    found: list[Any] = [None] * len(bodies)
    waiting = iter(range(len(bodies)))

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for index in waiting:
            path, body = bodies[index]
            content = json.dumps(body).encode()
            writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n".encode())
            writer.write(b"Content-Type: application/json\r\n\r\n" + content)
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            answer = json.loads(await reader.readexactly(length), parse_constant=_no_constant)
            assert head.startswith(b"HTTP/1.1 200 "), answer
            found[index] = answer
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(client() for _ in range(clients)))
    return found


def wait_until(true: Any, seconds: float = 30) -> None:
    """Waits for something that is to come true."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


@contextlib.contextmanager
def held(service: Service) -> Iterator[threading.Event]:
    """Keeps the model's thread busy; what comes meanwhile waits."""
    begun, done = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        done.wait(60)

    service._batcher.call(hold)
    assert begun.wait(60)
    try:
        yield done
    finally:
        done.set()


class Later:
    """A request that is under way in a thread."""

    def __init__(self, server: Running, *arguments: Any):
        self._found: list[Any] = []
        self._thread = threading.Thread(target=lambda: self._found.append(server.ask(*arguments)))
        self._thread.start()

    def result(self) -> tuple[int, Any, dict[str, str]]:
        """The answer."""
        self._thread.join(60)
        found: tuple[int, Any, dict[str, str]] = self._found[0]
        return found
