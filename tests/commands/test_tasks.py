"""`softprompts tasks` and `softprompts tasks show`."""

from __future__ import annotations

import json
from pathlib import Path

from saved import LENGTH, Cli, model_folder

from tests.commands.running import refuse


def test_tasks_lists_each_task(cli: Cli) -> None:
    out = cli.fine("tasks").out
    assert "reviews/tweets" in out and "glue/rte" in out and "--data FILE" in out
    assert max(map(len, out.splitlines())) <= 80


def test_tasks_show(cli: Cli, tmp_path: Path, data: Path) -> None:
    flags = ["--data", str(data), "-m", model_folder("bert"), "--max-length", "6"]
    done = cli.fine("tasks", "show", *flags)
    for part in ("fields      text", "classification: one of several labels", "takes 40 tokens", "over 6", "over 40"):
        assert part in done.out
    assert "18 (50.0 %)" in done.out and done.out.count("language model") == done.out.count("  encoder") == 3
    assert max(map(len, done.out.splitlines())) <= 80
    said = json.loads(cli.fine("tasks", "show", *flags, "--json", "--examples", "1").out)
    assert said["splits"]["train"]["tokens"]["longest"] == 6 and said["splits"]["train"]["over_max_length"] == 0
    assert len(said["examples"]) == 1 and said["context"] == LENGTH and said["templates"] == []
    (tmp_path / "mine.yaml").write_text("about: films\ntemplates: {bare: {source: '{text}'}}\ntrain: data.csv\n")
    done = cli.fine("tasks", "show", "../mine.yaml", "-m", model_folder("t5"), "--template", "bare")
    assert "mine: films" in done.out and "default, bare (below: bare)" in done.out
    for flags, message in (
        ([], "name a task, or give --data FILE"),
        (["glue/rt"], "unknown task 'glue/rt': did you mean 'glue/rte'?"),
        (["../none.yaml"], "none.yaml: no such file"),
        (["../mine.yaml", "--template", "bear"], "no template 'bear': did you mean 'bare'?"),
        (["../mine.yaml", "-m", "./none"], "no such model './none'"),
    ):
        refuse(cli, message, "tasks", "show", *flags)
