"""Values of settings on the command line."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest

from softprompts.commands.parsing import value_of


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("4", int, 4),
        ("1e-3", float, 0.001),
        (".5", float, 0.5),
        ("True", bool, True),
        ("none", int | None, None),
        ("none", str, "none"),
        ("good, bad and so on", str | None, "good, bad and so on"),
        ("7", str | None, "7"),
        ("good,bad", tuple[str, ...] | None, ["good", "bad"]),
        ('["a,b", "c"]', tuple[str, ...] | None, ["a,b", "c"]),
        ("good", tuple[str, ...] | None, ["good"]),
        ("abc", int, "abc"),
        ("none", Literal["none", "linear"], "none"),
        ("4", Annotated[int, "what a field says more"] | None, 4),
        ("a,b", None, ["a", "b"]),
    ],
)
def test_values_are_read_by_the_type_of_their_setting(text: str, kind: str, value: Any) -> None:
    assert value_of(text, kind) == value and type(value_of(text, kind)) is type(value)
