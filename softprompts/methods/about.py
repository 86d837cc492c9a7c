"""What a method says of itself: its line in the table of methods, pictures, vitals, and ranges to search in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class View:
    """Numbers of a trained prompt that show what it learned, with a name for each of their axes; see `Method.views`.

    Attributes:
        what: what they are, for the pictures of `softprompts.analysis`: "masks" (gates between 0 and 1, by token and
            site), "gates" (shares, by token and what they are of), "superposition" (weights, by token and what is
            mixed), "embeddings" (what is mixed, by token), "routes" (shares, by row and what rows choose from),
            "chosen" (which of these a row gets, 0 or 1), "tokens" (input tokens that rows choose from) or "selective"
            (alpha of the mask on scores, a single number).
        values: the numbers, one axis for each of ``axes``.
        axes: "mask", "token", "site", "row", ...
        entries: what the entries of an axis are called, by its name; where nothing is said, they are numbered.
        part: the method that they are of, in a composition.
    """

    what: str
    values: Tensor
    axes: tuple[str, ...] = ()
    entries: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    part: str = ""


@dataclass(frozen=True)
class Vital:
    """A number that says whether a part of a method acts; see `Method.vitals`.

    Attributes:
        name: "routes.spread", ... In a composition the part's name goes in front.
        value: the number. None for a threshold on one that training measures of every prompt (see
            `softprompts.training.vitals`): "penalty", "gates.spread", "moved.COMPONENT", ...
        least: below this the part does not act; None for a number without a threshold.
        idle: what is said then, after what does not act: "router: all rows get the same masks".
    """

    name: str
    value: float | Tensor | None
    least: float | None = None
    idle: str = ""


# What others can use: input embeddings, a model directory of plain transformers, an adapter of PEFT's.
PLAIN_FORMS = ("embeddings", "model", "peft")


@dataclass(frozen=True)
class About:
    """A method's card on the page of methods (docs/methods.md). Plain text; equations as in the code, on one line.

    Attributes:
        paper: who, what, where, with an address.
        equation: the method in one line.
        trained: what is trained.
        count: number of parameters that the defaults train, as a formula in ``l d S w``, ``L`` (layers of all stacks),
            names of settings and ``symbols``. Arithmetic is checked against what a prompt really has; words are not.
        symbols: the setting that a further symbol of ``count`` stands for; of several the first that is a number.
        settings: what makes a prompt where the defaults alone do not.
        sizes: other settings whose number of parameters the table gives, such as those of the paper.
        once: what is computed once per step, however many rows there are; "" for nothing.
        per_row: what is computed for every row; "" for nothing.
        folds_to: what remains after training ("tokens", "prefix", ...); "" where nothing plain does.
        exports: those of `PLAIN_FORMS` that it can be written as on some backbone, with its defaults but for placement
            and positions; empty where it runs with this package only.
        differs: where we differ from released code or the paper's text, and why; "" where we do not.
        line: what it is in a line of the list of methods; "" where the first line of its module says it.
        start_here: whether the list shows it first, to those who know none.
    """

    paper: str
    equation: str
    trained: str
    count: str
    symbols: Mapping[str, str | tuple[str, ...]] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sizes: tuple[Mapping[str, Any], ...] = ()
    once: str = ""
    per_row: str = ""
    folds_to: str = ""
    exports: tuple[str, ...] = ()
    differs: str = ""
    line: str = ""
    start_here: bool = False


@dataclass(frozen=True)
class Span:
    """A range to search in; only whole numbers where the setting is an int.

    Attributes:
        low: least value.
        high: greatest value.
        log: as many tries between 1 and 10 as between 10 and 100.
        of_default: the bounds are factors on the default.
    """

    low: float
    high: float
    log: bool = False
    of_default: bool = False


# What a search tries: by the name of a setting, values to choose from or a range.
Space = Mapping[str, Span | Sequence[Any]]

# A factor of ten either way: the defaults are measured on one small encoder.
RATES = Span(0.1, 10.0, log=True, of_default=True)
