"""The example scripts run as they are, with small settings, and do what they say."""

from __future__ import annotations

import math
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

FOLDER = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # what trainers and the harness say of their own


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.chdir(tmp_path)

    def started(name: str, *arguments: Any) -> Any:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        return runpy.run_path(str(FOLDER / f"{name}.py"))["main"]()

    return started


def test_trainer(run: Any, tmp_path: Path) -> None:
    scores = run("trainer", "--rows", 64, "--steps", 8, "--out", tmp_path / "out")
    assert scores.keys() == {"plain", "masked"} and all(0.4 <= score <= 1 for score in scores.values())
    for name in scores:
        assert (tmp_path / "out" / name / "softprompt_config.json").is_file()
    assert not (tmp_path / "out" / "config.json").exists()


def test_seq2seq_trainer(run: Any, tmp_path: Path) -> None:
    scores = run("seq2seq_trainer", "--rows", 48, "--steps", 12, "--out", tmp_path / "out")
    assert scores["loss"] < 6 and 0 <= scores["accuracy"] <= scores["valid"] <= 1
    assert (tmp_path / "out" / "softprompt_config.json").is_file()


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning", "multi-mask", "selective-prefix"])
def test_sft_trainer(run: Any, tmp_path: Path, method: str) -> None:
    pytest.importorskip("trl")
    losses = run("sft_trainer", "--rows", 64, "--steps", 20, "--method", method, "--out", tmp_path / "out")
    assert losses[-1] < losses[0]
    assert (tmp_path / "out" / "softprompt_config.json").is_file()


def test_pipelines(run: Any) -> None:
    found = run("pipelines")
    assert [len(row) for row in found["sentiment"] + found["topic"]] == [2, 2, 3, 3]
    first = {item["label"]: item["score"] for item in found["sentiment"][0]}
    assert found["mixed"][0, :2].tolist() == pytest.approx([first["negative"], first["positive"]], abs=1e-5)
    assert found["mixed"][0, 2] == 0
    assert {item["entity"] for item in found["ner"]} <= {"O", "PER", "LOC"}
    assert all(row[0]["generated_text"] for row in found["review"])


def test_lm_eval_harness(run: Any) -> None:
    pytest.importorskip("lm_eval")
    found = run("lm_eval_harness", "--rows", 8)
    assert len(found["pairs"]) == 8
    for theirs, ours in found["pairs"]:
        assert theirs == pytest.approx(ours, abs=1e-4)
        assert all(math.isfinite(value) and value < 0 for value in ours)


def test_prompt_and_lora(run: Any, tmp_path: Path) -> None:
    found = run("prompt_and_lora", "--rows", 64, "--steps", 6, "--out", tmp_path / "out")
    assert found["after loading"] == 0 and found["in a mixed batch"] < 1e-5
    tensors = load_file(tmp_path / "out" / "both" / "softprompt.safetensors")
    kinds = {"prompt": 0, "lora": 0}
    for name, value in tensors.items():
        kinds["lora" if ".a." in name or ".b." in name else "prompt"] += value.numel()
    assert all(kinds.values()), list(tensors)
    # LoRA's B starts at zero: it has moved, so that both have been trained.
    assert any(torch.count_nonzero(value) for name, value in tensors.items() if ".b." in name)
