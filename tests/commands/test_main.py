"""The command line as a whole."""

from __future__ import annotations

import os
import subprocess
import sys

from saved import Cli

import softprompts as sp


def test_version(cli: Cli) -> None:
    assert cli.fine("--version").out == f"softprompts {sp.__version__}\n"


def test_a_shell_completes_verbs() -> None:
    words = {"COMP_WORDS": "softprompts tr", "COMP_CWORD": "1", "_SOFTPROMPTS_COMPLETE": "complete_bash"}
    code = "import sys; sys.argv = ['softprompts']; from softprompts.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **words}, capture_output=True, text=True)
    assert done.stdout.split() == ["train", "transfer"]
