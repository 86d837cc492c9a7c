"""A workbench: one frozen backbone and one encoded task, on which methods are trained and scored.

Methods are trained one at a time, or several in shared passes; the backbone is loaded and the task encoded once.
`Workbench.resolved` is all that decides a run's numbers.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from softprompts.backbones.quantized import require_backend, size
from softprompts.errors import SoftPromptError
from softprompts.experiments.attached_backbone import AttachedBackbone, teacher_of
from softprompts.experiments.encoded_rows import EncodedRows, FittedDecision
from softprompts.experiments.run_record import (
    Run,
    complete_settings,
    load_checked,
    open_folder,
    resolved,
    shared_by,
    surroundings,
)
from softprompts.experiments.warm_start import WarmStart
from softprompts.methods.contract import MethodConfig
from softprompts.processes import is_main, require_unsharded, shared_state, synchronized
from softprompts.storage import run_folder
from softprompts.storage.files import require_folder
from softprompts.storage.names import JOINT
from softprompts.storage.saved_prompt import prompt_folder
from softprompts.tasks.class_weights import check_class_weights
from softprompts.tasks.data import MAX_LENGTH, Data, rows_identity
from softprompts.tasks.encode import say_cut
from softprompts.tasks.fitting import FOLDS, Fit
from softprompts.tasks.kinds import KINDS
from softprompts.training import Lane, TrainConfig, lanes_that_fit, open_run, run_id, train
from softprompts.training.evaluation import evaluate as evaluate_prompts
from softprompts.training.extra_passes import check_several_labels, check_teachers
from softprompts.training.lane import checkpoint_step
from softprompts.training.optim import learning_rates
from softprompts.training.prediction import Prediction
from softprompts.training.progress import check_trackers
from softprompts.training.step_cost import step_cost


class Workbench:
    """One frozen backbone and one encoded task.

    Args:
        model: backbone by alias, local path or hub id.
        data: the labelled texts.
        max_length: most tokens of an input, the soft prompt not counted.
        backbone_dropout: keep the frozen model's dropout on while training.
        evaluate: score validation rows while training and keep the best prompt; False: keep the last one, which only
            a task with test rows allows.
        quantize: keep the backbone's weights in few bits, a key of `softprompts.backbones.quantized.BACKENDS`; None:
            as they are.
        command: the command line that the runs come from, which their records repeat; None: there is none.
        start: a trained prompt that the runs go on from: a run folder, a prompt folder or a hub id. It must be of their
            method and backbone. Of a file's labels, its own come first, those that are new get new rows of the head.

    Attributes:
        task: the task.
        model: the attached model.
        tokenizer: its tokenizer.
        backbone: model and tokenizer, with what puts prompts on them.
        rows: the task's rows, encoded.
        predictions: by the folder of a `run`, what its prompt predicts for the rows of its score; not of one that was
            resumed after that.
        start: the prompt that the runs go on from; None: they start anew.

    Raises:
        SoftPromptError: no such model, task or prompt, or data that cannot be used.
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
        start: str | Path | WarmStart | None = None,
    ):
        require_unsharded(os.environ)
        if quantize is not None:  # before rows are loaded
            require_backend(quantize, shared_state().device)
        self.start = WarmStart.read(start) if isinstance(start, str | Path) else start
        data = data if self.start is None else self.start.with_labels(data)
        self.name, self.data, self.max_length, self.command = model, data, max_length, command
        self.task = data.load()
        self.backbone = AttachedBackbone(model, KINDS[self.task.kind].tokens, backbone_dropout, quantize)
        self.model, self.tokenizer = self.backbone.model, self.backbone.tokenizer
        self.kind, self.pad_id = self.backbone.kind, self.backbone.pad_id
        self.rows = EncodedRows(self.task, self.tokenizer, self.kind)
        self.evaluate = evaluate or not self.task.test
        self.predictions: dict[Path, Prediction] = {}

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
        other.rows = self.rows.of(other.task)
        other.max_length = max_length or self.max_length
        other.evaluate = (self.evaluate if evaluate is None else evaluate) or not other.task.test
        return other

    def say_cut(self, method: MethodConfig) -> str:
        """Encodes all rows that a method is going to see, and says in a line which had to be cut; empty: none.

        Raises:
            SoftPromptError: the prompt leaves no room for the input.
        """
        splits = ["train", *(["validation"] if self.evaluate else []), *(["test"] if self.task.test else [])]
        length, examples = self.room(method), sum(len(getattr(self.task, split)) for split in splits)
        return say_cut([self.rows.split(split, length) for split in splits], examples, length)

    def room(self, config: MethodConfig) -> int:
        """Most tokens of an input that fit next to a prompt, and of a free text's longest answer.

        Raises:
            SoftPromptError: too few.
        """
        room = self.backbone.room(config)
        if room is None:
            return self.max_length
        room = self.backbone.room_beside_answers(room, self.rows.answer_tokens, self.rows.longest[1])
        return min(self.max_length, room)

    def resolved(self, method: MethodConfig, training: TrainConfig) -> dict[str, Any]:
        """All that decides the numbers of a run, as plain values."""
        rows = rows_identity(self.data, self.task)
        start = None if self.start is None else self.start.identity
        return resolved(
            self.name, rows, method, training, self.max_length, self.evaluate, self.backbone.quantize, start
        )

    def folder_of(self, run: Run, root: str | Path) -> Path:
        """The folder of an experiment, named by its settings' hash."""
        return Path(root) / run_id(self.resolved(run.method, run.training))

    # --- before a run -----------------------------------------------------------------------------------------------

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

        The arguments are those of `run`; without ``training`` only the method is checked.

        Raises:
            SoftPromptError: the method does not fit the model or the training, or the run folder is taken.
        """
        self.room(method)
        if training is not None:
            self._check_labels(training)
        with self.backbone.trial("check", method, self.task):
            self._warm_up("check", method)
            self._add_teacher("check", method)
            if self.task.kind == "multi-label":
                check_several_labels(self.model.prompts["check"])
            if training is not None:
                learning_rates(self.model.prompts["check"].components(), training)
        if training is not None:
            if folder is None:
                require_folder(root, "runs")
            path = Path(folder) if folder is not None else self.folder_of(Run(method, training), root)
            if resume and not reuse:
                run_folder.require_unfinished(root, self.resolved(method, training), folder)
            if path.is_file() or (path / run_folder.CONFIG).is_file() or run_folder.is_done(path):
                open_run(root, self.resolved(method, training), resume=resume, reuse=reuse, folder=folder)
                if run_folder.is_done(path):
                    load_checked(path)

    def outline(self, method: MethodConfig, training: TrainConfig) -> tuple[dict[str, float], int]:
        """The learning rate of each component, the main one first, and the number of trained parameters."""
        with self.backbone.trial("outline", method, self.task):
            prompt = self.model.prompts["outline"]
            return learning_rates(prompt.components(), training), _count(prompt)

    def fitting(self, run: Run) -> int:
        """How many experiments like this one can share a pass, see `softprompts.training.lanes_that_fit`."""
        with self.measured(run) as lane:
            return lanes_that_fit(self.model, lane, pad_id=self.pad_id)

    # --- runs ---------------------------------------------------------------------------------------------------------

    def run(
        self,
        method: MethodConfig,
        training: TrainConfig,
        *,
        root: str | Path = "runs",
        folder: str | Path | None = None,
        name: str | None = None,
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
            name: of the prompt; None: by method and seed.
            resume: go on with an unfinished run, which must be there.
            reuse: give the result of a finished run instead of an error.
            progress: show a progress bar on a terminal.
            trackers: Accelerate's trackers to log to.

        Returns:
            The run's folder and its result. A prompt that was trained stays on `model`.

        Raises:
            SoftPromptError: the method does not fit the model, or the run folder is taken; nothing is written then.
            KeyboardInterrupt: it was interrupted; it can be resumed.
        """
        with synchronized():
            # Before any work is done, and before any folder is made: what cannot start leaves nothing behind.
            self.check(method, training, root=root, folder=folder, resume=resume, reuse=reuse)
        run = Run(method, training)
        path = Path(folder) if folder is not None else self.folder_of(run, root)
        if run_folder.is_done(path):
            return path, load_checked(path)
        check_trackers(trackers)
        lane = self.lane(name or _prompt_name(run), run, path, resume=resume)
        lane.keep_prediction = True
        self.train_lanes([lane], progress, trackers)
        if lane.prediction is not None:
            self.predictions[path] = lane.prediction
        return path, run_folder.load_result(path)

    def run_all(
        self,
        runs: Sequence[Run],
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
            runs: the experiments.
            root: see `run`.
            lanes: experiments that share a pass; None: as many as there is memory for, see `fitting`.
            pause_at: pause every experiment after this step (see `Lane`).
            progress: see `run`.
            trackers: see `run`.
            on_start: called once it is sure that every experiment can start, before rows are encoded and the first one
                trains.
            on_result: called after each experiment, in the order in which they end.

        Returns:
            Folder and result of each, in the order of ``runs``; None where it was paused.

        Raises:
            SoftPromptError: a method does not fit the model.
            KeyboardInterrupt: interrupted; the same call goes on where it was.
        """
        with synchronized():
            for run in runs:
                self.check(run.method, run.training, root=root, resume=True, reuse=True)
        check_trackers(trackers)
        if on_start is not None:
            on_start()
        paths = [self.folder_of(run, root) for run in runs]
        results: dict[Path, dict[str, Any]] = {}

        def collect(path: Path, run: Run) -> None:
            if path not in results and run_folder.is_done(path):
                results[path] = load_checked(path)
                if on_result is not None:
                    on_result(run, results[path])

        pending: dict[Path, Run] = {}
        for path, run in zip(paths, runs, strict=True):
            collect(path, run)
            if path not in results and (pause_at is None or checkpoint_step(path) < pause_at):
                pending[path] = run
        while pending:
            first = next(iter(pending.values()))
            similar = {path: run for path, run in pending.items() if shared_by(run) == shared_by(first)}
            count = self.fitting(first) if lanes is None and len(similar) > 1 else lanes or 1
            wave = dict(list(similar.items())[:count])
            started = [
                self.lane(f"{_prompt_name(run)}-{path.name}", run, path, pause_at=pause_at)
                for path, run in wave.items()
            ]
            try:
                self.train_lanes(started, progress, trackers)
            except KeyboardInterrupt:
                for path, run in wave.items():  # some may have ended before the others were interrupted
                    collect(path, run)
                raise
            finally:
                self.backbone.drop(*(prompt for lane in started for prompt in (lane.name, teacher_of(lane.name))))
            for path, run in wave.items():
                del pending[path]
                collect(path, run)
        return [(path, results.get(path)) for path in paths]

    def lane(self, name: str, run: Run, folder: Path, *, resume: bool = True, pause_at: int | None = None) -> Lane:
        """The lane of an experiment; puts its prompt on the model (in place of one so named) and makes its folder."""
        method, training, length = run.method, run.training, self.room(run.method)
        self.backbone.drop(name)
        self.backbone.add(name, method, self.task, training.seed)
        self._warm_up(name, method)
        record, fit = self._record(name, run, length), _fit_of(training)
        validation = self.rows.evaluation("validation", length) if self.evaluate else None
        test, fitting = self.rows.evaluation("test", length) if self.task.test else None, None
        if fit is not None:
            decision = FittedDecision(self.rows, fit, length)
            validation, test, fitting = decision.validation, decision.test, decision.fitting
            validation = validation if self.evaluate else None
            record["decision"] = decision.record  # filled in later
        lane = Lane(
            name,
            training,
            self.rows.weighted(length, training.class_weights),
            validation=validation,
            test=test,
            fitting=fitting,
            folder=folder,
            record=record,
            pause_at=pause_at,
            teacher=self._add_teacher(name, method),
        )
        with synchronized():
            if is_main():
                given = self.name, self.data, run, self.max_length, self.evaluate, self.backbone.quantize
                start = None if self.start is None else self.start.place
                config, complete = self.resolved(method, training), complete_settings(*given, start)
                open_folder(folder, config, self.data, method.files(), resume, complete)
        return lane

    def _warm_up(self, name: str, method: MethodConfig) -> None:
        """Fills a new prompt with the tensors of the one that runs go on from, where there is one."""
        if self.start is not None:
            self.start.check(method, self.task, self.kind == "encoder")
            self.start.put_on(self.model, name)

    def train_lanes(self, lanes: list[Lane], progress: bool = True, trackers: Sequence[str] | None = None) -> None:
        """Trains lanes to their ends and takes their teachers off the model.

        Raises:
            KeyboardInterrupt: they were interrupted; they can be resumed.
        """
        try:
            outcomes = train(self.model, lanes, pad_id=self.pad_id, progress=progress, trackers=trackers)
        finally:
            self.backbone.drop(*(lane.teacher for lane in lanes if lane.teacher is not None))
        stopped = [(lane, end) for lane, end in zip(lanes, outcomes, strict=True) if end.stop_reason == "interrupted"]
        if stopped:
            lane, outcome = stopped[0]
            more = f" (and {len(stopped) - 1} more)" if len(stopped) > 1 else ""
            raise KeyboardInterrupt(f"{lane.folder}: {outcome.message}{more}")

    def cost(self, run: Run, steps: int = 100, warmup_steps: int = 20) -> dict[str, Any]:
        """Measures the cost of a training step (see `softprompts.training.step_cost.step_cost`); nothing is written.

        Returns:
            What a run's result.json would have of model, task and method, and ``cost``.
        """
        with self.measured(run) as lane:
            cost = step_cost(self.model, lane, pad_id=self.pad_id, steps=steps, warmup_steps=warmup_steps)
        threads = torch.get_num_threads()
        return {**lane.record, "batch_size": run.training.batch_size, "threads": threads, "cost": cost}

    def score(self, names: Sequence[str], batch_size: int = 32) -> list[dict[str, float] | None]:
        """Scores prompts that are on `model`, as they are, in shared passes: on test rows, else on validation rows.

        Returns:
            Their metrics in their order; None for one whose predictions are not finite.
        """
        split, _ = self.task.scored_rows()
        lengths = [self.room(self.model.prompts[name].config) for name in names]
        evaluations = [self.rows.evaluation(split, length, batch_size) for length in lengths]
        return evaluate_prompts(self.model, list(zip(names, evaluations, strict=True)), self.pad_id)

    def _check_labels(self, training: TrainConfig) -> None:
        """Raises a `SoftPromptError` where the task has no labels to weigh, or nothing to fit or to fit it on."""
        check_class_weights(self.task.form, training.class_weights)
        fit = _fit_of(training)
        if fit is None:
            return
        fit.check(self.task.form, self.rows.new_tokens is None)
        if fit.fits and len(self.task.validation) < FOLDS:
            raise SoftPromptError(
                f"a threshold or a temperature is fitted on at least {FOLDS} validation rows, not on "
                f"{len(self.task.validation)}"
            )

    @contextlib.contextmanager
    def measured(self, run: Run) -> Iterator[Lane]:
        """A lane to measure, whose prompt is on the model within this context."""
        name, length = "measured", self.room(run.method)
        with self.backbone.trial(name, run.method, self.task, run.training.seed):
            teacher, record = self._add_teacher(name, run.method), self._record(name, run, length)
            features = self.rows.weighted(length, run.training.class_weights)
            yield Lane(name, run.training, features, record=record, teacher=teacher)

    def _record(self, name: str, run: Run, length: int) -> dict[str, Any]:
        """What result.json says of an experiment beside its outcome; its prompt is on the model."""
        config = self.resolved(run.method, run.training)
        shown = ("model", "quantize", "task", "method", "settings", "rows")
        backbone = sum(size(p) for n, p in self.model.named_parameters() if not n.startswith("prompts."))
        return {
            **{key: config[key] for key in shown if key in config},
            "data": self.data.to_dict(),
            "files": sorted(self.data.places()),
            "max_length_asked": self.max_length,
            "max_length": length,
            "seed": run.training.seed,
            "trained_parameters": _count(self.model.prompts[name]),
            "backbone_parameters": backbone,
            "task_form": self.task.form.to_dict(),
            **({"new_tokens": self.rows.new_tokens} if self.task.form.written else {}),
            "splits": self.task.record(),
            "train_rows": len(self.task.train),
            "eval_rows": len(self.task.validation) if self.evaluate else 0,
            "test_rows": len(self.task.test),
            "constant_scores": self.task.constant_scores(self.task.scored_rows()[0]),
            **surroundings(),
            **({"start": self.start.record(self.task)} if self.start is not None else {}),
            **({"command": self.command} if self.command is not None else {}),
        }

    def _add_teacher(self, name: str, method: MethodConfig) -> str | None:
        """Puts the saved prompt that a prompt learns from on the model, beside it; returns its name."""
        source = method.taught_by()
        if source is None:
            return None
        teacher = teacher_of(name)
        self.backbone.drop(teacher)
        self.model.load_prompt(prompt_folder(source), teacher)
        check_teachers(self.model, name, teacher)
        room = self.room(self.model.prompts[teacher].config)
        if room < self.room(method):
            raise SoftPromptError(f"{method.method}: the teacher {source} leaves {room} tokens: set max_length to that")
        return teacher


def _fit_of(training: TrainConfig) -> Fit | None:
    """What is fitted to a prompt on validation rows; None: nothing, and no threshold is given."""
    if training.threshold is None and not training.calibrate:
        return None
    return Fit(training.threshold, training.calibrate)


def _prompt_name(run: Run) -> str:
    """A prompt's name, by method and seed; compositions have a sign in theirs that is not allowed there."""
    return f"{run.method.method.replace(JOINT, '_')}-seed{run.training.seed}"


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
