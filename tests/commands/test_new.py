"""`softprompts new method`, `check` and ``--import``: from nothing to a prompt of a method in a file."""

from __future__ import annotations

import os
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
from own_methods import forget as forget  # a fixture
from saved import Cli

from softprompts.bench.recipe_file import load_recipe
from softprompts.methods.imports import import_methods
from softprompts.model import method_check
from tests.commands.running import config, refuse, result, train

Forget = Callable[[], None]


def test_a_new_method_trains_at_once_and_its_run_says_what_to_import(
    cli: Cli, data: Path, forget: Forget, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = cli.fine("new", "method", "low-rank-try", "--out", "own")
    assert sorted(os.listdir("own")) == ["low_rank_try.py", "low_rank_try.yaml", "test_low_rank_try.py"]
    assert "softprompts check own/low_rank_try.py" in done.out
    refuse(cli, "own/low_rank_try.py is there already", "new", "method", "low-rank-try", "--out", "own")
    given = ["--import", "own/low_rank_try.py"]
    typed = [*train(data, steps=2), "--method", "low-rank-try", "--set", "rank=2"]
    refuse(cli, "unknown method 'low-rank-try'", *typed)
    cli.fine(*typed, *given, "--folder", "run")
    there = config("run")
    assert there["settings"]["rank"] == 2 and len(there["code"]["low-rank-try"]) == 12
    assert f"#   {Path('own/low_rank_try.py').resolve()}\n" in Path("run/config.yaml").read_text()
    assert result("run")["command"].endswith("--import own/low_rank_try.py --folder run")

    said = "its method 'low-rank-try' is in a file of its own: give --import own/low_rank_try.py"
    forget()
    for verb in (["predict", "run", "good"], ["evaluate", "run"], ["export", "run", "--to", "folded", "-o", "folded"]):
        refuse(cli, said, *verb)
        cli.fine(*verb, *given)
        forget()
    cli.fine("predict", "folded", "good")  # plain tokens, which need no file
    done = cli.fine("compare", *train(data, steps=1)[1:], "--methods", "head-only,low-rank-try", "--seeds", "0", *given)
    assert "low-rank-try" in done.out

    forget()
    text = Path("own/low_rank_try.py").read_text()
    Path("own/low_rank_try.py").write_text(text.replace("learning_rate=1e-2", "learning_rate=2e-2"))
    with pytest.warns(UserWarning, match="low_rank_try.py has changed since this prompt was saved"):
        cli.fine("predict", "run", "good", *given)
    done = cli(*typed, *given, "--folder", "run")  # other code is another run
    assert done.code == 2 and "holds a run with other settings (code.low-rank-try is" in done.err


def test_its_test_passes_and_its_recipe_can_be_run(cli: Cli, data: Path, forget: Forget) -> None:
    cli.fine("new", "method", "low-rank-test")
    import_methods("low_rank_test.py")
    tests = runpy.run_path("test_low_rank_test.py")
    tests["test_equation"]()
    recipe = load_recipe("low_rank_test.yaml")
    assert [row.method for row in recipe.rows] == ["head-only", "prompt-tuning", "low-rank-test"] and recipe.runs == 9


def test_check_prints_a_line_a_check_and_exits_with_1(
    cli: Cli, data: Path, forget: Forget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(method_check, "_MODELS", {"encoder": method_check._encoder})
    cli.fine("new", "method", "low-rank-check")
    file = Path("low_rank_check.py")
    done = cli.fine("check", file)
    first, *lines = done.out.splitlines()
    assert first == "low-rank-check, on small random models" and len(lines) > 8
    assert all(line.startswith("ok ") for line in lines)
    assert cli.fine("check", "low_rank_check.LowRankCheck", "--set", "rank=1").out == done.out
    assert cli.fine("check", "low-rank-check").out == done.out
    refuse(cli, "low_rank_check has no method or config 'LowRank'", "check", "low_rank_check.LowRank")
    refuse(cli, "none of the methods has this setting", "check", file, "--set", "ranks=1")
    refuse(cli, "there.py: there is no such file", "check", "there.py")

    forget()
    file.write_text(file.read_text().replace("[self.a, self.b]", "[self.a]"))
    done = cli("check", file)
    assert done.code == 1 and not done.err
    (line,) = (line for line in done.out.splitlines() if line.startswith("FAILED"))
    assert "components() lists the parameter 'b' 0 times" in line and done.out.endswith("1 check failed\n")
