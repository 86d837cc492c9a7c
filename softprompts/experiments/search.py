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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from softprompts.errors import SoftPromptError, nearest, require_whole
from softprompts.experiments.leaderboard import (
    Entry,
    Leaderboard,
    check_report,
    write_report,
)
from softprompts.experiments.run_record import Run
from softprompts.experiments.search_space import _RATE_OF, Space, _Contender
from softprompts.experiments.workbench import Workbench
from softprompts.methods.about import Span
from softprompts.methods.contract import MethodConfig
from softprompts.processes import shared_state
from softprompts.storage import run_folder
from softprompts.training import TrainConfig, run_id
from softprompts.training.lane import checkpoint_step

SAMPLERS = ("tpe", "random")


def rungs(
    steps: int, trials: int, eta: int = 2, min_steps: int = 20, eval_every: int | None = None
) -> tuple[tuple[int, ...], int | None]:
    """The steps at which a search cuts, and how often its runs are evaluated.

    As many rungs as it takes to get from all configurations to one, each ``eta`` times as long as the one before,
    unless the first would be shorter than ``min_steps``. All but the last are rounded to whole evaluations.

    Args:
        steps: the full budget.
        trials: number of configurations.
        eta: one in so many goes on.
        min_steps: least steps of the first rung.
        eval_every: steps between evaluations; None: as many as the first rung has.

    Returns:
        The rungs, the last is ``steps``, and the steps between evaluations.

    Raises:
        SoftPromptError: a number is too small, or the budget is too short to cut anything.
    """
    require_whole("search", "trials", trials, 1)
    require_whole("search", "eta", eta, 2)
    require_whole("search", "min_steps", min_steps, 1)
    require_whole("search", "steps", steps, 1)
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
    if eval_every is None:
        every = int(shares[0])
        return (*(int(share / every) * every for share in shares), steps), every
    return (*(math.ceil(share / eval_every) * eval_every for share in shares), steps), eval_every


def search(
    bench: Workbench,
    asked: Mapping[str, Mapping[str, Any]] | Sequence[str],
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
) -> Leaderboard:
    """Starts many configurations, cuts the worse at every rung and trains the last survivors to the end.

    Configurations are dealt over the methods in turn; the first of each method has its default settings. At a rung
    they are ranked by their best validation score so far, equal ones in the order of proposals; one in ``eta`` goes
    on. Those that diverged come last and never go on. A survivor's numbers are those of the same run alone.

    ::

        rates = Span(1e-3, 1e-1, log=True)  # of softprompts.methods
        board = search(bench, ["prefix-tuning"], TrainConfig(max_steps=300), space={"learning_rate": rates})
        print(board.best, board.markdown())

    The same call after an interruption goes on where it was, and ends in the same leaderboard. (Two reservations:
    passes of another size round differently, which can turn a prediction that is on the fence; and another version of
    Optuna may propose something else.)

    Args:
        bench: backbone and task; it must evaluate on validation rows.
        asked: names of methods, each once, or by name their settings that are not searched.
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

    Raises:
        SoftPromptError: something asked for makes no sense, or Optuna is not installed.
        KeyboardInterrupt: interrupted; the same call goes on where it was.
    """
    report = Path(root) / "search" if report is None else Path(report)
    check_report(report)
    settings = _Settings(trials, eta, min_steps, generation, sampler, training.seed if seed is None else seed)
    found = _Search(bench, asked, training, space or {}, settings, Path(root))
    say = tell or (lambda line: None)
    arguments: dict[str, Any] = {"lanes": lanes, "progress": progress, "trackers": trackers}
    try:
        leaderboard = found.run(say, arguments)
    except KeyboardInterrupt as stop:  # with words also where no run was on
        raise KeyboardInterrupt(str(stop) or "interrupted") from None
    write_report(leaderboard, report, root)
    if not keep_cut:
        freed, count = found.drop_checkpoints()
        if count:
            say(f"checkpoints of {count} runs that were cut are deleted ({_size(freed)}); --keep-cut keeps them")
    held = sum(_bytes(trial.path) for trial in found.all)
    say(f"{len(found.all)} run folders in {root} hold {_size(held)}")
    return leaderboard


@dataclass(frozen=True)
class _Settings:
    """The numbers that decide a search."""

    trials: int
    eta: int
    min_steps: int
    generation: int | None
    sampler: str
    seed: int

    def __post_init__(self) -> None:
        require_whole("search", "trials", self.trials, 1)
        if self.generation is None:
            object.__setattr__(self, "generation", min(max(4, math.ceil(self.trials / 4)), 16))
        require_whole("search", "generation", self.generation, 1)
        require_whole("search", "seed", self.seed, 0)
        if self.sampler not in SAMPLERS:
            raise SoftPromptError(f"search: unknown sampler '{self.sampler}'; {nearest(self.sampler, SAMPLERS)}")


