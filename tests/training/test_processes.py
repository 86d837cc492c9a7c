"""Two processes take a share of every batch each and reach the numbers of one, but for random draws."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import warm
from saved import Cli, model_folder, rows, write_csv

from softprompts.storage.run_folder import load_metrics
from softprompts.training import load_result
from softprompts.training.progress import flat
from tests.training import scenarios

ROOT = Path(__file__).parents[2]
# OMP: tiny matrices gain nothing from threads. COLUMNS: no table is cut.
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "ACCELERATE_USE_CPU": "true",
    "OMP_NUM_THREADS": "1",
    "COLUMNS": "200",
}


def launch(*command: str, launcher: str = "torch.distributed.run") -> subprocess.CompletedProcess[str]:
    if launcher == "torch.distributed.run":
        front = ["-m", launcher, "--standalone", "--nproc-per-node=2"]
    else:  # with --cpu instead of --multi_gpu, Accelerate starts one process whatever number is asked for
        front = ["-m", launcher, "--multi_gpu", "--num_processes=2", f"--main_process_port={free_port()}"]
    return warm.run([sys.executable, *front, *command], ENVIRONMENT, ROOT)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What each of two processes found, and the folder they wrote to."""
    out = tmp_path_factory.mktemp("processes")
    done = launch(str(Path(__file__).parent / "scenarios.py"), str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    return out, [torch.load(out / f"rank{rank}.pt") for rank in (0, 1)]


def assert_same(two: dict[str, Any], one: dict[str, Any]) -> None:
    assert two["losses"].keys() == one["losses"].keys()
    for name, losses in one["losses"].items():
        assert two["losses"][name] == pytest.approx(losses, abs=1e-9, rel=0), name
        *ended, score, metrics = one["results"][name]
        assert two["results"][name][:-2] == ended
        assert two["results"][name][-2] == pytest.approx(score, abs=1e-9)
        assert two["results"][name][-1] == pytest.approx(metrics, abs=1e-9)
        for line, other in zip(two["history"][name], one["history"][name], strict=True):
            assert flat(line) == pytest.approx(flat(other), abs=1e-9)
    for key, value in one["prompts"].items():
        torch.testing.assert_close(two["prompts"][key], value, rtol=0, atol=1e-9, msg=key)


@pytest.mark.parametrize("name", scenarios.SCENARIOS)
def test_two_processes_equal_one(both: Any, name: str) -> None:
    one = scenarios.numbers(scenarios.SCENARIOS[name]())
    for found in both[1]:
        assert_same(found[name], one)
    # An evaluation's batches are shared out; a process sits out a training pass of which it has no row.
    passes = [found[name]["passes"] for found in both[1]]
    assert sum(found["eval"] for found in passes) == one["passes"]["eval"]
    assert all(found["eval"] for found in passes)
    assert passes[0]["train"] == one["passes"]["train"]


def test_interrupted_and_resumed(both: Any) -> None:
    for found in both[1]:
        undisturbed = found["undisturbed"]
        undisturbed["losses"]["dropout"] = undisturbed["losses"]["dropout"][5:]
        assert_same(found["resumed"], undisturbed)
    resumed, whole = (both[0] / name for name in ("resumed", "undisturbed"))
    assert load_result(resumed)["metrics"] == pytest.approx(load_result(whole)["metrics"], abs=1e-9)
    steps = [line["step"] for line in load_metrics(resumed)]
    assert steps == [line["step"] for line in load_metrics(whole)] == sorted(set(steps))


def test_each_process_draws_for_its_own_rows(both: Any) -> None:
    """The main one as a single process would; and the same call gives the same numbers."""
    one = scenarios.numbers(scenarios.bert(scenarios.DRAWING))
    first, second = (found["drawing"]["random states"] for found in both[1])
    assert len(first) == len(second) and not set(first) & set(second)
    assert one["losses"] != both[1][0]["drawing"]["losses"]
    for found in both[1]:
        assert_same(found["again"], found["drawing"])
        assert found["again"]["random states"] == found["drawing"]["random states"]


def test_only_the_main_process_writes(both: Any) -> None:
    assert both[1][0]["writes"] >= 3 and both[1][1]["writes"] == 0


@pytest.mark.parametrize("name", ["unseeded", "drawing", "head dropout", "backbone dropout", "own predict"])
def test_processes_agree_whatever_each_draws(both: Any, name: str) -> None:
    first, second = (found[name] for found in both[1])
    assert first["results"] == second["results"] and first["losses"] == second["losses"]
    for key, value in first["prompts"].items():
        assert torch.equal(value, second["prompts"][key]), key


def test_what_fails_in_one_process_fails_in_both(both: Any) -> None:
    assert [found["failure"] for found in both[1]] == [
        ("SoftPromptError", "process 1 failed: no space left"),
        ("OSError", "no space left"),
    ]
    assert [found["on_main"] for found in both[1]] == [10, 10]


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def train(tmp_path: Path) -> list[str]:
    data = write_csv(tmp_path / "data.csv", rows(50))
    command = ["train", "-m", model_folder("bert"), "--data", str(data), "--method", "multi-mask", "--steps", "6"]
    return [*command, "--eval-every", "2", "--batch-size", "7", "--set", "router_dropout=0"]


def test_launched_training_gives_the_scores_of_one_process_and_says_so_once(
    train: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = Cli(monkeypatch, capsys).fine(*train, "--folder", str(tmp_path / "one"))
    done = launch("-m", "softprompts", *train, "--folder", str(tmp_path / "two"), launcher="accelerate.commands.launch")
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = load_result(tmp_path / "one"), load_result(tmp_path / "two")
    for result in (one, two):
        for measured in ("seconds", "step_seconds", "peak_memory"):
            del result[measured]
    assert one.pop("command") == two.pop("command").replace("--folder two", "--folder one")
    assert one.pop("vitals") == pytest.approx(two.pop("vitals"), rel=1e-4)
    assert json.dumps(one) == json.dumps(two)
    assert done.stdout.count("run folder:") == alone.out.count("run folder:") == 1
    assert done.stderr.count("frozen parameters") == 1
    losses = [[line["loss"] for line in load_metrics(tmp_path / name)] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_an_error_in_the_set_up_ends_both_processes_with_one_line(train: list[str], tmp_path: Path) -> None:
    """Without a launcher, which has an exit code of its own. The second process alone cannot read its data."""
    port = str(free_port())
    started = []
    for rank in ("0", "1"):
        command = [part if rank == "0" or part != train[4] else f"{part}.missing" for part in train]
        environment = {
            **ENVIRONMENT, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }  # fmt: skip
        own = [sys.executable, "-m", "softprompts", *command, "--out", str(tmp_path / "runs")]
        started.append(warm.Warm(own, environment, ROOT))
    ended = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [2, 2], ended
    said = [line for _, text in ended for line in text.splitlines() if line.strip()]
    assert len(said) == 1 and "process 1 failed" in said[0] and "missing" in said[0], said
    assert not (tmp_path / "runs").exists()
