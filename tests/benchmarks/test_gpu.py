"""The script for a machine with a GPU, tried without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("peft")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    return gpu


def given(gpu: ModuleType, folder: Path) -> Any:
    return gpu.Given("cpu", True, "float32", 60.0, folder)


def test_a_part_from_its_process_to_the_page(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--dry-run", "--parts", "memory", "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(BENCHMARKS.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0 and done.stdout.startswith("memory: done"), done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["device"] == "CPU" and found["given"]["tiny"] and found["parts"]["memory"]["status"] == "done"
    rows = {row["variant"]: row for row in found["parts"]["memory"]["rows"]}
    assert {"inference forward", "PEFT prefix", "prefix-tuning", "selective-prefix"} <= rows.keys()
    assert all(row["ms"] > 0 and "error" not in row for row in rows.values())
    page = (tmp_path / "gpu.md").read_text()
    assert "Tiny sizes: the numbers mean nothing." in page and "| selective-prefix |" in page


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "none")])
    assert gpu.main() == 2 and not (tmp_path / "none").exists()
    said = capsys.readouterr()
    assert said.err.startswith("no GPU") and said.err.count("\n") == 1 and not said.out


def test_a_part_that_fails_or_takes_too_long_keeps_its_rows(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    ran = []

    def started(command: list[str], **_: Any) -> Any:
        name = command[command.index("--only") + 1]
        ran.append(name)
        (tmp_path / f"{name}.jsonl").write_text('{"variant": "first", "ms": 1}\n')
        script = {"step": "raise SystemExit('no memory')", "lanes": "import time; time.sleep(60)", "memory": "pass"}
        return popen([sys.executable, "-c", script[name]], start_new_session=True)

    popen = subprocess.Popen
    monkeypatch.setattr(gpu.subprocess, "Popen", started)
    monkeypatch.setattr(gpu, "last_line", lambda *_: "no memory")
    monkeypatch.setitem(gpu.PARTS, "lanes", (1, gpu.PARTS["lanes"][1]))
    arguments = ["gpu.py", "--device", "cpu", "--tiny", "--out", str(tmp_path), "--parts", "step,lanes,memory,sweep"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--seconds", "9000"])
    monkeypatch.setattr(gpu, "part", limited(gpu.part, "sweep"))
    assert gpu.main() == 1
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert parts["step"]["status"] == "failed: exit code 1, no memory" and parts["lanes"]["status"] == "cut after 1 s"
    assert parts["memory"]["status"] == "done" and parts["sweep"]["status"] == "skipped: no time left"
    assert ran == ["step", "lanes", "memory"]
    assert [len(parts[name]["rows"]) for name in parts] == [1, 1, 1, 0]
    assert "failed: step" in capsys.readouterr().out


def limited(part: Any, last: str) -> Any:
    """A part that has no time left, if it is the last."""
    return lambda given, name, limit: part(given, name, 0 if name == last else limit)


def test_what_fails_in_one_variant_is_a_row(gpu: ModuleType, tmp_path: Path) -> None:
    import gpu_parts

    def broken() -> Any:
        raise RuntimeError("no kernel\nfor this")

    rows = list(gpu_parts.side_by_side(given(gpu, tmp_path), {"base": lambda: int, "b": broken}, "base"))
    assert rows[0] == {"variant": "b", "error": "no kernel"} and rows[1]["variant"] == "base"
    assert gpu.errors(rows) == ["no kernel"] and not gpu.errors([{"variant": "PEFT prefix", "error": "theirs"}])


def test_counts_of_commands_are_read(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import gpu_parts

    def said(text: str, code: int = 0) -> Any:
        monkeypatch.setattr(
            gpu_parts.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess([], code, stdout=text, stderr="")
        )
        return gpu_parts.command(given(gpu, tmp_path), "x", [])

    assert said("..s\n3 passed, 2 skipped in 4.2s\n") == {"variant": "x", "passed": 3, "skipped": 2}
    assert said("exact: 20, refused: 3\n") == {"variant": "x", "exact": 20, "refused": 3}
    assert said("wrong: 1\nwrong llama x\n", 1) == {"variant": "x", "wrong": 1, "error": "exit code 1: wrong llama x"}


def test_every_part_has_a_budget_and_all_fit(gpu: ModuleType) -> None:
    assert sum(budget for budget, _ in gpu.PARTS.values()) <= 475
    assert isinstance(gpu.PARTS["memory"][1](None), Iterator)
