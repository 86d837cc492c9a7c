"""Losses of several labels a row and of weighted classes, against plain sums in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from softprompts.tasks import collate
from softprompts.training import Lane, TrainConfig, predict, train
from softprompts.training.losses import label_count, run_pass

CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
SETS: list[list[int]] = [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
WEIGHTS = [[0.7, 1.0, 3.1], [1.0, 1.0, 1.0], [2.0, 0.3, 1.0]]
ANSWERS = [[7, 2], [8, 9, 2], [11, 2], [12, 2]]  # of three labels, and of none
TEXTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]


def naive_loss(logits: Tensor, targets: list[int], weights: list[float]) -> float:
    """The mean of the labels' binary cross-entropies."""
    terms = []
    for logit, target, weight in zip(logits.tolist(), targets, weights, strict=True):
        chance = 1 / (1 + math.exp(-logit))
        terms.append(-weight * math.log(chance if target else 1 - chance))
    return sum(terms) / len(terms)


def head_rows(weighted: bool) -> list[dict[str, Any]]:
    rows = [{"input_ids": text, "targets": target} for text, target in zip(TEXTS, SETS, strict=True)]
    return [row | ({"weight": weight} if weighted else {}) for row, weight in zip(rows, WEIGHTS, strict=True)]


def answered_rows(kind: str, weighted: bool = False) -> list[dict[str, Any]]:
    """As `texts.encode` makes them: every answer is an input."""
    rows = []
    for row in head_rows(weighted):
        text = row.pop("input_ids")
        choices = [
            {"input_ids": text + answer, "labels": [-100] * len(text) + answer}
            if kind == "decoder"
            else {"input_ids": text, "labels": answer}
            for answer in ANSWERS
        ]
        rows.append({"choices": choices, **row})
    return rows


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning", "multi-mask"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_head_has_a_binary_cross_entropy_for_each_label(method: str, weighted: bool) -> None:
    model = tiny.attached("bert", method)
    rows = head_rows(weighted)
    losses = run_pass(model, collate(rows, 0), method).losses
    for index, row in enumerate(rows):
        alone = model(input_ids=torch.tensor([TEXTS[index]]), prompt_names=method).logits[0]
        wanted = naive_loss(alone, SETS[index], row.get("weight", [1.0] * 3))
        assert losses[index].item() == pytest.approx(wanted, rel=1e-9)
        torch.testing.assert_close(run_pass(model, collate([row], 0), method).losses[0], losses[index], **CLOSE)
    assert label_count("encoder", rows) == 3


@pytest.mark.parametrize("family", ["t5", "bart", "llama", "gpt2"])
@pytest.mark.parametrize("weighted", [False, True])
def test_label_words_are_scored_apart(family: str, weighted: bool) -> None:
    """A label's logit is the log-likelihood of its word less that of the last one, token by token."""
    method = "prefix-tuning"
    model = tiny.attached(family, method)
    rows = answered_rows(model.backbone_kind, weighted)
    losses = run_pass(model, collate(rows, 0), method).losses
    plain = [{"input_ids": text} for text in TEXTS]
    prediction = predict(model, plain, method, pad_id=0, label_ids=ANSWERS)
    for index, text in enumerate(TEXTS):
        scores = []
        for answer in ANSWERS:
            if model.backbone_kind == "decoder":
                whole = torch.tensor([text + answer])
                mask = torch.tensor([[1] * len(text) + [0] * len(answer)])
                logits = model(input_ids=whole, context_mask=mask, prompt_names=method).logits[0, len(text) - 1 : -1]
            else:
                start = model.config.decoder_start_token_id
                before = torch.tensor([[start, *answer[:-1]]])
                logits = model(input_ids=torch.tensor([text]), decoder_input_ids=before, prompt_names=method).logits[0]
            scores.append(sum(line.log_softmax(0)[token].item() for line, token in zip(logits, answer, strict=True)))
        logits = torch.tensor([score - scores[-1] for score in scores[:-1]], dtype=torch.float64)
        wanted = naive_loss(logits, SETS[index], WEIGHTS[index] if weighted else [1.0] * 3)
        assert losses[index].item() == pytest.approx(wanted, rel=1e-8)
        assert prediction.scores[index][0].tolist() == pytest.approx(scores, rel=1e-8)
    # Labelled rows are predicted without their answers.
    again = predict(model, answered_rows(model.backbone_kind), method, pad_id=0, label_ids=ANSWERS)
    for one, other in zip(again.scores, prediction.scores, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("family", ["bert", "t5", "llama"])
def test_class_weights_are_weighting_by_hand(family: str) -> None:
    model = tiny.attached(family, "prefix-tuning")
    weights, rows = [0.7, 1.0, 2.5], []
    for text, label in zip(TEXTS, (0, 1, 1), strict=True):
        row: dict[str, Any] = {"input_ids": text, "label": label}
        if family != "bert":
            row = answered_rows(model.backbone_kind)[len(rows)]["choices"][label] | {"label": label}
        rows.append(row)
    plain = run_pass(model, collate(rows, 0), "prefix-tuning").losses
    weighted = [row | {"weight": weight} for row, weight in zip(rows, weights, strict=True)]
    found = run_pass(model, collate(weighted, 0), "prefix-tuning").losses
    torch.testing.assert_close(found, plain * torch.tensor(weights, dtype=torch.float64), **CLOSE)
    mixed = run_pass(model, collate([weighted[0], rows[1], weighted[2]], 0), "prefix-tuning").losses
    torch.testing.assert_close(mixed, found, **CLOSE)  # the second's weight is 1


def test_lanes_with_other_weights_and_labels_share_a_pass() -> None:
    """A run among others ends where it ends alone."""
    config = TrainConfig(max_steps=3, batch_size=2, learning_rate=0.05)
    two = [{**row, "targets": row["targets"][:2]} for row in head_rows(False)]
    rows = {"a": head_rows(True), "b": head_rows(False), "c": two}
    outputs = {"a": 3, "b": 3, "c": 2}

    def trained(*names: str) -> dict[str, Tensor]:
        model = tiny.attached("bert")
        for name in names:
            model.add_prompt(name, tiny.METHODS["prefix-tuning"], num_labels=outputs[name], seed=1)
        train(model, [Lane(name, config, rows[name]) for name in names], pad_id=0, progress=False)
        return {f"{n}.{k}": v.clone() for n in names for k, v in model.prompts[n].state_dict().items()}

    together = trained("a", "b", "c")
    for name in rows:
        for key, value in trained(name).items():
            torch.testing.assert_close(together[key], value, rtol=1e-5, atol=1e-6)  # in float32
    assert not all(torch.allclose(value, together["b" + key[1:]]) for key, value in together.items() if key[0] == "a")
