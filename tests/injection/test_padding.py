"""Padding anywhere: rows that go on behind padding, holes in the middle, and rows without a prompt beside others."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

import softprompts as sp

METHODS = ["prompt-tuning", "prefix-tuning", "multi-mask", "ept"]
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def two_parts() -> tuple[Tensor, Tensor, Tensor]:
    """Token ids ``(3, 5)`` padded on the right, how many are real, and what follows ``(3, 3)``."""
    torch.manual_seed(3)
    ids, rest, counts = torch.randint(5, 60, (3, 5)), torch.randint(5, 60, (3, 3)), torch.tensor([5, 3, 2])
    return ids.masked_fill(torch.arange(5) >= counts[:, None], 0), rest, (torch.arange(5) < counts[:, None]).long()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize(
    "names", [[name] * 3 for name in METHODS] + [["prompt-tuning", None, "prefix-tuning"]], ids=str
)
@torch.no_grad()
def test_rows_padded_on_the_right_go_on_from_the_cache(family: str, names: list[str | None]) -> None:
    model, (ids, rest, mask) = tiny.attached(family, *METHODS), two_parts()
    whole_mask = torch.cat([mask, torch.ones_like(rest)], 1)
    visible = torch.cat([mask.bool(), torch.zeros_like(rest).bool()], 1)
    whole = {"input_ids": torch.cat([ids, rest], 1), "attention_mask": whole_mask, "context_mask": visible}
    wanted = model(**whole, prompt_names=names).logits[:, 5:]
    first = model(input_ids=ids, attention_mask=mask, use_cache=True, prompt_names=names)
    second = model(input_ids=rest, attention_mask=whole_mask, past_key_values=first.past_key_values)
    torch.testing.assert_close(second.logits, wanted, **CLOSE)
    plain = tiny.model(family)
    for row, name in enumerate(names):
        if name is None:
            alone = plain(input_ids=whole["input_ids"], attention_mask=whole_mask).logits[row, 5:]
            torch.testing.assert_close(wanted[row], alone, **CLOSE)


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
@pytest.mark.parametrize("names", [["prompt-tuning", None], [None, "prefix-tuning"], [None, "multi-mask"]], ids=str)
@torch.no_grad()
def test_a_row_with_a_hole_is_the_plain_models_beside_a_prompt(family: str, names: list[str | None]) -> None:
    model, plain = tiny.attached(family, *METHODS), tiny.model(family)
    inputs = {name: value for name, value in tiny.batch(family, rows=2).items() if name != "labels"}
    inputs["attention_mask"] = torch.tensor([[1, 1, 0, 0, 1, 1, 1], [1, 0, 1, 1, 1, 0, 0]])
    if family in tiny.SEQ2SEQ:
        inputs["decoder_input_ids"] = torch.ones(2, 3, dtype=torch.long)
    row, wanted = names.index(None), plain(**inputs).logits
    mixed = model(**inputs, prompt_names=names).logits
    real = inputs["attention_mask"][row].bool() if family in tiny.DECODERS else slice(None)
    torch.testing.assert_close(mixed[row][real], wanted[row][real], **CLOSE)
    other = names[1 - row]
    alone = model(**{name: value[1 - row : 2 - row] for name, value in inputs.items()}, prompt_names=other).logits[0]
    real = inputs["attention_mask"][1 - row].bool() if family in tiny.DECODERS else slice(None)
    torch.testing.assert_close(mixed[1 - row][real], alone[real], **CLOSE)


@pytest.mark.parametrize("family", ["bert", "llama", "t5", "bart"])
@pytest.mark.parametrize("side", ["right", "left"])
@torch.no_grad()
def test_tokens_in_front_of_rows_with_holes_act_as_typed(family: str, side: str) -> None:
    model: Any = sp.attach(tiny.model(family))
    model.add_prompt("x", sp.PromptTuningConfig(num_virtual_tokens=2, placement="front"))
    model.prompts.to(torch.float64)
    words, ids = torch.tensor([[7, 8]]), torch.randint(9, 60, (2, 6))
    mask = torch.tensor([[1, 1, 0, 1, 1, 1], [1, 0, 0, 1, 1, 1]])
    model.prompts["x"].method.prompt.data = model.get_input_embeddings()(words)[0].detach()
    more = {"decoder_input_ids": torch.ones(2, 3, dtype=torch.long)} if family in tiny.SEQ2SEQ else {}
    typed_ids, typed_mask = torch.cat([words.expand(2, -1), ids], 1), torch.cat([torch.ones(2, 2).long(), mask], 1)
    typed = model(input_ids=typed_ids, attention_mask=typed_mask, prompt_names=[None] * 2, **more)
    if side == "left":
        ids, mask = (torch.cat([torch.zeros(2, 2).long(), part], 1) for part in (ids, mask))
    ours = model(input_ids=ids, attention_mask=mask, **more)
    if family in tiny.DECODERS:
        assert_real(ours.logits[:, -6:], typed.logits[:, 2:], mask[:, -6:])
    elif family in tiny.SEQ2SEQ:
        torch.testing.assert_close(ours.logits, typed.logits, **CLOSE)
    else:
        base = {"input_ids": typed_ids, "attention_mask": typed_mask, "output_hidden_states": True}
        wanted = model(**base, prompt_names=[None] * 2).hidden_states[-1][:, 2:]
        states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1][:, -6:]
        assert_real(states, wanted, mask[:, -6:])


def assert_real(ours: Tensor, wanted: Tensor, mask: Tensor) -> None:
    torch.testing.assert_close(ours[mask.bool()], wanted[mask.bool()], **CLOSE)
