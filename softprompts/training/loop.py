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
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor

from softprompts.compiling import compiled, require_compilable
from softprompts.errors import SoftPromptError, nearest
from softprompts.injection import state_of
from softprompts.tasks.collate import collate
from softprompts.training import runs
from softprompts.training.evaluate import Feature, model_inputs
from softprompts.training.lane import Lane, LaneResult
from softprompts.training.losses import label_count, row_losses
from softprompts.training.measure import PeakMemory
from softprompts.training.processes import RowDraws, alike, from_main, together


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
        lanes: the runs; they must agree in ``bf16``, ``backbone_dropout`` and ``compile``.
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
    _check(model, lanes, accelerator, trackers)
    own = accelerator is None
    if accelerator is None:
        accelerator = Accelerator(log_with=trackers, project_dir=_tracker_folder(lanes) if trackers else None)
    placed = getattr(model, "hf_device_map", None) is not None or getattr(model, "is_quantized", False)
    if not placed and model.device != accelerator.device:
        model.to(accelerator.device)
    with together():
        for lane in lanes:
            lane.accelerator = accelerator
            alike(model.prompts[lane.name], accelerator)
            lane.start(model)
    if own and trackers:
        accelerator.init_trackers("trackers", config=_flat({lane.name: lane.config.to_dict() for lane in lanes}))
    # A run that stopped right before a crash has only its result left to write.
    results = {}
    for lane in lanes:
        if not lane.active:
            lane.test(model, pad_id, padding_side)
            results[lane.name] = lane.finish(model, accelerator.is_main_process)
    try:
        with (
            _training(model, lanes[0].config.backbone_dropout),
            compiled(model) if lanes[0].config.compile else contextlib.nullcontext(),
            _Randomness(model, lanes, accelerator) as randomness,
            PeakMemory(accelerator.device) as memory,
            _Stop() as stop,
            _Bar(lanes, progress and accelerator.is_main_process) as bar,
        ):
            while active := [lane for lane in lanes if lane.active]:
                began = time.perf_counter()
                interrupted = _step(model, active, pad_id, padding_side, accelerator, stop, randomness)
                stepped = time.perf_counter() - began
                due = []
                for lane in active:
                    if lane.active and lane.due:
                        with _precision(accelerator, lane.config.bf16), randomness.of(lane):
                            metrics = lane.evaluate(model, pad_id, padding_side)
                        if lane.active:
                            lane.take_stock(metrics)
                            due.append(lane)
                spent = time.perf_counter() - began
                for lane in active:
                    lane.seconds += spent
                    lane.step_seconds += stepped
                    lane.peak_memory = memory.read() if lane in due or not lane.active else lane.peak_memory
                stopping = [lane for lane in active if lane.active] if interrupted else []
                if accelerator.is_main_process:
                    _write_down(model, due, stopping, randomness)
                for lane in stopping:
                    lane.stop_reason, lane.message = "interrupted", f"interrupted after step {lane.step}"
                for lane in active:
                    if not lane.active:
                        if lane.stop_reason != "interrupted":
                            with randomness.of(lane):
                                lane.test(model, pad_id, padding_side)
                        results[lane.name] = lane.finish(model, accelerator.is_main_process)
                bar.show(active)
                _track(accelerator, active, due, prefix=len(lanes) > 1)
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


def _step(
    model: Any,
    lanes: list[Lane],
    pad_id: int,
    padding_side: str,
    accelerator: Accelerator,
    stop: _Stop,
    randomness: _Randomness,
) -> bool:
    """One step of all lanes; returns whether someone asked to stop."""
    kind, world, rank = model.backbone_kind, accelerator.num_processes, accelerator.process_index
    draws = [lane.draw() for lane in lanes]
    counts = [max(1, label_count(kind, [row for rows in draw for row in rows])) for draw in draws]
    losses: list[Tensor] = [torch.zeros((), device=model.device) for _ in lanes]
    # A lane that accumulates over fewer batches than others sits out the last passes.
    for part in range(max(len(draw) for draw in draws)):
        whole = [draw[part] if part < len(draw) else [] for draw in draws]
        shares = [batch[rank::world] for batch in whole]
        randomness.of_rows(lanes, [len(batch) for batch in whole])
        rows: list[Feature] = [row for share in shares for row in share]
        if not rows:
            randomness.catch_up(lanes, [len(batch) for batch in whole])
            continue
        names = [lane.name for lane, share in zip(lanes, shares, strict=True) for _ in share]
        batch = collate(rows, pad_id, padding_side)
        with _precision(accelerator, lanes[0].config.bf16):
            logits = model(**model_inputs(model, batch), prompt_names=names).logits
            per_row = row_losses(kind, logits, batch["labels"])
        penalties = model.penalties
        total, start = per_row.new_zeros(()), 0
        for i, (lane, share) in enumerate(zip(lanes, shares, strict=True)):
            if not share:
                continue
            loss = per_row[start : start + len(share)].sum() / counts[i]
            start += len(share)
            if lane.name in penalties:
                # In proportion to the rows of this pass, so that a step adds up to one penalty.
                loss = loss + penalties[lane.name] * (len(share) / sum(map(len, draws[i])))
            losses[i] = losses[i] + loss.detach()
            # A lane that has diverged must not take the others' sum with it. Chosen on the device: asking which
            # losses are finite here would make the device wait between forward and backward pass.
            total = total + torch.where(loss.isfinite(), loss, torch.zeros_like(loss))
        accelerator.backward(total)
        randomness.catch_up(lanes, [len(batch) for batch in whole])
    asked = torch.tensor(float(stop.asked), device=model.device)
    if world > 1:
        _sum_gradients(lanes, accelerator)
        *losses, asked = accelerator.reduce(torch.stack([*losses, asked.to(losses[0].dtype)]), "sum").unbind()
    norms = [torch.nn.utils.get_total_norm(lane.gradients()) for lane in lanes]
    # The only place in a step where the device is waited for.
    values = torch.stack([value.to(losses[0]) for value in [*losses, *norms, asked]]).tolist()
    for i, lane in enumerate(lanes):
        lane.update(values[i], values[len(lanes) + i])
    return bool(values[-1] > 0)


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


