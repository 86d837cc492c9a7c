"""How errors are printed."""

from __future__ import annotations

import pytest

from softprompts.__main__ import _fail
from softprompts.errors import SoftPromptError


def test_errors_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        _fail(str(SoftPromptError("first\n second [bold]")))
    assert stop.value.code == 2 and capsys.readouterr().err == "error: first second [bold]\n"
