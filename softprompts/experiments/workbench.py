"""A run from its settings: which model, task and method, and what they become in a run folder.

A `Workbench` holds one frozen backbone and one encoded task and trains methods on them, one at a time or several in
shared passes; the backbone is loaded and the task encoded once. `Workbench.resolved` is all that decides a run's
numbers.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from softprompts.backbones import packaged
from softprompts.backbones.loading import _load_backbone, context_room
from softprompts.backbones.quantized import require_backend, size
from softprompts.errors import SoftPromptError
from softprompts.methods.contract import MethodConfig
from softprompts.model.attach import attach
from softprompts.processes import is_main, require_whole, shared_state, together
from softprompts.storage import run_folder
from softprompts.storage.files import require_folder
from softprompts.storage.names import JOINT
from softprompts.storage.saved_prompt import prompt_folder
from softprompts.tasks import (
    label_ids,
    marker,
    new_tokens,
    padding_id,
)
from softprompts.tasks.data import _PLACE, MAX_LENGTH, Data, rows_identity
from softprompts.tasks.encode import Encoded, check_kind, encode_cached, say_cut
from softprompts.tasks.kinds import KINDS
from softprompts.training import (
    Lane,
    TrainConfig,
    lanes_that_fit,
    open_run,
    run_id,
    train,
)
from softprompts.training.evaluation import Evaluation, measure
from softprompts.training.extra_passes import check_teachers
from softprompts.training.lane import eval_rows, steps_behind
from softprompts.training.optim import learning_rates
from softprompts.training.progress import check_trackers
from softprompts.training.step_cost import step_cost

MIN_ROOM = 8  # tokens of input that a prompt must leave room for
# What tables are made of; a result without them was not written by a run, or was edited.
_NEEDED = (
    "metrics", "test_metrics", "eval_rows", "test_rows", "trained_parameters", "backbone_parameters", "steps",
    "best_step", "step_seconds", "seconds", "peak_memory", "lanes", "stop_reason", "message",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """An experiment that is asked for: a method's config, and how it trains."""

    method: MethodConfig
    training: TrainConfig


