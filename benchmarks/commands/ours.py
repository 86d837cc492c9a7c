"""One of the two commands that time_to_accuracy.py compares: prefix tuning by this library, all runs in shared passes.

    python benchmarks/commands/ours.py JOB.json

The job names the model, the files of rows, the runs (seed and rate each; no rate: the default), and how to train. Every
evaluation is noted with the seconds since `began`, which the caller took before it started this process. Like the
`train` command, it leaves a run folder with checkpoints.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import softprompts as sp
from softprompts.experiments.workbench import Workbench
from softprompts.tasks.data import Data
from softprompts.training import Evaluation, Lane, Prediction, TrainConfig, train
from softprompts.training.optim import learning_rates


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())

    def now() -> float:
        return time.time() - job["began"]

    imported = now()
    bench = Workbench(
        job["model"], Data(train=job["train"], validation=job["validation"]), max_length=job["max_length"]
    )
    method = sp.PrefixTuningConfig(num_virtual_tokens=job["num_virtual_tokens"])
    features, held_out = bench.features("train", job["max_length"]), bench.features("validation", job["max_length"])
    runs = [{**run, "curve": []} for run in job["runs"]]
    with tempfile.TemporaryDirectory() as folder:
        lanes = []
        for number, run in enumerate(runs):
            name = f"run{number}"
            bench.model.add_prompt(
                name, method, labels=list(bench.task.label_names), tokenizer=bench.tokenizer, seed=run["seed"]
            )
            training = TrainConfig(
                max_steps=job["steps"],
                batch_size=job["batch"],
                eval_batch_size=job["eval_batch"],
                eval_every=job["every"],
                learning_rate=run["rate"],
                seed=run["seed"],
            )
            score = scorer(run["curve"], [row["label"] for row in held_out], job, now)
            validation = Evaluation(held_out, score=score)
            lanes.append(Lane(name, training, features, validation=validation, folder=Path(folder) / name))
            run["rate"] = learning_rates(bench.model.prompts[name].components(), training)["prefix"]
        began = now()
        train(bench.model, lanes, pad_id=bench.pad_id, progress=False)
        ended = now()
    for run in runs:
        run |= {"began": began, "ended": ended}
    Path(job["out"]).write_text(json.dumps({"imported": imported, "runs": runs}))


def scorer(curve: list[Any], references: Sequence[int], job: dict[str, Any], now: Callable[[], float]) -> Any:
    """Accuracy, noted with step and time."""

    def score(prediction: Prediction) -> dict[str, float]:
        right = sum(a == b for a, b in zip(prediction.labels, references, strict=True))
        step = min((len(curve) + 1) * job["every"], job["steps"])
        curve.append({"step": step, "seconds": now(), "accuracy": right / len(references)})
        return {"accuracy": right / len(references)}

    return score


if __name__ == "__main__":
    main()
