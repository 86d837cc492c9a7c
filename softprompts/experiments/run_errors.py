"""What the prompt of a run gets right and wrong on the rows that the run was scored on."""

from __future__ import annotations

from pathlib import Path

from softprompts.experiments.workbench import Workbench
from softprompts.storage.run_folder import PROMPT, load_result
from softprompts.storage.saved_prompt import read_config
from softprompts.tasks.errors_made import Errors, errors_made
from softprompts.tasks.task_reader import ReadRows, TaskReader
from softprompts.training.evaluation import predictions_of


def run_errors(workbench: Workbench, folder: Path) -> Errors | None:
    """Compares answers with labels, as `softprompts.Predictor.evaluate` does, right after a run.

    The predictions are those of the run's score; they are made again only where the run was resumed after it.

    Args:
        workbench: of the run; the run's prompt is on its model.
        folder: of the run, which has ended.

    Returns:
        The errors; None where the run has no score, or no answers were written for it.
    """
    result, task = load_result(folder), workbench.task
    split, _ = task.scored_rows()
    metrics = result["test_metrics" if split == "test" else "metrics"]
    if not metrics or None in metrics.values():
        return None
    name, examples = result["name"], getattr(task, split)
    prompt = workbench.model.prompts[name]
    length = workbench.room(prompt.config)
    prediction = workbench.predictions.get(folder)
    if prediction is None:
        evaluation = workbench.rows.evaluation(split, length)
        (prediction,) = predictions_of(workbench.model, [(name, evaluation)], workbench.pad_id)
    if task.form.written and prediction.tokens is None:  # scored by the loss of the right answers alone
        return None
    config, _ = read_config(folder / PROMPT)
    room = workbench.backbone.room(prompt.config)
    reader = TaskReader(config, prompt.labels, workbench.tokenizer, workbench.kind, room, str(folder))
    rows = ReadRows(task, examples, workbench.rows.split(split, length))
    return errors_made(task.form, examples, reader.answers(rows, prediction), metrics)
