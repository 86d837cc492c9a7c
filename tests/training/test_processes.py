"""Two processes take a share of every batch each and reach the numbers of one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from softprompts.training import load_result, train
from softprompts.training.runs import load_metrics

RUN = """
import runpy, sys, torch
toy = runpy.run_path(sys.argv[1])["Toy"]
from softprompts.training import train
torch.set_num_threads(1)
model = toy.add(toy.add(toy.model(double=True), "a", double=True), "b", "prefix-tuning", double=True)
# 48 rows in batches of 7: the last one of an epoch has 6, and "b" sees single rows, of which one process gets none.
lanes = [toy.lane("a", batch_size=7, epochs=2), toy.lane("b", folder=sys.argv[2], batch_size=1, max_steps=9)]
train(model, lanes, pad_id=toy.pad)
torch.save(model.prompts.state_dict(), f"{sys.argv[2]}/rank{torch.distributed.get_rank()}.pt")
"""


def test_two_processes_equal_one(toy: Any, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(RUN)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    folder = tmp_path / "b"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [*launch, str(script), str(Path(__file__).parent / "conftest.py"), str(folder)],
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]

    model = toy.add(toy.add(toy.model(double=True), "a", double=True), "b", "prefix-tuning", double=True)
    lanes = [toy.lane("a", batch_size=7, epochs=2), toy.lane("b", batch_size=1, max_steps=9)]
    results = train(model, lanes, pad_id=toy.pad)
    for rank in (0, 1):
        state = torch.load(folder / f"rank{rank}.pt", weights_only=True)
        for key, value in model.prompts.state_dict().items():
            torch.testing.assert_close(state[key], value, rtol=0, atol=1e-9, msg=key)
    assert load_result(folder)["metrics"] == results[1].metrics
    assert [line["step"] for line in load_metrics(folder)] == [9]
