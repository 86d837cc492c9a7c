from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

import softprompts as sp
from softprompts.tasks.batches import collate
from softprompts.training import Evaluation, Lane, TrainConfig, predict, train

LABELS = [[11, 1], [12, 13, 1], [14]]


def t5() -> Any:
    torch.manual_seed(0)
    config = T5Config(
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        vocab_size=100,
        decoder_start_token_id=0,
        dropout_rate=0.1,
    )
    return sp.attach(T5ForConditionalGeneration(config).double())


def gpt2() -> Any:
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=16,
        n_layer=2,
        n_head=2,
        vocab_size=100,
        n_positions=64,
        bos_token_id=1,
        eos_token_id=1,
        initializer_range=0.2,
    )
    return sp.attach(GPT2LMHeadModel(config).double())


def build(make: Any, method: str) -> Any:
    model = make()
    fields = {"rank": 4} if method == "ept" else {}
    for i, name in enumerate(("a", "b")):
        model.add_prompt(name, sp.make_config(method, num_virtual_tokens=3, **fields), seed=i)
        model.prompts[name].double()
        for parameter in model.prompts[name].parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.3)
    return model


def test_head(toy: Any) -> None:
    model = toy.add(toy.add(toy.model(double=True), "other", double=True), "a", "prefix-tuning", double=True).train()
    got = predict(model, toy.validation, "a", pad_id=0, batch_size=5)
    assert model.training
    assert model.prompts["a"].training
    assert model.active_prompt == "other"
    model.eval()
    for row, label, probabilities in zip(toy.validation, got.labels, got.probabilities, strict=True):
        logits = model(input_ids=torch.tensor([row["input_ids"]]), prompt_names="a").logits[0]
        assert label == logits.argmax()
        assert probabilities == pytest.approx(logits.softmax(0).tolist())
    assert not any(p.grad is not None for p in model.parameters())


def test_values_have_no_probabilities(toy: Any) -> None:
    model = toy.model()
    model.add_prompt("a", sp.PromptTuningConfig(num_virtual_tokens=2), num_labels=1, seed=0)
    got = predict(model, toy.validation, "a", pad_id=0)
    assert got.probabilities is None
    assert all(isinstance(value, float) for value in got.labels)


def test_no_rows(toy: Any) -> None:
    assert predict(toy.add(toy.model(), "a"), [], "a", pad_id=0).labels == []


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning", "ept"])
@pytest.mark.parametrize("make", [t5, gpt2])
def test_answers_are_scored_by_their_likelihood(toy: Any, make: Any, method: str, side: str) -> None:
    model = build(make, method)
    rows = [{"input_ids": row["input_ids"]} for row in toy.validation[:7]]
    kind = model.backbone_kind
    given = [
        # The row as it is for training: what is predicted must not depend on the answer in it.
        {"input_ids": row["input_ids"] + LABELS[1], "labels": [-100] * len(row["input_ids"]) + LABELS[1]}
        if kind == "decoder"
        else {**row, "labels": LABELS[1]}
        for row in rows
    ]
    runs = []
    handle = model.get_encoder().register_forward_hook(lambda *_: runs.append(1)) if kind != "decoder" else None
    got = predict(model, given, "b", pad_id=0, batch_size=3, label_ids=LABELS, padding_side=side)
    if handle is not None:
        handle.remove()
        assert len(runs) == 3  # three batches, however many answers
    assert model.active_prompt == "a"

    model.eval()
    for row, label, probabilities in zip(rows, got.labels, got.probabilities, strict=True):
        scores = []
        for answer in LABELS:
            ids = row["input_ids"]
            if kind == "decoder":
                labels = torch.tensor([[-100] * len(ids) + answer])
                loss = model(input_ids=torch.tensor([ids + answer]), labels=labels, prompt_names="b").loss
            else:
                loss = model(input_ids=torch.tensor([ids]), labels=torch.tensor([answer]), prompt_names="b").loss
            scores.append(-loss.item() * len(answer))
        expected = torch.tensor(scores, dtype=torch.float64).softmax(0)
        assert label == expected.argmax()
        assert probabilities == pytest.approx(expected.tolist(), abs=1e-6)  # the model takes its loss in float32


@pytest.mark.parametrize("make", [t5, gpt2])
def test_language_models_need_answers(toy: Any, make: Any) -> None:
    model = build(make, "prefix-tuning")
    with pytest.raises(sp.SoftPromptError, match="pass label_ids"):
        predict(model, toy.validation, "a", pad_id=0)
    with pytest.raises(sp.SoftPromptError, match="at least one token"):
        predict(model, toy.validation, "a", pad_id=0, label_ids=[[1], []])


def labelled(kind: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows that a language model answers with the first or second label."""
    out = []
    for row in rows:
        ids, answer = row["input_ids"], LABELS[row["label"]]
        if kind == "decoder":
            out.append({**row, "input_ids": ids + answer, "labels": [-100] * len(ids) + answer})
        else:
            out.append({**row, "labels": answer})
    return out


@pytest.mark.parametrize("method", ["prefix-tuning", "prompt-tuning"])
@pytest.mark.parametrize("make", [t5, gpt2])
def test_language_models_train_in_lanes(toy: Any, make: Any, method: str) -> None:
    def run(names: tuple[str, ...]) -> tuple[Any, list[Any]]:
        model = build(make, method)
        kind = model.backbone_kind
        lanes = [
            Lane(
                name,
                TrainConfig(batch_size=8, epochs=2, seed=ord(name)),
                labelled(kind, toy.train),
                validation=Evaluation(labelled(kind, toy.validation), label_ids=LABELS[:2]),
            )
            for name in names
        ]
        return model, train(model, lanes, pad_id=0)

    both, results = run(("a", "b"))
    alone, (result,) = run(("b",))
    assert results[1].history[-1]["loss"] < results[1].history[0]["loss"]
    assert results[1].metrics == result.metrics
    for key, value in alone.prompts["b"].state_dict().items():
        torch.testing.assert_close(both.prompts["b"].state_dict()[key], value, rtol=0, atol=1e-9)


@pytest.mark.parametrize("make", [t5, gpt2])
def test_the_loss_is_that_of_the_model(toy: Any, make: Any) -> None:
    # One step at a tiny rate: the reported loss is the model's own on the same batch.
    model = build(make, "prefix-tuning")
    rows = labelled(model.backbone_kind, toy.train[:8])
    batch = collate(rows, 0)
    lane = Lane("a", TrainConfig(batch_size=8, max_steps=1, learning_rate=1e-12), rows)
    expected = model(**batch, prompt_names="a").loss.item()
    (result,) = train(model, [lane], pad_id=0)
    assert result.history[0]["loss"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("make", [t5, gpt2])
def test_accumulation_weighs_tokens(toy: Any, make: Any) -> None:
    states = []
    for fields in ({"batch_size": 12}, {"batch_size": 3, "gradient_accumulation_steps": 4}):
        model = build(make, "prefix-tuning")
        lane = Lane("a", TrainConfig(epochs=1, **fields), labelled(model.backbone_kind, toy.train))
        train(model, [lane], pad_id=0)
        states.append(model.prompts["a"].state_dict())
    for key in states[0]:
        torch.testing.assert_close(states[0][key], states[1][key], rtol=0, atol=1e-9)
