"""A configuration of a search, and how its run has done so far."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from softprompts.errors import SoftPromptError
from softprompts.experiments.leaderboard import Entry
from softprompts.experiments.run_record import Run
from softprompts.storage import run_folder
from softprompts.training.lane import checkpoint_step


@dataclass
class Trial:
    """A configuration while the search is on."""

    entry: Entry  # its line of the leaderboard, as far as it has come
    study: Any  # of Optuna, which proposed it
    optuna_trial: Any  # the study's name for it
    run: Run
    path: Path  # the run's folder

    @property
    def diverged(self) -> bool:
        """Whether its run broke off."""
        return self.entry.state == "diverged"

    def learn(self) -> None:
        """Tells the study the score of the first rung; none is worse than any."""
        from optuna.trial import TrialState

        score = None if self.diverged else self.entry.scores[0]
        if score is None:
            self.study.tell(self.optuna_trial, state=TrialState.PRUNED)
        else:
            self.study.tell(self.optuna_trial, score)

    def order(self) -> tuple[bool, int, float, int]:
        """Sorts the best first."""
        score = self.entry.score
        return self.diverged, -len(self.entry.scores), math.inf if score is None else -score, self.entry.trial

    def needs(self, step: int, last: bool) -> bool:
        """Whether its run has not come to a step yet, or not to its end."""
        # Not by the checkpoint, of which a run that was cut is left without.
        return not run_folder.is_done(self.path) and (last or not self._evaluated(step))

    def read(self, step: int, last: bool, metric: str) -> None:
        """Notes its scores up to a step, even if its run has gone further since."""
        rung = self.entry.rung + 1
        result = run_folder.load_result(self.path) if run_folder.is_done(self.path) else None
        if not self._evaluated(step):
            if result is None or result["stop_reason"] != run_folder.DIVERGED:
                raise SoftPromptError(
                    f"{self.path / run_folder.METRICS} lacks step {step}; delete the folder to train again"
                )
            self.entry = replace(self.entry, rung=rung, state="diverged", steps=result["steps"])
            return
        lines = [line for line in run_folder.load_metrics(self.path) if line["step"] <= step]
        best = max((line[metric] for line in lines if line[metric] is not None), default=None)
        self.entry = replace(self.entry, rung=rung, scores=(*self.entry.scores, best), steps=step)
        if last and result is not None:
            self.entry = replace(self.entry, state="finished", test=result["test_metrics"].get(metric))

    def _evaluated(self, step: int) -> bool:
        return any(line["step"] == step for line in run_folder.load_metrics(self.path))

    def cut_checkpoint(self) -> Path | None:
        """The checkpoint of a run that was cut; None where there is none, or another search took the run further."""
        folder = self.path / run_folder.CHECKPOINT
        if self.entry.state != "cut" or not folder.is_dir() or run_folder.is_done(self.path):
            return None
        return folder if checkpoint_step(self.path) <= self.entry.steps else None
