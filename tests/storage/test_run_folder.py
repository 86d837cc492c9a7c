import json
from pathlib import Path

import pytest
import yaml

from softprompts import SoftPromptError
from softprompts.storage.files import write_atomic, write_json_atomic
from softprompts.storage.run_folder import append_metrics, cut_metrics, load_config, load_metrics
from softprompts.training import is_done, load_result, open_run, run_id

CONFIG = {"method": "prompt-tuning", "training": {"seed": 0, "learning_rate": 0.5, "rates": [1, 2]}}


def test_id_does_not_depend_on_order_or_spelling() -> None:
    other = {"training": {"rates": (1.0, 2), "learning_rate": 0.5, "seed": 0}, "method": "prompt-tuning"}
    assert run_id(other) == run_id(CONFIG)
    assert len(run_id(CONFIG)) == 12


@pytest.mark.parametrize("change", [{"seed": 1}, {"learning_rate": 0.25}, {"rates": [2, 1]}, {"new": None}])
def test_any_change_changes_the_id(change: dict) -> None:
    assert run_id({**CONFIG, "training": {**CONFIG["training"], **change}}) != run_id(CONFIG)


def test_a_flag_is_not_a_number() -> None:
    assert run_id({"a": True}) != run_id({"a": 1})


@pytest.mark.parametrize("value", [float("nan"), object(), {1, 2}])
def test_only_json(value: object) -> None:
    with pytest.raises(SoftPromptError, match="plain JSON"):
        run_id({"a": value})


def test_atomic_write_keeps_the_old_file_on_failure(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.json"
    write_json_atomic(path, {"a": 1})

    def fail(file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, fail)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in path.parent.iterdir()] == ["x.json"]


def test_life_of_a_folder(tmp_path: Path) -> None:
    folder = open_run(tmp_path, CONFIG)
    assert folder == tmp_path / run_id(CONFIG)
    assert yaml.safe_load((folder / "config.yaml").read_text()) == CONFIG
    assert not is_done(folder)
    with pytest.raises(SoftPromptError, match="unfinished; go on with --resume or choose a new folder"):
        open_run(tmp_path, CONFIG)
    assert open_run(tmp_path, CONFIG, resume=True) == folder
    with pytest.raises(SoftPromptError, match="no finished run"):
        load_result(folder)

    write_json_atomic(folder / "result.json", {"score": 1.0})
    assert is_done(folder)
    assert load_result(folder) == {"score": 1.0}
    for resume in (True, False):
        with pytest.raises(SoftPromptError, match="finished"):
            open_run(tmp_path, CONFIG, resume=resume)
        assert open_run(tmp_path, CONFIG, resume=resume, reuse=True) == folder


def test_resume_of_nothing_is_a_new_run(tmp_path: Path) -> None:
    assert open_run(tmp_path, CONFIG, resume=True).is_dir()


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    assert open_run("runs", CONFIG, folder=mine) == mine
    assert load_config(mine) == CONFIG
    with pytest.raises(SoftPromptError, match="a run with other settings"):
        open_run("runs", {"other": 1}, folder=mine, resume=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("not a run")
    with pytest.raises(SoftPromptError, match="not a run folder"):
        open_run("runs", CONFIG, folder=tmp_path / "docs")
    with pytest.raises(SoftPromptError, match="is a file"):
        open_run("runs", CONFIG, folder=tmp_path / "docs" / "a.txt")


def test_metrics_lines(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        append_metrics(tmp_path, {"step": step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2')  # as a crash would leave it
    assert [line["step"] for line in load_metrics(tmp_path)] == [5, 10, 15]
    cut_metrics(tmp_path, 10)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 5}\n{"step": 10}\n'
