"""Models of which two processes hold a part each: FSDP2 and DeepSpeed's ZeRO-3, on CPUs."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import warm
import yaml
from saved import Cli, model_folder, rows, write_csv

import softprompts as sp
from softprompts import processes
from softprompts.backbones import sharded, task_head
from tests.backbones import sharded_scenarios as scenarios

ROOT = Path(__file__).parents[2]
KINDS = ["fsdp", "zero3", "zero3-init"]


@pytest.fixture(scope="module", params=KINDS)
def both(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    kind = request.param
    if kind != "fsdp" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    out = tmp_path_factory.mktemp(kind)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'helpers'}", "OMP_NUM_THREADS": "1"}
    # Accelerate's state holds DeepSpeed apart from the CPU.
    environment |= {"ACCELERATE_USE_CPU": "true"} if kind == "fsdp" else {"DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = warm.run([*command, scenarios.__file__, kind, str(out)], environment, ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "found.json").read_text()), out


def test_losses_and_prompts_are_those_of_one_process(both: Any) -> None:
    found, out = both
    for name, case in found.items():
        family, _, method = name.partition("-")
        losses, state = scenarios.alone(family, method)
        assert case["parts"], name
        assert case["losses"] == pytest.approx(losses, rel=1e-4), name
        for folder in ("own", "trainer"):
            if (out / name / folder).is_dir():
                loaded = sp.attach(tiny.model(family, torch.float32)).load_prompt(out / name / folder)
                for key, value in loaded.prompts.state_dict().items():
                    torch.testing.assert_close(value, state[key], rtol=1e-3, atol=1e-5, msg=f"{name} {key}")


def test_what_each_has_besides(both: Any) -> None:
    found, out = both
    for name, case in found.items():
        if "refused" in case:
            assert "added and loaded before a model is sharded" in case["refused"]
            assert (out / name / "trainer" / "model.safetensors").is_file()
        else:
            assert case["sites"] == 2


def test_our_own_loop_says_that_it_does_not_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_csv(tmp_path / "data.csv", rows(20))
    command = [
        "train",
        "-m",
        model_folder("bert"),
        "--data",
        str(data),
        "--steps",
        "2",
        "--out",
        str(tmp_path / "runs"),
    ]
    for variable, name in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        with monkeypatch.context() as patch:
            patch.setenv(variable, "true")
            done = Cli(monkeypatch, capsys)(*command)
            assert done.code == 2 and f"does not shard a model: launch it without {name}" in " ".join(done.err.split())
    processes.require_unsharded({"ACCELERATE_USE_FSDP": "false"})


@pytest.mark.parametrize("name", ["fsdp", "zero3"])
def test_configurations_are_accelerates(name: str) -> None:
    from accelerate.commands.config.config_args import ClusterConfig

    file = ROOT / "examples" / "accelerate" / f"{name}.yaml"
    config = ClusterConfig.from_yaml_file(str(file))
    plain = yaml.safe_load(file.read_text())
    if name == "fsdp":
        assert config.fsdp_config["fsdp_version"] == 2
        assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"
    else:
        assert config.deepspeed_config["zero_stage"] == 3
    assert plain["num_processes"] == config.num_processes


def in_parts(parameter: torch.nn.Parameter) -> None:
    """What ZeRO-3 makes of a parameter when a model is loaded in parts."""
    parameter.ds_id, parameter.ds_shape = id(parameter), parameter.shape  # type: ignore[attr-defined]
    parameter.data = torch.empty(0)


def test_what_cannot_be_copied_in_parts_is_refused() -> None:
    model = tiny.model("bert", torch.float32)
    shape = model.classifier.weight.shape
    in_parts(model.classifier.weight)
    assert sharded.shape_of(model.classifier.weight) == shape and sharded.is_sharded(model.classifier.weight)
    with pytest.raises(sp.SoftPromptError, match="task head of BertForSequenceClassification was loaded in parts"):
        task_head.new({"classifier": model.classifier}, None, model)
    model = sp.attach(tiny.model("llama", torch.float32))
    model.model.norm.weight.data = torch.empty(0)
    with pytest.raises(sp.SoftPromptError, match="'norm' is empty and cannot be copied"):
        model.add_prompt("full", sp.FullConfig())


def test_prompts_that_nobody_gathered_are_not_saved_empty(tmp_path: Path) -> None:
    model = tiny.attached("llama", "prompt-tuning", dtype=torch.float32)
    for parameter in model.prompts.parameters():
        in_parts(parameter)
    with pytest.raises(sp.SoftPromptError, match="were not gathered for saving: set fsdp_state_dict_type"):
        model.save_pretrained(tmp_path / "out", state_dict={})
    assert not (tmp_path / "out").exists()
