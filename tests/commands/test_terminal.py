from __future__ import annotations

import pytest

from softprompts.commands.terminal import typed_command


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["train", "--task", "glue/rte", "--lr", "0.1"], "softprompts train --task glue/rte --lr 0.1"),
        (
            ["train", "--data", "my data.csv", "--label", "it's"],
            "softprompts train --data 'my data.csv' --label 'it'\"'\"'s'",
        ),
        (["train", "--data", "/home/ann/films.csv"], "softprompts train --data films.csv"),
        (["train", "--data=/home/ann/films.csv"], "softprompts train --data=films.csv"),
        (["train", "--data", "~/films.csv", "--out", "../runs"], "softprompts train --data films.csv --out ../runs"),
        (["train", "--set", "source=/home/ann/runs/1"], "softprompts train --set source=1"),
    ],
)
def test_the_command_is_what_was_typed_without_the_folders_of_files(
    monkeypatch: pytest.MonkeyPatch, words: list[str], command: str
) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/softprompts", *words])
    assert typed_command() == command
