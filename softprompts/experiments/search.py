"""Search by successive halving: many configurations start together, the worse ones are cut, the last get all steps.

Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS 2016,
https://arxiv.org/abs/1502.07943. Configurations are lanes: several share each pass of one frozen backbone.

Optuna proposes them in generations of a fixed size and learns the scores of one before it proposes the next, all
within the first rung. So what is proposed follows from the search's settings and from scores alone, neither from how
many lanes there is memory for nor from when the search was interrupted. All that it knows is in the run folders: the
same call reads what is there and trains what is missing.

A configuration is an ordinary run of the full budget that is laid aside at every rung. With a linear schedule its
learning rate therefore falls as the full budget wants it: what is cut early was judged at high rates only.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from softprompts.errors import SoftPromptError, nearest, require_whole
from softprompts.experiments.leaderboard import Leaderboard, check_report, write_report
from softprompts.experiments.run_record import Run
from softprompts.experiments.search_space import RATE_OF, Contender, Space
from softprompts.experiments.trial import Trial
from softprompts.experiments.workbench import Workbench
from softprompts.methods.contract import MethodConfig
from softprompts.processes import shared_state
from softprompts.training import TrainConfig

SAMPLERS = ("tpe", "random")


def rungs(
    steps: int, trials: int, eta: int = 2, min_steps: int = 20, eval_every: int | None = None
) -> tuple[tuple[int, ...], int | None]:
    """The steps at which a search cuts, and how often its runs are evaluated.

    As many rungs as it takes to get from all configurations to one, each ``eta`` times as long as the one before,
    unless the first would be shorter than ``min_steps``. The last rung is ``steps``, the others are rounded to whole
    evaluations. Without ``eval_every`` there are as many steps between evaluations as the first rung has.
    """
    counts = ("trials", trials, 1), ("eta", eta, 2), ("min_steps", min_steps, 1), ("steps", steps, 1)
    for name, count, least in counts:
        require_whole("search", name, count, least)
    least = max(min_steps, eval_every or 1)
    count = 0
    while eta ** (count + 1) <= min(trials, steps // least):
        count += 1
    if count == 0:
        if trials >= eta:
            raise SoftPromptError(
                f"search: {steps} steps are too few to cut anything after {least}; set steps to at least "
                f"{eta * least}, or {'eval_every' if eval_every and eval_every > min_steps else 'min_steps'} lower"
            )
        return (steps,), eval_every
    shares = [steps / eta**power for power in range(count, 0, -1)]
    every, whole = (int(shares[0]), math.floor) if eval_every is None else (eval_every, math.ceil)
    return (*(whole(share / every) * every for share in shares), steps), every


def search(
    workbench: Workbench,
    methods: Mapping[str, Mapping[str, Any]] | Sequence[str],
    training: TrainConfig,
    *,
    space: Space | None = None,
    trials: int = 16,
    eta: int = 2,
    min_steps: int = 20,
    generation: int | None = None,
    sampler: str = "tpe",
    seed: int | None = None,
    root: str | Path = "runs",
    report: str | Path | None = None,
    lanes: int | None = None,
    keep_cut: bool = False,
    progress: bool = True,
    trackers: Sequence[str] | None = None,
    tell: Callable[[str], None] | None = None,
    on_start: Callable[[], None] | None = None,
) -> Leaderboard:
    """Starts many configurations, cuts the worse at every rung and trains the last survivors to the end.

    Configurations are dealt over the methods in turn; the first of each method has its default settings. At a rung
    they are ranked by their best validation score so far, equal ones in the order of proposals; one in ``eta`` goes
    on. Those that diverged come last and never go on. A survivor's numbers are those of the same run alone.

    ::

        rates = Span(1e-3, 1e-1, log=True)  # of softprompts.methods
        board = search(workbench, ["prefix-tuning"], TrainConfig(max_steps=300), space={"learning_rate": rates})
        print(board.best, board.markdown())

    The same call after an interruption goes on where it was, and ends in the same leaderboard. (Two reservations:
    passes of another size round differently, which can turn a prediction that is on the fence; and another version of
    Optuna may propose something else.)

    Args:
        workbench: backbone and task; it must evaluate on validation rows.
        methods: names of methods, each once, or by name their settings that are not searched.
        training: how each configuration trains; ``max_steps`` is the full budget. What it sets of learning rates is
            not searched.
        space: what to search by the name of a setting, ``num_masks``, for all methods that have it, or
            ``multi-mask.num_masks`` for one; also settings of the training, such as ``learning_rate`` or ``seed``, and
            ``learning_rates.NAME``. It adds to each method's own ``search_space``, or replaces what that says.
        trials: number of configurations.
        eta: one in so many goes on at a rung.
        min_steps: least steps of the first rung (see `rungs`).
        generation: configurations that are proposed at once, before any of their scores is known; None: a quarter of
            them, but 4 at least and 16 at most.
        sampler: "tpe" learns from scores as soon as it has four of a method; "random" never does.
        seed: of what is proposed; None: the training's.
        root: where run folders live.
        report: where the leaderboard (Markdown, CSV, JSON) and the best prompt go; None: ``root/search``.
        lanes: configurations that share a pass; None: as many as there is memory for.
        keep_cut: keep the checkpoints of configurations that were cut. Otherwise they are deleted once the search is
            over; their metrics and their best prompts stay, so that the same call has nothing to train again.
        progress: show progress bars on a terminal.
        trackers: Accelerate's trackers to log to.
        tell: called with lines on what is going on.
        on_start: called once it is sure that what is asked for makes sense, before anything trains.

    Raises:
        SoftPromptError: something asked for makes no sense, or Optuna is not installed.
        KeyboardInterrupt: interrupted; the same call goes on where it was.
    """
    report = Path(root) / "search" if report is None else Path(report)
    check_report(report)
    say = tell or (lambda line: None)
    settings = _Settings(trials, eta, min_steps, generation, sampler, training.seed if seed is None else seed)
    options: dict[str, Any] = {"root": Path(root), "lanes": lanes, "progress": progress, "trackers": trackers}
    running = _Search(workbench, methods, training, space or {}, settings, options, say)
    if on_start is not None:
        on_start()
    try:
        leaderboard = running.run()
    except KeyboardInterrupt as stop:  # with words also where no run was on
        raise KeyboardInterrupt(str(stop) or "interrupted") from None
    write_report(leaderboard, report, root)
    if not keep_cut:
        running.drop_checkpoints()
    say(f"{len(running.all)} run folders in {root} hold {decimal(sum(_bytes(trial.path) for trial in running.all))}")
    return leaderboard


@dataclass
class _Settings:
    """The numbers that decide a search."""

    trials: int
    eta: int
    min_steps: int
    generation: int | None
    sampler: str
    seed: int

    def __post_init__(self) -> None:
        if self.generation is None:
            require_whole("search", "trials", self.trials, 1)
            self.generation = min(max(4, math.ceil(self.trials / 4)), 16)
        require_whole("search", "generation", self.generation, 1)
        require_whole("search", "seed", self.seed, 0)
        if self.sampler not in SAMPLERS:
            raise SoftPromptError(f"search: unknown sampler '{self.sampler}'; {nearest(self.sampler, SAMPLERS)}")


class _Search:
    """The state of a search. Everything about it that is not in run folders follows from its arguments."""

    def __init__(
        self,
        workbench: Workbench,
        methods: Mapping[str, Mapping[str, Any]] | Sequence[str],
        training: TrainConfig,
        space: Space,
        settings: _Settings,
        options: dict[str, Any],
        say: Callable[[str], None],
    ):
        optuna = load_optuna()
        if shared_state().num_processes > 1:
            raise SoftPromptError("search runs in one process; its configurations share passes there")
        if not workbench.evaluate:
            raise SoftPromptError("search ranks by validation scores: the workbench must have evaluate=True")
        if training.max_steps is None:
            raise SoftPromptError("search: set max_steps, the full budget of a configuration")
        if training.patience is not None:
            raise SoftPromptError("search: leave patience out; what does not get better is cut at the rungs")
        self.workbench, self.settings, self.options, self.say, self._optuna = workbench, settings, options, say, optuna
        self.metric = workbench.task.metrics[0]
        self.rungs, every = rungs(
            training.max_steps, settings.trials, settings.eta, settings.min_steps, training.eval_every
        )
        self.training = dataclasses.replace(training, eval_every=every)
        fixed = dict(methods) if isinstance(methods, Mapping) else {name: {} for name in methods}
        if not fixed:
            raise SoftPromptError("search: name at least one method")
        if len(fixed) < len(methods):
            raise SoftPromptError("search: a method is named twice")
        if settings.trials < len(fixed):
            raise SoftPromptError(f"search: {settings.trials} trials are too few for {len(fixed)} methods")
        self.contenders = [
            Contender(self._check, workbench, name, fixed[name], self.training, space, optuna) for name in fixed
        ]
        self._check_space(space)
        for contender in self.contenders:
            contender.choose(space)
        self.all: list[Trial] = []

    def _check_space(self, space: Space) -> None:
        """Makes sure that each setting is one of the methods'."""
        names = [contender.name for contender in self.contenders]
        for key in space:
            first, dot, _ = key.partition(".")
            if dot and first in names:
                continue
            if dot and not key.startswith(RATE_OF):
                raise SoftPromptError(f"search: {key}: '{first}' is not among the methods; {nearest(first, names)}")
            if not any(key in contender.defaults for contender in self.contenders):
                known = {name for contender in self.contenders for name in contender.defaults}
                near = nearest(key, known)
                raise SoftPromptError(f"search: none of the methods has a setting '{key}' to search; {near}")

    def _check(self, config: MethodConfig, training: TrainConfig) -> None:
        self.workbench.check(config, training, root=self.options["root"], resume=True, reuse=True)

    def run(self) -> Leaderboard:
        """Trains what is missing and ranks all of it."""
        logging = self._optuna.logging
        before = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)
        try:
            for contender in self.contenders:
                contender.start(self.settings.sampler, self.settings.seed)
                self.say(str(contender))
            self._first_rung()
        finally:
            logging.set_verbosity(before)
        alive = self.all
        for place in range(len(self.rungs)):
            if place:
                self._train(alive, place, "1 goes on" if len(alive) == 1 else f"{len(alive)} go on")
                self._say_best(alive)
            fit = sorted((trial for trial in alive if not trial.diverged), key=Trial.order)
            alive = fit[: max(1, len(alive) // self.settings.eta)]
            if not alive:
                break
        task = self.workbench.task
        return Leaderboard(
            task=task.name,
            model=self.workbench.name,
            metric=self.metric,
            rows_scored=len(task.validation),
            test_rows=len(task.test),
            rungs=self.rungs,
            settings={
                **dataclasses.asdict(self.settings),
                "methods": {contender.name: contender.to_dict() for contender in self.contenders},
                "training": self.training.to_dict(),
            },
            entries=tuple(trial.entry for trial in sorted(self.all, key=Trial.order)),
            constant=task.constant_scores("validation").get(self.metric),
        )

    def _first_rung(self) -> None:
        """Proposes all configurations and trains them to the first rung, a generation at a time."""
        total, size = self.settings.trials, self.settings.generation or 1
        while len(self.all) < total:
            fresh = self._generation(min(size, total - len(self.all)))
            if not fresh:
                self.say(f"there are no more than {len(self.all)} configurations in this space")
                break
            first, last = fresh[0].entry.trial, fresh[-1].entry.trial
            which = f"configurations {first} to {last}" if last > first else f"configuration {first}"
            self._train(fresh, 0, f"{which} of {total}")
            self._say_best(self.all)
            for trial in fresh:
                trial.learn()

    def _generation(self, size: int) -> list[Trial]:
        """The next configurations, dealt over the methods in turn; fewer where there are no more."""
        fresh: list[Trial] = []
        while len(fresh) < size:
            able = [contender for contender in self.contenders if not contender.exhausted]
            if not able:
                break
            contender = min(able, key=lambda each: each.proposed)
            trial = contender.propose(len(self.all) + 1, self._folder)
            if trial is not None:
                fresh.append(trial)
                self.all.append(trial)
        return fresh

    def _folder(self, run: Run) -> Path | None:
        """The run folder of a configuration; None if it is in the search already."""
        path = self.workbench.folder_of(run, self.options["root"])
        if any(trial.path == path for trial in self.all):
            return None
        self._check(run.method, run.training)
        return path

    def _train(self, trials: Sequence[Trial], place: int, which: str) -> None:
        """Brings configurations to a rung, those that are not there yet, and reads their scores."""
        step, last = self.rungs[place], place == len(self.rungs) - 1
        missing = [trial.run for trial in trials if trial.needs(step, last)]
        trained = f" ({len(trials) - len(missing)} trained already)" if len(missing) < len(trials) else ""
        self.say(f"rung {place + 1} of {len(self.rungs)}, to step {step}: {which}{trained}")
        if missing:
            self.workbench.run_all(missing, pause_at=None if last else step, **self.options)
        for trial in trials:
            trial.read(step, last, self.metric)

    def _say_best(self, trials: Sequence[Trial]) -> None:
        best = min(trials, key=Trial.order)
        diverged = sum(trial.diverged for trial in trials)
        if best.diverged:
            self.say(f"all {diverged} diverged")
        elif best.entry.score is not None:
            more = f"; {diverged} diverged" if diverged else ""
            self.say(f"best so far: {self.metric} {best.entry.score:.4f}, {best.entry}{more}")

    def drop_checkpoints(self) -> None:
        """Deletes the checkpoints of runs that were cut."""
        folders = [folder for trial in self.all if (folder := trial.cut_checkpoint()) is not None]
        freed = decimal(sum(map(_bytes, folders)))
        for folder in folders:
            shutil.rmtree(folder)
        if folders:
            self.say(f"checkpoints of {len(folders)} runs that were cut are deleted ({freed}); --keep-cut keeps them")


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def load_optuna() -> Any:
    """Returns Optuna, or says how to install it."""
    try:
        import optuna
    except ImportError:
        raise SoftPromptError("search needs Optuna: pip install optuna") from None
    return optuna
