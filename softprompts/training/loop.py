"""The training loop. It is written for a list of runs (lanes) that share every pass of the frozen backbone.

One step: each active lane draws its rows, all rows go through the model in one forward pass (a row names its lane's
prompt), each lane takes the mean loss over its own rows, one backward pass of the sum, and each lane clips and steps
for itself. The backbone is frozen and rows do not mix in it, so the gradient of a lane's parameters is that of its
own loss, and a lane ends up where it would alone. What its prompt and head draw at random while they train comes from
a sequence of the lane's own, so this holds for routers and heads with dropout too. Only dropout in the backbone itself
(``backbone_dropout``) is drawn for all rows at once: with it, lanes that share a pass differ from the runs alone.

With several processes (``accelerate launch``) each takes a share of every batch's rows and gradients are summed; each
predicts a share of the rows of an evaluation. The numbers are those of one process, but for random draws: each process
draws for its own rows.

A step may go through its lanes in several passes; no number changes, since no lane's depend on its company. On a CPU
lanes share a pass only while it has few tokens: beyond, sharing saves nothing and takes memory, which costs time to
touch. Where memory does not suffice, half as many lanes share a pass from then on.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from softprompts.errors import SoftPromptError, nearest
from softprompts.methods.contract import Rows
from softprompts.processes import copy_from_main, require_unsharded, synchronized
from softprompts.storage import run_folder
from softprompts.tasks.batches import collate
from softprompts.training.evaluation import Evaluation, predictions_of
from softprompts.training.extra_passes import check_several_labels, check_teachers, training_losses
from softprompts.training.lane import Lane, StepBatches
from softprompts.training.losses import label_count
from softprompts.training.memory import PeakMemory, keep_pages, out_of_memory, release
from softprompts.training.pass_size import PassSize, place, precision, train_mode
from softprompts.training.prediction import Prediction
from softprompts.training.progress import Bar, Stop, flat, track, tracker_folder
from softprompts.training.randomness import Randomness
from softprompts.training.result import LaneResult, LateInterrupt
from softprompts.training.vitals import Vitals, gradient_vitals, rows_to_look_at, vitals_of

CHECKPOINT_SECONDS = 300  # between checkpoints at most: between two evaluations there may be hours
Scored = tuple[dict[str, float] | None, Prediction]  # metrics as of `Evaluation.scores`
Within = Callable[[str], contextlib.AbstractContextManager[Any]]


def train(
    model: Any,
    lanes: Sequence[Lane],
    *,
    pad_id: int,
    padding_side: str = "right",
    accelerator: Accelerator | None = None,
    progress: bool = True,
    trackers: str | Sequence[str] | None = None,
) -> list[LaneResult]:
    """Trains some runs in shared passes, each to the numbers it would reach alone (unless the backbone has dropout).

    Args:
        model: a model with the lanes' prompts attached. Afterwards each prompt is the best of its run.
        lanes: the runs; they must agree in ``bf16`` and ``backbone_dropout``.
        pad_id: fills shorter rows.
        padding_side: "right" or "left".
        accelerator: the caller's own, when it needs settings; its trackers are then the ones logged to.
        progress: shows a progress bar where the output is a terminal.
        trackers: names of Accelerate's trackers, such as "tensorboard"; they write below the run's folder.

    Returns:
        One result per lane, in their order. After Ctrl-C (or SIGTERM) the runs still on are "interrupted": with a
        folder they can be resumed.

    Raises:
        SoftPromptError: the lanes cannot share a pass, or one is not set up right.
    """
    lanes = list(lanes)
    require_unsharded(os.environ)
    _check(model, lanes, accelerator, trackers)
    tracked = accelerator is None and bool(trackers)
    if accelerator is None:
        accelerator = Accelerator(log_with=trackers, project_dir=tracker_folder(lanes) if trackers else None)
    place(model, accelerator)
    if accelerator.device.type == "cpu":
        keep_pages()
    with synchronized():
        for lane in lanes:
            copy_from_main(model.prompts[lane.name], accelerator)
            lane.start(model)
    if tracked:
        accelerator.init_trackers("trackers", config=flat({lane.name: lane.config.to_dict() for lane in lanes}))
    loop = _Loop(model, lanes, pad_id, padding_side, accelerator)
    try:
        loop.run(progress)
        accelerator.wait_for_everyone()  # what the main process writes is there when any of them returns
        return [loop.results[lane.name] for lane in lanes]
    finally:
        if tracked:
            # Not Accelerator.end_training: it also ends the process group, which is not ours alone.
            for tracker in accelerator.trackers:
                tracker.finish()


class _Loop:
    """Lanes while they train; ``results`` has those that have ended, by name."""

    def __init__(self, model: Any, lanes: list[Lane], pad_id: int, padding_side: str, accelerator: Accelerator):
        self.model, self.lanes, self.accelerator = model, lanes, accelerator
        self.pad_id, self.padding_side = pad_id, padding_side
        self.bf16 = lanes[0].config.bf16
        self.pass_size = PassSize(len(lanes), accelerator.device)
        self.results: dict[str, LaneResult] = {}

    def run(self, progress: bool) -> None:
        """Trains all lanes to their ends."""
        # A run that stopped right before a crash has only its result left to write.
        self._finish([lane for lane in self.lanes if not lane.active], contextlib.nullcontext)
        accelerator = self.accelerator
        with (
            train_mode(self.model, self.lanes[0].config.backbone_dropout),
            Randomness(self.model, self.lanes, accelerator) as randomness,
            Stop() as stop,
            Bar(self.lanes, progress and accelerator.is_main_process) as bar,
        ):
            memory, saved = PeakMemory(accelerator.device), time.perf_counter()
            while active := [lane for lane in self.lanes if lane.active]:
                began = time.perf_counter()
                interrupted = self._step(active, stop, randomness)
                stepped = time.perf_counter() - began
                with precision(accelerator, self.bf16):
                    due = self._evaluate([lane for lane in active if lane.active and lane.due], randomness.of)
                spent = time.perf_counter() - began
                for lane in active:
                    lane.seconds += spent
                    lane.step_seconds += stepped / len(active)
                    lane.peak_memory = memory.read() if lane in due or not lane.active else lane.peak_memory
                    lane.lanes = max(lane.lanes, len(active))
                stopping = [lane for lane in active if lane.active and (interrupted or lane.step == lane.pause_at)]
                late = [lane for lane in active if lane.active] if began - saved > CHECKPOINT_SECONDS else []
                if accelerator.is_main_process:
                    self._write(due, [*stopping, *late], randomness)
                if due or late:
                    saved = time.perf_counter()
                for lane in stopping:
                    lane.suspend(interrupted)
                self._finish([lane for lane in active if not lane.active], randomness.of)
                bar.show(active, due)
                track(accelerator, active, due, prefix=len(self.lanes) > 1)
            if stop.requested and all(result.done for result in self.results.values()):
                raise LateInterrupt("all runs were done already")

    def _step(self, lanes: list[Lane], stop: Stop, randomness: Randomness) -> bool:
        """Takes one step of all lanes; returns whether a signal asked to stop."""
        accelerator = self.accelerator
        batches = [lane.next_batches() for lane in lanes]
        randomness.start_step(lanes)
        while True:
            mark = randomness.mark()
            try:
                losses = [loss for part in self.pass_size.parts(lanes, batches) for loss in self._backward(part)]
                break
            except Exception as error:
                # With several processes, the others are in the middle of the step and wait for this one.
                if not out_of_memory(error) or accelerator.num_processes > 1:
                    raise
                if self.pass_size.lanes == 1 or len(lanes) == 1:
                    raise SoftPromptError(
                        f"run '{lanes[0].name}': out of memory in a step of {lanes[0].config.batch_size} rows; set "
                        "batch_size lower (gradient_accumulation_steps makes up for it), or max_length"
                    ) from error
            # Outside the except: the error holds on to the tensors of the pass that failed.
            for lane in lanes:
                lane.zero_gradients()
            randomness.restore(mark)
            self.pass_size.lanes = (min(self.pass_size.lanes, len(lanes)) + 1) // 2
            release()
        requested = torch.tensor(float(stop.requested), device=self.model.device)
        if accelerator.num_processes > 1:
            _sum_gradients(lanes, accelerator)
            *losses, requested = accelerator.reduce(torch.stack([*losses, requested.to(losses[0])]), "sum").unbind()
        norms = [torch.nn.utils.get_total_norm(lane.gradients()) for lane in lanes]
        watched = [(lane, self._gradient_vitals(lane)) for lane in lanes if lane.due_after(lane.step + 1)]
        vitals = [value for _, found in watched for value in found.values()]
        # The only place in a step where the device is waited for.
        values = torch.stack([value.to(losses[0]) for value in [requested, *losses, *norms, *vitals]]).tolist()
        asked, *numbers = values
        for i, lane in enumerate(lanes):
            lane.update(numbers[i], numbers[len(lanes) + i])
        rest = iter(numbers[2 * len(lanes) :])
        for lane, found in watched:
            lane.gradient_vitals = {name: next(rest) for name in found}
        return bool(asked > 0)

    def _gradient_vitals(self, lane: Lane) -> dict[str, Tensor]:
        return gradient_vitals(lane.components, lane.prompt.method, self._rows(lane))

    def _rows(self, lane: Lane) -> Rows:
        return rows_to_look_at(self.model, lane.train_features, self.pad_id, self.padding_side)

    def _vitals(self, lane: Lane) -> Vitals:
        return vitals_of(lane.prompt, self._rows(lane), lane.start_state, lane.gradient_vitals)

    def _backward(self, part: Sequence[tuple[Lane, StepBatches]]) -> list[Tensor]:
        """Adds the gradients of a step to the parameters of some lanes; returns each lane's loss."""
        model, world, rank = self.model, self.accelerator.num_processes, self.accelerator.process_index
        lanes = [lane for lane, _ in part]
        teachers = {lane.name: lane.teacher for lane in lanes}
        rows_of = [[row for batch in batches for row in batch] for _, batches in part]
        counts = [max(1, label_count(model.backbone_kind, rows)) for rows in rows_of]
        losses: list[Tensor] = [torch.zeros((), device=model.device) for _ in lanes]
        # A lane that accumulates over fewer batches than others sits out the last passes.
        for number in range(max(len(batches) for _, batches in part)):
            shares = [batches[number][rank::world] if number < len(batches) else [] for _, batches in part]
            names = [lane.name for lane, share in zip(lanes, shares, strict=True) for _ in share]
            if not names:
                continue
            batch = collate([row for share in shares for row in share], self.pad_id, self.padding_side)
            with precision(self.accelerator, self.bf16, batch["input_ids"].shape[-1]):
                terms = training_losses(model, batch, names, teachers)
            total, start = terms.rows.new_zeros(()), 0
            for i, (lane, share) in enumerate(zip(lanes, shares, strict=True)):
                if not share:
                    continue
                loss = terms.rows[start : start + len(share)].sum()
                loss = (loss + terms.extra[lane.name] if lane.name in terms.extra else loss) / counts[i]
                start += len(share)
                if lane.name in terms.penalties:
                    # In proportion to the rows of this pass, so that a step adds up to one penalty.
                    loss = loss + terms.penalties[lane.name] * (len(share) / len(rows_of[i]))
                losses[i] = losses[i] + loss.detach()
                # A lane that has diverged must not take the others' sum with it. Chosen on the device: asking which
                # losses are finite here would make the device wait between forward and backward pass.
                total = total + torch.where(loss.isfinite(), loss, torch.zeros_like(loss))
            self.accelerator.backward(total)
        return losses

    def _evaluate(self, lanes: list[Lane], within: Within) -> list[Lane]:
        """Scores lanes on their validation rows; returns those that have not diverged."""
        for lane in lanes:
            lane.check_parameters()
        lanes = [lane for lane in lanes if lane.active]
        scored = self._scores([(lane, lane.validation) for lane in lanes if lane.validation is not None], within)
        for lane in lanes:
            metrics, prediction = scored.get(lane.name, ({}, None))
            lane.record_evaluation(metrics, self._vitals(lane), prediction)
        return [lane for lane in lanes if lane.stop_reason != run_folder.DIVERGED]

    def _finish(self, ended: list[Lane], within: Within) -> None:
        """Writes the results of runs that have ended, after the test of those that are done."""
        done = [lane for lane in ended if lane.done]
        for lane in done:
            lane.restore_best()
        self._scores([(lane, lane.fitting) for lane in done if lane.fitting is not None], within)
        scored = self._scores([(lane, lane.test) for lane in done if lane.test is not None], within)
        for lane in ended:
            if lane.name in scored:
                lane.record_test(*scored[lane.name])
            self.results[lane.name] = lane.finish(self.model, self.accelerator.is_main_process)

    def _scores(self, pairs: list[tuple[Lane, Evaluation]], within: Within) -> dict[str, Scored]:
        evaluations = [(lane.name, evaluation) for lane, evaluation in pairs]
        found = predictions_of(self.model, evaluations, self.pad_id, self.padding_side, self.accelerator, within)
        pairs_of = zip(evaluations, found, strict=True)
        return {name: (evaluation.scores(prediction), prediction) for (name, evaluation), prediction in pairs_of}

    def _write(self, due: list[Lane], stopping: list[Lane], randomness: Randomness) -> None:
        """Writes what a crash must not lose: after an evaluation, before an interruption, and after some minutes."""
        for lane in due:
            if lane.folder is not None:
                run_folder.append_metrics(lane.folder, lane.history[-1])
                if lane.best.step == lane.step:
                    self.model.save_prompt(lane.name, lane.folder / run_folder.PROMPT, metadata=lane.metadata())
        for lane in dict.fromkeys([*due, *stopping]):
            lane.random_state = randomness.state(lane)
            lane.save_checkpoint()


