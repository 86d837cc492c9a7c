"""What a search proposes: the searched settings of each method, and the studies that propose their values."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, Union, get_args, get_origin, get_type_hints

from softprompts.errors import SoftPromptError, nearest
from softprompts.experiments.leaderboard import Entry, value_text
from softprompts.experiments.run_record import Run
from softprompts.experiments.trial import Trial
from softprompts.experiments.workbench import Workbench
from softprompts.methods.about import Span
from softprompts.methods.compose import make_config
from softprompts.methods.contract import MethodConfig
from softprompts.training import TrainConfig

# Settings of training that may differ between configurations; the budget and what is scored may not.
TRAINING_SETTINGS = (
    "batch_size", "gradient_accumulation_steps", "optimizer", "learning_rate", "weight_decay", "schedule",
    "warmup_steps", "warmup_ratio", "max_grad_norm", "seed",
)  # fmt: skip
RATE_OF = "learning_rates."
_TRIES = 50  # proposals that are not new, or make no sense, until all that are left are gone through
_DIGITS = 3  # of a number that is proposed: more only makes it harder to repeat
Space = Mapping[str, Span | Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class Axis:
    """The values that one setting may take: a span with its real bounds, or a list to choose from."""

    values: Span | tuple[Any, ...]

    def __str__(self) -> str:
        if isinstance(self.values, Span):
            return f"{self.values.low:g} to {self.values.high:g}" + (" (log)" if self.values.log else "")
        return ", ".join(map(value_text, self.values))

    def to_json(self) -> Any:
        """The values as plain JSON."""
        return dataclasses.asdict(self.values) if isinstance(self.values, Span) else list(self.values)

    @property
    def edges(self) -> Sequence[Any]:
        """The values that are checked before training: the bounds of a span, all of a list."""
        return (self.values.low, self.values.high) if isinstance(self.values, Span) else self.values

    def distribution(self, kinds: Any) -> Any:
        """Optuna's distribution of the codes that stand for values: numbers, or places in the list."""
        if not isinstance(self.values, Span):
            return kinds.CategoricalDistribution(tuple(range(len(self.values))))
        kind = kinds.IntDistribution if isinstance(self.values.low, int) else kinds.FloatDistribution
        return kind(self.values.low, self.values.high, log=self.values.log)

    def code(self, value: Any) -> Any:
        """The code of a value; None where it is not among the values."""
        if isinstance(self.values, Span):
            inside = isinstance(value, int | float) and self.values.low <= value <= self.values.high
            return value if inside else None
        same = (i for i, v in enumerate(self.values) if v == value and isinstance(v, bool) == isinstance(value, bool))
        return next(same, None)

    def value(self, code: Any) -> Any:
        """The value that a code stands for."""
        if not isinstance(self.values, Span):
            return self.values[code]
        return code if isinstance(code, int) else min(max(_rounded(code), self.values.low), self.values.high)

    def codes(self) -> Sequence[Any] | None:
        """All codes; None where there is no end of them."""
        if not isinstance(self.values, Span):
            return range(len(self.values))
        if isinstance(self.values.low, int):
            return range(self.values.low, int(self.values.high) + 1)
        return (self.values.low,) if self.values.low == self.values.high else None


