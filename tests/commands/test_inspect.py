"""`softprompts inspect`."""

from __future__ import annotations

import json
from pathlib import Path

from saved import Cli

from tests.commands.running import train


def test_inspect(cli: Cli, data: Path) -> None:
    cli.fine(*train(data), "--folder", "run")
    out = cli.fine("inspect", "run").out
    assert "prefix-tuning" in out and "negative, positive" in out and "method.prefix" in out and "10 x 64" in out
    assert max(map(len, out.splitlines())) <= 80
    as_json = json.loads(cli.fine("inspect", "run/prompt", "--json").out)
    assert as_json["method"] == "prefix-tuning" and as_json["tensors"]["method.prefix"]["shape"] == [10, 64]
