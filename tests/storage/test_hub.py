"""Prompts on a hub: a small one on this machine, to which huggingface_hub speaks over HTTP."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_hub
import pytest
import saved
import tiny
import torch
import transformers as tf
import yaml
from fake_hub import TOKEN, FakeHub
from torch import Tensor

import softprompts as sp
from softprompts.model.push import push_saved
from softprompts.storage.saved_prompt import read

FILES = ["README.md", "softprompt.safetensors", "softprompt_config.json"]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub.hub(tmp_path, monkeypatch) as made:
        yield made


def logits(model: Any, name: str | None = None) -> Tensor:
    inputs = {key: value for key, value in tiny.batch("bert").items() if key != "labels"}
    with torch.no_grad():
        return model(**inputs, prompt_names=name).logits


def test_a_prompt_goes_up_and_comes_back(hub: FakeHub) -> None:
    model = tiny.attached("bert", "prompt-tuning")
    model.prompts["prompt-tuning"].metadata = {"task": "glue/rte", "score": 0.7}
    url = model.push_to_hub("me/mine", token=TOKEN, private=True, commit_message="First", license="mit")
    made = hub.repositories["me/mine"]
    oid, message, files = made.commits[0]
    assert url == f"{hub.address}/me/mine/commit/{oid}" and message == "First" and made.private
    assert sorted(files) == FILES  # and nothing of the backbone
    assert sum(map(len, files.values())) < 10_000
    front, text = files["README.md"].decode().removeprefix("---\n").split("---\n", 1)
    assert yaml.safe_load(front)["license"] == "mit" and yaml.safe_load(front)["datasets"] == ["nyu-mll/glue"]
    assert 'model = sp.load("me/mine")' in text

    fresh = sp.attach(tiny.model("bert")).load_prompt("me/mine")
    assert fresh.active_prompt == "prompt-tuning"
    assert fresh.prompts["prompt-tuning"].metadata == {"task": "glue/rte", "score": 0.7, "license": "mit"}
    assert torch.equal(logits(fresh), logits(model))
    fetched = {one.rpartition("/")[2] for one in hub.asked if "/resolve/" in one}
    assert fetched == set(FILES)


def test_load_brings_the_backbone_too(hub: FakeHub) -> None:
    model = sp.attach(saved_backbone(), tiny.METHODS["prompt-tuning"], "p").eval()
    model.push_to_hub("me/whole", token=TOKEN)
    assert not hub.repositories["me/whole"].private
    again = sp.load("me/whole")
    assert torch.equal(logits(again), logits(model))


def saved_backbone() -> Any:
    return tf.AutoModelForSequenceClassification.from_pretrained(saved.model_folder("bert"))


def test_several_prompts_have_folders(hub: FakeHub) -> None:
    model = tiny.attached("bert", "prompt-tuning", "prefix-tuning")
    model.push_to_hub("me/two", token=TOKEN)
    _, files = hub.repositories["me/two"].files()
    assert sorted(files) == [
        "README.md",
        *(f"{name}/{file}" for name in ("prefix-tuning", "prompt-tuning") for file in FILES),
    ]
    text = files["README.md"].decode()
    assert "| prefix-tuning | prefix-tuning |" in text and 'sp.load("me/two", subfolder="prompt-tuning")' in text
    assert 'subfolder="prefix-tuning"' in files["prefix-tuning/README.md"].decode()
    fresh = sp.attach(tiny.model("bert"))
    fresh.load_prompt("me/two", "a", subfolder="prefix-tuning")
    assert torch.equal(logits(fresh, "a"), logits(model, "prefix-tuning"))
    fetched = [one for one in hub.asked if "/resolve/" in one]
    assert fetched and all("/prefix-tuning/" in one for one in fetched)
    with pytest.raises(sp.SoftPromptError, match="it holds several: prefix-tuning, prompt-tuning"):
        fresh.load_prompt("me/two")
    with pytest.raises(sp.SoftPromptError, match="holds no saved prompt"):
        fresh.load_prompt("me/two", subfolder="other")


def test_one_of_several_and_a_revision(hub: FakeHub) -> None:
    model = tiny.attached("bert", "prompt-tuning", "prefix-tuning")
    model.push_to_hub("me/one", "prompt-tuning", token=TOKEN)
    before = logits(model, "prompt-tuning")
    tiny.shake(model)
    model.push_to_hub("me/one", "prompt-tuning", token=TOKEN)
    (first, _, files), (second, *_) = hub.repositories["me/one"].commits
    assert sorted(files) == FILES and first != second
    fresh = sp.attach(tiny.model("bert"))
    fresh.load_prompt("me/one", "old", revision=first).load_prompt("me/one", "new")
    assert torch.equal(logits(fresh, "old"), before)
    assert torch.equal(logits(fresh, "new"), logits(model, "prompt-tuning"))
    with pytest.raises(sp.SoftPromptError, match="no such prompt on the hub"):
        fresh.load_prompt("me/one", "x", revision="0" * 40)


def test_what_the_hub_refuses_is_told_in_a_line(hub: FakeHub) -> None:
    model = tiny.attached("bert", "prompt-tuning")
    with pytest.raises(sp.SoftPromptError, match="me/mine: the hub did not take it .*403") as error:
        model.push_to_hub("me/mine", token="hf_other")
    assert "\n" not in str(error.value)
    for name in ("a/b/c", "me/..", "me/a b"):
        with pytest.raises(sp.SoftPromptError, match="hub"):
            model.push_to_hub(name, token=TOKEN)
    with pytest.raises(sp.SoftPromptError, match="unknown prompt 'q'"):
        model.push_to_hub("me/mine", "q", token=TOKEN)
    with pytest.raises(sp.SoftPromptError, match="no prompt to upload"):
        sp.attach(tiny.model("bert")).push_to_hub("me/mine", token=TOKEN)
    with pytest.raises(sp.SoftPromptError, match="no such prompt on the hub"):
        sp.load("me/nothing")
    assert hub.repositories == {}


class Bomb:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("code was run",)


@pytest.mark.filterwarnings("error")
def test_nothing_of_a_repository_is_run(hub: FakeHub, tmp_path: Path) -> None:
    """Only JSON and safetensors are fetched, whatever else there is; a pickle of that name is no safetensors."""
    bomb = pickle.dumps(Bomb())
    model = tiny.attached("bert", "prompt-tuning")
    model.push_to_hub("me/bad", token=TOKEN)
    bad = hub.repositories["me/bad"]
    code = b"import pytest; pytest.fail('code was run')"
    others = {
        "pytorch_model.bin": bomb,
        "softprompt.bin": bomb,
        "modeling.py": code,
        "config.json": b'{"auto_map": {}}',
    }
    bad.commit("others", others)
    sp.attach(tiny.model("bert")).load_prompt("me/bad")
    assert not {one.rpartition("/")[2] for one in hub.asked if "/resolve/" in one} & set(others)
    _, files = bad.files()
    config = json.loads(files["softprompt_config.json"])
    for content in (bomb, b"", files["softprompt.safetensors"][:-8]):
        bad.commit("swapped", {"softprompt.safetensors": content})
        with pytest.raises(sp.SoftPromptError, match="is not the file that"):
            sp.attach(tiny.model("bert")).load_prompt("me/bad")
        told = {**config, "sha256": hashlib.sha256(content).hexdigest()}
        bad.commit("and told", {"softprompt_config.json": json.dumps(told).encode()})
        with pytest.raises(sp.SoftPromptError, match="no safetensors file"):
            sp.attach(tiny.model("bert")).load_prompt("me/bad")
        bad.commit("back", {"softprompt_config.json": files["softprompt_config.json"]})


@pytest.mark.parametrize("subfolder", ["..", "../other", "/etc", "a/../b", "", ".", "a//b", "a\\b", "*", "a\n"])
def test_a_subfolder_stays_inside(subfolder: str, tmp_path: Path) -> None:
    with pytest.raises(sp.SoftPromptError, match="subfolder .*name folders by letters"):
        sp.load(tmp_path, subfolder=subfolder)


def test_a_subfolder_of_a_local_folder(tmp_path: Path) -> None:
    model = tiny.attached("bert", "prompt-tuning", "prefix-tuning")
    model.save_pretrained(tmp_path)
    fresh = sp.attach(tiny.model("bert")).load_prompt(tmp_path, subfolder="prefix-tuning")
    assert list(fresh.prompts) == ["prefix-tuning"]
    fresh.save_prompt("prefix-tuning", tmp_path / "again", {"task": "x"})
    assert read(tmp_path / "again")[0]["metadata"] == {"task": "x"}
    fresh = sp.attach(tiny.model("bert")).load_prompt(tmp_path / "again")
    fresh.fold("prefix-tuning")
    fresh.save_prompt("prefix-tuning", tmp_path / "folded")
    assert read(tmp_path / "folded")[0]["metadata"] == {"task": "x"}  # goes on with the prompt


def test_a_saved_prompt_goes_up_without_its_backbone(hub: FakeHub, tmp_path: Path) -> None:
    model = tiny.attached("bert", "prompt-tuning")
    run = tmp_path / "run"
    model.save_prompt("prompt-tuning", run / "prompt", {"task": "glue/rte", "metrics": {"accuracy": 0.5}, "seed": 4})
    (run / "result.json").write_text(json.dumps({"test_metrics": {"accuracy": 0.25}}))
    push_saved(run, "me/run", token=TOKEN, license="apache-2.0")
    _, files = hub.repositories["me/run"].files()
    text = files["README.md"].decode()
    assert "| test |  | 4 | 0.2500 |" in text and "apache-2.0" in text
    fresh = sp.attach(tiny.model("bert")).load_prompt("me/run")
    assert torch.equal(logits(fresh), logits(model))
