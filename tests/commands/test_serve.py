"""`softprompts serve` as a process of its own, and what is wrong with a command."""

from __future__ import annotations

import http.client
import importlib.util
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import warm
from saved import Cli, model_folder

import softprompts as sp
from softprompts.backbones.loading import load_backbone
from softprompts.tasks import Form

for needed in ("fastapi", "fastapi_offline", "uvicorn", "prometheus_client"):
    pytest.importorskip(needed)


def save(folder: Path, name: str, family: str = "bert", model: str | None = None) -> Path:
    form = Form(labels=("negative", "positive"))
    made = sp.attach(load_backbone(model or model_folder(family))[1])
    labels = list(form.labels) if family == "bert" else None
    made.add_prompt("p", sp.PrefixTuningConfig(num_virtual_tokens=2), labels=labels, seed=0)
    made.save_prompt("p", folder / name, {"task": name, "task_form": form.to_dict(), "max_length": 24})
    return folder / name


def ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read())
    connection.close()
    return found


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_process_starts_answers_and_ends(tmp_path: Path, sign: signal.Signals) -> None:
    save(tmp_path, "reviews")
    poor = save(tmp_path, "poor")
    (poor / "softprompt_config.json").write_text("{")
    command = [sys.executable, "-m", "softprompts", "serve", "--prompts", str(tmp_path), "--port", "0"]
    process = warm.Warm(command)
    try:
        while "\n" not in process.printed()[0] and process.poll() is None:
            time.sleep(0.02)
        line, errors = process.printed()
        found = re.search(r"1 prompt on bert: http://127\.0\.0\.1:(\d+)", line)
        assert found is not None, line + errors
        port = int(found[1])
        assert ask(port, "GET", "/readyz") == (200, {"status": "ready"})
        body = {"inputs": ["the film was good"] * 200}
        answers: list[tuple[int, Any]] = []
        asking = threading.Thread(target=lambda: answers.append(ask(port, "POST", "/v1/predict", body)))
        asking.start()
        while not answers and ask(port, "GET", "/healthz")[0] == 200:
            waiting = _metric(port, "softprompts_queue_rows")
            if waiting:
                break
        process.send_signal(sign)
        asking.join(60)
        assert answers[0][0] == 200 and len(answers[0][1]["answers"]) == 200
        assert process.wait(60) == 0
        out, said = process.printed()
    finally:
        process.kill()
    assert out == line and "left out poor: " in said and "Traceback" not in said


def _metric(port: int, name: str) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith(f"{name} ")))


def test_what_is_wrong_with_a_command_is_told_in_a_line(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    prompts = tmp_path / "prompts"
    one = save(prompts, "one")
    save(tmp_path / "two", "a")
    save(tmp_path / "two", "b", "t5")
    save(tmp_path / "poor", "a")
    (tmp_path / "poor" / "a" / "softprompt.safetensors").write_bytes(b"x")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, error in (
            (["--prompts", tmp_path / "none"], "no such folder"),
            (["--prompts", one], "is itself a saved prompt; name the folder that it is in"),
            (
                ["--prompts", tmp_path / "empty"],
                "empty holds no prompts: name a folder with runs or saved prompts in it",
            ),
            (["--prompts", prompts, "--engine", "rays"], "--engine rays: "),
            (["--prompts", prompts, "--replicas", "2"], "--replicas is for --engine ray"),
            (["--prompts", tmp_path / "two"], "the prompts name 2 models"),
            (["--prompts", tmp_path / "poor", "--strict"], "prompt 'a': "),
            (["--prompts", prompts, "--dtype", "float8"], "--dtype float8: "),
            (["--prompts", prompts, "--device", "abacus"], "--device abacus cannot be used"),
            (["--prompts", prompts, "--model", "./nothing"], "no such model './nothing'"),
            (["--prompts", prompts, "--port", port], f"cannot listen at 127.0.0.1:{port}"),
            (["--prompts", prompts, "--host", "256.1.1.1"], "cannot listen at 256.1.1.1:8000"),
        ):
            done = cli("serve", *arguments)
            assert done.code == 2 and error in done.err.splitlines()[-1], (arguments, done.err)
            assert "Traceback" not in done.err
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else found(name))
    done = cli("serve", "--prompts", prompts)
    assert (done.code, done.out) == (2, "")
    assert (
        done.err
        == "error: serving needs more packages: pip install fastapi fastapi-offline uvicorn prometheus-client\n"
    )


def test_the_core_does_not_need_what_serving_needs() -> None:
    code = """
import sys
for name in ("fastapi", "fastapi_offline", "uvicorn", "prometheus_client", "starlette"):
    sys.modules[name] = None
import softprompts as sp
import softprompts.__main__, softprompts.predictor, softprompts.tasks.task_reader
print(sp.Predictor.__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "Predictor"
