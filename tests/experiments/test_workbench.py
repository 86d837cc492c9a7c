"""What decides a run, what its folder is called, and what the same settings give again."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from saved import model_folder, rows, write_csv

import softprompts as sp
from softprompts.backbones.loading import load_backbone
from softprompts.experiments import workbench
from softprompts.experiments.run_record import Run, resolved
from softprompts.experiments.workbench import Workbench
from softprompts.storage import hub
from softprompts.storage.run_folder import load_metrics
from softprompts.tasks.data import Data, recorded_data
from softprompts.training import Lane, TrainConfig, pass_size, run_id
from softprompts.training.memory import step_memory
from softprompts.training.pass_size import SHARE
from softprompts.training.progress import check_trackers

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


def test_a_run_folder_tells_where_its_rows_came_from(tmp_path: Path, data: Data) -> None:
    named = write_csv(tmp_path / "named.csv", [{"sentence": row["text"], "gold": row["label"]} for row in rows()])
    (tmp_path / "mine.yaml").write_text("about: films\ntrain: data.csv\n")
    for number, asked in enumerate(
        [
            data,
            Data(train=str(named), text="sentence", label="gold", max_train=20, seed=3),
            Data(task=str(tmp_path / "mine.yaml"), few_shot=8),
        ]
    ):
        made = bench(asked)
        path, _ = made.run(PREFIX, SHORT, folder=tmp_path / f"run{number}")
        assert recorded_data(path).load().fingerprint == made.task.fingerprint
    assert recorded_data(path, str(tmp_path / "elsewhere")).data_dir == str(tmp_path / "elsewhere")
    with pytest.raises(sp.SoftPromptError, match="is not a run folder"):
        recorded_data(tmp_path)
    (path / "config.yaml").write_text("model: m\n")
    with pytest.raises(sp.SoftPromptError, match="does not say where its rows came from"):
        recorded_data(path)


@pytest.mark.parametrize(
    "change", [{"max_train": 20}, {"seed": 1}, {"label_words": ("bad", "good")}, {"kind": "regression"}]
)
def test_data_settings_decide_the_run(data: Data, change: dict[str, Any]) -> None:
    assert {**Data(**{**vars(data), **change}).to_dict()} != data.to_dict()


def test_a_revision_of_a_method_gives_its_runs_new_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    def settings(config: sp.MethodConfig) -> dict[str, Any]:
        return resolved("m", {"task": "t"}, config, TrainConfig(), 64, True)

    monkeypatch.setattr(sp.PromptTuningConfig, "revision", 0)
    assert "revision" not in settings(sp.PromptTuningConfig())
    monkeypatch.setattr(sp.PromptTuningConfig, "revision", 2)
    monkeypatch.setattr(sp.LoraConfig, "revision", 1)
    assert settings(sp.PromptTuningConfig())["revision"] == 2
    assert settings(sp.compose(sp.PromptTuningConfig(), sp.LoraConfig()))["revision"] == 3


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
    backbone = load_backbone(model_folder("bert"))[1]
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
    assert made.say_cut(PREFIX) == "8 of 20 rows were cut to 12 tokens; of them the field 'text'"
    assert max(len(row["input_ids"]) for row in made.rows.split("train", 12).features) == 12


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


WANTED = [
    Run(method, TrainConfig(max_steps=6, batch_size=4, eval_every=3, seed=seed))
    for seed in (0, 1)
    for method in (
        sp.PrefixTuningConfig(num_virtual_tokens=3),
        sp.MultiMaskConfig(num_virtual_tokens=3, router_dropout=0.2),
        sp.PromptTuningConfig(num_virtual_tokens=2),
    )
]


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_runs_that_share_passes_leave_the_folders_of_runs_alone(tmp_path: Path, data: Data, family: str) -> None:
    ended: list[Run] = []
    shared = bench(data, family)
    together = shared.run_all(WANTED, root=tmp_path / "shared", lanes=3, on_result=lambda run, _: ended.append(run))
    assert sorted(map(WANTED.index, ended)) == list(range(6)) and not shared.model.prompts
    alone = bench(data, family)
    for run, (path, result) in zip(WANTED, together, strict=True):
        other, expected = alone.run(run.method, run.training, root=tmp_path / "alone")
        assert result is not None and path.name == other.name
        # Prefixes share with prefixes, input prompts with input prompts; the last of four does not fit into a pass.
        assert result["lanes"] <= 3 and expected["lanes"] == 1
        # In float32 the sums of a wider batch round differently; six steps of training carry that on.
        for mine, theirs in zip(load_metrics(path), load_metrics(other), strict=True):
            assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
        assert result["metrics"] == pytest.approx(expected["metrics"], abs=0.05)
        mine, theirs = (load_file(folder / "prompt" / "softprompt.safetensors") for folder in (path, other))
        for key, value in theirs.items():
            torch.testing.assert_close(mine[key], value, rtol=0, atol=2e-3, msg=key)
    assert max(result["lanes"] for _, result in together if result) == 3


def test_what_is_done_is_not_done_again(tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    first = bench(data).run_all(WANTED[:2], root=tmp_path, lanes=2)
    trained: list[int] = []
    train = workbench.train
    monkeypatch.setattr(
        workbench, "train", lambda model, lanes, **kw: trained.append(len(lanes)) or train(model, lanes, **kw)
    )
    again = bench(data).run_all([*WANTED[:3], WANTED[0]], root=tmp_path, lanes=2)
    assert trained == [1] and again[:2] == first and again[3] == first[0]


def test_paused_runs_go_on(tmp_path: Path, data: Data) -> None:
    laid_aside = bench(data).run_all(WANTED, root=tmp_path / "parts", lanes=4, pause_at=3)
    assert [result for _, result in laid_aside] == [None] * 6
    assert not list((tmp_path / "parts").glob("*/result.json"))
    # Again: they are there already.
    assert bench(data).run_all(WANTED, root=tmp_path / "parts", pause_at=3) == laid_aside
    ended = bench(data).run_all(WANTED, root=tmp_path / "parts", lanes=2)
    whole = bench(data).run_all(WANTED, root=tmp_path / "whole", lanes=4)
    for (_, result), (_, expected) in zip(ended, whole, strict=True):
        assert result is not None and expected is not None and result["steps"] == 6
        assert result["metrics"] == pytest.approx(expected["metrics"], abs=0.05)


def test_an_interrupted_wave_goes_on(tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    update = Lane.update
    steps: list[int] = []
    again = False

    def stop(self: Lane, *args: Any) -> None:
        steps.append(self.step)
        if len(steps) == 8 and not again:  # in the second step of four lanes; seen in the third
            os.kill(os.getpid(), signal.SIGINT)
        update(self, *args)

    monkeypatch.setattr(Lane, "update", stop)
    with pytest.raises(KeyboardInterrupt, match=r"interrupted after step 3 \(and 3 more\)"):
        bench(data).run_all(WANTED, root=tmp_path, lanes=4)
    steps.clear()
    again = True
    found = bench(data).run_all(WANTED, root=tmp_path, lanes=4)
    assert all(result is not None and result["steps"] == 6 for _, result in found)
    assert len(steps) == 6 * 6 - 4 * 3


def test_how_many_share_a_pass_follows_from_free_memory(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bench(data)
    run = WANTED[0]
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    free: list[float] = [0.0]
    monkeypatch.setattr(pass_size, "free_memory", lambda device: free[0])
    assert made.fitting(run) == 1  # at least one
    free[0] = 1e12
    assert made.fitting(run) > 50  # tiny rows: what fills a CPU
    taken = []
    monkeypatch.setattr(pass_size, "step_memory", lambda *args: taken.append(step_memory(*args)) or taken[-1])
    free[0] = 1e12
    made.fitting(run)
    held = (
        4 * 4 * sum(p.numel() for p in made.model.add_prompt("x", run.method, num_labels=2).prompts["x"].parameters())
    )
    made.model.delete_prompt("x")
    free[0] = 3.5 * (taken[0] + held) / SHARE
    assert made.fitting(run) == 3
    assert not made.model.prompts and not made.model.training
    for name, value in made.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_measured_step_that_does_not_fit_leaves_one_lane(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(pass_size, "step_memory", fail)
    assert bench(data).fitting(WANTED[0]) == 1


def test_rows_are_parted_as_asked_and_written_down(tmp_path: Path) -> None:
    file = str(write_csv(tmp_path / "data.csv", rows(80)))
    whole = Data(train=file).load()
    data = Data(train=file, split="smop")
    task = data.load()
    assert data.to_dict()["split"] == "smop" and "split" not in Data(train=file).to_dict()
    assert task.test == whole.validation
    assert [len(task.train), len(task.validation)] == [len(whole.train) * 9 // 10, -(-len(whole.train) // 10)]
    bench = Workbench(model_folder("bert"), data)
    _, result = bench.run(sp.HeadOnlyConfig(), TrainConfig(max_steps=2), root=tmp_path / "runs")
    assert result["splits"] == task.record() and result["splits"]["protocol"] == "smop"
    assert result["test_rows"] == len(task.test) and set(result["test_metrics"]) == set(task.metrics)
    with pytest.raises(sp.SoftPromptError, match="unknown protocol 'smap': did you mean 'smop'"):
        Data(train=file, split="smap").load()