def _sum_gradients(lanes: list[Lane], accelerator: Accelerator) -> None:
    """Adds up the gradients of all processes, each of which saw its share of the rows, in one message."""
    parameters = [parameter for lane in lanes for parameter in lane.parameters]
    # A parameter without a gradient anywhere stays without one, as an optimizer passes it by then.
    has = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=accelerator.device)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    summed = accelerator.reduce(torch.cat([has, *(gradient.flatten() for gradient in gradients)]), "sum")
    has, *parts = summed.split([len(parameters), *(gradient.numel() for gradient in gradients)])
    for parameter, gradient, part, used in zip(parameters, gradients, parts, has.tolist(), strict=True):
        parameter.grad = gradient.copy_(part.view_as(gradient)) if used else None


def _check(
    model: Any, lanes: list[Lane], accelerator: Accelerator | None, trackers: str | Sequence[str] | None
) -> None:
    """Raises a `SoftPromptError` where these lanes cannot be trained together on this model."""
    if not lanes:
        raise SoftPromptError("there are no runs to train")
    for values, what in (([lane.name for lane in lanes], "prompt"), ([lane.folder for lane in lanes], "folder")):
        given = [value for value in values if value is not None]
        twice = next((value for value in given if given.count(value) > 1), None)
        if twice is not None:
            raise SoftPromptError(f"two of the runs share the {what} '{twice}'; each needs its own")
    for lane in lanes:
        if lane.name not in model.prompts:
            raise SoftPromptError(f"the model has no prompt '{lane.name}'; {nearest(lane.name, model.prompts)}")
        check_teachers(model, lane.name, lane.teacher)
        if _labels_of(lane) == "sets":
            check_several_labels(model.prompts[lane.name])
    for setting in ("bf16", "backbone_dropout"):
        if len({getattr(lane.config, setting) for lane in lanes}) > 1:
            raise SoftPromptError(f"runs that share a pass must agree in {setting}; train them one after the other")
    if len({_labels_of(lane) for lane in lanes}) > 1:
        raise SoftPromptError(
            "runs that share a pass must agree in the kind of labels: classes, sets of them, values, tokens, spans or "
            "choices"
        )
    if accelerator is not None and accelerator.gradient_accumulation_steps != 1:
        raise SoftPromptError("set gradient_accumulation_steps in TrainConfig, not in the Accelerator")
    if accelerator is not None and trackers:
        raise SoftPromptError("the Accelerator you pass brings its own trackers; leave trackers out")


def _labels_of(lane: Lane) -> str:
    """The kind of labels that a lane's rows have."""
    for name, kind in (("targets", "sets"), ("labels", "tokens"), ("span", "spans"), ("choices", "choices")):
        if name in lane.train_features[0]:
            return kind
    if "label" not in lane.train_features[0]:
        raise SoftPromptError(f"run '{lane.name}': training rows have neither 'label', 'labels' nor 'span'")
    return "values" if any(isinstance(row["label"], float) for row in lane.train_features) else "classes"
