"""A trained prompt as a function: its answers against probabilities computed by hand."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from saved import model_folder, rows, write_csv

import softprompts as sp
from softprompts.experiment import Data, Workbench, load_backbone
from softprompts.training import TrainConfig

TEXTS = ["the film was good", "a very bad plot", "plot"]


def trained(tmp_path: Path, family: str, method: sp.MethodConfig) -> Path:
    data = Data(train=str(write_csv(tmp_path / "data.csv", rows())))
    path, _ = Workbench(model_folder(family), data).run(method, TrainConfig(max_steps=5), root=tmp_path / "runs")
    return path


def test_an_encoder_answers_as_computed_by_hand(tmp_path: Path) -> None:
    predictor = sp.Predictor(trained(tmp_path, "bert", sp.PrefixTuningConfig(num_virtual_tokens=3)))
    answers = predictor(TEXTS, batch_size=2)
    for text, answer in zip(TEXTS, answers, strict=True):
        with torch.no_grad():
            logits = predictor.model(**predictor.tokenizer(text, return_tensors="pt")).logits[0]
        chances = logits.softmax(0)
        assert answer.label == ("negative", "positive")[int(chances.argmax())]
        assert answer.probability == pytest.approx(float(chances.max()), abs=1e-5)


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_language_model_answers_with_its_likeliest_label_word(tmp_path: Path, family: str) -> None:
    predictor = sp.Predictor(trained(tmp_path, family, sp.PromptTuningConfig(num_virtual_tokens=3)))
    answers = predictor(TEXTS, batch_size=2)
    model, tokenizer = predictor.model, predictor.tokenizer
    words = [tokenizer.convert_tokens_to_ids(word) for word in ("negative", "positive")]
    for text, answer in zip(TEXTS, answers, strict=True):
        inputs: dict[str, Any] = {"input_ids": tokenizer(f"text: {text}")["input_ids"]}
        if family == "llama":
            inputs = {"input_ids": tokenizer(f"text: {text}\nanswer:")["input_ids"]}
        scores = []
        for word in words:
            target = [word, tokenizer.eos_token_id]
            with torch.no_grad():
                if family == "t5":
                    logits = model(input_ids=torch.tensor([inputs["input_ids"]]), labels=torch.tensor([target])).logits
                else:
                    logits = model(input_ids=torch.tensor([inputs["input_ids"] + target])).logits[:, -3:-1]
            steps = logits[0].log_softmax(-1)
            scores.append(steps[0, target[0]] + steps[1, target[1]])
        chances = torch.stack(scores).softmax(0)
        assert answer.label == ("negative", "positive")[int(chances.argmax())]
        assert answer.probability == pytest.approx(float(chances.max()), abs=1e-4)


def test_a_prompt_finds_its_backbone_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(model_folder("bert"), tmp_path / "model")
    data = Data(train=str(write_csv(tmp_path / "data.csv", rows())))
    monkeypatch.chdir(tmp_path)
    path, _ = Workbench("./model", data).run(sp.PrefixTuningConfig(), TrainConfig(max_steps=1))
    before = sp.Predictor(path)(TEXTS)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert sp.Predictor(tmp_path / path)(TEXTS) == before
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(sp.SoftPromptError, match="backbone"):
        sp.Predictor(tmp_path / path)


def test_a_prompt_saved_without_a_run_labels_texts_too(tmp_path: Path) -> None:
    _, backbone = load_backbone(model_folder("bert"))
    model = sp.attach(backbone, sp.PrefixTuningConfig(num_virtual_tokens=3), labels=["a", "b", "c"])
    model.save_prompt("default", tmp_path / "prompt")
    predictor = sp.Predictor(tmp_path / "prompt")
    assert predictor(["the film"])[0].label in "abc" and predictor([("the film", "a plot")])[0].label in "abc"
    t5 = sp.attach(load_backbone(model_folder("t5"))[1], sp.PrefixTuningConfig(num_virtual_tokens=3))
    t5.save_prompt("default", tmp_path / "t5")
    with pytest.raises(sp.SoftPromptError, match="does not say how its texts are written out"):
        sp.Predictor(tmp_path / "t5")


def test_no_texts_no_answers_and_no_mixtures(tmp_path: Path) -> None:
    predictor = sp.Predictor(trained(tmp_path, "bert", sp.HeadOnlyConfig()))
    assert predictor([]) == []
    with pytest.raises(sp.SoftPromptError, match=r"reads single texts \(text\), not 2"):
        predictor(["one", ("one", "two")])
    with pytest.raises(sp.SoftPromptError, match="empty text"):
        predictor(["one", ""])
