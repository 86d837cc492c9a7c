"""What `--help` says."""

from __future__ import annotations

import pytest
from saved import Cli


def test_help_names_every_choice(cli: Cli) -> None:
    from softprompts.tasks.answers import RULES
    from softprompts.tasks.form import ANSWERS
    from softprompts.tasks.splits import PROTOCOLS

    said = " ".join(cli.fine("train", "--help").out.replace("│", " ").split())
    for flag, names in (("--answer", ANSWERS), ("--invalid", RULES), ("--split", PROTOCOLS)):
        line = said[said.index(flag) :][:250]
        assert all(name in line for name in names), flag


@pytest.mark.parametrize(
    "command", ["tasks show", "", "train", "compare", "search", "transfer", "demo", "predict", "inspect"]
)
def test_help_of_each_command(cli: Cli, command: str) -> None:
    done = cli.fine(*command.split(), "--help")
    assert "Usage" in done.out and not done.err