class Workbench:
    """One frozen backbone and one encoded task.

    Args:
        model: backbone by alias, local path or hub id.
        data: the labelled texts.
        max_length: most tokens of an input, the soft prompt not counted.
        backbone_dropout: keep the frozen model's dropout on while training.
        evaluate: score validation rows while training and keep the best prompt; False: keep the last one, which only
            a task with test rows allows.
        quantize: keep the backbone's weights in few bits, a key of `softprompts.backbones.quantized.BACKENDS`; None: not.
        command: the command line that the runs come from, which their records repeat; None: there is none.

    Attributes:
        task: the task.
        model: the attached model.
        tokenizer: its tokenizer.

    Raises:
        SoftPromptError: no such model or task, or data that cannot be used.
    """

    def __init__(
        self,
        model: str,
        data: Data,
        max_length: int = MAX_LENGTH,
        backbone_dropout: bool = False,
        evaluate: bool = True,
        quantize: str | None = None,
        command: str | None = None,
    ):
        require_whole(os.environ)
        if quantize is not None:
            require_backend(quantize, shared_state().device)
        self.name, self.data, self.max_length, self.quantize = model, data, max_length, quantize
        self.command = command
        self.task = data.load()
        self.tokenizer, backbone, self._missing = _load_backbone(model, KINDS[self.task.kind].tokens, quantize)
        self.model = attach(backbone, backbone_dropout=backbone_dropout)
        self.kind: str = self.model.backbone_kind
        self.pad_id = padding_id(self.tokenizer)
        self._read_task()
        self.evaluate = evaluate or not self.task.test
        self._encoded: dict[tuple[str, int], Encoded] = {}

    def on(self, data: Data, max_length: int | None = None, evaluate: bool | None = None) -> Workbench:
        """The same backbone with another task.

        Args:
            data: the labelled texts.
            max_length: another most tokens of an input; None: the same.
            evaluate: see `Workbench`; None: the same.

        Raises:
            SoftPromptError: data that cannot be used.
        """
        other = copy.copy(self)
        other.data, other.task = data, data.load()
        if self.kind == "encoder" and KINDS[other.task.kind].tokens != KINDS[self.task.kind].tokens:
            raise SoftPromptError(
                f"'{self.task.name}' and '{other.task.name}' need heads of different kinds, one for a row and one for "
                "every token, and cannot share a model"
            )
        other._read_task()
        other.max_length = max_length or self.max_length
        other.evaluate = (self.evaluate if evaluate is None else evaluate) or not other.task.test
        # What is the same, and is written out alike, need not be encoded again.
        alike = other.task_form() == self.task_form()
        same = [key for key in self._encoded if alike and getattr(other.task, key[0]) == getattr(self.task, key[0])]
        other._encoded = {key: self._encoded[key] for key in same}
        return other

    def _read_task(self) -> None:
        """Finds out how the model answers."""
        check_kind(self.kind, self.task)
        self.label_ids = label_ids(self.task, self.tokenizer, self.kind)
        self.new_tokens = new_tokens(self.task, self.tokenizer, self.kind)

    def room(self, config: MethodConfig) -> int:
        """Most tokens of an input that fit next to a prompt.

        Raises:
            SoftPromptError: too few.
        """
        room = context_room(self.model, self.tokenizer, config)
        if room is not None and room < MIN_ROOM:
            taken = config.input_tokens
            raise SoftPromptError(
                f"{config.method}: {taken} virtual tokens leave no room for the input in the context of "
                f"{room + taken} tokens of {self.name}; set num_virtual_tokens lower"
            )
        return self.max_length if room is None else min(self.max_length, room)

    def check(
        self,
        method: MethodConfig,
        training: TrainConfig | None = None,
        *,
        root: str | Path = "runs",
        folder: str | Path | None = None,
        resume: bool = False,
        reuse: bool = False,
    ) -> None:
        """Finds out whether a `run` can start, without a trace: builds a prompt and drops it again.

        Args:
            method: the method's config.
            training: how it would train; None: only the method is looked at.
            root: see `run`.
            folder: see `run`.
            resume: see `run`.
            reuse: see `run`.

        Raises:
            SoftPromptError: the method does not fit the model or the training, or the run folder is taken.
        """
        self.room(method)
        self._add("check", method, seed=0)
        try:
            self._add_teacher("check", method)
            if training is not None:
                learning_rates(self.model.prompts["check"].components(), training)
        finally:
            self._drop("check")
        if training is not None:
            if folder is None:
                require_folder(root, "runs")
            config = self.resolved(method, training)
            path = Path(folder) if folder is not None else Path(root) / run_id(config)
            if path.is_file() or (path / run_folder.CONFIG).is_file() or run_folder.is_done(path):
                open_run(root, config, resume=resume, reuse=reuse, folder=folder)
                if run_folder.is_done(path):
                    _checked(path, run_folder.load_result(path))

    def outline(self, method: MethodConfig, training: TrainConfig) -> tuple[dict[str, float], int]:
        """The learning rate of each component, the main one first, and the number of trained parameters.

        Raises:
            SoftPromptError: the method does not fit the model or the training.
        """
        self._add("outline", method, seed=0)
        try:
            prompt = self.model.prompts["outline"]
            rates = learning_rates(prompt.components(), training)
            return rates, sum(parameter.numel() for parameter in prompt.parameters())
        finally:
            self.model.delete_prompt("outline")

    def _add(self, name: str, method: MethodConfig, seed: int) -> None:
        encoder = self.kind == "encoder"
        self.model.add_prompt(
            name,
            method,
            num_labels=KINDS[self.task.kind].outputs(self.task.form) if encoder else None,
            labels=list(self.task.label_names) or None if encoder else None,
            tokenizer=self.tokenizer,
            seed=seed,
        )
        self._draw_head(name, seed)
        if not any(True for _ in self.model.prompts[name].parameters()):
            self.model.delete_prompt(name)
            raise SoftPromptError(f"{method.method}: there is nothing to train on {self.name}, which has no task head")

    def _add_teacher(self, name: str, method: MethodConfig) -> str | None:
        """Puts the saved prompt that a prompt learns from on the model, beside it; returns its name.

        Raises:
            SoftPromptError: it cannot be read, is for another backbone, has other labels or leaves less room.
        """
        source = method.taught_by()
        if source is None:
            return None
        teacher = f"{name}-teacher"
        if teacher in self.model.prompts:
            self.model.delete_prompt(teacher)
        self.model.load_prompt(prompt_folder(source), teacher)
        check_teachers(self.model, name, teacher)
        room = self.room(self.model.prompts[teacher].config)
        if room < self.room(method):
            raise SoftPromptError(f"{method.method}: the teacher {source} leaves {room} tokens: set max_length to that")
        return teacher

    def _drop(self, name: str) -> None:
        """Takes a prompt off the model, and its teacher."""
        for there in (name, f"{name}-teacher"):
            if there in self.model.prompts:
                self.model.delete_prompt(there)

    def _draw_head(self, name: str, seed: int) -> None:
        """Draws by the seed what of the head did not come with the backbone, and so is the same in no two processes."""
        head = self.model.prompts[name].head
        if head is None:
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for path, module in head.named_modules():
                if isinstance(module, nn.Linear) and f"{path}.weight" in self._missing:
                    std = getattr(self.model.config, "initializer_range", 0.02)
                    module.weight.data.copy_(torch.randn(module.weight.shape) * std)
                    if module.bias is not None:
                        module.bias.data.zero_()

    def say_cut(self, method: MethodConfig) -> str:
        """Encodes all rows that a method is going to see, and says in a line which had to be cut; empty: none.

        Raises:
            SoftPromptError: the prompt leaves no room for the input.
        """
        length, splits = self.room(method), self._splits()
        examples = sum(len(getattr(self.task, split)) for split in splits)
        return say_cut([self._rows(split, length) for split in splits], examples, length)

    def _splits(self) -> list[str]:
        """The splits that a run reads."""
        return ["train", *(["validation"] if self.evaluate else []), *(["test"] if self.task.test else [])]

    def features(self, split: str, length: int) -> list[dict[str, Any]]:
        """A split's rows as token ids, encoded once per length."""
        return self._rows(split, length).features

    def _rows(self, split: str, length: int) -> Encoded:
        if (split, length) not in self._encoded:
            self._encoded[split, length] = encode_cached(split, self.task, self.tokenizer, self.kind, length)
        return self._encoded[split, length]

    def _evaluation(self, split: str, length: int, batch_size: int) -> Evaluation:
        """A split to score on."""
        encoded = self._rows(split, length)
        mark = marker(self.task, getattr(self.task, split), encoded, self.tokenizer, self.kind)
        return Evaluation(encoded.features, mark, batch_size, self.label_ids, self.new_tokens)

    def resolved(self, method: MethodConfig, training: TrainConfig) -> dict[str, Any]:
        """All that decides the numbers of a run, as plain values; see `resolved`."""
        rows = rows_identity(self.data, self.task)
        return resolved(self.name, rows, method, training, self.max_length, self.evaluate, self.quantize)

    def run(
        self,
        method: MethodConfig,
        training: TrainConfig,
        *,
        root: str | Path = "runs",
        folder: str | Path | None = None,
        resume: bool = False,
        reuse: bool = False,
        progress: bool = True,
        trackers: Sequence[str] | None = None,
    ) -> tuple[Path, dict[str, Any]]:
        """Trains one experiment and leaves its run folder.

        Args:
            method: the method's config.
            training: how it trains.
            root: where run folders live.
            folder: a folder in place of the one named by the settings' hash.
            resume: go on with an unfinished run.
            reuse: give the result of a finished run instead of an error.
            progress: show a progress bar on a terminal.
            trackers: Accelerate's trackers to log to.

        Returns:
            The run's folder and its result. A prompt that was trained stays on `model`, named by method and seed.

        Raises:
            SoftPromptError: the method does not fit the model, or the run folder is taken; nothing is written then.
            KeyboardInterrupt: it was interrupted; it can be resumed.
        """
        with together():
            # Before any work is done, and before any folder is made: what cannot start leaves nothing behind.
            self.check(method, training, root=root, folder=folder, resume=resume, reuse=reuse)
        path = Path(folder) if folder is not None else Path(root) / run_id(self.resolved(method, training))
        if run_folder.is_done(path):
            return path, _checked(path, run_folder.load_result(path))
        check_trackers(trackers)
        lane = self._lane(f"{_plain(method.method)}-seed{training.seed}", method, training, root, resume, folder)
        self._train([lane], progress, trackers)
        return path, run_folder.load_result(path)

    def run_all(
        self,
        wanted: Sequence[Run],
        *,
        root: str | Path = "runs",
        lanes: int | None = None,
        pause_at: int | None = None,
        progress: bool = True,
        trackers: Sequence[str] | None = None,
        on_start: Callable[[], None] | None = None,
        on_result: Callable[[Run, dict[str, Any]], None] | None = None,
    ) -> list[tuple[Path, dict[str, Any] | None]]:
        """Trains many experiments, several at a time in shared passes of the backbone.

        Each ends up with the numbers it has alone. What is done already is not done again, what was interrupted goes
        on. Prompts are dropped from `model` once they are on disk.

        Args:
            wanted: the experiments.
            root: where run folders live.
            lanes: experiments that share a pass; None: as many as there is memory for, see `fitting`.
            pause_at: lay every experiment aside after this step (see `Lane`).
            progress: show progress bars on a terminal.
            trackers: Accelerate's trackers to log to.
            on_start: called once it is sure that every experiment can start, before rows are encoded and the first one
                trains.
            on_result: called after each experiment, in the order in which they end.

        Returns:
            Folder and result of each, in the order of ``wanted``; None where it was laid aside.

        Raises:
            SoftPromptError: a method does not fit the model.
            KeyboardInterrupt: interrupted; the same call goes on where it was.
        """
        with together():
            for run in wanted:
                self.check(run.method, run.training, root=root, resume=True, reuse=True)
        check_trackers(trackers)
        if on_start is not None:
            on_start()
        paths = [Path(root) / run_id(self.resolved(run.method, run.training)) for run in wanted]
        results: dict[Path, dict[str, Any]] = {}

        def collect(path: Path, run: Run) -> None:
            if path not in results and run_folder.is_done(path):
                results[path] = _checked(path, run_folder.load_result(path))
                if on_result is not None:
                    on_result(run, results[path])

        pending: dict[Path, Run] = {}
        for path, run in zip(paths, wanted, strict=True):
            collect(path, run)
            if path not in results and (pause_at is None or steps_behind(path) < pause_at):
                pending[path] = run
        while pending:
            first = next(iter(pending.values()))
            alike = {path: run for path, run in pending.items() if shared_by(run) == shared_by(first)}
            count = self.fitting(first) if lanes is None and len(alike) > 1 else lanes or 1
            wave = dict(list(alike.items())[:count])
            made = []
            for path, run in wave.items():
                name = f"{_plain(run.method.method)}-seed{run.training.seed}-{path.name}"
                made.append(self._lane(name, run.method, run.training, root, True, None, pause_at))
            try:
                self._train(made, progress, trackers)
            finally:
                for lane in made:
                    self._drop(lane.name)
            for path, run in wave.items():
                del pending[path]
                collect(path, run)
        return [(path, results.get(path)) for path in paths]

    def fitting(self, run: Run) -> int:
        """How many experiments like this one can share a pass, by a measured step and the memory that is free.

        See `softprompts.training.lanes_that_fit`.
        """
        name = "measured"
        length = self.room(run.method)
        self._add(name, run.method, run.training.seed)
        try:
            teacher = self._add_teacher(name, run.method)
            lane = Lane(name, run.training, self.features("train", length), teacher=teacher)
            return lanes_that_fit(self.model, lane, pad_id=self.pad_id)
        finally:
            self._drop(name)

    def cost(self, run: Run, steps: int = 100, warmup_steps: int = 20) -> dict[str, Any]:
        """What a training step of an experiment costs, see `softprompts.training.step_cost.step_cost`.

        Args:
            run: the experiment; nothing is written of it.
            steps: that are timed.
            warmup_steps: before them.

        Returns:
            What a run's result.json would have of model, task and method, and ``cost``.

        Raises:
            SoftPromptError: the method does not fit the model.
        """
        name, length = "measured", self.room(run.method)
        self._add(name, run.method, run.training.seed)
        try:
            teacher = self._add_teacher(name, run.method)
            record = self._record(name, run.method, run.training, length)
            features = self.features("train", length)
            found = step_cost(
                self.model,
                name,
                run.training,
                features,
                pad_id=self.pad_id,
                steps=steps,
                warmup_steps=warmup_steps,
                teacher=teacher,
            )
        finally:
            self._drop(name)
        return {**record, "batch_size": run.training.batch_size, "threads": torch.get_num_threads(), "cost": found}

    def score(self, names: Sequence[str], batch_size: int = 32) -> list[dict[str, float] | None]:
        """The metrics of prompts that are on `model`, as they are: on test rows where there are some, else validation.

        Args:
            names: the prompts; they share forward passes.
            batch_size: rows per forward pass.

        Returns:
            Their metrics in their order; None for one whose predictions are not finite.
        """
        split = "test" if self.task.test else "validation"
        lengths = [self.room(self.model.prompts[name].config) for name in names]
        asked = [
            (name, self._evaluation(split, length, batch_size)) for name, length in zip(names, lengths, strict=True)
        ]
        return measure(self.model, asked, self.pad_id)

    def _train(self, lanes: list[Lane], progress: bool, trackers: Sequence[str] | None) -> None:
        try:
            outcomes = train(self.model, lanes, pad_id=self.pad_id, progress=progress, trackers=trackers)
        finally:
            for teacher in {lane.teacher for lane in lanes} & set(self.model.prompts):
                self.model.delete_prompt(teacher)
        stopped = [
            (lane, outcome)
            for lane, outcome in zip(lanes, outcomes, strict=True)
            if outcome.stop_reason == "interrupted"
        ]
        if stopped:
            lane, outcome = stopped[0]
            more = f" (and {len(stopped) - 1} more)" if len(stopped) > 1 else ""
            raise KeyboardInterrupt(f"{lane.folder}: {outcome.message}{more}")

    def _lane(
        self,
        name: str,
        method: MethodConfig,
        training: TrainConfig,
        root: str | Path,
        resume: bool,
        folder: str | Path | None,
        pause_at: int | None = None,
    ) -> Lane:
        """The lane of an experiment, its prompt attached and its folder made."""
        length = self.room(method)
        config = self.resolved(method, training)
        if name in self.model.prompts:
            self.model.delete_prompt(name)
        self._add(name, method, training.seed)
        teacher = self._add_teacher(name, method)
        features = self.features("train", length)
        size = eval_rows(training)
        validation = self._evaluation("validation", length, size) if self.evaluate else None
        test = self._evaluation("test", length, size) if self.task.test else None
        path = Path(folder) if folder is not None else Path(root) / run_id(config)
        with together():
            if is_main():
                self._open(path, root, config, resume, folder, method.files())
        record = self._record(name, method, training, length)
        return Lane(
            name,
            training,
            features,
            validation=validation,
            held_out=test,
            folder=path,
            record=record,
            pause_at=pause_at,
            teacher=teacher,
        )

    def _record(self, name: str, method: MethodConfig, training: TrainConfig, length: int) -> dict[str, Any]:
        """What result.json says of an experiment beside its outcome; its prompt is attached."""
        config = self.resolved(method, training)
        trained = sum(parameter.numel() for parameter in self.model.prompts[name].parameters())
        backbone = sum(size(p) for n, p in self.model.named_parameters() if not n.startswith("prompts."))
        return {
            **{
                key: config[key] for key in ("model", "quantize", "task", "method", "settings", "rows") if key in config
            },
            "data": self.data.to_dict(),
            "files": sorted(self.data.places()),
            "max_length_asked": self.max_length,
            "max_length": length,
            "seed": training.seed,
            "trained_parameters": trained,
            "backbone_parameters": backbone,
            "task_form": self.task_form(),
            "splits": self.task.record(),
            "train_rows": len(self.task.train),
            "eval_rows": len(self.task.validation) if self.evaluate else 0,
            "test_rows": len(self.task.test),
            "versions": _versions(),
            "device": _device(),
            **({"command": self.command} if self.command is not None else {}),
        }

    def _open(
        self,
        path: Path,
        root: str | Path,
        config: dict[str, Any],
        resume: bool,
        folder: str | Path | None,
        files: Sequence[str] = (),
    ) -> None:
        """Makes the run's folder; a new one says in comments of its config.yaml where data and sources lay."""
        new = not (path / run_folder.CONFIG).is_file()
        open_run(root, config, resume=resume, folder=folder)
        note = ""
        if places := self.data.places():
            note += "# The files that the rows came from; 'rows' above is the hash of what was in them.\n"
            note += "".join(f"{_PLACE}{key}: {place}\n" for key, place in places.items())
        if files:
            note += "# What the method was built from; hashes of what was in it are among the settings above.\n"
            note += "".join(f"#   {file}\n" for file in files)
        if new and note:
            run_folder.write_text_atomic(
                path / run_folder.CONFIG, (path / run_folder.CONFIG).read_text(encoding="utf-8") + note
            )

    def task_form(self) -> dict[str, Any]:
        """What `predict` must know to put new texts to the model as the training texts were."""
        return self.task.form.to_dict()


