"""A configuration of a search, and how its run has done so far."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from softprompts.errors import SoftPromptError
from softprompts.experiments.leaderboard import Entry
from softprompts.experiments.run_record import Run
from softprompts.storage import run_folder
from softprompts.training.lane import checkpoint_step


@dataclass
class Trial:
    """A configuration while the search is on; see `Entry` for scores, state, steps and test.

    Attributes:
        number: from 1, in the order of proposals.
        study: the study of Optuna that proposed it.
        optuna_trial: the study's name for it.
        proposed: the searched settings.
        run: the experiment.
        path: its run folder.
        rates: the learning rate of each component.
        trained: number of trained parameters.
    """

    number: int
    study: Any
    optuna_trial: Any
    proposed: dict[str, Any]
    run: Run
    path: Path
    rates: dict[str, float]
    trained: int
    scores: list[float | None] = field(default_factory=list)
    state: str = "cut"
    steps: int = 0
    test: float | None = None

    def learn(self) -> None:
        """Tells the study the score of the first rung; none is worse than any."""
        from optuna.trial import TrialState

        score = None if self.state == "diverged" else self.scores[0]
        if score is None:
            self.study.tell(self.optuna_trial, state=TrialState.PRUNED)
        else:
            self.study.tell(self.optuna_trial, score)

    def order(self) -> tuple[bool, int, float, int]:
        """Sorts the best first."""
        score = self.scores[-1] if self.scores else None
        return self.state == "diverged", -len(self.scores), math.inf if score is None else -score, self.number

    def entry(self) -> Entry:
        """Its line of the leaderboard."""
        return Entry(
            trial=self.number,
            method=self.run.method.method,
            proposed=self.proposed,
            settings=self.run.method.to_dict(),
            training=self.run.training.to_dict(),
            rates=self.rates,
            trained=self.trained,
            rung=len(self.scores) + (self.state == "diverged"),
            steps=self.steps,
            scores=tuple(self.scores),
            state=self.state,
            test=self.test,
            run=self.path.name,
        )

    def needs(self, step: int, last: bool) -> bool:
        """Whether its run has not come to a step yet, or not to its end."""
        # Not by the checkpoint, of which a run that was cut is left without.
        return not run_folder.is_done(self.path) and (last or not self._evaluated(step))

    def read(self, step: int, last: bool, metric: str) -> None:
        """Notes its scores up to a step, even if its run has gone further since.

        Raises:
            SoftPromptError: its folder lacks the step.
        """
        result = run_folder.load_result(self.path) if run_folder.is_done(self.path) else None
        if not self._evaluated(step):
            if result is None or result["stop_reason"] != run_folder.DIVERGED:
                raise SoftPromptError(
                    f"{self.path / run_folder.METRICS} lacks step {step}; delete the folder to train again"
                )
            self.state, self.steps = "diverged", result["steps"]
            return
        lines = [line for line in run_folder.load_metrics(self.path) if line["step"] <= step]
        self.scores.append(max((line[metric] for line in lines if line[metric] is not None), default=None))
        self.steps = step
        if last and result is not None:
            self.state, self.test = "finished", result["test_metrics"].get(metric)

    def _evaluated(self, step: int) -> bool:
        return any(line["step"] == step for line in run_folder.load_metrics(self.path))

    def cut_checkpoint(self) -> Path | None:
        """The checkpoint of a run that was cut; None where there is none, or another search took the run further."""
        folder = self.path / run_folder.CHECKPOINT
        if self.state != "cut" or not folder.is_dir() or run_folder.is_done(self.path):
            return None
        return folder if checkpoint_step(self.path) <= self.steps else None
