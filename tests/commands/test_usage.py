"""What the command line says of options, arguments and verbs that it cannot use."""

from __future__ import annotations

from pathlib import Path

import pytest
from saved import Cli

from softprompts.__main__ import VERBS
from softprompts.commands.usage import _ELSEWHERE
from tests.commands.running import refuse


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train --dev t.csv", "train has no option --dev; did you mean --validation?"),
        ("train --learning_rate 1", "train has no option --learning_rate; did you mean --lr?"),
        ("compare --metods x", "compare has no option --metods; did you mean --methods?"),
        ("predict --xyzzy", "predict has no option --xyzzy; see 'softprompts predict --help'"),
        ("trian", "no such command 'trian'; did you mean train?"),
        ("bench repot", "no such command 'repot'; did you mean report?"),
        ("train --steps 0", "invalid value for '--steps': it must be at least 1"),
        ("train --steps x", "invalid value for '--steps': it must be a whole number"),
        ("train --steps", "option '--steps' requires an argument"),
        ("predict", "missing argument 'RUN_OR_PROMPT'; see 'softprompts predict --help'"),
        ("train a", "(a)"),
    ],
)
def test_one_line_that_names_the_nearest(cli: Cli, data: Path, command: str, message: str) -> None:
    refuse(cli, message, *command.split())


def test_without_a_verb_the_help_is_shown(cli: Cli) -> None:
    done = cli()
    assert done.code == 2 and "Usage" in done.out + done.err and "train" in done.out + done.err


def test_what_other_tools_call_an_option_is_an_option_here(cli: Cli) -> None:
    said = " ".join(cli.fine(verb, "--help").out for verb in VERBS)
    assert not [flag for flag in set(_ELSEWHERE.values()) if f"{flag} " not in said]
