"""The server as a deployment of Ray Serve."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from saved import model_folder

import softprompts as sp
from softprompts.serving.engine import EngineOptions
from softprompts.serving.settings import ServerSettings
from tests.serving.servers import save, wait_until

pytest.importorskip("ray")
pytest.importorskip("grpc_reflection", reason="Ray Serve is missing: pip install 'ray[serve]'")
pytest.importorskip("openai", reason="OpenAI's client asks: pip install openai")

import openai
from ray.exceptions import RayActorError
from starlette.requests import Request

from softprompts.serving.replicas import Front, Replica


class _Handle:
    """Replicas of which some die: before their answer, or after a number of messages."""

    def __init__(self, replica: Replica, deaths: list[int]):
        self.replica, self.deaths, self.asked = replica, deaths, 0

    def options(self, stream: bool) -> _Handle:
        assert stream
        return self

    @property
    def answer(self) -> _Handle:
        return self

    async def remote(self, scope: Any, body: bytes) -> Any:
        self.asked += 1
        left = self.deaths.pop(0) if self.deaths else 1000
        async for message in self.replica.answer(scope, body):
            if not left:
                raise RayActorError
            left -= 1
            yield message


async def _asked(front: Front, path: str, body: Any, method: str = "POST") -> tuple[int, str]:
    content = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"host", b"x"), (b"content-length", b"%d" % len(content))]
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers}
    request = iter([{"type": "http.request", "body": content, "more_body": False}])
    sent: list[Any] = []

    async def receive() -> Any:
        for message in request:
            return message
        return await asyncio.Future[Any]()

    async def send(message: Any) -> None:
        sent.append(message)

    response = await front(Request(scope, receive))
    await response({**scope, "asgi": {"spec_version": "2.4"}}, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:]).decode()


def test_a_request_is_asked_again_until_its_answer_has_begun(tmp_path: Path) -> None:
    save("llama", tmp_path, "writer", "two", sp.PrefixTuningConfig(num_virtual_tokens=2))
    options = EngineOptions(model_folder("llama"), device="cpu")
    replica = Replica(options, tmp_path, ServerSettings(timeout=5), strict=True)
    assert replica.describe() == {"model": "llama", "count": 1, "left_out": {}}
    ask = {"model": "writer", "prompt": "the film", "max_tokens": 5, "seed": 1}

    async def check() -> None:
        handle = _Handle(replica, [])
        front = Front(handle, ServerSettings(timeout=5))
        status, plain = await _asked(front, "/v1/completions", ask)
        assert status == 200 and handle.asked == 1
        handle.deaths = [0, 0]
        status, content = await _asked(front, "/v1/completions", ask)
        assert status == 200 and handle.asked == 4
        assert json.loads(content)["choices"] == json.loads(plain)["choices"]
        status, content = await _asked(front, "/v1/completions", {**ask, "stream": True})
        assert status == 200 and content.endswith("data: [DONE]\n\n")
        handle.deaths = [3]
        status, content = await _asked(front, "/v1/completions", {**ask, "stream": True})
        assert status == 200 and json.loads(content.split("data: ")[-1])["error"]["type"] == "server_error"
        assert content.count("data: ") == 3
        status, content = await _asked(front, "/v1/completions", {**ask, "max_tokens": 0})
        assert status == 400 and "max_tokens" in content
        asked = handle.asked
        assert (await _asked(front, "/v1/prompts/writer", {}, "DELETE"))[0] == 409 and handle.asked == asked
        handle.deaths = [0] * 1000
        front = Front(handle, ServerSettings(timeout=0.2))
        assert (await _asked(front, "/v1/completions", ask))[0] == 503
        replica.check_health()

    asyncio.run(check())
    replica._service.close()
    with pytest.raises(RuntimeError):
        replica.check_health()


def test_a_replica_that_cannot_start_says_why(tmp_path: Path) -> None:
    replica = Replica(EngineOptions("./nothing"), tmp_path, ServerSettings(), strict=True)
    assert "no such model './nothing'" in replica.describe()["problem"]
    with pytest.raises(RuntimeError, match="no such model"):
        replica.check_health()


@pytest.mark.skipif(
    "SOFTPROMPTS_RAY_SERVE" not in os.environ, reason="takes minutes: run it with SOFTPROMPTS_RAY_SERVE=1"
)
def test_no_request_is_lost_where_a_replica_is_killed(tmp_path: Path) -> None:
    save("llama", tmp_path / "prompts", "writer", "two", sp.PrefixTuningConfig(num_virtual_tokens=2))
    command = [sys.executable, "-m", "softprompts", "serve", "--prompts", tmp_path / "prompts", "--port", "0"]
    command += ["--engine", "ray", "--replicas", "2", "--device", "cpu", "--model", model_folder("llama")]
    own = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RAY_TMPDIR": "/tmp"}
    own.pop("RAY_ADDRESS", None)
    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=own)
    try:
        assert process.stdout is not None
        line = next((line for line in process.stdout if "http://" in line), "")
        found = re.fullmatch(r"1 prompt on llama: http://127\.0\.0\.1:(\d+)\n", line)
        assert found is not None, line + (tmp_path / "errors").read_text()
        base = f"http://127.0.0.1:{found[1]}/v1"
        with openai.OpenAI(base_url=base, api_key="any", max_retries=0, timeout=120) as client:
            _ask_while_one_is_killed(client, process.pid)
            chunks = list(
                client.completions.create(model="llama", prompt="the film", max_tokens=5, stream=True, seed=1)
            )
            whole = client.completions.create(model="llama", prompt="the film", max_tokens=5, seed=1)
            assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text and len(chunks) > 3
            with pytest.raises(openai.NotFoundError, match="no model 'nobody'"):
                client.completions.create(model="nobody", prompt="x")
            with pytest.raises(openai.ConflictError) as refused:
                client.delete("/prompts/writer", cast_to=object)
            assert "restart the server" in refused.value.response.text
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    finally:
        for child in [*psutil.Process(process.pid).children(recursive=True), process] if process.poll() is None else []:
            child.kill()
        process.wait(60)
        if process.stdout is not None:
            process.stdout.close()
    assert "Traceback" not in (tmp_path / "errors").read_text()


def _ask_while_one_is_killed(client: Any, pid: int) -> None:
    def ask(number: int) -> str:
        options = {"max_tokens": 30, "temperature": 2, "seed": number % 4, "timeout": 120}
        return str(client.completions.create(model="writer", prompt="the film was", **options).choices[0].text)

    wanted = [ask(number) for number in range(4)]
    killed: list[int] = []
    with ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(ask, number) for number in range(60)]
        wait_until(lambda: sum(answer.done() for answer in answers) >= 6, 120)
        replicas = _replicas(pid)
        assert len(replicas) == 2
        replicas[0].kill()
        killed.append(sum(answer.done() for answer in answers))
        assert [answer.result() for answer in answers] == wanted * 15
    assert killed[0] <= 48  # twelve were under way
    until = time.monotonic() + 120
    while len(_replicas(pid)) < 2:  # and another takes its place
        assert time.monotonic() < until
        time.sleep(0.2)


def _replicas(pid: int) -> list[psutil.Process]:
    children = psutil.Process(pid).children(recursive=True)
    return [child for child in children if child.is_running() and "ServeReplica:softprompts:replica" in _title(child)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
