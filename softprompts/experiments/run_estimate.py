"""What a run is going to take, measured without leaving a trace of it."""

from __future__ import annotations

from softprompts.experiments.run_record import Run
from softprompts.experiments.workbench import Workbench
from softprompts.training.step_cost import RunEstimate, estimate


def estimate_run(workbench: Workbench, run: Run, steps: int = 5) -> RunEstimate:
    """Takes some steps of a run, and predicts some of its rows; see `softprompts.training.step_cost.estimate`."""
    length, rows = workbench.room(run.method), workbench.rows
    validation = rows.evaluation("validation", length) if workbench.evaluate else None
    test = rows.evaluation("test", length) if workbench.task.test else None
    with workbench.measured(run) as lane:
        return estimate(workbench.model, lane, validation, test, pad_id=workbench.pad_id, steps=steps)