def resolved(
    model: str,
    rows: Mapping[str, Any],
    method: MethodConfig,
    training: TrainConfig,
    max_length: int,
    evaluate: bool,
    quantize: str | None = None,
) -> dict[str, Any]:
    """All that decides the numbers of a run, as plain values.

    Args:
        model: backbone by alias, local path or hub id. It is not loaded.
        rows: see `rows_identity`.
        method: the method's config.
        training: how it trains.
        max_length: see `Workbench`.
        evaluate: whether validation rows are scored.
        quantize: see `Workbench`.
    """
    return {
        "model": packaged.model_name(model),
        **({"quantize": quantize} if quantize is not None else {}),
        **rows,
        "method": method.method,
        "settings": method.identity(),
        "max_length": max_length,
        "evaluate": evaluate,
        "training": training.to_dict(),
    }


def shared_by(run: Run) -> tuple[Any, ...]:
    """What experiments must have in common to go well together in a pass: what the loop asks for, and that neither
    makes the other's rows longer.
    """
    training = run.training
    kind = training.bf16, training.backbone_dropout, training.batch_size
    return *kind, run.method.input_tokens


def _plain(method: str) -> str:
    """A method's name as part of a prompt's: compositions have a sign in theirs that is not allowed there."""
    return method.replace(JOINT, "_")


def _checked(path: Path, result: Any) -> dict[str, Any]:
    lacks = [key for key in _NEEDED if not isinstance(result, dict) or key not in result]
    if lacks:
        raise SoftPromptError(f"{path / run_folder.RESULT} lacks '{lacks[0]}'; delete the folder to train again")
    checked: dict[str, Any] = result
    return checked


def _versions() -> dict[str, str]:
    import transformers

    from softprompts.version import __version__

    return {"softprompts": __version__, "torch": str(torch.__version__), "transformers": transformers.__version__}


def _device() -> str:
    """Where Accelerate is going to train: "cpu", or the kind of device and its name."""
    device = shared_state().device
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device.type)


def with_seed(training: TrainConfig, seed: int) -> TrainConfig:
    """The same training from another seed."""
    return replace(training, seed=seed)
