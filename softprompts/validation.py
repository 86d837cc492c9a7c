"""Settings that check themselves: frozen pydantic dataclasses, and their complaints as one line for the user.

A class of settings is the only place of its defaults and checks: types and bounds stand at the field
(``rank: Annotated[int, Field(ge=1)] = 4``), what concerns several fields stands in ``__post_init__``.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from os import PathLike, fspath
from typing import Any, TypeVar, dataclass_transform

from pydantic import BeforeValidator, ConfigDict, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ArgsKwargs

from softprompts.errors import SoftPromptError, nearest, shown

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
    "invalid-json-value": "text",  # a date of YAML
    "list": "a list",
    "tuple": "a list",
    "dict": "a mapping of names to values",
    "mapping": "a mapping of names to values",
    "model": "a mapping of names to values",
    "dataclass": "a mapping of names to values",
}
_BOUNDS = {"ge": "at least {:g}", "gt": "more than {:g}", "le": "at most {:g}", "lt": "less than {:g}"}
_BOUNDS |= {"min_length": "at least {} long", "max_length": "at most {} long"}


def _path(value: Any) -> str:
    if isinstance(value, str | PathLike) and fspath(value):
        return str(fspath(value))
    raise ValueError(f"must name a file or folder, not {value!r}")


def _paths(value: Any) -> tuple[str, ...]:
    return tuple(_path(name) for name in (value if isinstance(value, list | tuple) else (value,)))


# For ``Annotated[..., PATH]``: a path is kept as text, as JSON and YAML have no paths; one may stand for several.
PATH = BeforeValidator(_path)
PATHS = BeforeValidator(_paths)
TEXTS = BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)


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
        try:
            init(self, **_with_tuples(values))
        except ValidationError as error:
            raise translated(error, owner_of(type(self)), [field.name for field in dataclasses.fields(made)]) from None

    made.__init__ = checked
    return made  # type: ignore[no-any-return]


def check_inherited(instance: Any) -> None:
    """Checks what a plain dataclass inherits from a class of `settings`, whose checks its own ``__init__`` skips.

    Fields that it declares again are its own business. To be called from ``__post_init__`` of the class of settings.
    """
    cls: Any = type(instance)
    if "__pydantic_validator__" in vars(cls):
        return
    base: Any = next(parent for parent in cls.__mro__ if "__pydantic_validator__" in vars(parent))
    inherited = [field.name for field in dataclasses.fields(base) if field is cls.__dataclass_fields__[field.name]]
    values = _with_tuples({name: getattr(instance, name) for name in inherited})
    checked = base.__new__(base)
    try:
        base.__pydantic_validator__.validate_python(ArgsKwargs((), values), self_instance=checked)
    except ValidationError as error:
        raise translated(error, owner_of(cls)) from None
    for name in inherited:
        object.__setattr__(instance, name, getattr(checked, name))


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


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
    return complaint(error.errors(include_url=False)[0], owner, known=known)


def complaint(
    first: Mapping[str, Any], owner: str, place: str | None = None, known: Iterable[str] = ()
) -> SoftPromptError:
    """One of pydantic's complaints as one of ours, see `translated`.

    Args:
        first: one of ``ValidationError.errors()``.
        owner: what the settings are of; begins the line.
        place: where the value stands, as the line names it; None: pydantic's location.
        known: names of the settings that there are.
    """
    kind, context = first["type"], first.get("ctx", {})
    name = ".".join(str(part) for part in first["loc"]) if place is None else place
    own = context.get("error")
    if isinstance(own, SoftPromptError):
        return own
    if isinstance(own, Exception):  # a check of ours says what is wrong with the value, or with several
        return SoftPromptError(f"{owner}: {name} {own}" if name else f"{owner}: {own}")
    if kind in _UNKNOWN:
        return SoftPromptError(f"{owner} has no setting '{name}'; {nearest(str(first['loc'][-1]), known)}")
    if kind in _MISSING:
        return SoftPromptError(f"{owner}: {name} is missing")
    bound = next((word for word in _BOUNDS if word in context), None)
    if kind == "literal_error":
        options = context["expected"].replace("'", "").replace(" or ", ", ")
        wanted = f"one of {options}" if "," in options else options
    elif bound is not None:
        wanted = _BOUNDS[bound].format(context[bound])
    else:
        wanted = _WANTED.get(kind.partition("_")[0], first["msg"])
    given = first["input"]
    hint = " (YAML takes 1e-3 for text: write 1.0e-3)" if wanted == "a number" and isinstance(given, str) else ""
    if wanted == "text" and not isinstance(given, Mapping | list | tuple | None):
        hint = " (put it in quotes)"
    if kind == "literal_error":
        near = nearest(str(given), wanted.removeprefix("one of ").split(", "))
        hint = f"; {near}" if near.startswith("did you mean") else ""
    return SoftPromptError(f"{owner}: {name} must be {wanted}, not {shown(given)}{hint}")
