from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field

from softprompts.errors import SoftPromptError
from softprompts.validation import PATH, PATHS, TEXTS, settings


@settings
class Base:
    owner: ClassVar[str] = "method"

    rank: Annotated[int, Field(ge=1)] = 4
    rate: Annotated[float, Field(gt=0)] | None = None
    mode: Literal["a", "b"] = "a"
    kind: Literal["values", "scores"] = "values"
    sites: tuple[str, ...] | None = None
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    flag: bool | None = None
    file: Annotated[str, PATH] | None = None
    files: Annotated[tuple[str, ...], PATHS] = ()
    words: Annotated[tuple[str, ...], TEXTS, Field(max_length=2)] = ()
    nothing: Literal[0] = 0

    def __post_init__(self) -> None:
        if self.rank == 7:
            raise SoftPromptError("7 is not for you")


@settings
class Derived(Base):
    rank: Annotated[int, Field(ge=2)] = 5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 0}, "method: rank must be at least 1, not 0"),
        ({"rank": "x"}, "method: rank must be a whole number, not 'x'"),
        ({"rank": True}, "method: rank must be a whole number, not True"),
        ({"rate": -1}, "method: rate must be more than 0"),
        ({"rate": "1e-3"}, "method: rate must be a number, not '1e-3' .YAML takes 1e-3 for text"),
        ({"rate": float("inf")}, "method: rate must be a finite number, not inf"),
        ({"mode": "c"}, "method: mode must be one of a, b, not 'c'"),
        ({"mode": ["aa"]}, "method: mode must be one of a, b, not"),
        ({"kind": "vlues"}, "method: kind must be one of values, scores, not 'vlues'; did you mean 'values'"),
        ({"rnk": 3}, "method has no setting 'rnk'; did you mean 'rank'"),
        ({"rates": {"a": "b"}}, "method: rates.a must be a number, not 'b'"),
        ({"flag": "yes"}, "method: flag must be true or false, not 'yes'"),
        ({"nothing": 1}, "method: nothing must be 0, not 1"),
        ({"file": ""}, "method: file must name a file or folder, not ''"),
        ({"files": ["a", 3]}, "method: files must name a file or folder, not 3"),
        ({"words": ["a", "b", "c"]}, "method: words must be at most 2 long, not "),
        ({"rank": 7}, "^7 is not for you$"),
    ],
)
def test_errors_name_the_setting_what_is_wanted_and_what_was_given(values: dict[str, object], message: str) -> None:
    with pytest.raises(SoftPromptError, match=message):
        Base(**values)


def test_values_are_kept_and_lists_become_tuples() -> None:
    made = Base(rank=2, rate=1, sites=["x"], flag=False)
    assert (made.rank, made.rate, made.sites, made.flag) == (2, 1.0, ("x",), False)


def test_a_path_is_kept_as_text_and_one_stands_for_several() -> None:
    made = Base(file=Path("a") / "b", files=Path("c"), words="d")
    assert (made.file, made.files, made.words) == (str(Path("a/b")), ("c",), ("d",))
    assert Base(files=["a", Path("b")]).files == ("a", "b")


def test_subclasses_have_their_own_defaults_and_bounds() -> None:
    assert (Derived().rank, Derived().mode) == (5, "a")
    assert dataclasses.replace(Derived(), rank=9) == Derived(rank=9)
    with pytest.raises(SoftPromptError, match="at least 2"):
        Derived(rank=1)


def test_settings_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Base().rank = 3  # type: ignore[misc]
