"""TODO."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard, get_type_hints

from softprompts.errors import SoftPromptError, nearest
from softprompts.experiments.leaderboard import (
    plain,
)
from softprompts.experiments.workbench import Run, Workbench
from softprompts.methods.about import Span
from softprompts.methods.contract import MethodConfig
from softprompts.methods.making import make_config
from softprompts.training import TrainConfig
from softprompts.training.optim import HEAD

# Settings of training that may differ between configurations; the budget and what is scored may not.
_TRAINING = (
    "batch_size", "gradient_accumulation_steps", "optimizer", "learning_rate", "weight_decay", "schedule",
    "warmup_steps", "warmup_ratio", "max_grad_norm", "seed",
)  # fmt: skip


_RATE_OF = "learning_rates."
_TRIES = 50  # proposals that were there already, or make no sense, until it is given up
_DIGITS = 3  # of a number that is proposed: more only makes it harder to repeat
Space = Mapping[str, Span | Sequence[Any]]


class _Contender:
    """A method with what is fixed and what is searched of it, and the study that proposes the latter.

    One study per method: their settings have nothing in common, and a study that chose the method too would starve
    those that start slowly.
    """

    def __init__(
        self,
        check: Callable[[MethodConfig, TrainConfig], None],
        bench: Workbench,
        name: str,
        fixed: Mapping[str, Any],
        training: TrainConfig,
        space: Space,
        optuna: Any,
    ):
        self._check, self.name, self.fixed, self.training, self._optuna = check, name, dict(fixed), training, optuna
        self.config = make_config(name, **fixed)
        settable = self.config.settable()
        # Beside what is asked for: the model may have no room for the defaults.
        hints = {key: values[0] for key, values in _said_of(name, space) if key in settable and _is_list(values)}
        self.rates, _ = bench.outline(make_config(name, **{**hints, **fixed}), training)
        self._main = next((rate for component, rate in self.rates.items() if component != HEAD), None)
        types = get_type_hints(type(self.config))
        self._kinds = {key: str(types[key]) for key in settable if key in types}
        self._kinds |= {key: str(kind) for key, kind in get_type_hints(TrainConfig).items() if key in _TRAINING}
        if self._main is None:  # nothing but a head, which this does not move
            del self._kinds["learning_rate"]
        self._kinds |= {f"{_RATE_OF}{component}": "float" for component in self.rates}
        self.defaults = {key: self._default(key) for key in self._kinds}
        self.space: dict[str, Span | tuple[Any, ...]] = {}
        self.proposed = 0
        self.exhausted = False

    def __str__(self) -> str:
        said = [f"{key} {_span_told(values)}" for key, values in self.space.items()]
        return f"{self.name}: " + ("; ".join(said) or "nothing to search")

    def _default(self, key: str) -> Any:
        if key == "learning_rate":
            return self._main
        if key.startswith(_RATE_OF):
            return self.rates[key.removeprefix(_RATE_OF)]
        return getattr(self.training if key in _TRAINING else self.config, key)

    def knows(self, key: str) -> bool:
        """Whether there is such a setting to search."""
        return key in self._kinds

    def choose(self, asked: Space) -> None:
        """Takes up what is searched: what was asked for, and the method's own space where nothing is said.

        Raises:
            SoftPromptError: what was asked for makes no sense.
        """
        said = {*self.fixed, *(f"{_RATE_OF}{component}" for component in self.training.learning_rates)}
        if self.training.learning_rate is not None:
            said.add("learning_rate")
        for key, values in asked.items():
            if not self.knows(key):
                raise SoftPromptError(f"{self.name} has no setting '{key}' to search; {nearest(key, self._kinds)}")
            if key in said:
                raise SoftPromptError(f"{self.name}: {key} is both set and searched; drop one of the two")
            self.space[key] = self._values(key, values)
        # Every value by itself, beside the first of what else is asked for: wrong ones are found before training.
        firsts = {key: self._edges(key)[0] for key in self.space}
        self._check(*self._built(firsts))
        for key in asked:
            for value in self._edges(key):
                self._check(*self._built({**firsts, key: value}))
        for key, values in self.config.search_space().items():
            if key in said or key in asked or not self.knows(key):
                continue
            if isinstance(values, Span):
                if self.defaults[key]:  # no factor takes a default of zero anywhere
                    self.space[key] = self._values(key, values)
                continue
            fits = [value for value in values if self._fits({**firsts, key: value})]
            if fits:
                self.space[key] = tuple(fits)

    def _fits(self, values: Mapping[str, Any]) -> bool:
        """Whether the model has room for what a method likes to search."""
        try:
            self._check(*self._built(values))
        except SoftPromptError:
            return False
        return True

    def _edges(self, key: str) -> Sequence[Any]:
        values = self.space[key]
        return (values.low, values.high) if isinstance(values, Span) else values

    def _values(self, key: str, values: Span | Sequence[Any]) -> Span | tuple[Any, ...]:
        return self._span(key, values) if isinstance(values, Span) else _choices(f"{self.name}: {key}", values)

    def _span(self, key: str, span: Span) -> Span:
        """The span with its real bounds, whole ones for a whole setting."""
        what, kind = f"{self.name}: {key}", self._kinds[key]
        low, high = span.low, span.high
        if span.of_default:
            default = self.defaults[key]
            if isinstance(default, bool) or not isinstance(default, int | float) or not default:
                raise SoftPromptError(f"{what} has no default to search around")
            low, high = default * low, default * high
        if isinstance(low, bool) or isinstance(high, bool) or not ("int" in kind or "float" in kind) or "tuple" in kind:
            raise SoftPromptError(f"{what} is no number; list the values to choose from")
        if not (math.isfinite(low) and math.isfinite(high) and low <= high) or (span.log and low <= 0):
            least = "above 0 " if span.log else ""
            raise SoftPromptError(
                f"{what}: a span needs two bounds {least}with the lower first, not {low:g} and {high:g}"
            )
        if "int" in kind and "float" not in kind:
            if not span.of_default and (low != int(low) or high != int(high)):
                raise SoftPromptError(f"{what} takes whole numbers, not {low:g} to {high:g}")
            return Span(math.ceil(low), math.floor(high), span.log)
        if span.of_default:
            low, high = _rounded(low), _rounded(high)
        return Span(float(low), float(high), span.log)

    def _built(self, values: Mapping[str, Any]) -> tuple[MethodConfig, TrainConfig]:
        """A configuration from searched settings."""
        own = {key: value for key, value in values.items() if key not in _TRAINING and not key.startswith(_RATE_OF)}
        rates = {key.removeprefix(_RATE_OF): value for key, value in values.items() if key.startswith(_RATE_OF)}
        rest = {key: value for key, value in values.items() if key in _TRAINING}
        training = dataclasses.replace(self.training, **rest, learning_rates={**self.training.learning_rates, **rates})
        return make_config(self.name, **{**self.fixed, **own}), training

    def start(self, sampler: str, seed: int) -> None:
        """Makes the study; the defaults are its first proposal, as far as they are in the space."""
        optuna = self._optuna
        # By the name, so that another method beside it changes nothing.
        own_seed = int.from_bytes(hashlib.sha256(f"{seed}:{self.name}".encode()).digest()[:4])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Optuna, on options that it calls experimental
            if sampler == "random":
                made = optuna.samplers.RandomSampler(seed=own_seed)
            else:
                # Those of a generation keep clear of each other (constant_liar); scores of 4 say more than none.
                made = optuna.samplers.TPESampler(
                    seed=own_seed, n_startup_trials=4, multivariate=True, constant_liar=True
                )
            self.study = optuna.create_study(direction="maximize", sampler=made)
        known = {key: self._code(key, self.defaults[key]) for key in self.space}
        self.study.enqueue_trial({key: code for key, code in known.items() if code is not None})
        kinds = optuna.distributions
        self._distributions: dict[str, Any] = {}
        for key, values in self.space.items():
            if not isinstance(values, Span):
                self._distributions[key] = kinds.CategoricalDistribution(tuple(range(len(values))))
            elif isinstance(values.low, int):
                self._distributions[key] = kinds.IntDistribution(values.low, int(values.high), log=values.log)
            else:
                self._distributions[key] = kinds.FloatDistribution(values.low, values.high, log=values.log)

    def _code(self, key: str, value: Any) -> Any:
        """A value as the study knows it, None where it is not in the space."""
        values = self.space[key]
        if isinstance(values, Span):
            inside = isinstance(value, int | float) and values.low <= value <= values.high
            return value if inside else None
        return next(
            (i for i, v in enumerate(values) if v == value and isinstance(v, bool) == isinstance(value, bool)), None
        )

    def _grid(self) -> Iterator[dict[str, Any]]:
        """All proposals there are; none where there is no end of them."""
        axes: list[Sequence[Any]] = []
        for values in self.space.values():
            if not isinstance(values, Span):
                axes.append(range(len(values)))
            elif isinstance(values.low, int):
                axes.append(range(values.low, int(values.high) + 1))
            elif values.low == values.high:
                axes.append((values.low,))
            else:
                return
        for codes in itertools.product(*axes):
            yield dict(zip(self.space, codes, strict=True))

    def propose(
        self, fits: Callable[[MethodConfig, TrainConfig], Path | None]
    ) -> tuple[Any, dict[str, Any], Run, Path] | None:
        """The next configuration that ``fits`` has a folder for; None when there is no other.

        Raises:
            SoftPromptError: one proposal after the other makes no sense.
        """
        waiting, wrong, tries = self._grid(), None, 0
        while True:
            if tries >= _TRIES:  # chance finds no new one: go through what is left
                codes = next(waiting, None)
                if codes is None:
                    break
                self.study.enqueue_trial(codes)
            tries += 1
            asked = self.study.ask(self._distributions)
            values = {key: self._decode(key, asked.params[key]) for key in self.space}
            try:
                config, training = self._built(values)
                path = fits(config, training)
            except SoftPromptError as error:
                path, wrong = None, error
            if path is not None:
                self.proposed += 1
                return asked, values, Run(config, training), path
            self.study.tell(asked, state=self._optuna.trial.TrialState.FAIL)
        if wrong is not None and not self.proposed:
            raise wrong
        self.exhausted = True
        return None

    def _decode(self, key: str, code: Any) -> Any:
        values = self.space[key]
        if not isinstance(values, Span):
            return values[code]
        return code if isinstance(code, int) else min(max(_rounded(code), values.low), values.high)

    def learn(self, asked: Any, score: float | None) -> None:
        """Tells the study a score; None is worse than any."""
        if score is None:
            self.study.tell(asked, state=self._optuna.trial.TrialState.PRUNED)
        else:
            self.study.tell(asked, score)

    def to_dict(self) -> dict[str, Any]:
        """What it searches, as plain values."""
        return {
            "fixed": self.fixed,
            "space": {
                key: dataclasses.asdict(values) if isinstance(values, Span) else list(values)
                for key, values in self.space.items()
            },
        }


def _said_of(name: str, space: Space) -> Iterator[tuple[str, Span | Sequence[Any]]]:
    """What a space says of a method, by the bare names of settings, in the order in which the later wins."""
    yield from ((key, values) for key, values in space.items() if "." not in key)
    yield from ((key.removeprefix(f"{name}."), values) for key, values in space.items() if key.startswith(f"{name}."))


def _is_list(values: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0


def _choices(what: str, values: Any) -> tuple[Any, ...]:
    """The values to choose from, each once."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise SoftPromptError(f"{what}: give a list of values to choose from, or a Span, not {values!r}")
    if not values:
        raise SoftPromptError(f"{what}: there is nothing to choose from")
    chosen: list[Any] = []
    for value in values:
        plain = tuple(value) if isinstance(value, list) else value
        if not any(plain == there and type(plain) is type(there) for there in chosen):
            chosen.append(plain)
    return tuple(chosen)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _span_told(values: Span | Sequence[Any]) -> str:
    if isinstance(values, Span):
        return f"{values.low:g} to {values.high:g}" + (" (log)" if values.log else "")
    return ", ".join(plain(value) for value in values)
