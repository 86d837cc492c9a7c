"""A lane: one run inside passes of the backbone that several runs may share.

A lane owns all that decides its numbers: its prompt, the order of its data, optimizer, schedule, clipping, evaluation,
best checkpoint and early stopping. The loop (`softprompts.training.loop`) only joins lanes into batches.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from softprompts.errors import SoftPromptError
from softprompts.processes import is_main
from softprompts.storage import files, run_folder
from softprompts.tasks.batches import inputs_of, length_bucketed_batches, length_of, shuffled_batches
from softprompts.training.config import TrainConfig
from softprompts.training.evaluation import EVAL_ROWS, Evaluation
from softprompts.training.optim import build_optimizer, set_learning_rates
from softprompts.training.prediction import Feature, Prediction
from softprompts.training.result import UNFINISHED, LaneResult
from softprompts.training.vitals import Vitals

if TYPE_CHECKING:
    from softprompts.injection.prompt import Prompt

CHECKPOINT_FILE, START_FILE = "lane.pt", "start.pt"
StepBatches = list[list[Feature]]  # the rows of a step, cut into batches
_FORMAT = 2
# Attributes of a lane that its checkpoint holds under their names.
_KEPT = (
    "step", "stale", "stop_reason", "message", "loss", "loss_sum", "loss_steps", "seconds", "step_seconds",
    "peak_memory", "lanes", "history", "random_state",
)  # fmt: skip


@dataclass
class _Best:
    """The prompt to keep."""

    step: int = 0
    score: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    prompt: dict[str, Tensor] = field(default_factory=dict)


class Lane:
    """One run.

    Args:
        name: the prompt it trains, attached to the model.
        config: how it trains.
        train_features: rows as `collate` takes them.
        validation: what to evaluate on while it trains; None: nothing, and the last prompt is the one kept.
        test: what to score the kept prompt on in the end, by which nothing is chosen; None: nothing.
        fitting: what is predicted of the kept prompt in the end, before the test: its ``score`` fits what the test and
            ``record`` then use, such as a threshold; None: nothing.
        folder: the run's folder (see `open_run`). A checkpoint in it is resumed. None: nothing is written.
        record: plain JSON values to put into result.json and the saved prompt's metadata.
        pause_at: pause the run after this step, with a checkpoint; a new `Lane` on the same folder goes on.
        teacher: for methods that learn from one, the prompt on the model that teaches it; it stays as it is.

    Attributes:
        step: steps taken, of ``total_steps``.
        stop_reason: None while the run is on.
        loss: mean training loss of the last step.
        last_metrics: the metrics of the last evaluation; ``stale`` evaluations have come since the best one.
        random_state: the state of its random sequence at the last checkpoint.
        start_state: what its prompt started from; None after going on with a run that did not keep it.
        keep_prediction: whether to keep `prediction`; set it before training.
        prediction: that of the kept prompt for the rows of its score, the test rows if there are some; None where it
            was made before a resume.
        gradient_vitals: see `softprompts.training.vitals`; of the last step before an evaluation.
    """

    def __init__(
        self,
        name: str,
        config: TrainConfig,
        train_features: Sequence[Feature],
        *,
        validation: Evaluation | None = None,
        test: Evaluation | None = None,
        fitting: Evaluation | None = None,
        folder: str | Path | None = None,
        record: dict[str, Any] | None = None,
        pause_at: int | None = None,
        teacher: str | None = None,
    ):
        if not train_features:
            raise SoftPromptError(f"run '{name}': there is nothing to train on")
        self.name = name
        self.config = config
        self.train_features = train_features
        self.validation, self.test, self.fitting = (_sized(each, config) for each in (validation, test, fitting))
        self.folder = None if folder is None else Path(folder)
        self.record = dict(record or {})
        self.pause_at = pause_at
        self.teacher = teacher

        self._lengths = [length_of(feature) for feature in train_features]
        self._inputs = [len(inputs_of(feature)) for feature in train_features]
        self._epoch_batches: tuple[int, list[list[int]]] | None = None
        self.steps_per_epoch = len(self._batches(0))
        self.total_steps = config.max_steps or config.epochs * self.steps_per_epoch

        self.step = self.stale = 0
        self.stop_reason: str | None = None
        self.message = ""
        self.loss = math.nan
        self.loss_sum, self.loss_steps = 0.0, 0  # since the last evaluation
        self.last_metrics: dict[str, float] = {}
        self.test_metrics: dict[str, float] = {}
        self.best = _Best()
        self.history: list[dict[str, Any]] = []
        self.seconds = self.step_seconds = 0.0
        self.peak_memory = 0
        self.lanes = 1
        self.random_state: dict[str, Tensor] = {}
        self.start_state: dict[str, Tensor] | None = None
        self.gradient_vitals: dict[str, float] = {}
        self.keep_prediction = False
        self.prediction: Prediction | None = None

    # --- data -----------------------------------------------------------------------------------------------------

    def _batches(self, epoch: int) -> list[list[int]]:
        """All batches of an epoch. They follow from seed and epoch alone, so a resumed run finds its place by step."""
        if self._epoch_batches is None or self._epoch_batches[0] != epoch:
            size = self.config.batch_size * self.config.gradient_accumulation_steps
            if self.config.group_by_length:
                batches = length_bucketed_batches(self._lengths, size, self.config.seed, epoch)
            else:
                batches = shuffled_batches(len(self._lengths), size, self.config.seed, epoch)
            self._epoch_batches = (epoch, batches)
        return self._epoch_batches[1]

    def next_batches(self) -> StepBatches:
        """The rows of the next step, cut into batches of ``batch_size``."""
        epoch, place = divmod(self.step, self.steps_per_epoch)
        rows, size = self._batches(epoch)[place], self.config.batch_size
        return [[self.train_features[i] for i in rows[at : at + size]] for at in range(0, len(rows), size)]

    @property
    def tokens(self) -> float:
        """Tokens of a forward pass, padding included: the mean over the first epoch."""
        size = self.config.batch_size
        passes = [rows[at : at + size] for rows in self._batches(0) for at in range(0, len(rows), size)]
        return statistics.fmean(sum(self._inputs[i] for i in p) * max(self._lengths[i] for i in p) for p in passes)

    def longest_batch(self) -> list[Feature]:
        """The batch of the first epoch with the longest row, for measuring what a step takes."""
        batch = max(self._batches(0), key=lambda rows: max(self._lengths[i] for i in rows))
        batch = sorted(batch, key=lambda i: -self._lengths[i])[: self.config.batch_size]
        return [self.train_features[i] for i in batch]

    # --- training -------------------------------------------------------------------------------------------------

    def start(self, model: Any) -> None:
        """Builds the optimizer and, where the folder has a checkpoint, goes back to it."""
        if self.step or self.stop_reason is not None:
            raise SoftPromptError(f"run '{self.name}' has been trained already; make a new Lane to go on or to repeat")
        if self.folder is not None:
            if run_folder.is_done(self.folder):
                raise SoftPromptError(f"{self.folder} holds this run, finished; choose a new folder")
            self.folder.mkdir(parents=True, exist_ok=True)
        self.prompt: Prompt = model.prompts[self.name]
        self.components = self.prompt.components()
        self.optimizer = build_optimizer(self.components, self.config)
        self.parameters = [p for component in self.components.values() for p in component.parameters]
        self.start_state = self._prompt_state()
        # A run that fails before its first evaluation leaves the prompt it started from.
        self.best = _Best(prompt=self.start_state)
        if self.folder is not None and _checkpoint(self.folder).is_file():
            self.load_checkpoint()
        elif self.folder is not None:
            # A crash between the first evaluation and its checkpoint leaves lines that are going to be written again.
            run_folder.cut_metrics(self.folder, 0)
            if is_main():  # once, and not with every checkpoint
                files.write_atomic(_start(self.folder), lambda file: torch.save(self.start_state, file))

    @property
    def active(self) -> bool:
        """Whether the run is still on."""
        return self.stop_reason is None

    @property
    def done(self) -> bool:
        """Whether it has ended for good, not only been interrupted or paused."""
        return self.stop_reason not in (None, *UNFINISHED)

    def suspend(self, interrupted: bool) -> None:
        """Ends the run in the middle; its checkpoint is written already."""
        self.stop_reason = "interrupted" if interrupted else "paused"
        self.message = f"{self.stop_reason} after step {self.step}"

    def gradients(self) -> list[Tensor]:
        """The gradients of those parameters that have one."""
        return [p.grad for p in self.parameters if p.grad is not None]

    def update(self, loss: float, norm: float) -> None:
        """Takes one step with the gradients in place, or stops the run where loss or norm are not finite."""
        if not math.isfinite(loss) or not math.isfinite(norm):
            what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
            self._fail(f"{what} in step {self.step + 1}")
            self.zero_gradients()
            return
        limit = self.config.max_grad_norm
        if limit is not None and norm > limit:
            for gradient in self.gradients():
                gradient.mul_(limit / norm)
        set_learning_rates(self.optimizer, self.config, self.step, self.total_steps)
        self.optimizer.step()
        self.zero_gradients()
        self.step += 1
        self.loss = loss
        self.loss_sum += loss
        self.loss_steps += 1

    def _fail(self, what: str) -> None:
        kept = f"that of step {self.best.step} is kept" if self.best.step else "its starting values are kept"
        self.stop_reason = run_folder.DIVERGED
        self.message = f"run '{self.name}' stopped: {what}; of its prompt, {kept}"

    def zero_gradients(self) -> None:
        """Drops all gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    # --- evaluation -----------------------------------------------------------------------------------------------

    def due_after(self, step: int) -> bool:
        """Whether an evaluation (and a checkpoint) comes after a step."""
        every = self.config.eval_every or self.steps_per_epoch
        return step % every == 0 or step >= self.total_steps

    @property
    def due(self) -> bool:
        """Whether it is time to evaluate (and write a checkpoint)."""
        return self.due_after(self.step)

    def check_parameters(self) -> None:
        """Stops the run where not all of its parameters are finite (see `active`)."""
        if not all(parameter.isfinite().all() for parameter in self.parameters):
            self._fail(f"not all of its parameters are finite after step {self.step}")

    def restore_best(self) -> None:
        """Puts the prompt that is kept back into the model."""
        self.prompt.load_state_dict(self.best.prompt)

    def record_evaluation(
        self, metrics: dict[str, float] | None, vitals: Vitals | None = None, prediction: Prediction | None = None
    ) -> None:
        """Notes metrics and vitals, keeps the prompt if it is the best so far, stops the run when it should.

        Metrics are empty without an evaluation, and None where predictions were not finite.
        """
        if metrics is None:
            self._fail(f"its predictions after step {self.step} are not finite")
            return
        self.last_metrics = dict(metrics)
        score = next(iter(metrics.values())) if metrics else None
        if score is not None and math.isnan(score):
            score = -math.inf  # undefined is never better
        best = self.best.score
        if score is None or best is None or score > best:
            self.best = _Best(self.step, score, dict(metrics), self._prompt_state())
            self.prediction = prediction if self.keep_prediction else None
            self.stale = 0
        else:
            self.stale += 1
        if self.step >= self.total_steps:
            self.stop_reason = "max_steps"
        elif self.config.patience is not None and metrics and self.stale >= self.config.patience:
            self.stop_reason = "patience"
            self.message = f"no better score for {self.stale} evaluations"
        epoch, loss = round(self.step / self.steps_per_epoch, 4), self.loss_sum / max(1, self.loss_steps)
        line = {"step": self.step, "epoch": epoch, "loss": loss, **_plain_values(metrics)}
        self.history.append({**line, **(vitals or Vitals()).line()})
        self.loss_sum, self.loss_steps = 0.0, 0

    def record_test(self, metrics: dict[str, float] | None, prediction: Prediction) -> None:
        """Notes the score of the prompt that is kept; metrics are None where the prediction is not finite."""
        self.test_metrics = metrics or {}
        self.prediction = prediction if self.keep_prediction else None

    # --- on disk --------------------------------------------------------------------------------------------------

    def _prompt_state(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in self.prompt.state_dict().items()}

    def metadata(self) -> dict[str, Any]:
        """What is saved with the prompt."""
        return {
            **self.record,
            "training": self.config.to_dict(),
            "step": self.best.step,
            "score": _plain(self.best.score),
            "metrics": _plain_values(self.best.metrics),
        }

    def save_checkpoint(self) -> None:
        """Writes all that the run needs to go on to the same numbers into its folder, as one file."""
        if self.folder is None:
            return
        state = {
            "format": _FORMAT,
            "config": self.config.to_dict(),
            "prompt": self._prompt_state(),
            "optimizer": self.optimizer.state_dict(),
            "best": vars(self.best),
            **{name: getattr(self, name) for name in _KEPT},
        }
        files.write_atomic(_checkpoint(self.folder), lambda file: torch.save(state, file))

    def load_checkpoint(self) -> None:
        """Goes back to the folder's checkpoint, if it is of these settings; drops later lines of metrics.jsonl."""
        assert self.folder is not None
        state = _load(_checkpoint(self.folder))
        self.start_state = _load(_start(self.folder)) if _start(self.folder).is_file() else None
        if state.get("format") != _FORMAT:
            raise SoftPromptError(f"run '{self.name}': its checkpoint has a format this version does not know")
        before = vars(TrainConfig.from_dict(state["config"]))
        changed = run_folder.differences(before, vars(self.config))
        if changed:
            differ = "; ".join(changed)
            raise SoftPromptError(f"run '{self.name}': its checkpoint was made otherwise ({differ}); start a new run")
        self.prompt.load_state_dict(state["prompt"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = _Best(**state["best"])
        for name in _KEPT:
            setattr(self, name, state[name])
        if is_main():
            run_folder.cut_metrics(self.folder, self.step)

    def finish(self, model: Any, write: bool = True) -> LaneResult:
        """Writes the result of a run that is done (with ``write``), and puts its best prompt back into the model."""
        assert self.stop_reason is not None
        last = self.history[-1] if self.history else {}
        result = LaneResult(
            name=self.name,
            stop_reason=self.stop_reason,
            message=self.message,
            steps=self.step,
            best_step=self.best.step,
            score=_plain(self.best.score),
            metrics=_plain_values(self.best.metrics),
            test_metrics=_plain_values(self.test_metrics),
            seconds=round(self.seconds, 3),
            step_seconds=round(self.step_seconds, 3),
            peak_memory=self.peak_memory,
            lanes=self.lanes,
            vitals=dict(last.get("vitals", {})),
            idle=list(last.get("idle", [])),
            history=list(self.history),
        )
        if not result.done:
            return result
        self.restore_best()
        if self.folder is not None and write:
            model.save_prompt(self.name, self.folder / run_folder.PROMPT, metadata=self.metadata())
            files.write_json_atomic(self.folder / run_folder.RESULT, {**self.record, **result.to_dict()})
        return result


def checkpoint_step(folder: Path) -> int:
    """The step of a run folder's checkpoint; 0 without one."""
    try:
        return int(torch.load(_checkpoint(folder), map_location="cpu", weights_only=True, mmap=True)["step"])
    except Exception:  # there is none, or a damaged one, which is reported when the run is resumed
        return 0


def _checkpoint(folder: Path) -> Path:
    return folder / run_folder.CHECKPOINT / CHECKPOINT_FILE


def _start(folder: Path) -> Path:
    return folder / run_folder.CHECKPOINT / START_FILE


def _load(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return state
    except Exception as error:  # a damaged file fails anywhere in zip or pickle
        raise SoftPromptError(f"{path} is damaged and cannot be read; start a new run") from error


def _sized(evaluation: Evaluation | None, config: TrainConfig) -> Evaluation | None:
    """An evaluation with the batch size that a run's settings say, unless it has one."""
    if evaluation is None or evaluation.batch_size is not None:
        return evaluation
    return replace(evaluation, batch_size=config.eval_batch_size or max(EVAL_ROWS, config.batch_size))


def _plain(value: float | None) -> float | None:
    """A number as JSON has it, which knows no NaN or infinity."""
    return value if value is None or math.isfinite(value) else None


def _plain_values(values: dict[str, float]) -> dict[str, float | None]:
    return {name: _plain(value) for name, value in values.items()}
