"""Wrong inputs of all commands and kinds of files: each ends in one line and exit code 2, and nothing is written.

The inputs are data: `wrong_inputs.yaml` has a list of cases, each a command, what the line says, and files that are
there for it (``hex:`` begins bytes). BERT, LLAMA and DEBERTA stand for tiny models. All cases share a working folder
with labelled texts, a finished run and damaged copies of it.
"""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from saved import Cli, model_folder, rows, write_csv

CASES: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("wrong_inputs.yaml").read_text(encoding="utf-8"))
_MODELS = ("BERT", "LLAMA", "DEBERTA")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working folder."""
    here = tmp_path_factory.mktemp("wrong") / "here"
    here.mkdir()
    write_csv(here / "data.csv", rows())
    (here / "empty.csv").write_text("")
    (here / "other.csv").write_text("text,label\nx,nothing\n")
    (here / "emptydir").mkdir()
    return here


@pytest.fixture
def here(made: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    if not Path("run").is_dir():
        cli.fine("train", "-m", model_folder("bert"), "--data", "data.csv", "--steps", "1", "--folder", "run")
        copies = {name: Path(shutil.copytree("run", name)) for name in ("half", "odd", "cut", "garbled", "bare")}
        (copies["half"] / "result.json").unlink()
        shutil.rmtree(copies["half"] / "prompt")
        (copies["odd"] / "config.yaml").write_text("a: [")
        tensors = copies["cut"] / "prompt/softprompt.safetensors"
        tensors.write_bytes(tensors.read_bytes()[:50])
        (copies["garbled"] / "prompt/softprompt_config.json").write_text("{")
        (copies["bare"] / "prompt/softprompt.safetensors").unlink()
    return made


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    found = ((path, path.stat()) for path in folder.rglob("*"))
    return {str(path.relative_to(folder)): (state.st_size, state.st_mtime_ns) for path, state in found}


@pytest.mark.parametrize("case", CASES, ids=[f"{number}-{case['command'][:60]}" for number, case in enumerate(CASES)])
def test_one_line_exit_2_and_nothing_written(here: Path, cli: Cli, case: dict[str, Any]) -> None:
    written = [here / name for name in case.get("files", {})]
    try:
        for path, content in zip(written, case.get("files", {}).values(), strict=True):
            path.parent.mkdir(exist_ok=True)
            told = bytes.fromhex(content[4:]) if content.startswith("hex:") else _with_models(content).encode()
            path.write_bytes(told)
        before = _state(here)
        done = cli(*(model_folder(word.lower()) if word in _MODELS else word for word in shlex.split(case["command"])))
        assert done.code == 2 and not done.out, done
        assert done.err.startswith("error: ") and done.err.count("\n") == 1, done.err
        assert _with_models(case["says"]) in done.err
        assert _state(here) == before
    finally:
        for name in {os.path.normpath(path.relative_to(here)).split(os.sep)[0] for path in written}:
            shutil.rmtree(here / name) if (here / name).is_dir() else (here / name).unlink()


def _with_models(text: str) -> str:
    return text.replace("BERT", model_folder("bert")) if "BERT" in text else text


def test_the_table_is_large_and_without_doubles() -> None:
    cases = [(case["command"], tuple(case.get("files", {}).items())) for case in CASES]
    assert len(cases) >= 150 and len(set(cases)) == len(cases)
    verbs = {case["command"].split()[0] for case in CASES}
    assert verbs >= {
        "train",
        "compare",
        "search",
        "transfer",
        "predict",
        "evaluate",
        "inspect",
        "export",
        "push",
        "serve",
    }
    assert verbs >= {"tasks", "bench", "methods", "demo"}
