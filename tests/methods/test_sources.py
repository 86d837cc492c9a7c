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
from softprompts.experiments.run_record import Run
from softprompts.experiments.workbench import Workbench
from softprompts.methods import sources
from softprompts.predictor import Predictor
from softprompts.tasks.data import Data
from softprompts.training import TrainConfig

BLANK = ("spot", "attempt", "mpt", "intrinsic")  # built as room for tensors where their sources are not
STARTED = ("ept", "dept")  # start from a prompt of their own kind
NAMES = (*BLANK, *STARTED)


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


def test_a_source_is_known_without_its_tensors(tmp_path: Path) -> None:
    path = saved(tmp_path / "a", task="mood")
    sha = sources.saved_config(path)["sha256"]
    (Path(path) / "softprompt.safetensors").unlink()
    assert sources.fingerprint(path) == sha and sources.name_of(path) == "mood"
    with pytest.raises(sp.SoftPromptError, match="is missing: the saved prompt is incomplete"):
        sources.load_tokens("me", [path], 8)


@pytest.mark.parametrize("name", ["attempt", "intrinsic"])
def test_what_stays_as_it_is_is_no_parameter(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = sourced(tmp_path / "sources", "bert")[name]
    model = sp.attach(tiny.model("bert", torch.float32))
    model.add_prompt("x", config)
    model.save_prompt("x", tmp_path / "p")
    prompt = model.prompts["x"]
    trained, frozen = (sum(t.numel() for t in some) for some in (prompt.parameters(), prompt.buffers()))
    assert frozen > 0
    card = (tmp_path / "p" / "README.md").read_text()
    assert f"A soft prompt of {trained:,} parameters (and {frozen:,} numbers that stay as they are) for" in card
    out = Cli(monkeypatch, capsys).fine("inspect", tmp_path / "p").out
    assert f"{trained:,} numbers; {frozen:,} more stay as they are" in " ".join(out.split())


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
    with pytest.raises(sp.SoftPromptError, match="mpt: sources must name a file or folder, not "):
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


@pytest.mark.parametrize("name", BLANK)
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
            kind = dataclasses.replace(config, **{"sources": ()} if name in BLANK else {"source": None})
            saved(Path(path), kind if name in ("mpt", *STARTED) else PLAIN, seed=9, hidden_size=16)
    assert config.identity() != before


def test_runs_from_sources_share_passes_and_can_be_used(tmp_path: Path) -> None:
    data = write_csv(tmp_path / "data.csv", rows())
    bench = Workbench(model_folder("bert"), Data(train=str(data)))
    training = TrainConfig(max_steps=8, batch_size=4)
    configs = sourced(tmp_path / "sources", "bert")
    configs["spot"] = dataclasses.replace(configs["spot"], num_virtual_tokens=3)
    wanted = [Run(config, training) for config in configs.values()]
    found = bench.run_all(wanted, root=tmp_path / "runs", lanes=len(wanted))
    for (path, result), (name, config) in zip(found, configs.items(), strict=True):
        assert result is not None and result["lanes"] == len(wanted) and result["method"] == name
        assert str(tmp_path / "sources") in (path / "config.yaml").read_text()
        # Alone it gets the same numbers.
        _, alone = Workbench(model_folder("bert"), Data(train=str(data))).run(config, training, root=tmp_path / "alone")
        assert alone["metrics"] == pytest.approx(result["metrics"], abs=0.05)
    assert bench.run_all(wanted, root=tmp_path / "runs") == found
    shutil.rmtree(tmp_path / "sources")
    for path, _ in found:
        assert Predictor(path)(["the film was good"])[0].label in ("negative", "positive")


@pytest.mark.parametrize("name", STARTED)
@pytest.mark.parametrize("family", ["bert", "t5", "llama"])
def test_all_tensors_but_the_head_start_from_the_source(tmp_path: Path, family: str, name: str) -> None:
    config = sourced(tmp_path, family)[name]
    model = sp.attach(tiny.model(family, torch.float32))
    model.add_prompt("x", config, seed=5)
    theirs = sp.attach(tiny.model(family, torch.float32)).load_prompt(tmp_path / name).prompts["source"]
    model.add_prompt("fresh", dataclasses.replace(config, source=None), seed=5)
    ours, fresh = model.prompts["x"], model.prompts["fresh"]
    assert set(dict(ours.method.named_parameters())) == set(dict(theirs.method.named_parameters()))
    for key, value in ours.method.named_parameters():
        assert torch.equal(value, theirs.method.get_parameter(key)), key
        assert value.requires_grad and not torch.equal(value, fresh.method.get_parameter(key)), key
    if ours.head is not None:
        assert theirs.head is not None and fresh.head is not None
        for key, value in ours.head.named_parameters():
            assert torch.equal(value, fresh.head.get_parameter(key)), key
            assert not torch.equal(value, theirs.head.get_parameter(key)), key


def test_a_part_of_a_composition_starts_from_a_source(tmp_path: Path) -> None:
    config = sourced(tmp_path, "bert")["ept"]
    both = sp.compose(config, sp.PrefixTuningConfig(num_virtual_tokens=2))
    model = sp.attach(tiny.model("bert", torch.float32))
    model.add_prompt("x", both).add_prompt("alone", config)
    part, alone = model.prompts["x"].method.parts["ept"], model.prompts["alone"].method
    assert all(torch.equal(value, alone.get_parameter(key)) for key, value in part.named_parameters())
    assert both.files() == config.files() and config.files()[0] not in json.dumps(both.identity())
    assert sp.make_config("ept+prefix-tuning", **{"ept.source": "there"}).parts[0].source == "there"
    model.save_prompt("x", tmp_path / "p")
    assert str(tmp_path) not in (tmp_path / "p" / "softprompt_config.json").read_text()


def test_b_can_start_afresh(tmp_path: Path) -> None:
    config = sourced(tmp_path, "bert")["dept"]
    assert isinstance(config, sp.DePTConfig)
    model = sp.attach(tiny.model("bert", torch.float32))
    model.add_prompt("x", dataclasses.replace(config, source_b=False))
    model.add_prompt("y", config)
    x, y = model.prompts["x"].method, model.prompts["y"].method
    assert not x.b.any() and y.b.all() and torch.equal(x.a, y.a) and torch.equal(x.prompt, y.prompt)
    assert dataclasses.replace(config, source_b=False).identity() != config.identity()
    assert x.stored() == y.stored() == dataclasses.replace(config, source=None)


def test_spaces_and_their_gate_can_start_afresh(tmp_path: Path) -> None:
    config = sourced(tmp_path, "bert")["ept"]
    assert isinstance(config, sp.EPTConfig)
    model = sp.attach(tiny.model("bert", torch.float32))
    model.add_prompt("x", dataclasses.replace(config, source_spaces=False), seed=5)
    model.add_prompt("y", config, seed=5)
    model.add_prompt("fresh", dataclasses.replace(config, source=None), seed=5)
    x, y, fresh = (dict(model.prompts[name].method.named_parameters()) for name in ("x", "y", "fresh"))
    for key, value in x.items():
        afresh = key.startswith(("spaces.", "gate."))
        assert torch.equal(value, fresh[key]) is afresh and torch.equal(value, y[key]) is not afresh, key
    assert {key.partition(".")[0] for key in x} == {"prompt", "a", "b", "spaces", "gate"}
    assert dataclasses.replace(config, source_spaces=False).identity() != config.identity()
    assert "source_spaces" not in config.identity()
    assert model.prompts["x"].method.stored() == dataclasses.replace(config, source=None)
    with pytest.raises(sp.SoftPromptError, match="ept: source_spaces=False is about a source"):
        sp.make_config("ept", source_spaces=False)


@pytest.mark.parametrize("name", STARTED)
def test_without_a_source_a_run_keeps_its_name(name: str) -> None:
    config = sp.make_config(name)
    own = {"source", "source_b", "source_spaces"}
    assert not own & set(config.identity()) and config.files() == ()
    assert set(config.to_dict()) - set(config.identity()) - set(config.before()) <= own


def test_sources_that_do_not_fit(tmp_path: Path) -> None:
    configs = sourced(tmp_path, "bert")
    dept, ept = configs["dept"], configs["ept"]
    plain, wide = str(tmp_path / "plain0"), {"hidden_size": 32}
    model = sp.attach(tiny.model("bert", torch.float32))
    bare = dataclasses.replace(dept, source=None)
    cases = [
        (dataclasses.replace(dept, source=plain), "is a prompt-tuning prompt: name one of dept"),
        (dataclasses.replace(ept, source=dept.files()[0]), "is a dept prompt: name one of ept"),
        (dataclasses.replace(dept, rank=3), r"'a' is of shape \(12, 2\), here it is of shape \(12, 3\): set"),
        (dataclasses.replace(dept, num_virtual_tokens=4), r"'prompt' is of shape \(3, 16\), here it is"),
        (dataclasses.replace(ept, multi_space=False), r"is of shape .*, here it is absent"),
        (dataclasses.replace(dept, scale="released"), "has scale=paper, not released"),
        (dataclasses.replace(ept, fusion=False), "has fusion=True, not False"),
        (dataclasses.replace(dept, source=saved(tmp_path / "wide", bare, **wide)), "width 32, this one has 16"),
        (
            dataclasses.replace(dept, source=saved(tmp_path / "other", bare, family="roberta")),
            r"was trained on another backbone \(roberta\) than this one \(bert\)",
        ),
        (dataclasses.replace(dept, source="nowhere"), "nowhere: no such folder"),
    ]
    for config, message in cases:
        with pytest.raises(sp.SoftPromptError, match=message) as caught:
            model.add_prompt("x", config)
        assert config.files()[0] in str(caught.value) and "\n" not in str(caught.value) and not len(model.prompts)
    for fields, message in (
        ({"source": ["a", "b"]}, "source must name a file or folder"),
        ({"source_b": False}, "about a s"),
    ):
        with pytest.raises(sp.SoftPromptError, match=f"dept: .*{message}"):
            sp.make_config("dept", **fields)
    # What was said of one method goes for those that mix prompts too.
    other = saved(tmp_path / "elsewhere", family="roberta")
    for config in (
        sp.SPoTConfig(num_virtual_tokens=3, sources=(other,)),
        sp.AttemptConfig(num_virtual_tokens=3, sources=(other,)),
    ):
        with pytest.raises(sp.SoftPromptError, match="was trained on another backbone"):
            model.add_prompt("x", config)


def test_an_update_alone_starts_from_another(tmp_path: Path) -> None:
    alone = sp.EPTConfig(num_virtual_tokens=0, rank=2, max_length=12, source_tokens=6)
    source = saved(tmp_path / "s", alone, family="t5")
    model = sp.attach(tiny.model("t5", torch.float32))
    model.add_prompt("x", dataclasses.replace(alone, source=source), seed=3)
    theirs = sp.attach(tiny.model("t5", torch.float32)).load_prompt(source).prompts["source"].method
    assert torch.equal(model.prompts["x"].method().update, theirs().update)


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
    sizes = ["rank=2", "max_length=12", "num_virtual_tokens=3"]
    for name, more in (("dept", ["source_b=false"]), ("ept", ["num_spaces=2", "source_tokens=6"])):
        setting = ["--method", name, *(part for size in sizes for part in ("--set", size))]
        own = [part for size in more if size != "source_b=false" for part in ("--set", size)]
        cli.fine("train", *wanted, *setting, *own, "--folder", f"{name}-source")
        flags = [part for size in (*more, f"source={name}-source") for part in ("--set", size)]
        cli.fine("train", *wanted, *setting, *flags, "--folder", f"{name}-target")
        there = json.loads((tmp_path / f"{name}-source" / "prompt" / "softprompt_config.json").read_text())
        assert there["sha256"] in (tmp_path / f"{name}-target" / "config.yaml").read_text()
        assert "source" not in json.loads((tmp_path / f"{name}-source" / "result.json").read_text())["settings"]
        shutil.rmtree(tmp_path / f"{name}-source")
        cli.fine("predict", f"{name}-target", "the film was good")
    failed = cli("train", *wanted, "--method", "spot")
    assert failed.code == 2 and "spot: it starts from source prompts: name at least one in sources" in failed.err
    failed = cli("train", *wanted, "--method", "spot", "--set", "sources=nowhere")
    assert failed.code == 2 and "nowhere" in failed.err and not (tmp_path / "runs").exists()
    listed, own = cli.fine("methods").out, cli.fine("methods", "spot").out
    assert "sources" in own and "spot" in listed and "restored" not in listed + own