class Contender:
    """A method with its fixed and its searched settings, and the study that proposes the latter.

    One study per method: their settings have nothing in common, and a study that chose the method too would starve
    those that start slowly.
    """

    def __init__(
        self,
        check: Callable[[MethodConfig, TrainConfig], None],
        workbench: Workbench,
        name: str,
        fixed: Mapping[str, Any],
        training: TrainConfig,
        space: Space,
        optuna: Any,
    ):
        self._check, self._workbench, self._optuna = check, workbench, optuna
        self.name, self.fixed, self.training = name, dict(fixed), training
        self.config = make_config(name, **fixed)
        settable = self.config.settable()
        # With the first of the values that are asked for: the model may have no room for the defaults.
        firsts = {key: v[0] for key, v in self._part_of(space).items() if key in settable and _is_list(v)}
        self.rates, _ = workbench.outline(make_config(name, **{**firsts, **fixed}), training)
        main, self._main_rate = next(iter(self.rates.items()))
        of_method, of_training = get_type_hints(type(self.config)), get_type_hints(TrainConfig)
        self._types = {key: of_method[key] for key in settable} | {key: of_training[key] for key in TRAINING_SETTINGS}
        if len(self.rates) == 1 and (f"{RATE_OF}{main}" in self._part_of(space) or main in training.learning_rates):
            del self._types["learning_rate"]  # all there is has its rate by name
        self._types |= {f"{RATE_OF}{component}": float for component in self.rates}
        self.defaults = {key: self._default(key) for key in self._types}
        self.space: dict[str, Axis] = {}
        self.proposed = 0
        self.exhausted = False

    def __str__(self) -> str:
        searched = "; ".join(f"{key} {axis}" for key, axis in self.space.items())
        return f"{self.name}: {searched or 'nothing to search'}"

    def to_dict(self) -> dict[str, Any]:
        """What it searches, as plain values."""
        return {"fixed": self.fixed, "space": {key: axis.to_json() for key, axis in self.space.items()}}

    def _default(self, key: str) -> Any:
        if key == "learning_rate":
            return self._main_rate
        if key.startswith(RATE_OF):
            return self.rates[key.removeprefix(RATE_OF)]
        return getattr(self.training if key in TRAINING_SETTINGS else self.config, key)

    def _part_of(self, space: Space) -> Space:
        """The part of a space that may concern this method, by bare names; what is said of it alone wins."""
        front = f"{self.name}."
        general = {key: values for key, values in space.items() if "." not in key or key.startswith(RATE_OF)}
        return general | {key.removeprefix(front): v for key, v in space.items() if key.startswith(front)}

    # --- what is searched -----------------------------------------------------------------------------------------

    def choose(self, space: Space) -> None:
        """Decides what is searched: what was asked for, and the method's own space for other settings."""
        fixed = {*self.fixed, *(f"{RATE_OF}{component}" for component in self.training.learning_rates)}
        if self.training.learning_rate is not None:
            fixed.add("learning_rate")
        part = self._part_of(space)
        part = {key: values for key, values in part.items() if key in self.defaults or f"{self.name}.{key}" in space}
        for key, values in part.items():
            if key not in self.defaults:
                raise SoftPromptError(f"{self.name} has no setting '{key}' to search; {nearest(key, self._types)}")
            if key in fixed:
                raise SoftPromptError(f"{self.name}: {key} is both set and searched; drop one of the two")
            self.space[key] = self._axis(key, values)
        # Every value by itself, beside the first of what else is asked for: wrong ones are found before training.
        firsts = {key: axis.edges[0] for key, axis in self.space.items()}
        self._check(*self._built(firsts))
        for key in part:
            for value in self.space[key].edges:
                self._check(*self._built({**firsts, key: value}))
        for key, values in self.config.search_space().items():
            if key in fixed or key in part or key not in self.defaults:
                continue
            if isinstance(values, Span):
                if self.defaults[key]:  # no factor takes a default of zero anywhere
                    self.space[key] = self._axis(key, values)
            elif fits := [value for value in values if self._fits({**firsts, key: value})]:
                self.space[key] = Axis(tuple(fits))

    def _fits(self, values: Mapping[str, Any]) -> bool:
        """Whether the model has room for values that a method likes to search."""
        try:
            self._check(*self._built(values))
        except SoftPromptError:
            return False
        return True

    def _axis(self, key: str, values: Span | Sequence[Any]) -> Axis:
        what = f"{self.name}: {key}"
        if not isinstance(values, Span):
            return Axis(_choices(what, values))
        low, high = values.low, values.high
        if values.of_default:
            default = self.defaults[key]
            if isinstance(default, bool) or not isinstance(default, int | float) or not default:
                raise SoftPromptError(f"{what} has no default to search around")
            low, high = default * low, default * high
        number = _number_type(self._types[key])
        if isinstance(low, bool) or isinstance(high, bool) or number is None:
            raise SoftPromptError(f"{what} is no number; list the values to choose from")
        if not (math.isfinite(low) and math.isfinite(high) and low <= high) or (values.log and low <= 0):
            least = "above 0 " if values.log else ""
            bounds = f"{low:g} and {high:g}"
            raise SoftPromptError(f"{what}: a span needs two bounds {least}with the lower first, not {bounds}")
        if number is int:
            if not values.of_default and (low != int(low) or high != int(high)):
                raise SoftPromptError(f"{what} takes whole numbers, not {low:g} to {high:g}")
            return Axis(Span(math.ceil(low), math.floor(high), values.log))
        if values.of_default:
            low, high = _rounded(low), _rounded(high)
        return Axis(Span(float(low), float(high), values.log))

    def _built(self, values: Mapping[str, Any]) -> tuple[MethodConfig, TrainConfig]:
        """A configuration with these values of the searched settings."""
        rates, settings = dict(self.training.learning_rates), dict(self.fixed)
        training: dict[str, Any] = {}
        for key, value in values.items():
            if key.startswith(RATE_OF):
                rates[key.removeprefix(RATE_OF)] = value
            else:
                (training if key in TRAINING_SETTINGS else settings)[key] = value
        return make_config(self.name, **settings), dataclasses.replace(self.training, **training, learning_rates=rates)

    # --- the study ------------------------------------------------------------------------------------------------

    def start(self, sampler: str, seed: int) -> None:
        """Makes the study; the defaults are its first proposal, as far as they are in the space."""
        samplers = self._optuna.samplers
        # By the name, so that another method beside it changes nothing.
        own_seed = int.from_bytes(hashlib.sha256(f"{seed}:{self.name}".encode()).digest()[:4])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Optuna, on options that it calls experimental
            if sampler == "random":
                chosen = samplers.RandomSampler(seed=own_seed)
            else:
                # Those of a generation keep clear of each other (constant_liar); scores of 4 say more than none.
                chosen = samplers.TPESampler(seed=own_seed, n_startup_trials=4, multivariate=True, constant_liar=True)
            self.study = self._optuna.create_study(direction="maximize", sampler=chosen)
        codes = {key: axis.code(self.defaults[key]) for key, axis in self.space.items()}
        self.study.enqueue_trial({key: code for key, code in codes.items() if code is not None})
        kinds = self._optuna.distributions
        self._distributions = {key: axis.distribution(kinds) for key, axis in self.space.items()}

    def _all_codes(self) -> Iterator[dict[str, Any]]:
        """All proposals there are; none where there is no end of them."""
        codes = [axis.codes() for axis in self.space.values()]
        finite = [each for each in codes if each is not None]
        if len(finite) == len(codes):
            yield from (dict(zip(self.space, each, strict=True)) for each in itertools.product(*finite))

    def propose(self, number: int, folder_of: Callable[[Run], Path | None]) -> Trial | None:
        """The next configuration for which ``folder_of`` returns a folder; None when there is no other."""
        remaining, wrong, tries = self._all_codes(), None, 0
        while True:
            if tries >= _TRIES:  # chance finds no new one: go through what is left
                codes = next(remaining, None)
                if codes is None:
                    break
                self.study.enqueue_trial(codes)
            tries += 1
            trial = self.study.ask(self._distributions)
            values = {key: axis.value(trial.params[key]) for key, axis in self.space.items()}
            try:
                run = Run(*self._built(values))
                path = folder_of(run)
            except SoftPromptError as error:
                path, wrong = None, error
            if path is not None:
                self.proposed += 1
                rates, trained = self._workbench.outline(run.method, run.training)
                facts: dict[str, Any] = {"settings": run.method.to_dict(), "training": run.training.to_dict()}
                facts |= {"method": run.method.method, "proposed": values, "rates": rates, "trained": trained}
                entry = Entry(trial=number, run=path.name, **facts)
                return Trial(entry, self.study, trial, run, path)
            self.study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        if wrong is not None and not self.proposed:
            raise wrong
        self.exhausted = True
        return None


def _is_list(values: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0


def _number_type(hint: Any) -> type | None:
    """Which kind of number a setting of this type is; None: no number."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return float if float in options else int if int in options else None


def _choices(what: str, values: Any) -> tuple[Any, ...]:
    """The values to choose from, each once."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise SoftPromptError(f"{what}: give a list of values to choose from, or a Span, not {values!r}")
    if not values:
        raise SoftPromptError(f"{what}: there is nothing to choose from")
    chosen: list[Any] = []
    for value in values:
        choice = tuple(value) if isinstance(value, list) else value
        if not any(choice == other and type(choice) is type(other) for other in chosen):
            chosen.append(choice)
    return tuple(chosen)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
