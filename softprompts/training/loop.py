"""The training loop. It is written for a list of runs (lanes) that share every pass of the frozen backbone.

One step: each active lane draws its rows, all rows go through the model in one forward pass (a row names its lane's
prompt), each lane takes the mean loss over its own rows, one backward pass of the sum, and each lane clips and steps
for itself. The backbone is frozen and rows do not mix in it, so the gradient of a lane's parameters is that of its
own loss, and a lane ends up where it would alone. What its prompt and head draw at random while they train comes from
a sequence of the lane's own, so this holds for routers and heads with dropout too. Only dropout in the backbone itself
(``backbone_dropout``) is drawn for all rows at once: with it, lanes that share a pass differ from the runs alone.

With several processes (``accelerate launch``) each takes a share of every batch's rows and gradients are summed; each
predicts a share of the rows of an evaluation; the numbers are those of one process. That holds for random draws too:
what is drawn once per step is drawn alike in all processes, and of what is drawn row by row (router noise, dropout of
a head) each process draws the whole batch's and keeps its rows'. Two things are not drawn as in one process: with
dropout in the backbone, each process draws everything for itself; and a plug-in that looks at the rows must draw
tensors ``(rows, ...)`` or ones of which no size equals the number of rows.

A step may go through its lanes in several passes; no number changes, since no lane's depend on its company. On a CPU
lanes share a pass only while it has few tokens: beyond, sharing saves nothing and takes memory, which costs time to
touch. Where memory does not suffice, half as many lanes share a pass from then on.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from softprompts.errors import SoftPromptError, nearest
from softprompts.processes import alike, require_whole, together
from softprompts.storage import run_folder
from softprompts.tasks.collate import collate, inputs_of, length_of
from softprompts.training.evaluation import measure
from softprompts.training.extra_passes import check_teachers, comparisons, wants_states
from softprompts.training.lane import Draw, Lane, LaneResult
from softprompts.training.losses import label_count, read_pass
from softprompts.training.memory import (
    CPU_TOKENS,
    SHARE,
    free_memory,
    keep_pages,
    out_of_memory,
    release,
    step_memory,
)
from softprompts.training.peak_memory import PeakMemory
from softprompts.training.prediction import Feature
from softprompts.training.progress import Bar, Stop, flat, track, tracker_folder
from softprompts.training.randomness import Randomness

CHECKPOINT_SECONDS = 300  # since the last one: between two evaluations there may be hours


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
    require_whole(os.environ)
    _check(model, lanes, accelerator, trackers)
    own = accelerator is None
    if accelerator is None:
        accelerator = Accelerator(log_with=trackers, project_dir=tracker_folder(lanes) if trackers else None)
    _place(model, accelerator)
    if accelerator.device.type == "cpu":
        keep_pages()
    with together():
        for lane in lanes:
            alike(model.prompts[lane.name], accelerator)
            lane.start(model)
    if own and trackers:
        accelerator.init_trackers("trackers", config=flat({lane.name: lane.config.to_dict() for lane in lanes}))
    results: dict[str, LaneResult] = {}

    def finish(ended: list[Lane], within: Any = contextlib.nullcontext) -> None:
        """Writes the results of runs that have ended, after the test of those that are done."""
        done = [lane for lane in ended if lane.done]
        for lane in done:
            lane.restore_best()
        tested = [lane for lane in done if lane.held_out is not None]
        asked = [(lane.name, lane.held_out) for lane in tested if lane.held_out is not None]
        for lane, metrics in zip(tested, measure(model, asked, pad_id, padding_side, accelerator, within), strict=True):
            lane.test_metrics = metrics or {}
        for lane in ended:
            results[lane.name] = lane.finish(model, accelerator.is_main_process)

    # A run that stopped right before a crash has only its result left to write.
    finish([lane for lane in lanes if not lane.active])
    room = _Room(len(lanes), CPU_TOKENS if accelerator.device.type == "cpu" else None)
    try:
        with (
            _training(model, lanes[0].config.backbone_dropout),
            Randomness(model, lanes, accelerator) as randomness,
            PeakMemory(accelerator.device) as memory,
            Stop() as stop,
            Bar(lanes, progress and accelerator.is_main_process) as bar,
        ):
            saved = time.perf_counter()
            while active := [lane for lane in lanes if lane.active]:
                began = time.perf_counter()
                interrupted = _step(model, active, pad_id, padding_side, accelerator, stop, room, randomness)
                stepped = time.perf_counter() - began
                with _precision(accelerator, lanes[0].config.bf16):
                    due = [lane for lane in active if lane.active and lane.due]
                    due = _evaluate(model, due, pad_id, padding_side, accelerator, randomness)
                spent = time.perf_counter() - began
                for lane in active:
                    lane.seconds += spent
                    lane.step_seconds += stepped / len(active)
                    lane.peak_memory = memory.read() if lane in due or not lane.active else lane.peak_memory
                    lane.lanes = max(lane.lanes, len(active))
                stopping = [lane for lane in active if lane.active and (interrupted or lane.step == lane.pause_at)]
                late = [lane for lane in active if lane.active] if began - saved > CHECKPOINT_SECONDS else []
                if accelerator.is_main_process:
                    _write_down(model, due, [*stopping, *late], randomness)
                if due or late:
                    saved = time.perf_counter()
                for lane in stopping:
                    lane.lay_aside(interrupted)
                finish([lane for lane in active if not lane.active], randomness.of)
                bar.show(active)
                track(accelerator, active, due, prefix=len(lanes) > 1)
            if stop.asked and all(result.done for result in results.values()):
                # Asked for too late to interrupt a run, but the caller may have more to do.
                raise KeyboardInterrupt("all runs were done already")
        accelerator.wait_for_everyone()  # what the main process writes is there when any of them returns
        return [results[lane.name] for lane in lanes]
    finally:
        if own and trackers:
            # Not Accelerator.end_training: it also ends the process group, which is not ours alone.
            for tracker in accelerator.trackers:
                tracker.finish()


class _Room:
    """Which lanes share a forward pass.

    Args:
        lanes: most lanes in a pass; fewer after memory has run out.
        tokens: most tokens in a pass of several lanes, padding included; None: any number.
    """

    def __init__(self, lanes: int, tokens: int | None = None):
        self.lanes, self.tokens = lanes, tokens

    def parts(self, lanes: Sequence[Lane], draws: Sequence[Draw]) -> list[list[tuple[Lane, Draw]]]:
        """The lanes with what they draw, as many together as there is room for."""
        parts: list[list[tuple[Lane, Draw]]] = []
        rows = width = 0
        for lane, draw in zip(lanes, draws, strict=True):
            count = max(map(_rows, draw))
            length = max(length_of(row) for batch in draw for row in batch)
            full = not parts or len(parts[-1]) == self.lanes
            if full or (self.tokens is not None and (rows + count) * max(width, length) > self.tokens):
                parts.append([])
                rows = width = 0
            parts[-1].append((lane, draw))
            rows, width = rows + count, max(width, length)
        return parts


def _evaluate(
    model: Any, lanes: list[Lane], pad_id: int, padding_side: str, accelerator: Accelerator, randomness: Randomness
) -> list[Lane]:
    """Scores lanes on their validation rows and notes what came of it; returns those that were of use."""
    for lane in lanes:
        lane.check()
    lanes = [lane for lane in lanes if lane.active]
    scored = [(lane.name, lane.validation) for lane in lanes if lane.validation is not None]
    found = iter(measure(model, scored, pad_id, padding_side, accelerator, randomness.of))
    for lane in lanes:
        lane.take_stock({} if lane.validation is None else next(found))
    return [lane for lane in lanes if lane.stop_reason != run_folder.DIVERGED]


def _step(
    model: Any,
    lanes: list[Lane],
    pad_id: int,
    padding_side: str,
    accelerator: Accelerator,
    stop: Stop,
    room: _Room,
    randomness: Randomness,
) -> bool:
    """One step of all lanes; returns whether someone asked to stop."""
    draws = [lane.draw() for lane in lanes]
    while True:
        drawn = randomness.mark()
        try:
            losses = [
                loss
                for part in room.parts(lanes, draws)
                for loss in _losses_and_gradients(model, part, pad_id, padding_side, accelerator, randomness)
            ]
            break
        except Exception as error:
            # With several processes, the others are in the middle of the step and wait for this one.
            if not out_of_memory(error) or accelerator.num_processes > 1:
                raise
            if room.lanes == 1 or len(lanes) == 1:
                raise SoftPromptError(
                    f"run '{lanes[0].name}': out of memory in a step of {lanes[0].config.batch_size} rows; set "
                    "batch_size lower (gradient_accumulation_steps makes up for it), or max_length"
                ) from error
        # Outside the except: the error holds on to the tensors of the pass that failed.
        for lane in lanes:
            lane.zero_gradients()
        randomness.back(drawn)
        room.lanes = (min(room.lanes, len(lanes)) + 1) // 2
        release()
    asked = torch.tensor(float(stop.asked), device=model.device)
    if accelerator.num_processes > 1:
        _sum_gradients(lanes, accelerator)
        *losses, asked = accelerator.reduce(torch.stack([*losses, asked.to(losses[0].dtype)]), "sum").unbind()
    norms = [torch.nn.utils.get_total_norm(lane.gradients()) for lane in lanes]
    # The only place in a step where the device is waited for.
    values = torch.stack([value.to(losses[0]) for value in [*losses, *norms, asked]]).tolist()
    for i, lane in enumerate(lanes):
        lane.update(values[i], values[len(lanes) + i])
    return bool(values[-1] > 0)


def _losses_and_gradients(
    model: Any,
    asked: Sequence[tuple[Lane, Draw]],
    pad_id: int,
    padding_side: str,
    accelerator: Accelerator,
    randomness: Randomness,
) -> list[Tensor]:
    """The loss of each lane in this step; gradients are added to what the parameters have."""
    kind, world, rank = model.backbone_kind, accelerator.num_processes, accelerator.process_index
    lanes, draws = [lane for lane, _ in asked], [draw for _, draw in asked]
    counts = [max(1, label_count(kind, [row for rows in draw for row in rows])) for draw in draws]
    drawn = [sum(map(len, draw)) for draw in draws]
    losses: list[Tensor] = [torch.zeros((), device=model.device) for _ in lanes]
    # A lane that accumulates over fewer batches than others sits out the last passes.
    for part in range(max(map(len, draws))):
        whole = [draw[part] if part < len(draw) else [] for draw in draws]
        shares, sizes = [batch[rank::world] for batch in whole], list(map(_rows, whole))
        randomness.of_rows(lanes, sizes)
        rows: list[Feature] = [row for share in shares for row in share]
        if not rows:
            randomness.catch_up(lanes, sizes)
            continue
        names = [lane.name for lane, share in zip(lanes, shares, strict=True) for _ in share]
        batch = collate(rows, pad_id, padding_side)
        with _precision(accelerator, lanes[0].config.bf16):
            first = read_pass(model, batch, names, wants_states(model, list(dict.fromkeys(names))))
            penalties, per_row = model.penalties, first.losses
            compared = comparisons(model, batch, names, first, {lane.name: lane.teacher for lane in lanes})
        total, start = per_row.new_zeros(()), 0
        for i, (lane, share) in enumerate(zip(lanes, shares, strict=True)):
            if not share:
                continue
            loss = per_row[start : start + len(share)].sum()
            loss = (loss + compared[lane.name] if lane.name in compared else loss) / counts[i]
            start += len(share)
            if lane.name in penalties:
                # In proportion to the rows of this pass, so that a step adds up to one penalty.
                loss = loss + penalties[lane.name] * (len(share) / drawn[i])
            losses[i] = losses[i] + loss.detach()
            # A lane that has diverged must not take the others' sum with it. Chosen on the device: asking which
            # losses are finite here would make the device wait between forward and backward pass.
            total = total + torch.where(loss.isfinite(), loss, torch.zeros_like(loss))
        accelerator.backward(total)
        randomness.catch_up(lanes, sizes)
    return losses


def lanes_that_fit(model: Any, lane: Lane, *, pad_id: int, padding_side: str = "right") -> int:
    """How many lanes like this one should be trained together; at least 1.

    Takes one step of its longest batch, without an update, to see what memory it needs, and compares that with what
    is free. On the CPU no more than it takes to fill a pass of `CPU_TOKENS` tokens with their average batches: those
    keep all cores busy.

    Args:
        model: a model with the lane's prompt attached.
        lane: a run that has not begun.
        pad_id: fills shorter rows.
        padding_side: "right" or "left".
    """
    accelerator = Accelerator()
    _place(model, accelerator)
    prompt = model.prompts[lane.name]
    batch = collate(lane.longest(), pad_id, padding_side)

    def step() -> Tensor:
        with _precision(accelerator, lane.config.bf16):
            names = [lane.name] * len(batch["choices" if "choices" in batch else "input_ids"])
            first = read_pass(model, batch, names, wants_states(model, [lane.name]))
            compared = comparisons(model, batch, names, first, {lane.name: lane.teacher})
            return first.losses.sum() + sum(compared.values())

    cuda = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(cuda), _training(model, lane.config.backbone_dropout):
        try:
            taken = step_memory(step, model, accelerator.device)
        except Exception as error:
            if not out_of_memory(error) or accelerator.num_processes > 1:
                raise
            return 1
        finally:
            for parameter in prompt.parameters():
                parameter.grad = None
    # Gradient, two moments and the best prompt so far.
    held = 4 * sum(parameter.numel() * parameter.element_size() for parameter in prompt.parameters())
    count = int(SHARE * free_memory(accelerator.device) / (taken + held))
    if accelerator.device.type == "cpu":
        count = min(count, round(CPU_TOKENS / lane.tokens))
    if accelerator.num_processes > 1:  # all must go the same way
        count = int(accelerator.gather(torch.tensor([count], device=accelerator.device)).min())
    return max(1, count)


def _place(model: Any, accelerator: Accelerator) -> None:
    """Moves a model to the device it is trained on, unless it was spread over devices or quantised there."""
    placed = getattr(model, "hf_device_map", None) is not None or getattr(model, "is_quantized", False)
    if not placed and model.device != accelerator.device:
        model.to(accelerator.device)


def _sum_gradients(lanes: list[Lane], accelerator: Accelerator) -> None:
    """Adds up the gradients of all processes, each of which saw its share of the rows, in one message."""
    parameters = [parameter for lane in lanes for parameter in lane.parameters]
    # A parameter without a gradient anywhere stays without one, as an optimizer passes it by then.
    there = torch.tensor([float(parameter.grad is not None) for parameter in parameters], device=accelerator.device)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    joined = accelerator.reduce(torch.cat([there, *(gradient.flatten() for gradient in gradients)]), "sum")
    there, *parts = joined.split([len(parameters), *(gradient.numel() for gradient in gradients)])
    for parameter, gradient, part, found in zip(parameters, gradients, parts, there.tolist(), strict=True):
        parameter.grad = gradient.copy_(part.view_as(gradient)) if found else None


def _write_down(model: Any, due: list[Lane], stopping: list[Lane], randomness: Randomness) -> None:
    """Puts on disk what a crash must not take: after an evaluation, before an interruption, and after some minutes."""
    for lane in due:
        if lane.folder is not None:
            run_folder.append_metrics(lane.folder, lane.history[-1])
            if lane.best.step == lane.step:
                model.save_prompt(lane.name, lane.folder / run_folder.PROMPT, metadata=lane.metadata())
    for lane in dict.fromkeys([*due, *stopping]):
        lane.random_state = randomness.state(lane)
        lane.save_checkpoint()


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
    for setting in ("bf16", "backbone_dropout"):
        if len({getattr(lane.config, setting) for lane in lanes}) > 1:
            raise SoftPromptError(f"runs that share a pass must agree in {setting}; train them one after the other")
    if len({_labels_of(lane) for lane in lanes}) > 1:
        raise SoftPromptError(
            "runs that share a pass must agree in the kind of labels: classes, values, tokens, spans or choices"
        )
    if accelerator is not None and accelerator.gradient_accumulation_steps != 1:
        raise SoftPromptError("set gradient_accumulation_steps in TrainConfig, not in the Accelerator")
    if accelerator is not None and trackers:
        raise SoftPromptError("the Accelerator you pass brings its own trackers; leave trackers out")


def _labels_of(lane: Lane) -> str:
    for name, kind in (("labels", "tokens"), ("span", "spans"), ("choices", "choices"), ("label", "")):
        if name in lane.train_features[0]:
            return kind or ("values" if any(isinstance(row[name], float) for row in lane.train_features) else "classes")
    raise SoftPromptError(f"run '{lane.name}': training rows have neither 'label', 'labels' nor 'span'")


def _rows(features: Sequence[Feature]) -> int:
    """Rows that features have in a forward pass."""
    return sum(len(inputs_of(feature)) for feature in features)


@contextlib.contextmanager
def _training(model: Any, backbone_dropout: bool | None) -> Iterator[None]:
    """Train mode for the prompts (the backbone stays as the model decides), and the old mode afterwards."""
    before, dropout = model.training, model.backbone_dropout
    model.backbone_dropout = dropout if backbone_dropout is None else backbone_dropout
    model.train()
    try:
        yield
    finally:
        model.backbone_dropout = dropout
        model.train(before)


def _precision(accelerator: Accelerator, bf16: bool) -> contextlib.AbstractContextManager[Any]:
    # Not Accelerator(mixed_precision=...): its state is one per process, so two runs could not differ in it.
    if bf16:
        return torch.autocast(accelerator.device.type, dtype=torch.bfloat16)
    context: contextlib.AbstractContextManager[Any] = accelerator.autocast()
    return context
