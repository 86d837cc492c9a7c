"""What decides a run, what its folder is called, and what the same settings give again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from saved import model_folder, rows, write_csv

import softprompts as sp
from softprompts import hub
from softprompts.experiment import Data, Workbench, check_trackers, load_backbone
from softprompts.training import TrainConfig, run_id

PREFIX = sp.PrefixTuningConfig(num_virtual_tokens=3)
SHORT = TrainConfig(max_steps=2)


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return Data(train=str(write_csv(tmp_path / "data.csv", rows())))


def bench(data: Data, family: str = "bert", **more: Any) -> Workbench:
    return Workbench(model_folder(family), data, **more)


def test_a_run_is_named_by_its_rows_and_not_by_where_they_lie(tmp_path: Path, data: Data) -> None:
    (tmp_path / "other").mkdir()
    assert data.train is not None
    moved = Data(train=str(shutil.copy(data.train, tmp_path / "other")))
    here, there = bench(data), bench(moved)
    assert here.resolved(PREFIX, SHORT) == there.resolved(PREFIX, SHORT)
    path, _ = here.run(PREFIX, SHORT, root=tmp_path / "runs")
    assert path.name == run_id(here.resolved(PREFIX, SHORT)) and str(data.train) in (path / "config.yaml").read_text()
    assert there.run(PREFIX, SHORT, root=tmp_path / "runs", reuse=True)[0] == path
    with pytest.raises(sp.SoftPromptError, match="finished"):
        there.run(PREFIX, SHORT, root=tmp_path / "runs")
    changed = Data(train=str(write_csv(tmp_path / "other" / "data.csv", rows(seed=1))))
    assert bench(changed).resolved(PREFIX, SHORT) != here.resolved(PREFIX, SHORT)


@pytest.mark.parametrize(
    "change", [{"max_train": 20}, {"seed": 1}, {"label_words": ("bad", "good")}, {"kind": "regression"}]
)
def test_data_settings_decide_the_run(data: Data, change: dict[str, Any]) -> None:
    assert {**Data(**{**vars(data), **change}).to_dict()} != data.to_dict()


@pytest.mark.parametrize("method", [sp.HeadOnlyConfig(), sp.MultiMaskConfig(num_virtual_tokens=3)])
def test_the_same_seed_gives_the_same_numbers_and_another_one_others(
    tmp_path: Path, data: Data, method: sp.MethodConfig
) -> None:
    """Also for a head that does not come with the backbone."""
    trained = []
    for place, seed in enumerate((0, 0, 1)):
        torch.manual_seed(place)  # what happened before must not matter
        made = bench(data, "base")
        made.run(method, TrainConfig(max_steps=2, seed=seed), root=tmp_path / str(place))
        trained.append(dict(made.model.prompts[f"{method.method}-seed{seed}"].named_parameters()))
    for name, value in trained[0].items():
        assert torch.equal(value, trained[1][name])
    assert not torch.equal(trained[0]["head.classifier.weight"], trained[2]["head.classifier.weight"])


def test_a_head_that_comes_with_the_backbone_is_where_training_starts(tmp_path: Path) -> None:
    three = [{**row, "label": ("a", "b", "c")[index % 3]} for index, row in enumerate(rows())]
    made = bench(Data(train=str(write_csv(tmp_path / "three.csv", three))))
    made.run(sp.HeadOnlyConfig(), TrainConfig(max_steps=1, learning_rates={"head": 1e-9}), root=tmp_path)
    _, backbone = load_backbone(model_folder("bert"))
    start = made.model.prompts["head-only-seed0"].head.classifier.weight
    assert torch.allclose(start, backbone.get_parameter("classifier.weight"), atol=1e-6)


def test_nothing_is_written_when_a_run_cannot_start(tmp_path: Path, data: Data) -> None:
    made, root = bench(data), tmp_path / "runs"
    cases: list[tuple[sp.MethodConfig, TrainConfig, list[str] | None]] = [
        (sp.PromptTuningConfig(num_virtual_tokens=36), SHORT, None),
        (PREFIX, TrainConfig(learning_rates={"router": 1.0}), None),
        (PREFIX, SHORT, ["none-such"]),
    ]
    for method, training, trackers in cases:
        with pytest.raises(sp.SoftPromptError):
            made.run(method, training, root=root, trackers=trackers)
    assert not root.exists() and not list(made.model.prompts)


def test_trackers() -> None:
    check_trackers(None)
    check_trackers(["tensorboard"])
    with pytest.raises(sp.SoftPromptError, match="unknown tracker 'wand'; did you mean 'wandb'"):
        check_trackers(["wand"])
    with pytest.raises(sp.SoftPromptError, match="'clearml' is not installed: pip install clearml"):
        check_trackers(["clearml"])


def test_rows_that_are_cut_are_counted_over_all_splits(tmp_path: Path) -> None:
    long = [{**row, "text": row["text"] + " very" * 10} for row in rows(4)]
    paths = [str(write_csv(tmp_path / name, [*rows(6), *long])) for name in ("a.csv", "b.csv")]
    made = bench(Data(train=paths[0], validation=paths[1]), max_length=12)
    assert made.encode(PREFIX) == 8 and made.truncated == 8
    assert max(len(row["input_ids"]) for row in made.features("train", 12)) == 12


def test_a_model_name_that_cannot_be_looked_up_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "reachable", lambda: False)
    with pytest.raises(sp.SoftPromptError, match=r"no such model 'nobody/none': .* \(the hub cannot be reached\)"):
        load_backbone("nobody/none")


def test_the_hub_is_not_asked_when_it_cannot_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: Any) -> None:
        raise OSError("no such host")

    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: False)
    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.setattr("socket.getaddrinfo", nowhere)
    assert not hub.reachable()
    monkeypatch.setattr(hub, "getproxies", lambda: {"https": "http://proxy"})
    assert hub.reachable()
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: True)
    assert not hub.reachable()