def _write_down(model: Any, due: list[Lane], stopping: list[Lane], randomness: _Randomness) -> None:
    """Puts on disk what a crash must not take: after an evaluation, and before an interruption."""
    for lane in due:
        if lane.folder is not None:
            runs.append_metrics(lane.folder, lane.history[-1])
            if lane.best.step == lane.step:
                model.save_prompt(lane.name, lane.folder / runs.PROMPT, metadata=lane.metadata())
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
    for setting in ("bf16", "backbone_dropout", "compile"):
        if len({getattr(lane.config, setting) for lane in lanes}) > 1:
            raise SoftPromptError(f"runs that share a pass must agree in {setting}; train them one after the other")
    if len({_labels_of(lane) for lane in lanes}) > 1:
        raise SoftPromptError("runs that share a pass must agree in the kind of labels: classes, values or tokens")
    if lanes[0].config.compile:
        require_compilable(model, model.device if accelerator is None else accelerator.device)
    if accelerator is not None and accelerator.gradient_accumulation_steps != 1:
        raise SoftPromptError("set gradient_accumulation_steps in TrainConfig, not in the Accelerator")
    if accelerator is not None and trackers:
        raise SoftPromptError("the Accelerator you pass brings its own trackers; leave trackers out")


def _labels_of(lane: Lane) -> str:
    for name, kind in (("labels", "tokens"), ("label", "")):
        if name in lane.train_features[0]:
            return kind or ("values" if any(isinstance(row[name], float) for row in lane.train_features) else "classes")
    raise SoftPromptError(f"run '{lane.name}': training rows have neither 'label' nor 'labels'")


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


class _Randomness:
    """What prompts draw while they train (dropout, noise of a router, dropout of a head), from torch's generators.

    Several lanes each have a sequence of their own, swapped in while their modules run and while they are evaluated: a
    lane draws what it would alone. A single lane has the generators to itself. A sequence begins at its lane's seed,
    or where the checkpoint left it; the caller's generators are given back as they were in the end.

    With dropout in the backbone, the lanes share one sequence, which begins at the first one's seed: that dropout is
    drawn for all rows at once, so several lanes differ from the runs alone whatever their prompts draw. The same goes
    for a plug-in that draws per column of the padded batch, whose width lanes share; no method here does.
    """

    def __init__(self, model: Any, lanes: list[Lane], accelerator: Accelerator):
        self.lanes = lanes
        self.accelerator = accelerator
        device = accelerator.device
        self.device = device if device.type == "cuda" else None
        self.own: dict[str, _Sequence] = {}
        self._state = state_of(model)
        self._apart = (len(lanes) > 1 or accelerator.num_processes > 1) and not model.backbone_dropout
        self._fork = torch.random.fork_rng([] if self.device is None else [self.device])

    def __enter__(self) -> _Randomness:
        self._fork.__enter__()
        for lane in reversed(self.lanes if self._apart else self.lanes[:1]):
            torch.manual_seed(lane.config.seed)
            _set_random_state(lane.random_state, self.device)
            if self._apart:
                self.own[lane.name] = _Sequence(_random_state(self.device), self.device)
        if not self._apart and self.accelerator.process_index:
            # Else all processes would drop the same of each row.
            torch.manual_seed(int(torch.randint(2**62, ())) + self.accelerator.process_index)
        self._state.randomness = self.own or None
        return self

    def __exit__(self, *error: Any) -> None:
        self._state.randomness = None
        self._fork.__exit__(*error)

    def of_rows(self, lanes: list[Lane], counts: list[int]) -> None:
        """Says how many rows of each lane the next pass has in all processes together."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        if self._apart and world > 1:
            for lane, count in zip(lanes, counts, strict=True):
                self.own[lane.name].rows = RowDraws(rank, world, count)

    def catch_up(self, lanes: list[Lane], counts: list[int]) -> None:
        """After a pass: lanes with too few rows for all processes go on from where they are in the main one."""
        for lane, count in zip(lanes, counts, strict=True):
            if self._apart and 0 < count < self.accelerator.num_processes:
                sequence = self.own[lane.name]
                sequence.state = from_main(sequence.state, self.accelerator.device)

    def of(self, lane: Lane) -> contextlib.AbstractContextManager[Any]:
        """The context in which a lane does things for itself alone."""
        return self.own.get(lane.name) or contextlib.nullcontext()

    def state(self, lane: Lane) -> dict[str, Tensor]:
        """Where a lane's sequence is now."""
        return dict(self.own[lane.name].state) if self._apart else _random_state(self.device)


