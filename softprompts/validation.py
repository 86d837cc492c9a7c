"""Settings that check themselves: frozen pydantic dataclasses, and their complaints as one line for the user.

A class of settings is the only place of its defaults and checks: types and bounds stand at the field
(``rank: Annotated[int, Field(ge=1)] = 4``), what concerns several fields stands in ``__post_init__``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, dataclass_transform

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass

from softprompts.errors import SoftPromptError, nearest

T = TypeVar("T")
_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
_MISSING = ("missing", "missing_argument", "missing_keyword_only_argument")
# What is wanted, by the first word of pydantic's kind of error.
_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping of names to values",
    "mapping": "a mapping of names to values",
    "model": "a mapping of names to values",
    "dataclass": "a mapping of names to values",
}
_BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: type[T]) -> type[T]:
    """Class decorator: a frozen dataclass with keyword arguments, whose values are checked and never converted.

    Lists become tuples, as JSON and YAML have no tuples. Errors begin with the class attribute ``owner``, or the
    method's name.
    """
    made: Any = dataclass(
        cls, frozen=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    )
    init = made.__init__

    @functools.wraps(init)
    def checked(self: Any, **values: Any) -> None:
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        try:
            init(self, **given)
        except ValidationError as error:
            raise translated(error, owner_of(type(self)), [field.name for field in dataclasses.fields(made)]) from None

    made.__init__ = checked
    return made  # type: ignore[no-any-return]


def owner_of(cls: type) -> str:
    """How errors name a class of settings."""
    return str(getattr(cls, "owner", "") or getattr(cls, "method", "") or cls.__name__)


def translated(error: ValidationError, owner: str, known: Iterable[str] = ()) -> SoftPromptError:
    """The first of pydantic's complaints as one of ours: what it is about, what is wanted, what was given.

    Args:
        error: what pydantic raised.
        owner: what the settings are of; begins the line.
        known: names of the settings that there are, to name the nearest of an unknown one.
    """
    first: Mapping[str, Any] = error.errors(include_url=False)[0]
    kind, context = first["type"], first.get("ctx", {})
    name = ".".join(str(part) for part in first["loc"])
    own = context.get("error")
    if isinstance(own, SoftPromptError):
        return own
    if isinstance(own, Exception):
        return SoftPromptError(f"{owner}: {own}")
    if kind in _UNKNOWN:
        return SoftPromptError(f"{owner} has no setting '{name}'; {nearest(str(first['loc'][-1]), known)}")
    if kind in _MISSING:
        return SoftPromptError(f"{owner}: {name} is missing")
    bound = next((word for word in _BOUNDS if word in context), None)
    if kind == "literal_error":
        wanted = f"one of {context['expected']}".replace("'", "").replace(" or ", ", ")
    elif bound is not None:
        wanted = f"{_BOUNDS[bound]} {context[bound]}"
    else:
        wanted = _WANTED.get(kind.partition("_")[0], first["msg"])
    given = first["input"]
    hint = " (YAML takes 1e-3 for text: write 1.0e-3)" if wanted == "a number" and isinstance(given, str) else ""
    return SoftPromptError(f"{owner}: {name} must be {wanted}, not {given!r}{hint}")
