"""The server as a deployment of Ray Serve."""

from __future__ import annotations

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
from tests.serving.servers import save, wait_until

pytest.importorskip("ray")
pytest.importorskip("grpc_reflection", reason="Ray Serve is missing: pip install 'ray[serve]'")
openai = pytest.importorskip("openai", reason="OpenAI's client asks: pip install openai")


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
            with pytest.raises(openai.ConflictError, match="restart the server"):
                client.delete("/prompts/writer", cast_to=object)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    finally:
        for child in [*psutil.Process(process.pid).children(recursive=True), process] if process.poll() is None else []:
            child.kill()
        process.wait(60)
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
