"""Outputs with a row per token are those of the input alone, in its order, wherever they stand."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
import transformers as tf
from torch import Tensor

import softprompts as sp
from softprompts.injection.layout import CausalLayout, EncoderLayout, Tokens
from softprompts.injection.outputs import columns_restored, restored

CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
_MOE: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "num_experts_per_tok": 2, "initializer_range": 0.3, "experts_implementation": "eager",
}  # fmt: skip
ROUTED: dict[str, Any] = {
    "mixtral": lambda: tf.MixtralForCausalLM(tf.MixtralConfig(**_MOE, num_local_experts=4)),
    "qwen3_moe": lambda: tf.Qwen3MoeForCausalLM(
        tf.Qwen3MoeConfig(**_MOE, num_experts=4, moe_intermediate_size=8, decoder_sparse_step=1)
    ),
    "gpt_oss": lambda: tf.GptOssForCausalLM(tf.GptOssConfig(**_MOE, num_local_experts=4, attn_implementation="eager")),
    "olmoe": lambda: tf.OlmoeForCausalLM(tf.OlmoeConfig(**{**_MOE, "num_key_value_heads": 4}, num_experts=4)),
}


def of_tokens(model: Any, *lengths: int) -> Any:
    """A prompt ``p<i>`` for each length, which holds the embeddings of tokens 5, 6, ..."""
    model = sp.attach(model)
    for i, length in enumerate(lengths):
        model.add_prompt(f"p{i}", sp.PromptTuningConfig(num_virtual_tokens=length), seed=0)
        (table,) = model.prompts[f"p{i}"].method.parameters()
        table.data = model.get_input_embeddings()(torch.arange(5, 5 + length)).detach().clone()
    return model.eval()


def typed(inputs: dict[str, Tensor], lengths: list[int]) -> dict[str, Tensor]:
    """The rows with tokens 5, 6, ... typed in front of their first real one, padded on the right."""
    rows = []
    for row, length in enumerate(lengths):
        real = inputs["attention_mask"][row].bool()
        ids = torch.cat([torch.arange(5, 5 + length), inputs["input_ids"][row][real]])
        rows.append((ids, torch.cat([torch.full((length,), -100), inputs["labels"][row][real]])))
    width = max(len(ids) for ids, _ in rows)
    pad = torch.nn.functional.pad
    return {
        "input_ids": torch.stack([pad(ids, (0, width - len(ids))) for ids, _ in rows]),
        "attention_mask": torch.stack([(torch.arange(width) < len(ids)).long() for ids, _ in rows]),
        "labels": torch.stack([pad(labels, (0, width - len(labels)), value=-100) for _, labels in rows]),
    }


@pytest.mark.parametrize("padding", ["right", "left", "none"])
@pytest.mark.parametrize("names", [["p0", "p0", "p0"], ["p0", None, "p1"]])
@pytest.mark.parametrize("family", ROUTED)
def test_router_losses_are_those_of_typed_tokens(family: str, names: list[str | None], padding: str) -> None:
    torch.manual_seed(0)
    plain = ROUTED[family]().double().eval()
    torch.manual_seed(0)
    model = of_tokens(ROUTED[family]().double(), 4, 2)
    inputs = tiny.batch("llama")
    if padding == "none":
        inputs["input_ids"] = torch.randint(5, 60, (3, 7))
        inputs["attention_mask"][:] = 1
    elif padding == "left":
        inputs = tiny.pad_left(inputs)
    lengths = [{"p0": 4, "p1": 2, None: 0}[name] for name in names]
    given = dict(inputs)
    if padding == "none":
        given.pop("attention_mask")
    got = model(**given, prompt_names=names, output_router_logits=True, output_hidden_states=True)
    wanted = plain(**typed(inputs, lengths), output_router_logits=True)
    torch.testing.assert_close(got.aux_loss, wanted.aux_loss, rtol=1e-6, atol=1e-6)  # some of it is in float32
    torch.testing.assert_close(got.loss, wanted.loss, rtol=1e-6, atol=1e-6)
    assert got.hidden_states[-1].shape == (3, 7, 16)
    for layer, reference in zip(got.router_logits, wanted.router_logits, strict=True):
        assert layer.shape == (21, 4)
        references = reference.view(3, -1, 4)
        for row, length in enumerate(lengths):
            real = inputs["attention_mask"][row].bool()
            wanted_row = references[row][length : length + int(real.sum())]
            torch.testing.assert_close(layer.view(3, 7, 4)[row][real], wanted_row, rtol=1e-6, atol=1e-6)
    assert inputs["attention_mask"].shape == (3, 7)  # the caller's own stays as it was


def nllb() -> Any:
    torch.manual_seed(0)
    stacks = {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    config = tf.NllbMoeConfig(
        vocab_size=60, d_model=16, encoder_ffn_dim=24, decoder_ffn_dim=24, num_experts=4, encoder_sparse_step=1,
        decoder_sparse_step=1, pad_token_id=0, decoder_start_token_id=2, max_position_embeddings=64, **stacks,
    )  # fmt: skip
    return tf.NllbMoeForConditionalGeneration(config).double().eval()


def test_router_losses_of_an_encoder() -> None:
    plain, model = nllb(), of_tokens(nllb(), 4)
    inputs = tiny.batch("t5")
    wide = typed({**inputs, "labels": inputs["input_ids"]}, [4, 4, 4]) | {"labels": inputs["labels"]}
    got = model(**inputs, prompt_names="p0", output_router_logits=True)
    wanted = plain(**wide, output_router_logits=True)
    for name in ("loss", "encoder_aux_loss", "decoder_aux_loss"):
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-6, atol=1e-6)  # routers are in float32
    assert {len(layer.flatten(0, -2)) for layer in got.encoder_router_logits} == {21}


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "llama", "gemma3"])
def test_chosen_hidden_states_are_those_of_all(family: str, method: str) -> None:
    model = tiny.attached(family, method)
    inputs = tiny.pad_left(tiny.batch(family))
    inputs.pop("labels")
    every = model(**inputs, output_hidden_states=True).hidden_states
    chosen = model(**inputs, output_hidden_states=[0, -1]).hidden_states
    assert len(chosen) == len(every)
    for place, states in enumerate(chosen):
        if states is not None:
            torch.testing.assert_close(states, every[place], **CLOSE)
    assert {place for place, states in enumerate(chosen) if states is not None} == {0, len(every) - 1}


@pytest.mark.parametrize("family", ["bert", "t5", "bart", "llama"])
@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
def test_tuples_hold_what_names_hold(family: str, method: str) -> None:
    model = tiny.attached(family, method)
    inputs = tiny.pad_left(tiny.batch(family))
    wide: dict[str, Any] = {**inputs, "output_hidden_states": True}
    if family in tiny.SEQ2SEQ:
        wide["decoder_input_ids"] = torch.randint(5, 60, (3, 4))
    named = {name: part for name, part in model(**wide).items() if name != "past_key_values"}
    flat = [part for part in model(**wide, return_dict=False) if isinstance(part, Tensor | tuple)]
    assert len(flat) == len(named)
    for part, (name, reference) in zip(flat, named.items(), strict=True):
        torch.testing.assert_close(part, reference, **CLOSE)
        if name.startswith("encoder_"):
            assert {states.shape for states in (part if isinstance(part, tuple) else [part])} == {(3, 7, 16)}


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_generated_outputs_hold_the_encoders_input(family: str) -> None:
    model = tiny.attached(family, "prompt-tuning")
    ids = torch.randint(5, 60, (2, 6))
    output = model.generate(ids, max_new_tokens=3, output_hidden_states=True, return_dict_in_generate=True, num_beams=2)
    assert {states.shape[1:] for states in output.encoder_hidden_states} == {(6, 16)}


@pytest.mark.parametrize("family", ["bert", "llama", "modernbert"])
def test_attention_maps_have_a_row_per_token_and_the_prompt_in_front(family: str) -> None:
    plain, model = tiny.model(family, torch.float32), tiny.model(family, torch.float32)
    for made in (plain, model):
        made.set_attn_implementation("eager")
    model = of_tokens(model, 3, 2)
    inputs = tiny.pad_left(tiny.batch(family))
    inputs.pop("labels")
    names = ["p0", "p1", None]
    maps = model(**inputs, prompt_names=names, output_attentions=True).attentions
    for row, length in enumerate([3, 2, 0]):
        real = inputs["attention_mask"][row].bool()
        ids, first = inputs["input_ids"][row][real], model.base_model_prefix == "bert"
        whole = torch.cat([ids[: int(first)], torch.arange(5, 5 + length), ids[int(first) :]])[None]
        order = torch.arange(whole.shape[1])
        prompt = order[int(first) : int(first) + length]
        own = torch.cat([order[: int(first)], order[int(first) + length :]])
        for layer, reference in zip(maps, plain(input_ids=whole, output_attentions=True).attentions, strict=True):
            assert layer.shape[2:] == (7, 10)
            columns = torch.cat([torch.arange(length), 3 + real.nonzero()[:, 0]])
            wanted = reference[0][:, own][:, :, torch.cat([prompt, own])]
            torch.testing.assert_close(layer[row][:, real][:, :, columns], wanted, rtol=1e-4, atol=1e-5)


def test_an_encoders_maps_and_those_across_to_it() -> None:
    plain, model = tiny.model("t5"), tiny.model("t5")
    for made in (plain, model):
        made.set_attn_implementation("eager")
    model = of_tokens(model, 3, 2)
    inputs = tiny.pad_left(tiny.batch("t5"))
    inputs |= {"decoder_input_ids": inputs.pop("labels")}
    asked = {"output_attentions": True, "output_hidden_states": True}
    got = model(**inputs, **asked, prompt_names=["p0", "p1", None])
    for row, length in enumerate([3, 2, 0]):
        real = inputs["attention_mask"][row].bool()
        whole = torch.cat([torch.arange(5, 5 + length), inputs["input_ids"][row][real]])[None]
        wanted = plain(input_ids=whole, decoder_input_ids=inputs["decoder_input_ids"][row : row + 1], **asked)
        columns = torch.cat([torch.arange(length), 3 + real.nonzero()[:, 0]])
        for layer, reference in zip(got.encoder_attentions, wanted.encoder_attentions, strict=True):
            torch.testing.assert_close(layer[row][:, real][:, :, columns], reference[0][:, length:], **CLOSE)
        for layer, reference in zip(got.cross_attentions, wanted.cross_attentions, strict=True):
            torch.testing.assert_close(layer[row][:, :, columns], reference[0], **CLOSE)
        for states, reference in zip(got.encoder_hidden_states, wanted.encoder_hidden_states, strict=True):
            torch.testing.assert_close(states[row][real], reference[0][length:], **CLOSE)


def test_labels_are_never_zeros_for_a_prompt() -> None:
    """A model that is its own base, which gets labels along with all that has a number per token."""

    class Whole(tf.LlamaForCausalLM):
        base_model_prefix = ""

    torch.manual_seed(0)
    made = Whole(tiny.FAMILIES["llama"][1]()).double()
    plain = tf.LlamaForCausalLM(made.config).double().eval()
    plain.load_state_dict(made.state_dict())
    model = of_tokens(made, 4)
    inputs = tiny.batch("llama")
    got = model(**inputs, prompt_names="p0")
    wanted = plain(**typed(inputs, [4, 4, 4]))
    torch.testing.assert_close(got.loss, wanted.loss, **CLOSE)
    assert got.logits.shape == (3, 7, 60)


def test_boxes_beside_tokens_are_zeros_for_a_prompt() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    config = tf.LayoutLMConfig(
        vocab_size=60, **sizes, max_position_embeddings=40, max_2d_position_embeddings=32, initializer_range=0.3
    )
    plain = tf.LayoutLMForTokenClassification(config).double().eval()
    ids, boxes = torch.randint(5, 60, (2, 6)), torch.randint(1, 15, (2, 6, 4)).sort(-1).values
    tokens = torch.arange(5, 8).expand(2, -1)
    whole = torch.cat([ids[:, :1], tokens, ids[:, 1:]], 1)
    wide = torch.cat([boxes[:, :1], torch.zeros(2, 3, 4, dtype=torch.long), boxes[:, 1:]], 1)
    with torch.no_grad():
        wanted = plain(input_ids=whole, bbox=wide).logits
    model = of_tokens(plain, 3)
    got = model(input_ids=ids, bbox=boxes, prompt_names="p0").logits
    torch.testing.assert_close(got, torch.cat([wanted[:, :1], wanted[:, 4:]], 1), **CLOSE)


@pytest.mark.parametrize("kind", [CausalLayout, EncoderLayout])
@pytest.mark.parametrize("counts", [None, [2, 0, 1]])
def test_nests_and_shapes(kind: Any, counts: list[int] | None) -> None:
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 1, 0]]).bool()
    given = None if counts is None else torch.tensor(counts)
    layout = kind(mask, (3, 4), Tokens(torch.randn(1, 2, 5), given, 2), torch.device("cpu"))
    prompt, own = torch.randn(3, 2, 5), torch.randn(3, 4, 5)
    wide = layout._merged(prompt, own)
    torch.testing.assert_close(layout.unmerged(wide), torch.cat([prompt, own], 1))
    nest = restored(([wide, None], (wide.flatten(0, 1),), wide[:, :3], torch.zeros(18)), layout)
    torch.testing.assert_close(nest[0][0], own)
    assert nest[0][1] is None
    torch.testing.assert_close(nest[1][0], own.flatten(0, 1))
    assert nest[2].shape == (3, 3, 5) and nest[3].shape == (18,)
    of_prefix, weights = torch.randn(3, 2, 4, 3), torch.randn(3, 2, 4, 6)
    rows = layout._merged(*torch.randn(3, 6, 12).split([2, 4], 1))
    assert rows.shape == (3, 6, 12)
    placed = layout._merged(*weights.permute(0, 3, 1, 2).flatten(2).split([2, 4], 1)).unflatten(2, (2, 4))
    both = torch.cat([of_prefix, placed.permute(0, 2, 3, 1)], -1)
    torch.testing.assert_close(columns_restored(both, layout), torch.cat([of_prefix, weights], -1))