@dataclass
class _Trial:
    """A configuration while the search is on."""

    number: int
    contender: _Contender
    asked: Any  # Optuna's trial
    values: dict[str, Any]
    run: Run
    path: Path
    rates: dict[str, float]
    trained: int
    scores: list[float | None] = field(default_factory=list)
    state: str = "cut"
    steps: int = 0
    test: float | None = None

    def order(self) -> tuple[bool, int, float, int]:
        """Sorts the best first."""
        score = self.scores[-1] if self.scores else None
        return self.state == "diverged", -len(self.scores), math.inf if score is None else -score, self.number

    def entry(self) -> Entry:
        return Entry(
            trial=self.number,
            method=self.run.method.method,
            proposed=self.values,
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


class _Search:
    """The state of a search. Everything about it that is not in run folders follows from its arguments."""

    def __init__(
        self,
        bench: Workbench,
        asked: Mapping[str, Mapping[str, Any]] | Sequence[str],
        training: TrainConfig,
        space: Space,
        settings: _Settings,
        root: Path,
    ):
        optuna = load_optuna()
        if shared_state().num_processes > 1:
            raise SoftPromptError("search runs in one process; its configurations share passes there")
        if not bench.evaluate:
            raise SoftPromptError("search ranks by validation scores: the workbench must have evaluate=True")
        if training.max_steps is None:
            raise SoftPromptError("search: set max_steps, the full budget of a configuration")
        if training.patience is not None:
            raise SoftPromptError("search: leave patience out; what does not get better is cut at the rungs")
        self.bench, self.settings, self.root, self._optuna = bench, settings, root, optuna
        self.rungs, every = rungs(
            training.max_steps, settings.trials, settings.eta, settings.min_steps, training.eval_every
        )
        training = dataclasses.replace(training, eval_every=every)
        fixed = dict(asked) if isinstance(asked, Mapping) else {name: {} for name in asked}
        if not fixed:
            raise SoftPromptError("search: name at least one method")
        if len(fixed) < len(asked):
            raise SoftPromptError("search: a method is named twice")
        if settings.trials < len(fixed):
            raise SoftPromptError(f"search: {settings.trials} trials are too few for {len(fixed)} methods")
        self.training = training
        self.contenders = [_Contender(self._check, bench, name, fixed[name], training, space, optuna) for name in fixed]
        for contender, chosen in zip(self.contenders, self._dealt(space), strict=True):
            contender.choose(chosen)
        self.all: list[_Trial] = []
        self._paths: set[Path] = set()

    def _dealt(self, space: Space) -> list[dict[str, Span | Sequence[Any]]]:
        """What is asked for of each method: what is said of all that have it, then what is said of it alone."""
        names = [contender.name for contender in self.contenders]
        general: dict[str, Span | Sequence[Any]] = {}
        special: dict[str, dict[str, Span | Sequence[Any]]] = {name: {} for name in names}
        for key, values in space.items():
            first, dot, rest = key.partition(".")
            if dot and first in names:
                special[first][rest] = values
            elif dot and not key.startswith(_RATE_OF):
                raise SoftPromptError(f"search: {key}: '{first}' is not among the methods; {nearest(first, names)}")
            else:
                if not any(contender.knows(key) for contender in self.contenders):
                    known = {name for contender in self.contenders for name in contender.defaults}
                    raise SoftPromptError(
                        f"search: none of the methods has a setting '{key}' to search; {nearest(key, known)}"
                    )
                general[key] = values
        return [
            {**{key: values for key, values in general.items() if contender.knows(key)}, **special[contender.name]}
            for contender in self.contenders
        ]

    def _check(self, config: MethodConfig, training: TrainConfig) -> None:
        self.bench.check(config, training, root=self.root, resume=True, reuse=True)

    def run(self, say: Callable[[str], None], arguments: dict[str, Any]) -> Leaderboard:
        """Trains what is missing and ranks all of it."""
        logging = self._optuna.logging
        before = logging.get_verbosity()
        logging.set_verbosity(logging.ERROR)
        try:
            for contender in self.contenders:
                contender.start(self.settings.sampler, self.settings.seed)
                say(str(contender))
            self._first_rung(say, arguments)
        finally:
            logging.set_verbosity(before)
        alive = self.all
        for place, step in enumerate(self.rungs):
            if place:
                which = "1 goes on" if len(alive) == 1 else f"{len(alive)} go on"
                say(f"rung {place + 1} of {len(self.rungs)}, to step {step}: {which}{self._there(alive, place)}")
                self._train(alive, place, arguments)
                self._tell_best(alive, say)
            fit = sorted((trial for trial in alive if trial.state != "diverged"), key=_Trial.order)
            alive = fit[: max(1, len(alive) // self.settings.eta)]
            if not alive:
                break
        task = self.bench.task
        return Leaderboard(
            task=task.name,
            model=self.bench.name,
            metric=task.metrics[0],
            rows_scored=len(task.validation),
            test_rows=len(task.test),
            rungs=self.rungs,
            settings={
                **dataclasses.asdict(self.settings),
                "methods": {contender.name: contender.to_dict() for contender in self.contenders},
                "training": self.training.to_dict(),
            },
            entries=tuple(trial.entry() for trial in sorted(self.all, key=_Trial.order)),
        )

    def _first_rung(self, say: Callable[[str], None], arguments: dict[str, Any]) -> None:
        """Proposes all configurations and trains them to the first rung, a generation at a time."""
        total, size = self.settings.trials, self.settings.generation or 1
        while len(self.all) < total:
            fresh = self._generation(min(size, total - len(self.all)))
            if not fresh:
                say(f"there are no more than {len(self.all)} configurations in this space")
                break
            first, last = fresh[0].number, fresh[-1].number
            which = (
                f"configurations {first} to {last} of {total}" if last > first else f"configuration {first} of {total}"
            )
            say(f"rung 1 of {len(self.rungs)}, to step {self.rungs[0]}: {which}{self._there(fresh, 0)}")
            self._train(fresh, 0, arguments)
            self._tell_best(self.all, say)
            for trial in fresh:
                trial.contender.learn(trial.asked, None if trial.state == "diverged" else trial.scores[0])

    def _generation(self, size: int) -> list[_Trial]:
        """The next configurations, dealt over the methods in turn; fewer where there are no more."""
        fresh: list[_Trial] = []
        while len(fresh) < size:
            able = [contender for contender in self.contenders if not contender.exhausted]
            if not able:
                break
            contender = min(able, key=lambda one: one.proposed)
            found = contender.propose(self._folder)
            if found is None:
                continue
            asked, values, run, path = found
            rates, trained = self.bench.outline(run.method, run.training)
            self._paths.add(path)
            number = len(self.all) + 1
            fresh.append(_Trial(number, contender, asked, values, run, path, rates, trained))
            self.all.append(fresh[-1])
        return fresh

    def _folder(self, config: MethodConfig, training: TrainConfig) -> Path | None:
        """The run folder of a configuration; None if it is in the search already."""
        path = self.root / run_id(self.bench.resolved(config, training))
        if path in self._paths:
            return None
        self._check(config, training)
        return path

    def _missing(self, trials: Sequence[_Trial], place: int) -> list[Run]:
        """The runs that are not at a rung yet."""
        step, last = self.rungs[place], place == len(self.rungs) - 1
        return [
            trial.run
            for trial in trials
            # Not by the checkpoint, of which a run that was cut is left without.
            if not run_folder.is_done(trial.path) and (last or not _evaluated(trial.path, step))
        ]

    def _there(self, trials: Sequence[_Trial], place: int) -> str:
        count = len(trials) - len(self._missing(trials, place))
        return f" ({count} trained already)" if count else ""

    def _train(self, trials: Sequence[_Trial], place: int, arguments: dict[str, Any]) -> None:
        """Brings configurations to a rung, those that are not there yet, and reads their scores."""
        step, last = self.rungs[place], place == len(self.rungs) - 1
        missing = self._missing(trials, place)
        if missing:
            self.bench.run_all(missing, root=self.root, pause_at=None if last else step, **arguments)
        for trial in trials:
            self._read(trial, step, last)

    def _read(self, trial: _Trial, step: int, last: bool) -> None:
        """Takes down how a configuration stood at a step, whatever has become of its run since."""
        result = run_folder.load_result(trial.path) if run_folder.is_done(trial.path) else None
        if not _evaluated(trial.path, step):
            if result is None or result["stop_reason"] != run_folder.DIVERGED:
                raise SoftPromptError(
                    f"{trial.path / run_folder.METRICS} lacks step {step}; delete the folder to train again"
                )
            trial.state, trial.steps = "diverged", result["steps"]
            return
        metric = self.bench.task.metrics[0]
        lines = [line for line in run_folder.load_metrics(trial.path) if line["step"] <= step]
        trial.scores.append(max((line[metric] for line in lines if line[metric] is not None), default=None))
        trial.steps = step
        if last and result is not None:
            trial.state = "finished"
            trial.test = result["test_metrics"].get(metric)

    def _tell_best(self, trials: Sequence[_Trial], say: Callable[[str], None]) -> None:
        best = min(trials, key=_Trial.order)
        diverged = sum(trial.state == "diverged" for trial in trials)
        if best.state == "diverged":
            say(f"all {diverged} diverged")
        elif best.scores[-1] is not None:
            more = f"; {diverged} diverged" if diverged else ""
            say(f"best so far: {self.bench.task.metrics[0]} {best.scores[-1]:.4f}, {best.entry()}{more}")

    def drop_checkpoints(self) -> tuple[int, int]:
        """Deletes the checkpoints of runs that were cut; returns their bytes and number."""
        freed = count = 0
        for trial in self.all:
            folder = trial.path / run_folder.CHECKPOINT
            # Where somebody else took the run further, it is not ours.
            if trial.state == "cut" and folder.is_dir() and checkpoint_step(trial.path) <= trial.steps:
                if run_folder.is_done(trial.path):
                    continue
                freed, count = freed + _bytes(folder), count + 1
                shutil.rmtree(folder)
        return freed, count


def _evaluated(path: Path, step: int) -> bool:
    return any(line["step"] == step for line in run_folder.load_metrics(path))


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def load_optuna() -> Any:
    """Optuna.

    Raises:
        SoftPromptError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise SoftPromptError("search needs Optuna: pip install 'softprompts[search]'") from None
    return optuna
