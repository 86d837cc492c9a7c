"""How the inputs of one call get the prompts of its rows: updates, positions, masks, packed rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

import softprompts as sp
from softprompts.injection.layout import CausalLayout, EncoderLayout, Layout, Tokens
from softprompts.injection.step import Step

TOLERANCE = {"rtol": 1e-9, "atol": 1e-9}
CPU = torch.device("cpu")


def step_of(
    inputs: dict[str, Any], *, kind: str = "decoder", scale: float = 1.0, first_position: int = 0, **of_pass: Any
) -> Step:
    """A step of a model that is only described, under a pass with these attributes."""
    backbone: Any = SimpleNamespace(
        kind=kind, embedding_scale=scale, first_position=first_position, takes_positions=True, embeddings=None
    )
    pass_: Any = SimpleNamespace(ready=True, rows=0, columns=0, tokens=None, update=None, shift=0, layout=None)
    pass_.__dict__.update(of_pass)
    return Step(pass_, inputs, backbone)


def cache(columns: int) -> Any:
    return SimpleNamespace(get_seq_length=lambda: columns)


def test_an_update_goes_to_real_tokens_by_their_number() -> None:
    torch.manual_seed(0)
    update, given = torch.randn(1, 3, 2), torch.randn(2, 6, 2)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 0, 1, 0, 0]])
    step = step_of({"inputs_embeds": given, "attention_mask": mask}, scale=2.0, update=update)
    step.add_update(CausalLayout(step.real, (2, 6), None, CPU))
    wanted = given.clone()
    for row, columns in enumerate([(2, 3, 4), (0, 1, 3)]):  # a fourth token has no entry
        for entry, column in enumerate(columns):
            wanted[row, column] += 2 * update[0, entry]
    assert torch.equal(step.embeddings, wanted)


@pytest.mark.parametrize("masked", [True, False])
def test_an_update_goes_on_behind_a_cache(masked: bool) -> None:
    torch.manual_seed(0)
    update, given = torch.randn(1, 5, 2), torch.randn(1, 2, 2)
    inputs = {"inputs_embeds": given, "past_key_values": cache(4)}  # a prompt token and three of the input
    if masked:
        inputs["attention_mask"] = torch.ones(1, 5, dtype=torch.long)
    step = step_of(inputs, update=update)
    assert step.seen == 4
    step.add_update(CausalLayout(step.real, (1, 5), Tokens(torch.zeros(1, 1, 2), None, 1), CPU))
    assert torch.equal(step.embeddings, given + update[:, 3:5])


@pytest.mark.parametrize("planes", [False, True])
def test_positions_of_the_caller_move_and_missing_ones_are_counted(planes: bool) -> None:
    tokens = Tokens(torch.ones(1, 2, 4), None, 2)
    mask, positions = torch.tensor([[0, 1, 1]]), torch.tensor([[0, 4, 8]])
    given = torch.stack([positions, positions + 1]) if planes else positions
    inputs = {"inputs_embeds": torch.zeros(1, 3, 4), "attention_mask": mask, "position_ids": given}
    step = step_of(inputs, tokens=tokens, first_position=2)
    step.widen(CausalLayout(step.real, (1, 3), tokens, CPU))
    made = step.inputs["position_ids"]
    assert made.shape == ((2, 1, 5) if planes else (1, 5))
    assert (made[0] if planes else made)[0, 1:].tolist() == [4, 5, 6, 10]
    assert not planes or made[1, 0, 1:].tolist() == [5, 6, 7, 11]
    step = step_of({**inputs, "inputs_embeds": torch.zeros(1, 3, 4), "position_ids": None, "attention_mask": mask})
    step.backbone.first_position, step.pass_.tokens = 2, tokens
    step.widen(CausalLayout(step.real, (1, 3), tokens, CPU))
    assert step.inputs["position_ids"][0, 1:].tolist() == [2, 3, 4, 5]


def test_everything_with_a_number_per_token_is_widened_and_scaled() -> None:
    tokens = Tokens(torch.ones(1, 2, 4), None, 2)
    others = {"token_type_ids": torch.ones(2, 3, dtype=torch.long), "labels": torch.ones(2, 3, dtype=torch.long)}
    inputs = {"inputs_embeds": torch.zeros(2, 3, 4), "attention_mask": torch.ones(2, 3), **others}
    step = step_of(inputs, kind="encoder", scale=3.0, tokens=tokens)
    layout: Layout = EncoderLayout(step.real, (2, 3), tokens, CPU, 1)
    step.widen(layout)
    assert step.inputs["input_ids"] is None
    assert step.inputs["inputs_embeds"][..., 0].tolist() == [[0, 3, 3, 0, 0]] * 2
    assert step.inputs["token_type_ids"].tolist() == [[1, 0, 0, 1, 1]] * 2
    assert step.inputs["labels"].tolist() == [[1, -100, -100, 1, 1]] * 2
    assert step.inputs["attention_mask"].dtype == torch.float32
    assert step.pass_.layout is layout


def test_a_later_step_counts_the_prompt_that_is_in_the_cache() -> None:
    tokens = Tokens(torch.ones(2, 2, 4), torch.tensor([2, 1]), 2)
    ids, mask = torch.tensor([[7], [8]]), torch.ones(2, 4, dtype=torch.long)
    inputs = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache(5)}
    step = step_of({**inputs, "position_ids": torch.tensor([[3], [3]])}, tokens=tokens, layout="the first")
    layout = CausalLayout(step.real, (2, 4), tokens, CPU)
    step.widen_later(layout)
    assert step.inputs["position_ids"].tolist() == [[5], [4]]
    assert step.inputs["attention_mask"].tolist() == [[1] * 6, [0, *[1] * 5]]
    assert step.inputs["input_ids"] is ids
    assert step.pass_.layout is None
    step = step_of(dict(inputs), tokens=tokens, first_position=1)
    step.widen_later(layout)
    assert step.inputs["position_ids"].tolist() == [[6], [5]]


@pytest.mark.parametrize("shift", [2, torch.tensor([2, 0])], ids=["all", "by-row"])
def test_positions_move_behind_prefixes(shift: int | Tensor) -> None:
    step = step_of({"input_ids": torch.ones(2, 3, dtype=torch.long), "past_key_values": cache(4)}, shift=shift)
    step.shift_positions()
    moved = step.inputs["position_ids"].expand(2, -1).tolist()
    assert moved == [[6, 7, 8], [6, 7, 8] if isinstance(shift, int) else [4, 5, 6]]


def test_a_call_without_input_is_one_sentence() -> None:
    with pytest.raises(sp.SoftPromptError, match="called without input_ids or inputs_embeds"):
        step_of({"attention_mask": torch.ones(1, 3)})


@pytest.mark.parametrize(
    ("of_pass", "why"),
    [
        ({"has_tokens": True, "looks": True}, "whose tokens belong in front"),
        ({"has_tokens": False, "looks": True}, "which looks at all of the input"),
    ],
)
def test_a_cache_of_another_prompt_is_one_sentence(of_pass: dict[str, bool], why: str) -> None:
    inputs = {"input_ids": torch.ones(1, 1), "past_key_values": cache(3)}
    sentence = f"^the given past_key_values were made without this prompt, {why}: start anew$"
    with pytest.raises(sp.SoftPromptError, match=sentence):
        step_of(inputs, ready=False, **of_pass).require_own_cache()
    step_of(inputs, **of_pass).require_own_cache()  # whose prompts were there
    step_of(inputs, ready=False, has_tokens=False, looks=False).require_own_cache()


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("method", ["prefix-tuning", "selective-prefix"])
def test_packed_sequences_see_the_prefix_and_not_each_other(family: str, method: str) -> None:
    model = tiny.attached(family, method)
    first, second = torch.randint(5, 60, (1, 4)), torch.randint(5, 60, (1, 5))
    positions = torch.cat([torch.arange(4), torch.arange(5)])[None]
    packed = model(input_ids=torch.cat([first, second], 1), position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(packed[:, :4], model(input_ids=first).logits, **TOLERANCE)
    torch.testing.assert_close(packed[:, 4:], model(input_ids=second).logits, **TOLERANCE)


@pytest.mark.parametrize("method", ["prefix-tuning", "selective-prefix", "lora"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_packed_rows_with_positions_of_their_own(family: str, method: str) -> None:
    """Each sequence of a packed row is as alone, also where the row is longer than the position table."""
    settings = {"n_positions": 16} if family == "gpt2" else {"max_position_embeddings": 16}
    plain, model = tiny.model(family, **settings), tiny.attached(family, method, **settings)
    torch.manual_seed(0)
    lengths = [9, 4, 11]
    ids = torch.randint(5, 60, (1, sum(lengths)))
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    sequences = ids.split(lengths, 1)
    for name in (method, None):
        packed = model(input_ids=ids, position_ids=positions, prompt_names=[name], use_cache=False).logits
        alone = [model(input_ids=part, prompt_names=[name], use_cache=False).logits for part in sequences]
        if name is None:
            alone = [plain(input_ids=part).logits for part in sequences]
        torch.testing.assert_close(packed, torch.cat(alone, 1), **TOLERANCE)


@pytest.mark.parametrize("method", ["prompt-tuning", "multi-mask", "adaptive-prefix", "dept"])
def test_packed_rows_take_no_prompt_of_a_whole_row(method: str) -> None:
    model = tiny.attached("llama", method)
    positions = torch.cat([torch.arange(4), torch.arange(5)])[None]
    with pytest.raises(sp.SoftPromptError, match="packed rows"):
        model(input_ids=torch.randint(5, 60, (1, 9)), position_ids=positions)
    model(input_ids=torch.randint(5, 60, (1, 9)), position_ids=torch.arange(9)[None])
