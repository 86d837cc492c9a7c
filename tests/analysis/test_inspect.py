"""`softprompts inspect`: pictures of a run on disk, and several prompts beside each other."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from saved import Cli, files_below

import softprompts as sp
from softprompts.analysis import WHAT
from tests.analysis.reading import Train

BOTH = sp.compose(
    sp.MultiMaskConfig(num_virtual_tokens=2, num_masks=2), sp.SelectivePrefixConfig(num_virtual_tokens=2, init_std=1.0)
)
TOKENS = sp.PromptTuningConfig(num_virtual_tokens=3)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    monkeypatch.chdir(tmp_path)
    return Cli(monkeypatch, capsys)


def test_plots_go_into_the_run_folder(cli: Cli, train: Train, tmp_path: Path) -> None:
    run = shutil.copytree(train(BOTH), tmp_path / "run")
    before = files_below(run)
    done = cli.fine("inspect", run, "--plots", "--rows", "6")
    told = [line for line in done.out.splitlines() if line.partition(":")[0] in WHAT]
    assert [line.partition(":")[0] for line in told] == [
        "masks", "selective", "selective", "router", "norms",
    ]  # fmt: skip
    left_out = "gates, superposition, tokens, attention, similarity"
    assert done.out.endswith(f"nothing to draw of: {left_out} (why: --json)\n")
    written = sorted(path.name for path in (run / "plots").iterdir())
    kinds = sorted({name.partition("-")[0] for name in written})
    assert kinds == ["attention", "masks", "norms", "router", "selective"] and len(written) == 15
    assert [name for name in files_below(run) if not name.startswith("plots")] == before
    for name in written:
        path = run / "plots" / name
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
        elif path.suffix == ".svg":
            assert "<svg" in path.read_text()
        else:
            assert len(list(csv.reader(path.read_text().splitlines()))) > 2
    for line in told:
        assert Path(line.split()[1]).is_file()
    # The run is what it was: it can be inspected, predicted with and drawn again.
    assert cli.fine("inspect", run, "--plots", "--rows", "6").out == done.out
    cli.fine("predict", run, "the film was good")


def test_other_folders(cli: Cli, train: Train, tmp_path: Path) -> None:
    run = shutil.copytree(train(TOKENS), tmp_path / "run")
    bare = shutil.copytree(run / "prompt", tmp_path / "bare")
    cli.fine("inspect", run / "prompt", "--plots")
    assert (run / "plots").is_dir() and not (run / "prompt/plots").exists()
    cli.fine("inspect", bare, "--plots")
    assert [path for path in files_below(bare) if path.endswith(".png")]
    cli.fine("inspect", bare, "--plots", "-o", tmp_path / "some/where")
    assert (tmp_path / "some/where").is_dir()
    (tmp_path / "file").write_text("")
    done = cli("inspect", bare, "--plots", "-o", tmp_path / "file")
    assert done.code == 2 and "is a file; name a folder for the pictures" in done.err


def test_several_prompts(cli: Cli, train: Train, tmp_path: Path) -> None:
    several = [train(TOKENS), train(TOKENS, seed=1), train(BOTH)]
    done = cli.fine("inspect", *several)
    assert "cosine of tokens, pooled" in done.out and done.out.count(" 1.00 ") == 2
    assert "not compared:" in done.out and done.out.count("method  ") == 3
    done = cli.fine("inspect", *several, "--plots", "--rows", "4")
    assert (tmp_path / "plots/similarity-tokens.png").is_file()
    said = json.loads(cli.fine("inspect", *several, "--plots", "--rows", "4", "--json").out)
    assert "no gate over spaces (2 prompts)" in next(one["text"] for one in said["plots"] if one["what"] == "gates")
    said = json.loads(cli.fine("inspect", *several[:2], "--json").out)
    assert [one["method"] for one in said["prompts"]] == ["prompt-tuning"] * 2 and "plots" not in said


def test_json(cli: Cli, train: Train, tmp_path: Path) -> None:
    run = shutil.copytree(train(TOKENS), tmp_path / "run")
    said = json.loads(cli.fine("inspect", run, "--json").out)
    assert said["method"] == "prompt-tuning" and said["tensors"]["method.prompt"]["shape"] == [3, 16]
    assert not (run / "plots").exists()
    said = json.loads(cli.fine("inspect", run, "--json", "--plots").out)
    assert said["method"] == "prompt-tuning"
    assert [one["what"] for one in said["plots"] if one["files"]] == ["tokens", "norms"]
    assert all(Path(file).is_file() for one in said["plots"] for file in one["files"])
    assert {one["what"] for one in said["plots"]} == set(WHAT)


def test_a_plain_prefix_has_pictures_too(cli: Cli, train: Train, tmp_path: Path) -> None:
    run = shutil.copytree(train(sp.PrefixTuningConfig(num_virtual_tokens=3)), tmp_path / "run")
    done = cli.fine("inspect", run, "--plots", "--rows", "4")
    told = [line.partition(":")[0] for line in done.out.splitlines() if line.partition(":")[0] in WHAT]
    assert told == ["norms", "attention"] and "no picture" not in done.out
    (run / "config.yaml").unlink()  # without it nobody knows the rows
    done = cli.fine("inspect", run / "prompt", "--plots", "-o", tmp_path / "more")
    assert "attention: no picture; " in done.out and "norms: " in done.out


def test_without_matplotlib(cli: Cli, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    done = cli("inspect", train(TOKENS), "--plots")
    assert done.code == 2 and "pip install matplotlib" in done.err
    cli.fine("inspect", train(TOKENS))
