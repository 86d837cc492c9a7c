"""Runs on spans, tags, choices and generated answers: in shared passes as alone, and predicted as computed by hand."""

from __future__ import annotations

import random
from typing import Any

import pytest
import tiny
import torch

import softprompts as sp
from softprompts.tasks.batches import collate
from softprompts.training import Evaluation, Lane, TrainConfig, predict, train

EXACT = {"rtol": 0.0, "atol": 1e-9}
FORMS = ("spans", "tags", "choices")
WIDTHS = {"spans": 2, "tags": 3, "choices": 1}


def rows_of(form: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Rows in which the tokens 5 to 7 tell what is asked for: the span, the tags, the choice."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        ids = [draw.randrange(10, 60) for _ in range(draw.randrange(4, 9))]
        if form == "spans":
            first = draw.randrange(1, len(ids) - 1)
            ids[first] = ids[first + 1] = 5
            rows.append({"input_ids": ids, "span": [first, first + 1], "places": list(range(1, len(ids)))})
        elif form == "tags":
            tags = [draw.randrange(3) for _ in ids]
            ids = [5 + tag if draw.random() < 0.9 else token for tag, token in zip(tags, ids, strict=True)]
            labels = [-100, *tags[1:]]
            rows.append({"input_ids": ids, "labels": labels, "places": list(range(1, len(ids)))})
        else:
            label = draw.randrange(3)
            choices = [[*ids[: 2 + i], 5 if i == label else 6] for i in range(3)]
            rows.append({"choices": [{"input_ids": each} for each in choices], "label": label})
    return rows


def model_for(form: str, names: tuple[str, ...], methods: tuple[str, ...] = ("prefix-tuning", "prompt-tuning")) -> Any:
    made = sp.attach(tiny.model("bert", tokens=form != "choices", num_labels=WIDTHS[form]))
    for index, (name, method) in enumerate(zip(("a", "b"), methods, strict=True)):
        if name in names:
            made.add_prompt(name, tiny.METHODS[method], num_labels=WIDTHS[form], seed=index)
            made.prompts[name].double()
    return made


def right(form: str, row: dict[str, Any]) -> Any:
    if form == "spans":
        return [place - 1 for place in row["span"]]
    return row["labels"][1:] if form == "tags" else row["label"]


def found(form: str, prediction: Any) -> list[Any]:
    if form == "spans":
        return [[int(scores[:, end].argmax()) for end in range(2)] for scores in prediction.scores]
    return list(prediction.labels)


def run(form: str, names: tuple[str, ...], steps: int = 12) -> tuple[Any, list[Any]]:
    model = model_for(form, names)
    rows = rows_of(form, 60, seed=1)

    def score(prediction: Any) -> dict[str, float]:
        pairs = zip(found(form, prediction), rows, strict=True)
        return {"right": sum(answer == right(form, row) for answer, row in pairs) / len(rows)}

    lanes = [
        Lane(
            name,
            TrainConfig(batch_size=6, max_steps=steps, eval_every=steps // 2, seed=ord(name)),
            rows,
            validation=Evaluation(rows, score=score, batch_size=16),
        )
        for name in names
    ]
    return model, train(model, lanes, pad_id=0)


@pytest.mark.parametrize("form", FORMS)
def test_lanes_end_where_they_would_alone(form: str) -> None:
    both, results = run(form, ("a", "b"))
    for index, name in enumerate(("a", "b")):
        alone, (result,) = run(form, (name,))
        assert results[index].metrics == result.metrics
        assert results[index].history[-1]["loss"] == pytest.approx(result.history[-1]["loss"], abs=1e-9)
        for key, value in alone.prompts[name].state_dict().items():
            torch.testing.assert_close(both.prompts[name].state_dict()[key], value, **EXACT)


@pytest.mark.parametrize("form", FORMS)
def test_what_the_rows_tell_is_learned(form: str) -> None:
    _, (result,) = run(form, ("a",), steps=120)
    assert result.history[-1]["loss"] < 0.9 * result.history[0]["loss"]
    assert result.metrics["right"] > {"spans": 0.3, "tags": 0.1, "choices": 0.5}[form]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("side", ["right", "left"])
def test_predictions_are_those_of_each_row_alone(form: str, side: str) -> None:
    model = model_for(form, ("a", "b"))
    tiny.shake(model)
    rows = rows_of(form, 9, seed=2)
    names = ["ab"[index % 2] for index in range(9)]
    got = predict(model, rows, names, pad_id=0, batch_size=4, padding_side=side)
    for row, name, scores in zip(rows, names, got.scores, strict=True):
        inputs = [one["input_ids"] for one in row.get("choices", [row])]
        with torch.no_grad():
            logits = [model(input_ids=torch.tensor([ids]), prompt_names=[name]).logits[0] for ids in inputs]
        wanted = torch.stack(logits) if form == "choices" else logits[0][row["places"]]
        torch.testing.assert_close(scores, wanted, rtol=0, atol=1e-9)
    assert got.finite and len(got.labels) == 9


@pytest.mark.parametrize("family", ["t5", "bart", "llama", "gpt2"])
def test_generated_answers_are_those_of_each_row_alone(family: str) -> None:
    model = tiny.attached(family, "prompt-tuning", "prefix-tuning")
    draw = random.Random(0)
    rows = [{"input_ids": [draw.randrange(5, 60) for _ in range(draw.randrange(2, 8))]} for _ in range(7)]
    names = [["prompt-tuning", "prefix-tuning"][index % 2] for index in range(7)]
    got = predict(model, rows, names, pad_id=0, batch_size=3, new_tokens=5)
    assert got.tokens is not None and got.labels == [] and got.finite
    for row, name, tokens in zip(rows, names, got.tokens, strict=True):
        alone = predict(model, [row], name, pad_id=0, new_tokens=5)
        assert alone.tokens == [tokens] and len(tokens) <= 5
    if family in ("t5", "llama"):
        # Greedy, by hand and without a cache.
        ids, written = rows[0]["input_ids"], []
        start = getattr(model.config, "decoder_start_token_id", None)
        while len(written) < 5:
            inputs = {"input_ids": torch.tensor([ids if family == "t5" else ids + written])}
            if family == "t5":
                inputs["decoder_input_ids"] = torch.tensor([[start, *written]])
            with torch.no_grad():
                token = int(model(**inputs, prompt_names=names[0]).logits[0, -1].argmax())
            if token == model.generation_config.eos_token_id:
                break
            written.append(token)
        assert got.tokens[0] == written


def test_accumulated_spans_weigh_alike() -> None:
    states = []
    for config in ({"batch_size": 8}, {"batch_size": 2, "gradient_accumulation_steps": 4}):
        model = model_for("spans", ("a",))
        train(model, [Lane("a", TrainConfig(epochs=1, **config), rows_of("spans", 40, 3))], pad_id=0)
        states.append(model.prompts["a"].state_dict())
    for key in states[0]:
        torch.testing.assert_close(states[0][key], states[1][key], **EXACT)


def test_runs_of_different_forms_do_not_share_a_pass() -> None:
    model = model_for("spans", ("a", "b"))
    lanes = [
        Lane(name, TrainConfig(max_steps=1), rows_of(form, 8, 0)) for name, form in (("a", "spans"), ("b", "tags"))
    ]
    with pytest.raises(sp.SoftPromptError, match="spans or choices"):
        train(model, lanes, pad_id=0)


def test_choices_of_different_numbers_are_padded_in_the_loss_alone() -> None:
    model = model_for("choices", ("a",))
    rows = rows_of("choices", 3, 4)
    rows[1] = {"choices": rows[1]["choices"][:2], "label": 0}
    assert collate(rows, 0)["choices"].tolist() == [3, 2, 3]
    got = predict(model, rows, "a", pad_id=0)
    assert [len(chances) for chances in got.probabilities or []] == [3, 2, 3]
