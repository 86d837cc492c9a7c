"""What docs/serving.md shows is what happens."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.main import get_command

import softprompts as sp
from softprompts.__main__ import _app
from tests.serving.servers import running, save, service_of

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
ENCODER = {"reviews": "two", "mrpc": "pair"}
BODIES = re.findall(r"curl (?:-N )?localhost:8000(\S+) .*? -d '(\{.*?\})'", PAGE, re.DOTALL)


def test_the_examples_are_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    for name, task in ENCODER.items():
        save("bert", tmp_path / "encoder", name, task, sp.PrefixTuningConfig(num_virtual_tokens=2))
    save("llama", tmp_path / "decoder", "titles", "two", sp.PrefixTuningConfig(num_virtual_tokens=2))
    seen = set()
    with (
        running(service_of("bert", tmp_path / "encoder")) as encoder,
        running(service_of("llama", tmp_path / "decoder")) as decoder,
    ):
        exec(code, {"base": f"http://127.0.0.1:{encoder.port}"})
        for path, body in BODIES:
            server = decoder if path == "/v1/generate" else encoder
            status, content, _ = server.ask("POST", path, json.loads(body))
            assert status == 200, content
            seen.add(path)
        schema = encoder.ask("GET", "/openapi.json")[1]["paths"]
        metrics = encoder.ask("GET", "/metrics")[1].decode()
    assert capsys.readouterr().out.strip() in ("negative", "positive")
    assert seen == {"/v1/predict", "/v1/generate"}
    table = PAGE[PAGE.index("| endpoint |") : PAGE.index("A row is a text")]
    assert set(re.findall(r"/[a-z0-9/{}]+", table)) == set(schema) - {"/"}
    for name in re.findall(r"`(softprompts_\w+)", PAGE):
        assert name in metrics


def test_the_options_are_those_of_the_command() -> None:
    command = get_command(_app([])).commands["serve"]  # type: ignore[attr-defined]
    known = {option for parameter in command.params for option in parameter.opts}
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE.partition("## Measured")[0])) <= known
