"""Prompts that others start from: how they are read, and that what is made of them stands without them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from saved import Cli, model_folder, rows, write_csv
from source_prompts import PLAIN, saved, sourced

import softprompts as sp
from softprompts import sources
from softprompts.experiment import Data, Run, Workbench
from softprompts.predictor import Predictor
from softprompts.training import TrainConfig

NAMES = ("spot", "attempt", "mpt", "intrinsic")


@pytest.mark.parametrize(
    "config",
    [
        PLAIN,
        sp.PromptTuningConfig(num_virtual_tokens=4, init="text", init_text="a b"),
        sp.SuperPosConfig(num_virtual_tokens=2, num_sampled_tokens=5),
        sp.MPTConfig(num_virtual_tokens=3, rank=2),
        sp.EPTConfig(num_virtual_tokens=2, rank=0, max_length=8, num_spaces=2, space_hidden_size=4, source_tokens=6),
    ],
)
def test_a_source_is_what_its_prompt_hands_over(tmp_path: Path, config: sp.MethodConfig) -> None:
    model = sp.attach(tiny.model("bert", torch.float32))
    tokenizer = type("T", (), {"all_special_ids": [0], "__call__": lambda *a, **k: {"input_ids": [7, 8]}})()
    model.add_prompt("x", config, tokenizer=tokenizer, seed=0)
    tiny.shake(model)
    expected = model.prompts["x"].method().tokens[0]
    model.save_prompt("x", tmp_path / "run" / "prompt")
    model.fold("x").save_prompt("x", tmp_path / "folded")
    for path in (tmp_path / "run" / "prompt", tmp_path / "run", tmp_path / "folded"):
        (tokens,) = sources.load_tokens("me", [str(path)], 16)
        assert torch.equal(tokens, expected) and not tokens.requires_grad
    (longer,) = sources.load_tokens("me", [str(tmp_path / "run")], 16, 7)
    assert [torch.equal(longer[i], expected[i % len(expected)]) for i in range(7)] == [True] * 7
    (shorter,) = sources.load_tokens("me", [str(tmp_path / "run")], 16, 1)
    assert torch.equal(shorter, expected[:1])


def test_reading_draws_no_random_numbers(tmp_path: Path) -> None:
    path = saved(tmp_path / "a", sp.SuperPosConfig(num_virtual_tokens=2, num_sampled_tokens=3))
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    sources.load_tokens("me", [path], 8)
    assert torch.equal(torch.randn(4), expected)


def test_unusable_sources(tmp_path: Path) -> None:
    fine = saved(tmp_path / "fine")
    ept = sp.EPTConfig(num_virtual_tokens=2, rank=2, max_length=8, num_spaces=2, space_hidden_size=4, source_tokens=6)
    cases = [
        (str(tmp_path / "none"), "no such folder"),
        (saved(tmp_path / "wide", hidden_size=16), "width 16, this one has 8"),
        (saved(tmp_path / "other", vocab_size=61, hidden_size=8), "different backbones"),
        (saved(tmp_path / "prefix", sp.PrefixTuningConfig()), "does not consist of input tokens"),
        (saved(tmp_path / "ept", ept), "changes the input's embeddings too"),
        (saved(tmp_path / "attempt", sp.AttemptConfig(sources=fine)), r"\(?of no use here; attempt: .* depends on"),
    ]
    for path, message in cases:
        with pytest.raises(sp.SoftPromptError, match=message) as caught:
            sources.load_tokens("me", [fine, path], 8)
        assert path in str(caught.value) and "\n" not in str(caught.value)
    config = Path(fine) / "softprompt_config.json"
    config.write_text(config.read_text().replace('"num_virtual_tokens": 3', '"num_virtual_tokens": 4'))
    with pytest.raises(sp.SoftPromptError, match="do not belong together; was it edited"):
        sources.load_tokens("me", [fine], 8)


@pytest.mark.parametrize("value", [3, ["a", 3], [""], {"a": 1}])
def test_sources_are_names(value: Any) -> None:
    with pytest.raises(sp.SoftPromptError, match="mpt: sources must name folders"):
        sp.MPTConfig(sources=value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", ["bert", "t5", "llama"])
def test_a_saved_prompt_loads_where_its_sources_are_not(tmp_path: Path, family: str, name: str) -> None:
    config = sourced(tmp_path / "sources", family)[name]
    model, inputs = sp.attach(tiny.model(family)), tiny.batch(family)
    model.add_prompt(name, config, seed=1)
    model.prompts.double()
    tiny.shake(model)
    with torch.no_grad():
        before = model.eval()(**inputs).logits
    model.save_prompt(name, tmp_path / "p")
    shutil.rmtree(tmp_path / "sources")
    text = (tmp_path / "p" / "softprompt_config.json").read_text()
    assert str(tmp_path) not in text

    fresh = sp.attach(tiny.model(family)).load_prompt(tmp_path / "p")
    with torch.no_grad():
        assert torch.equal(fresh.eval()(**inputs).logits, before)
    fresh.save_prompt(name, tmp_path / "again")
    again = (tmp_path / "again" / "softprompt_config.json").read_text()
    assert json.loads(again)["config"] == json.loads(text)["config"]
    # It is trained on as before, and what was frozen stays so.
    ours, theirs = model.prompts[name], fresh.prompts[name]
    assert [key for key, _ in ours.named_parameters()] == [key for key, _ in theirs.named_parameters()]


@pytest.mark.parametrize("name", NAMES)
def test_a_config_from_a_saved_prompt_is_no_prompt(tmp_path: Path, name: str) -> None:
    """Room for tensors that never come must not pass for a prompt."""
    config = sourced(tmp_path, "bert")[name]
    model = sp.attach(tiny.model("bert", torch.float32))
    model.add_prompt("x", config)
    stored = model.prompts["x"].method.stored()
    assert sp.make_config(name, **json.loads(json.dumps(stored.to_dict()))) == stored
    model.add_prompt("y", stored)
    assert not model(**tiny.batch("bert"), prompt_names="y").logits.isfinite().any()


@pytest.mark.parametrize("name", NAMES)
def test_a_run_is_named_by_what_is_in_its_sources(tmp_path: Path, name: str) -> None:
    config = sourced(tmp_path / "here", "bert")[name]
    same, other = sourced(tmp_path / "there", "bert")[name], sourced(tmp_path / "here", "bert")[name]
    assert config.identity() == same.identity() and config != same
    assert str(tmp_path) not in json.dumps(config.identity()) and config.files()
    before = config.identity()
    for path in other.files():
        if name == "intrinsic":
            sp.fit_autoencoder(torch.randn(3, 3, 16), path, 2, steps=2)
        else:
            saved(Path(path), sp.MPTConfig(num_virtual_tokens=3) if name == "mpt" else PLAIN, seed=9, hidden_size=16)
    assert config.identity() != before


def test_runs_from_sources_share_passes_and_can_be_used(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "data.csv", rows())
    bench = Workbench(model_folder("bert"), Data(train=str(data)))
    training = TrainConfig(max_steps=8, batch_size=4)
    configs = sourced(tmp_path / "sources", "bert")
    configs["spot"] = dataclasses.replace(configs["spot"], num_virtual_tokens=3)
    wanted = [Run(config, training) for config in configs.values()]
    found = bench.run_all(wanted, root=tmp_path / "runs", lanes=4)
    for (path, result), (name, config) in zip(found, configs.items(), strict=True):
        assert result is not None and result["lanes"] == 4 and result["method"] == name
        assert str(tmp_path / "sources") in (path / "config.yaml").read_text()
        # Alone it gets the same numbers.
        _, alone = Workbench(model_folder("bert"), Data(train=str(data))).run(config, training, root=tmp_path / "alone")
        assert alone["metrics"] == pytest.approx(result["metrics"], abs=0.05)
    assert bench.run_all(wanted, root=tmp_path / "runs") == found
    shutil.rmtree(tmp_path / "sources")
    for path, _ in found:
        assert Predictor(path)(["the film was good"])[0].label in ("negative", "positive")


def test_frozen_parts_do_not_move(tmp_path: Path) -> None:
    bench = Workbench(model_folder("bert"), Data(train=str(write_csv(tmp_path / "data.csv", rows()))))
    for name in ("attempt", "intrinsic"):
        config = sourced(tmp_path / name, "bert")[name]
        bench.run(config, TrainConfig(max_steps=4), root=tmp_path / "runs")
        trained = bench.model.prompts[f"{name}-seed0"].method
        bench.model.add_prompt("fresh", config, num_labels=2, seed=0)
        fresh = bench.model.prompts["fresh"].method
        bench.model.delete_prompt("fresh")
        assert all(torch.equal(a, b) for a, b in zip(trained.buffers(), fresh.buffers(), strict=True))
        assert any(not torch.equal(a, b) for a, b in zip(trained.parameters(), fresh.parameters(), strict=True))


def test_sources_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data, cli = write_csv(tmp_path / "data.csv", rows()), Cli(monkeypatch, capsys)
    wanted = ["-m", model_folder("bert"), "--data", data, "--steps", "2"]
    for seed in "01":
        done = ["--method", "prompt-tuning", "--set", "num_virtual_tokens=3", "--seed", seed, "--folder", f"s{seed}"]
        cli.fine("train", *wanted, *done)
    for names, count in (("s0", 1), ("s0,s1", 2)):
        setting = ["--method", "attempt", "--set", f"sources={names}", "--set", "num_virtual_tokens=3"]
        cli.fine("train", *wanted, *setting, "--folder", f"t{count}")
        text = (tmp_path / f"t{count}" / "prompt" / "softprompt_config.json").read_text()
        assert json.loads(text)["config"]["restored"] == count
    failed = cli("train", *wanted, "--method", "spot")
    assert failed.code == 2 and "spot: it starts from source prompts: name at least one in sources" in failed.err
    failed = cli("train", *wanted, "--method", "spot", "--set", "sources=nowhere")
    assert failed.code == 2 and "nowhere" in failed.err and not (tmp_path / "runs").exists()
    assert "sources" in cli.fine("methods").out and "restored" not in cli.fine("methods").out
