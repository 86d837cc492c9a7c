"""The other command that time_to_accuracy.py compares: PEFT's prefix tuning under HF Trainer, run after run.

    python benchmarks/commands/peft_trainer.py JOB.json

The same job as for ours.py. Written as PEFT's and Trainer's documentation have it, with dynamic padding; what might
slow it down without need is left out: it keeps no checkpoints, logs nothing and shows no progress, reads the rows
without the data-set library, and encodes them once for all runs.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from peft import PrefixTuningConfig, TaskType, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    def now() -> float:
        return time.time() - job["began"]

    imported = now()
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    features, held_out = (encoded(job[split], tokenizer, job["max_length"]) for split in ("train", "validation"))
    runs = []
    for run in job["runs"]:
        began = now()
        set_seed(run["seed"])
        backbone = AutoModelForSequenceClassification.from_pretrained(job["model"], num_labels=2)
        config = PrefixTuningConfig(task_type=TaskType.SEQ_CLS, num_virtual_tokens=job["num_virtual_tokens"])
        curve = Curve(now)
        trainer = Trainer(
            model=get_peft_model(backbone, config),
            args=arguments(job, run),
            train_dataset=features,
            eval_dataset=held_out,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=accuracy,
            callbacks=[curve],
        )
        trainer.train()
        runs.append({**run, "curve": curve.points, "began": began, "ended": now()})
    Path(job["out"]).write_text(json.dumps({"imported": imported, "runs": runs}))


def encoded(path: str, tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    ids = tokenizer([row["text"] for row in rows], truncation=True, max_length=max_length)
    return [{**{name: ids[name][number] for name in ids}, "labels": row["label"]} for number, row in enumerate(rows)]


def arguments(job: dict[str, Any], run: dict[str, Any]) -> TrainingArguments:
    return TrainingArguments(
        max_steps=job["steps"],
        per_device_train_batch_size=job["batch"],
        per_device_eval_batch_size=job["eval_batch"],
        learning_rate=run["rate"],
        train_sampling_strategy="group_by_length" if job["grouped"] else "random",
        eval_strategy="steps",
        eval_steps=job["every"],
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=run["seed"],
    )


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((np.argmax(prediction.predictions, axis=-1) == prediction.label_ids).mean())}


class Curve(TrainerCallback):
    """Notes every evaluation with its step and time."""

    def __init__(self, now: Callable[[], float]):
        self.now = now
        self.points: list[dict[str, float]] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        """Called by the trainer."""
        self.points.append({"step": state.global_step, "seconds": self.now(), "accuracy": metrics["eval_accuracy"]})


if __name__ == "__main__":
    main()
