"""``softprompts export`` and ``push``: every form, by the command line, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fake_hub
import pytest
import saved
import torch
import transformers as tf
from safetensors.torch import load_file
from saved import Cli

import softprompts as sp
from softprompts.model.interop import peft_writing

TEXTS = ["the film was good", "a very bad plot"]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    monkeypatch.chdir(tmp_path)
    return Cli(monkeypatch, capsys)


def trained(cli: Cli, method: str, *flags: str, family: str = "bert", folder: str = "run") -> str:
    data = saved.write_csv(Path("data.csv"), saved.rows())
    backbone = ["-m", saved.model_folder(family), "--data", data]
    cli.fine("train", *backbone, "--steps", "2", "--method", method, "--folder", folder, *flags)
    return folder


def test_a_trained_prompt_in_every_form(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(cli, "superpos", "--set", "num_virtual_tokens=3")
    model = sp.load(f"{run}/prompt")
    name = model.active_prompt
    said = cli.fine("export", run, "--to", "embeddings", "--out", "out/embeddings")
    assert said.out.replace("\n", "") == "embeddings: out/embeddings (prompt_embeds.json, prompt_embeds.safetensors)"
    tokens = load_file("out/embeddings/prompt_embeds.safetensors")["prompt_embeds"]
    assert torch.equal(tokens, model.prompts[name].method(None).tokens[0])

    cli.fine("export", f"{run}/prompt", "--to", "folded", "-o", "out/folded")
    cli.fine("export", run, "--to", "model", "-o", "out/model")
    folded = sp.load("out/folded")
    assert folded.prompts[name].config.method == "folded" and folded.prompts[name].metadata["task"] == "data"
    tokenizer = tf.AutoTokenizer.from_pretrained(saved.model_folder("bert"))
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        ours = model(**inputs).logits
        assert torch.equal(folded(**inputs).logits, ours)
    plain = tf.AutoModelForSequenceClassification.from_pretrained("out/model")
    inputs = tf.AutoTokenizer.from_pretrained("out/model")(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(plain(**inputs).logits, ours, rtol=0, atol=1e-5)
    assert plain.config.id2label[1] == "positive"

    written: list[Any] = []

    def write_peft(model: Any, name: str, folder: Path) -> None:
        written.append((type(model).__name__, name, folder))
        Path(folder).mkdir(parents=True)

    monkeypatch.setattr(peft_writing, "write_peft", write_peft)
    cli.fine("export", run, "--to", "peft", "-o", "out/peft")
    assert written == [("BertForSequenceClassification", name, Path("out/peft"))]


def test_what_cannot_be_exported_is_told_in_a_line(cli: Cli, tmp_path: Path) -> None:
    run = trained(cli, "prefix-tuning")
    before = sorted(tmp_path.iterdir())
    for flags, message in (
        (["--to", "embeddings"], "prefix-tuning: its prefix goes to keys and values inside the model"),
        (["--to", "model"], "prefix-tuning: its prefix goes to keys and values of every attention"),
        (["--to", "onnx"], "--to onnx: known: embeddings, folded, model, peft"),
        (["--to", "models"], "--to models: did you mean 'model'?"),
    ):
        done = cli("export", run, *flags, "--out", "new")
        assert (done.code, done.out) == (2, "") and done.err.count("\n") == 1 and message in done.err, done.err
    for out, message in ((run, "run is there already and not empty"), ("data.csv", "data.csv is a file")):
        done = cli("export", run, "--to", "folded", "--out", out)
        assert done.code == 2 and message in done.err
    done = cli("export", "nowhere", "--to", "model", "--out", "new")
    assert done.code == 2 and "nowhere: no such folder" in done.err
    assert sorted(tmp_path.iterdir()) == before


def test_push(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(cli, "prompt-tuning", "--test", "data.csv")
    monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
    with fake_hub.hub(tmp_path, monkeypatch) as hub:
        said = cli.fine("push", run, "me/run", "--private", "--license", "mit", "--message", "All of it")
        oid, message, files = hub.repositories["me/run"].commits[0]
        assert said.out.replace("\n", "") == f"uploaded: {hub.address}/me/run/commit/{oid}" and message == "All of it"
        text = files["README.md"].decode()
        assert "| test | 40 | 0 |" in text and "license: mit" in text and str(tmp_path) not in text
        answers = cli.fine("predict", "me/run", *TEXTS).out
        assert answers == cli.fine("predict", run, *TEXTS).out
        done = cli("push", run, "me/a/b")
        assert done.code == 2 and "no name of a hub repository" in done.err
        assert cli("push", "nowhere", "me/x").code == 2 and list(hub.repositories) == ["me/run"]