class _Sequence:
    """A random sequence: within this context, torch's generators go on with it. May be entered again inside."""

    def __init__(self, state: dict[str, Tensor], device: torch.device | None):
        self.state = state
        self.device = device
        self.rows: RowDraws | None = None
        self._depth = 0
        self._outside: dict[str, Tensor] = {}

    def __enter__(self) -> None:
        if not self._depth:
            self._outside = _random_state(self.device)
            _set_random_state(self.state, self.device)
        self._depth += 1

    def __exit__(self, *error: Any) -> None:
        self._depth -= 1
        if not self._depth:
            self.state = _random_state(self.device)
            _set_random_state(self._outside, self.device)

    @contextlib.contextmanager
    def drawing(self, by_row: bool) -> Iterator[None]:
        """See `softprompts.passing.Draws`."""
        with self, self.rows if by_row and self.rows is not None else contextlib.nullcontext():
            yield


def _random_state(device: torch.device | None) -> dict[str, Tensor]:
    """The state of torch's generators: that of the CPU and, where there is one, of the GPU."""
    states = {"cpu": torch.get_rng_state()}
    if device is not None:
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _set_random_state(states: dict[str, Tensor], device: torch.device | None) -> None:
    """Sets those generators whose state is given."""
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if device is not None and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


class _Stop:
    """Turns Ctrl-C and SIGTERM into a wish to stop after the step: half a step could not be resumed.

    A second Ctrl-C is an ordinary KeyboardInterrupt. Only the main thread may set signal handlers; elsewhere this
    does nothing.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *error: Any) -> None:
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            # None: a handler that was not set from Python and cannot be set back from it.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}


class _Bar:
    """A line per run with its steps, loss and main metric; nothing where the output is not a terminal."""

    def __init__(self, lanes: list[Lane], wanted: bool):
        console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (wanted and console.is_terminal),
        )
        self.tasks: dict[str, TaskID] = {
            lane.name: self.progress.add_task(lane.name, total=lane.total_steps, completed=lane.step, note="")
            for lane in lanes
        }

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.progress.stop()

    def show(self, lanes: list[Lane]) -> None:
        """Brings the lines up to date."""
        if self.progress.disable:
            return
        for lane in lanes:
            note = f"loss {lane.loss:.4f}"
            if lane.last_metrics:
                name, value = next(iter(lane.last_metrics.items()))
                note += f"  {name} {value:.4f}, best {lane.best.metrics[name]:.4f}"
            if lane.stop_reason:
                note += f"  {lane.stop_reason}"
            self.progress.update(self.tasks[lane.name], completed=lane.step, note=note)


def _track(accelerator: Accelerator, active: list[Lane], due: list[Lane], prefix: bool) -> None:
    """Logs the step's losses, and metrics where there are new ones, to Accelerate's trackers."""
    if not accelerator.trackers:
        return
    values: dict[str, float] = {}
    for lane in active:
        front = f"{lane.name}/" if prefix else ""
        values[f"{front}loss"] = lane.loss
        for group in lane.optimizer.param_groups:
            values[f"{front}learning_rate/{group['name']}"] = group["lr"]
        if lane in due:
            values.update({f"{front}{name}": value for name, value in lane.last_metrics.items()})
    # Trackers want steps that only rise, so lanes that resume from different steps share the highest.
    accelerator.log(values, step=max(lane.step for lane in active))


def _tracker_folder(lanes: list[Lane]) -> Path:
    folders = [str(lane.folder) for lane in lanes if lane.folder is not None]
    if not folders:
        return Path("runs")
    return Path(folders[0]) if len(folders) == 1 else Path(os.path.commonpath(folders))


def _flat(values: dict[str, Any], front: str = "") -> dict[str, Any]:
    """Nested settings as one level of plain values, which is all that trackers take."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{front}{name}/"))
        else:
            flat[front + name] = value if isinstance(value, int | float | str) else json.dumps(value)
    return flat
