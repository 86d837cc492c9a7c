"""A sample of the sweep over transformers' models, and that its oracles see what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from softprompts.injection.batch_pass import Pass
from tests.models import factory, oracles, page, runner

SAMPLE = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForSequenceClassification",
    "gemma": "GemmaForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "mamba": "MambaForCausalLM",
    "bert": "BertForQuestionAnswering",
    "roberta": "RobertaForCausalLM",
    "deberta": "DebertaForTokenClassification",
    "albert": "AlbertForMultipleChoice",
    "t5": "T5ForConditionalGeneration",
    "bart": "BartForSequenceClassification",
    "llava": "LlavaForConditionalGeneration",
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
}


@pytest.mark.parametrize(("model_type", "name"), SAMPLE.items())
def test_sample(model_type: str, name: str) -> None:
    found = dict(oracles.cells(model_type, name))
    assert found["build"].verdict == "exact", found["build"].note
    failed = {check: cell for check, cell in found.items() if cell.verdict in runner.FAILED}
    assert not failed, failed
    assert len(found) == 1 + len(oracles.checks_of(factory.classes()[model_type][name]))


def test_most_classes_are_known() -> None:
    known = factory.classes()
    assert len(known) > 300 and sum(map(len, known.values())) > 600
    assert {"causal", "tokens", "seq2seq", "rows", "spans", "choice"} == {
        task for names in known.values() for task in names.values()
    }


def test_the_oracles_see_a_prompt_that_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    attach = oracles.Subject.attach

    def shifted(self: oracles.Subject) -> None:
        attach(self)
        self.attached.prompts["prompt"].method.prompt.data += 1e-3

    monkeypatch.setattr(oracles.Subject, "attach", shifted)
    found = dict(oracles.cells("llama", "LlamaForCausalLM"))
    wrong = {check for check, cell in found.items() if cell.verdict == "WRONG"}
    assert {"prompt: logits", "prompt: right", "prompt: left", "prompt: generate", "prompt: no cache"} <= wrong
    assert found["prefix: left"].verdict == found["detach"].verdict == "exact"


def test_the_oracles_see_a_prefix_without_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    attach = oracles.Subject.attach

    def unseen(self: oracles.Subject) -> None:
        attach(self)
        monkeypatch.setattr(Pass, "prefix", lambda *_: None)

    with monkeypatch.context() as patched:
        patched.setattr(oracles.Subject, "attach", unseen)
        found = dict(oracles.cells("llama", "LlamaForCausalLM", {"prefix: gradient"}))
    assert found["prefix: gradient"].verdict == "WRONG"


def test_differences() -> None:
    nan = float("nan")
    from tests.models.rows import ShapeError, difference

    assert difference([torch.tensor([1.0, nan])], [torch.tensor([1.0, nan])]) == 0
    assert difference([torch.tensor([nan])], [torch.tensor([1.0])]) == float("inf")
    assert difference([torch.tensor([10.0])], [torch.tensor([20.0])]) == pytest.approx(0.5)
    with pytest.raises(ShapeError):
        difference([torch.zeros(2)], [torch.zeros(3)])


def test_results_are_taken_up_and_make_a_page(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    for check, verdict in {"build": "exact", "prompt: logits": "exact", "prefix: left": "refused"}.items():
        cell = oracles.Cell(verdict, 1e-7, "BertForMaskedLM cannot" if verdict == "refused" else "")
        runner.write(path, "bert", "BertForMaskedLM", check, cell)
    runner.write(path, "bert", "BertForMaskedLM", "detach", oracles.Cell("crash", None, "gone"))
    known = runner.read(path)
    open_checks = runner.open_checks("bert", "BertForMaskedLM", known, False)
    assert open_checks is not None and "prompt: right" in open_checks and "prefix: left" not in open_checks
    assert "detach" in (runner.open_checks("bert", "BertForMaskedLM", known, True) or set())
    made = page.page(known)
    assert "| bert | BertForMaskedLM | exact (1e-07) | refused [1] |" in made
    assert "1. this model cannot" in made and "**crash**" in made
    assert json.loads(path.read_text().splitlines()[0])["type"] == "bert"
