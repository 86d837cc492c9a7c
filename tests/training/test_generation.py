"""Text that is generated for rows, and the losses of their answers."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

from softprompts.training import predict
from softprompts.training.generation import Sampling

ROWS = [[5, 9, 11], [7, 8], [30, 31, 32, 33, 34]]
ANSWERS = [[12, 13, 2], [14, 2], [15]]


def features(kind: str) -> list[dict[str, Any]]:
    if kind == "encoder-decoder":
        return [{"input_ids": row, "labels": answer} for row, answer in zip(ROWS, ANSWERS, strict=True)]
    rows = zip(ROWS, ANSWERS, strict=True)
    return [{"input_ids": row + answer, "labels": [-100] * len(row) + answer} for row, answer in rows]


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_losses_are_the_models_own(family: str) -> None:
    made = tiny.attached(family, "prefix-tuning")
    rows = features(made.backbone_kind)
    found = predict(made, rows, "prefix-tuning", pad_id=0, batch_size=2, losses=True)
    assert found.tokens is None and found.losses is not None and found.finite
    for row, answer, (loss, count) in zip(rows, ANSWERS, found.losses, strict=True):
        with torch.no_grad():
            own = made(**{name: torch.tensor([values]) for name, values in row.items()}).loss
        assert count == len(answer) and loss / count == pytest.approx(float(own), rel=1e-6)
    both = predict(made, rows, "prefix-tuning", pad_id=0, losses=True, new_tokens=4)
    alone = predict(made, rows, "prefix-tuning", pad_id=0, new_tokens=4)
    assert both.tokens == alone.tokens and [one for one, _ in both.losses or ()] == pytest.approx(
        [one for one, _ in found.losses]
    )


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_more_tokens_may_end_a_text(family: str) -> None:
    made = tiny.attached(family, "prefix-tuning")
    rows = features(made.backbone_kind)
    whole = predict(made, rows, "prefix-tuning", pad_id=0, new_tokens=6).tokens
    assert whole is not None
    end = whole[0][2]
    cut = predict(made, rows, "prefix-tuning", pad_id=0, new_tokens=6, ends=[end]).tokens
    assert cut == [row[: row.index(end)] if end in row else row for row in whole] and len(cut[0]) <= 2


def test_drawing_leaves_the_global_random_state_alone() -> None:
    made, hot = tiny.attached("llama", "prefix-tuning"), Sampling(temperature=3.0, seed=4)
    rows = features("decoder")
    torch.manual_seed(0)
    state = torch.get_rng_state()
    drawn = [predict(made, rows, "prefix-tuning", pad_id=0, new_tokens=6, sampling=hot).tokens for _ in range(2)]
    assert drawn[0] == drawn[1] != predict(made, rows, "prefix-tuning", pad_id=0, new_tokens=6).tokens
    assert torch.equal(state, torch.get_rng_state())
