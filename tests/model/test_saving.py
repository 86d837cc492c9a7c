"""A prompt on disk: it comes back bit for bit, and nothing damaged or foreign gets into a model."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers as tf
from safetensors.torch import load_file, save
from torch import Tensor

import softprompts as sp
from softprompts.storage import files, saved_prompt

CONFIG, TENSORS = "softprompt_config.json", "softprompt.safetensors"


def logits(model: Any, inputs: dict[str, Tensor], name: str | None = None) -> Tensor:
    with torch.no_grad():
        return model(**inputs, prompt_names=name).logits


# --- there and back ---


@pytest.mark.parametrize("method", list(tiny.METHODS))
@pytest.mark.parametrize("family", ["bert", "t5", "llama"])
def test_a_loaded_prompt_gives_the_same_outputs_bit_for_bit(family: str, method: str, tmp_path: Path) -> None:
    model, inputs = tiny.attached(family, method), tiny.batch(family)
    before = logits(model, inputs)
    model.save_prompt(method, tmp_path / "p")
    assert sorted(f.name for f in (tmp_path / "p").iterdir()) == ["README.md", TENSORS, CONFIG]

    fresh = sp.attach(tiny.model(family))
    assert fresh.load_prompt(tmp_path / "p") is fresh
    assert fresh.active_prompt == method
    assert torch.equal(logits(fresh, inputs), before)

    busy = tiny.attached(family, "prompt-tuning", "prefix-tuning")
    others = {name: logits(busy, inputs, name) for name in ("prompt-tuning", "prefix-tuning")}
    busy.load_prompt(str(tmp_path / "p"), "again")
    assert busy.active_prompt == "prompt-tuning"
    assert torch.equal(logits(busy, inputs, "again"), before)
    assert all(torch.equal(logits(busy, inputs, name), value) for name, value in others.items())
    assert busy.prompts["again"].config == tiny.METHODS[method]


@pytest.mark.parametrize("method", list(tiny.METHODS))
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_training_goes_on_as_if_nothing_had_been_saved(family: str, method: str, tmp_path: Path) -> None:
    model, inputs = tiny.attached(family, method), tiny.batch(family)
    model.save_prompt(method, tmp_path)
    fresh = sp.attach(tiny.model(family)).load_prompt(tmp_path)
    for each in (model, fresh):
        each.train()
        optimizer = torch.optim.SGD([p for p in each.parameters() if p.requires_grad], lr=0.1)
        tiny.loss_of(each, inputs).backward()
        optimizer.step()
    ours, theirs = dict(model.prompts.named_parameters()), dict(fresh.prompts.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    saved = load_file(tmp_path / TENSORS)
    assert any(not torch.equal(ours[f"{method}.{key}"], value) for key, value in saved.items())


def test_a_prompt_is_kilobytes(tmp_path: Path) -> None:
    model = tiny.attached("bert", "prefix-tuning", dtype=torch.float32)
    model.save_prompt("prefix-tuning", tmp_path)
    own = sum(p.numel() * 4 for p in model.prompts.parameters())
    size = (tmp_path / TENSORS).stat().st_size
    assert own < size < own + 1000
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) < 8000
    assert not any("bert" in key for key in load_file(tmp_path / TENSORS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tensors_keep_their_type(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny.attached("llama", "prefix-tuning")
    model.prompts.to(dtype)
    model.save_prompt("prefix-tuning", tmp_path)
    fresh = sp.attach(tiny.model("llama")).load_prompt(tmp_path)
    assert {p.dtype for p in fresh.prompts.parameters()} == {dtype}


def test_a_saved_prompt_is_overwritten_as_a_whole(tmp_path: Path) -> None:
    model = tiny.attached("bert", "prefix-tuning", "prompt-tuning")
    model.save_prompt("prefix-tuning", tmp_path, metadata={"accuracy": 0.5})
    model.save_prompt("prompt-tuning", tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["method"] == "prompt-tuning"
    assert config["metadata"] == {}
    fresh = sp.attach(tiny.model("bert")).load_prompt(tmp_path)
    assert list(fresh.prompts) == ["prompt-tuning"]
    assert sorted(f.name for f in tmp_path.iterdir()) == ["README.md", TENSORS, CONFIG]


@pytest.mark.parametrize("broken", [CONFIG, TENSORS])
def test_a_failing_write_leaves_the_previous_file(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / broken
    files.write_atomic(path, b"first")

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(f"os.{function}", fail)
            with pytest.raises(OSError, match="disk full"):
                files.write_atomic(path, b"second")
        assert path.read_bytes() == b"first"
        assert [f.name for f in tmp_path.iterdir()] == [broken]
    files.write_atomic(path, b"second")
    assert path.read_bytes() == b"second"
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.attached("bert", "prefix-tuning")
    target = tmp_path / "deep" / "p"
    real, seen = os.replace, []

    def stop_at(name: str) -> Callable[..., None]:
        def replace(source: Any, to: Any) -> None:
            seen.append(Path(to).name)
            if Path(to).name == name:
                raise KeyboardInterrupt
            real(source, to)

        return replace

    for name in ("README.md", TENSORS, CONFIG, "p"):
        with monkeypatch.context() as patch:
            patch.setattr("os.replace", stop_at(name))
            with pytest.raises(KeyboardInterrupt):
                model.save_prompt("prefix-tuning", target)
        assert list(target.parent.iterdir()) == []
    assert seen[-4:] == ["README.md", TENSORS, CONFIG, "p"]
    model.save_prompt("prefix-tuning", target)
    assert [f.name for f in target.parent.iterdir()] == ["p"]
    assert target.stat().st_mode == target.parent.stat().st_mode


def test_overwriting_that_is_cut_short_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.attached("bert", "prefix-tuning", "prompt-tuning")
    model.save_prompt("prefix-tuning", tmp_path)
    real = os.replace

    def replace(source: Any, to: Any) -> None:
        if Path(to).name == CONFIG:
            raise KeyboardInterrupt
        real(source, to)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", replace)
        with pytest.raises(KeyboardInterrupt):
            model.save_prompt("prompt-tuning", tmp_path)
    with pytest.raises(sp.SoftPromptError, match="saving was cut short.*save the prompt again"):
        saved_prompt.read(tmp_path)
    model.save_prompt("prompt-tuning", tmp_path)
    assert saved_prompt.read(tmp_path)[0]["method"] == "prompt-tuning"


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_have_the_permissions_of_any_new_file(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        files.write_atomic(tmp_path / "made", b"")
        (tmp_path / "plain").write_bytes(b"")
    finally:
        os.umask(before)
    assert (tmp_path / "made").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_saving_to_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    model = tiny.attached("bert", "prefix-tuning")
    with pytest.raises(sp.SoftPromptError, match="is a file"):
        model.save_prompt("prefix-tuning", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


# --- damaged and foreign ---


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / CONFIG).read_text())
    changed = change(config)
    (folder / CONFIG).write_text(json.dumps(config if changed is None else changed))


def replace_tensors(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    """Rewrites the tensors and makes the config fit, as a careful editor would."""
    tensors = load_file(folder / TENSORS)
    change(tensors)
    content = save(tensors)
    (folder / TENSORS).write_bytes(content)

    def fit(config: dict[str, Any]) -> None:
        config["sha256"] = hashlib.sha256(content).hexdigest()
        config["tensors"] = {k: [str(v.dtype).removeprefix("torch."), list(v.shape)] for k, v in tensors.items()}

    edit(folder, fit)


def truncate(folder: Path) -> None:
    content = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(content[:-7])


def flip(folder: Path) -> None:
    content = bytearray((folder / TENSORS).read_bytes())
    content[-3] ^= 1
    (folder / TENSORS).write_bytes(bytes(content))


def pickled(folder: Path) -> None:
    content = pickle.dumps({"method.prefix": [1.0]})
    (folder / TENSORS).write_bytes(content)
    edit(folder, lambda c: c.update(sha256=hashlib.sha256(content).hexdigest()))


def set_nan(tensors: dict[str, Tensor]) -> None:
    tensors["method.prefix"][0, 0] = float("nan")


def set_infinite(tensors: dict[str, Tensor]) -> None:
    tensors["head.classifier.bias"][0] = float("inf")


def cut(tensors: dict[str, Tensor]) -> None:
    tensors["method.prefix"] = tensors["method.prefix"][:2].contiguous()


def add(tensors: dict[str, Tensor]) -> None:
    tensors["method.extra"] = torch.zeros(2)


def drop(tensors: dict[str, Tensor]) -> None:
    del tensors["method.prefix"]


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated": (truncate, "truncated or edited"),
    "empty": (lambda f: (f / TENSORS).write_bytes(b""), "truncated or edited"),
    "flipped byte": (flip, "truncated or edited"),
    "no tensors": (lambda f: (f / TENSORS).unlink(), "incomplete"),
    "no config": (lambda f: (f / CONFIG).unlink(), "no saved prompt"),
    "no folder": (shutil.rmtree, "no such folder"),
    "not JSON": (lambda f: (f / CONFIG).write_text("{ no"), "not valid JSON"),
    "not text": (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe\x00"), "not valid JSON"),
    "not an object": (lambda f: (f / CONFIG).write_text("[1, 2]"), "holds no settings but a JSON list"),
    "lacking": (lambda f: edit(f, lambda c: c.__delitem__("method")), "method is missing"),
    "nothing of ours": (lambda f: (f / CONFIG).write_text("{}"), "format is missing"),
    "a pickle": (pickled, "no safetensors file"),
    "not a number": (lambda f: replace_tensors(f, set_nan), "not finite"),
    "infinite head": (lambda f: replace_tensors(f, set_infinite), "not finite"),
    "shorter tensor": (lambda f: replace_tensors(f, cut), "has shape"),
    "tensor too many": (lambda f: replace_tensors(f, add), "unknown tensor 'method.extra'"),
    "tensor too few": (lambda f: replace_tensors(f, drop), "lacks 'method.prefix'"),
    "other format": (lambda f: edit(f, lambda c: c.update(format=99)), "format 99"),
    "unknown method": (lambda f: edit(f, lambda c: c.update(method="prefix-tunin")), "mean 'prefix-tuning'"),
    "unknown key": (lambda f: edit(f, lambda c: c["config"].update(init_sd=1)), "mean 'init_std'"),
    "other length": (lambda f: edit(f, lambda c: c["config"].update(num_virtual_tokens=9)), "has shape"),
    "text for a number": (lambda f: edit(f, lambda c: c["config"].update(num_virtual_tokens="9")), "whole number"),
    "immense length": (lambda f: edit(f, lambda c: c["config"].update(num_virtual_tokens=10**15)), ""),
    "other tensors listed": (lambda f: edit(f, lambda c: c["tensors"].clear()), "lists other tensors"),
    "other labels": (lambda f: edit(f, lambda c: c.update(labels=["a", "b"])), "has shape"),
    "wrong name": (lambda f: edit(f, lambda c: c.update(name="../up")), "prompt name"),
    "other width": (lambda f: edit(f, lambda c: c["backbone"].update(hidden_size=99)), "hidden size 99"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "p"
    tiny.attached("bert", "prefix-tuning").save_prompt("prefix-tuning", folder)
    return folder


@pytest.fixture(scope="module")
def receiver() -> Any:
    return tiny.attached("bert", "prompt-tuning", "multi-mask").set_prompt("multi-mask")


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_damage_is_one_line_and_changes_nothing(damage: str, saved: Path, receiver: Any, tmp_path: Path) -> None:
    folder = tmp_path / "p"
    shutil.copytree(saved, folder)
    change, message = DAMAGE[damage]
    change(folder)
    before = {key: value.clone() for key, value in receiver.state_dict().items()}
    labels = dict(receiver.config.id2label)
    with pytest.raises(sp.SoftPromptError) as error:
        receiver.load_prompt(folder)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value) or "prefix-tuning" in str(error.value) or "prompt name" in str(error.value)
    assert list(receiver.prompts) == ["prompt-tuning", "multi-mask"]
    assert receiver.active_prompt == "multi-mask"
    assert receiver.config.id2label == labels
    after = receiver.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += leaves(inner, (*path, key))
    return found


def test_any_edit_of_the_config_loads_or_is_one_clear_line(saved: Path, receiver: Any, tmp_path: Path) -> None:
    folder = tmp_path / "p"
    shutil.copytree(saved, folder)
    original = (folder / CONFIG).read_text()
    refused = 0
    for path in leaves(json.loads(original)):
        for wrong in (None, True, -1, 2.5, "x", [], {}, [[]], {"a": 1}):
            config = json.loads(original)
            inner = config
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = wrong
            (folder / CONFIG).write_text(json.dumps(config))
            try:
                receiver.load_prompt(folder, "tried")
                message = ""
            except sp.SoftPromptError as error:
                message = str(error)
            assert "\n" not in message, (path, wrong)
            if message:
                refused += 1
                assert "tried" not in receiver.prompts, (path, wrong)
            else:
                assert path[0] not in ("format", "method", "tensors", "sha256"), (path, wrong)
                receiver.delete_prompt("tried")
            assert list(receiver.prompts) == ["prompt-tuning", "multi-mask"]
            assert receiver.active_prompt == "multi-mask"
    assert refused > 100


def test_loading_under_a_taken_name(saved: Path, receiver: Any) -> None:
    before = receiver.prompts["multi-mask"]
    with pytest.raises(sp.SoftPromptError, match="already"):
        receiver.load_prompt(saved, "multi-mask")
    assert receiver.prompts["multi-mask"] is before


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("bert", {"hidden_size": 32}, "hidden size 16, this model has 32"),
        ("bert", {"num_hidden_layers": 3}, "2 attention sites, this model has 3"),
        ("bert", {"vocab_size": 61}, "vocabulary 60, this model has 61"),
        ("electra", {}, "model type bert, this model has electra"),
        ("llama", {}, "model type bert, this model has llama"),
    ],
)
def test_prompts_of_another_backbone_are_refused(
    family: str, change: dict[str, Any], message: str, saved: Path
) -> None:
    model = sp.attach(tiny.model(family, **change))
    with pytest.raises(sp.SoftPromptError) as error:
        model.load_prompt(saved)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(model.prompts) == 0
    assert model.active_prompt is None


def test_a_prompt_with_a_head_needs_a_model_with_one(saved: Path) -> None:
    base = sp.attach(tf.BertModel(tiny.FAMILIES["bert"][1]()))
    with pytest.raises(sp.SoftPromptError, match="load the backbone as BertForSequenceClassification"):
        base.load_prompt(saved)
    assert len(base.prompts) == 0


def test_a_pickle_next_to_it_is_never_opened(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    model = sp.attach(tiny.model("bert"))
    with pytest.raises(sp.SoftPromptError, match="no saved prompt"):
        model.load_prompt(tmp_path)
    with pytest.raises(sp.SoftPromptError, match="is a file; name a run folder or a prompt folder"):
        model.load_prompt(tmp_path / "pytorch_model.bin")


# --- save_pretrained and sp.load ---


def test_save_pretrained_writes_prompts_only(tmp_path: Path) -> None:
    model = tiny.attached("bert", "prompt-tuning")
    model.save_pretrained(tmp_path / "one")
    assert sorted(f.name for f in (tmp_path / "one").iterdir()) == ["README.md", TENSORS, CONFIG]
    model.add_prompt("second", tiny.METHODS["prefix-tuning"])
    model.save_pretrained(str(tmp_path / "two"))
    assert sorted(f.name for f in (tmp_path / "two").iterdir()) == ["prompt-tuning", "second"]
    fresh = sp.attach(tiny.model("bert")).load_prompt(tmp_path / "two" / "second")
    assert list(fresh.prompts) == ["second"]
    with pytest.raises(sp.SoftPromptError, match="it holds several: prompt-tuning, second"):
        fresh.load_prompt(tmp_path / "two")
    with pytest.raises(sp.SoftPromptError, match="no prompt to save"):
        sp.attach(tiny.model("bert")).save_pretrained(tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbones")
    for family in ("bert", "t5", "llama"):
        tiny.model(family).save_pretrained(folder / family)
    return folder


@pytest.mark.parametrize(("family", "method"), [("bert", "prompt-tuning"), ("t5", "ept"), ("llama", "multi-mask")])
def test_load_brings_backbone_and_prompt(family: str, method: str, backbones: Path, tmp_path: Path) -> None:
    classes = {"bert": tf.AutoModelForSequenceClassification, "t5": tf.AutoModelForSeq2SeqLM}
    loader = classes.get(family, tf.AutoModelForCausalLM)
    model = sp.attach(loader.from_pretrained(backbones / family, dtype=torch.float64))
    labels = ["bad", "fair", "good", "great"] if family == "bert" else None
    model.add_prompt("mine", tiny.METHODS[method], labels=labels, seed=3)
    model.prompts.double()
    model.eval()
    model.save_prompt("mine", tmp_path)
    loaded = sp.load(tmp_path, dtype=torch.float64)
    assert type(loaded).__name__ == type(model).__name__
    assert loaded.active_prompt == "mine"
    assert not loaded.training
    inputs = tiny.batch(family)
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))
    if labels:
        assert loaded.prompts["mine"].labels == labels
        assert loaded.config.id2label == dict(enumerate(labels))


def test_load_names_what_is_missing(backbones: Path, tmp_path: Path) -> None:
    tiny.attached("bert", "prefix-tuning").save_prompt("prefix-tuning", tmp_path / "nameless")
    with pytest.raises(sp.SoftPromptError, match="names no backbone"):
        sp.load(tmp_path / "nameless")
    shutil.copytree(backbones / "bert", tmp_path / "gone")
    model = sp.attach(tf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "gone"), sp.PrefixTuningConfig())
    model.save_pretrained(tmp_path / "p")
    shutil.rmtree(tmp_path / "gone")
    with pytest.raises(sp.SoftPromptError) as error:
        sp.load(tmp_path / "p")
    assert "cannot be loaded" in str(error.value)
    assert "\n" not in str(error.value)
    edit(tmp_path / "p", lambda c: c["backbone"].update({"class": "BertForNothing"}))
    with pytest.raises(sp.SoftPromptError, match="no model class 'BertForNothing'"):
        sp.load(tmp_path / "p")
    with pytest.raises(sp.SoftPromptError, match="no such folder"):
        sp.load(tmp_path / "nowhere")


# --- folding ---


@pytest.mark.parametrize("family", ["bert", "t5", "llama"])
@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning", "prefix-mlp", "superpos", "ept"])
def test_a_folded_prompt_gives_equal_outputs_and_can_be_saved(family: str, method: str, tmp_path: Path) -> None:
    model, inputs = tiny.attached(family, method), tiny.batch(family)
    before = logits(model, inputs)
    assert model.fold(method) is model
    assert torch.equal(logits(model, inputs), before)
    assert model.prompts[method].config.method == "folded"
    model.save_prompt(method, tmp_path)
    fresh = sp.attach(tiny.model(family)).load_prompt(tmp_path)
    assert torch.equal(logits(fresh, inputs), before)
    saved = json.loads((tmp_path / CONFIG).read_text())["config"]
    assert saved["source"] == tiny.METHODS[method].method
    if method in ("prefix-mlp", "superpos", "ept"):
        kept = sum(p.numel() for p in fresh.prompts[method].method.parameters())
        trained = sum(p.numel() for p in tiny.attached(family, method).prompts[method].method.parameters())
        assert kept < trained
    if family != "bert":
        start = {key: value for key, value in inputs.items() if key != "labels"}
        options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
        assert torch.equal(
            fresh.generate(**start, **options), tiny.attached(family, method).generate(**start, **options)
        )


@pytest.mark.parametrize("method", ["multi-mask", "selective-prefix"])
def test_what_cannot_be_folded_says_why_and_stays(method: str) -> None:
    model, inputs = tiny.attached("bert", method), tiny.batch("bert")
    before = logits(model, inputs)
    with pytest.raises(sp.SoftPromptError) as error:
        model.fold(method)
    assert "cannot be folded" in str(error.value)
    assert "\n" not in str(error.value)
    assert model.prompts[method].config == tiny.METHODS[method]
    assert torch.equal(logits(model, inputs), before)


@pytest.mark.parametrize("sites", [("encoder.self",), ("decoder.cross",)])
def test_a_folded_prefix_keeps_its_sites(sites: tuple[str, ...], tmp_path: Path) -> None:
    model = sp.attach(tiny.model("t5"), sp.PrefixTuningConfig(num_virtual_tokens=2, sites=sites, init_std=0.5), "p")
    inputs = tiny.batch("t5")
    before = logits(model, inputs)
    model.fold("p").save_prompt("p", tmp_path)
    fresh = sp.attach(tiny.model("t5")).load_prompt(tmp_path)
    assert fresh.prompts["p"].sites == model.prompts["p"].sites
    assert torch.equal(logits(fresh, inputs), before)


def test_a_damaged_backbone_is_named(tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny.model("bert", torch.float32).save_pretrained(base)
    model = type(tiny.model("bert")).from_pretrained(base)
    sp.attach(model, sp.PromptTuningConfig(num_virtual_tokens=2), name="p").save_prompt("p", tmp_path / "p")
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:300])
    with pytest.raises(sp.SoftPromptError, match=r"its backbone .* cannot be loaded \("):
        sp.load(tmp_path / "p")


def test_a_run_folder_is_its_prompt(tmp_path: Path) -> None:
    model = tiny.attached("bert", "prefix-tuning")
    model.save_prompt("prefix-tuning", tmp_path / "run" / "prompt")
    (tmp_path / "run" / "config.yaml").write_text("method: prefix-tuning")
    other = sp.attach(tiny.model("bert"), tmp_path / "run")
    assert list(other.prompts) == ["prefix-tuning"]
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.yaml").write_text("method: prefix-tuning")
    with pytest.raises(sp.SoftPromptError, match="has not saved a prompt yet"):
        sp.attach(tiny.model("bert"), tmp_path / "new")
