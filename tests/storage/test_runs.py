"""Runs by name, and the list of runs in a folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from softprompts.errors import SoftPromptError
from softprompts.storage.runs import best_runs, check_free, check_name, list_runs, located, near
from softprompts.storage.saved_prompt import prompt_folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make(name: str, ended: int = 0, *, score: float | None = 0.5, rows: str = "a", **result: Any) -> Path:
    folder = Path("runs") / name
    (folder / "prompt").mkdir(parents=True)
    (folder / "config.yaml").write_text("{method: ept, task: mine, model: m, rows: x, training: {seed: 3}}\n")
    (folder / "prompt" / "softprompt_config.json").write_text("{}")
    said = {"metrics": {"f1": 0.9}, "test_rows": 4, "test_metrics": {"f1": score}, "splits": {"test": {"sha256": rows}}}
    (folder / "result.json").write_text(json.dumps({**said, **result}))
    os.utime(folder / "result.json", (ended, ended))
    return folder


@pytest.mark.parametrize("name", ["", "a b", "../up", "-x", ".hidden", "a/b", "v1.2", "é", "a" * 101])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(SoftPromptError, match="a name has letters, digits"):
        check_name(name)


def test_an_id_is_no_name() -> None:
    with pytest.raises(SoftPromptError, match="could be a run's id"):
        check_name("0123456789ab")
    for fine in ("tickets", "Tickets_2-b", "0123456789a", "a" * 100):
        check_name(fine)


def test_a_name_is_free_or_taken_or_taken_up() -> None:
    check_free(Path("runs/new"), resume=False)
    done = make("done")
    for resume in (False, True):
        with pytest.raises(SoftPromptError, match="--name done: taken by the finished run in runs/done; choose"):
            check_free(done, resume)
    (done / "result.json").unlink()
    check_free(done, resume=True)
    with pytest.raises(SoftPromptError, match="unfinished run in runs/done; go on with it by --resume"):
        check_free(done, resume=False)
    Path("runs/notes").mkdir()
    check_free(Path("runs/notes"), resume=False)
    Path("runs/notes/text").write_text("mine")
    with pytest.raises(SoftPromptError, match="holds no run"):
        check_free(Path("runs/notes"), resume=True)


def test_a_folder_goes_before_a_name_and_anything_else_stays_as_it_is() -> None:
    run = make("tickets")
    assert located("tickets") == run and located("runs/tickets") == "runs/tickets"
    assert prompt_folder("tickets") == run / "prompt"
    for other in ("tikets", "user/tickets", "./tickets", run):
        assert located(other) == other
    Path("tickets").mkdir()  # of something else
    assert located("tickets") == run
    Path("tickets/config.yaml").write_text("{}")
    assert located("tickets") == "tickets"


def test_the_nearest_name_is_told() -> None:
    assert near("tikets") == ""
    make("tickets")
    make("0123456789ab")
    assert near("tikets") == "; did you mean 'tickets'?" and near("something") == ""
    with pytest.raises(SoftPromptError, match="tikets: no such folder; did you mean 'tickets'?"):
        prompt_folder("tikets")


def test_the_list_has_the_newest_first_and_leaves_damaged_ones_out() -> None:
    make("old", 1_000)
    make("new", 2_000, score=0.7)
    make("broken", 3_000, score=None, stop_reason="non-finite loss", test_metrics={})
    (make("going", 4_000) / "result.json").unlink()
    make("spoilt")
    Path("runs/spoilt/result.json").write_text("{")
    make("compare")
    Path("runs/compare/config.yaml").unlink()  # a report's folder
    runs, damaged = list_runs()
    assert [run.name for run in runs] == ["going", "broken", "new", "old"]
    assert [run.state for run in runs] == ["unfinished", "diverged", "finished", "finished"]
    new = runs[2]
    assert (new.method, new.task, new.model, new.seed) == ("ept", "mine", "m", 3)
    assert (new.metric, new.score, new.split, new.size) == ("f1", 0.7, "test", 2)
    assert [run.score for run in runs] == [None, None, 0.7, 0.5] and runs[1].metric is None
    assert len(damaged) == 1 and "runs/spoilt/result.json" in damaged[0]
    with pytest.raises(SoftPromptError, match="nowhere: no such folder"):
        list_runs("nowhere")


def test_the_best_of_each_task_among_those_scored_on_the_same_rows() -> None:
    make("low", score=0.2)
    make("high", score=0.8)
    make("zero", score=0.0, rows="b")
    make("none", score=None, test_metrics={})
    make("validation", test_rows=0)
    assert {run.name for run in best_runs(list_runs()[0])} == {"high", "zero", "validation"}
