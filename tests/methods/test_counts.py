"""How many numbers each method trains, as the papers (and those who ran their code) count them."""

from __future__ import annotations

from typing import Any

import pytest
from methods_page import BACKBONES, count, example, frozen, prompt_of

T5, BERT = BACKBONES
ONE_STACK = {"sites": ("decoder.self",)}
BOTH_STACKS = {"sites": ("encoder.self", "decoder.self")}

# method, settings, backbone, number of trained parameters without a task head
ROWS: list[tuple[str, dict[str, Any], str, int]] = [
    ("prompt-tuning", {"num_virtual_tokens": 100}, T5, 76_800),
    ("prompt-tuning", {"num_virtual_tokens": 10}, T5, 7_680),
    ("prompt-tuning", {"num_virtual_tokens": 100}, BERT, 76_800),
    ("prefix-tuning", {"num_virtual_tokens": 20, **ONE_STACK}, T5, 368_640),
    ("prefix-tuning", {"num_virtual_tokens": 20, **BOTH_STACKS}, T5, 737_280),
    ("prefix-tuning", {"num_virtual_tokens": 20}, T5, 1_105_920),
    ("prefix-tuning", {"num_virtual_tokens": 8}, BERT, 147_456),
    ("prefix-tuning", {"num_virtual_tokens": 20}, BERT, 368_640),
    ("prefix-tuning", {"num_virtual_tokens": 40}, BERT, 737_280),
    ("prefix-tuning", {"num_virtual_tokens": 128}, BERT, 2_359_296),
    ("prefix-tuning", {"num_virtual_tokens": 20, "reparameterize": True}, BERT, 9_864_704),
    ("selective-prefix", {"num_virtual_tokens": 8}, BERT, 147_456),
    ("selective-prefix", {"num_virtual_tokens": 20}, BERT, 368_640),
    ("selective-prefix", {"num_virtual_tokens": 40}, BERT, 737_280),
    ("selective-prefix", {"num_virtual_tokens": 128}, BERT, 2_359_296),
    ("multi-mask", {"num_virtual_tokens": 10, "num_masks": 4, **ONE_STACK}, T5, 187_872),
    ("multi-mask", {"num_virtual_tokens": 20, "num_masks": 1, **ONE_STACK}, T5, 369_648),
    ("multi-mask", {"num_virtual_tokens": 5, "num_masks": 4, **ONE_STACK}, T5, 95_472),
    ("multi-mask", {"num_virtual_tokens": 10, "num_masks": 4}, BERT, 187_872),
    ("ept", {"multi_space": False}, T5, 76_800),
    ("ept", {"num_virtual_tokens": 40, "rank": 45, "multi_space": False}, T5, 76_800),
    ("ept", {"num_virtual_tokens": 60, "rank": 30, "num_spaces": 4, "space_hidden_size": 256}, T5, 1_656_836),
    ("superpos", {"num_virtual_tokens": 10, "num_sampled_tokens": 128}, T5, 984_320),
    ("superpos", {"num_virtual_tokens": 10, "num_sampled_tokens": 128}, BERT, 984_320),
    ("head-only", {}, BERT, 0),
    ("p-tuning", {"num_virtual_tokens": 20, "hidden_size": 128}, T5, 229_376),
    ("residual", {"num_virtual_tokens": 10}, T5, 1_239_584),
    ("residual", {"num_virtual_tokens": 10, "bottleneck": 400}, T5, 624_784),
    ("residual", {"num_virtual_tokens": 10, "bottleneck": 128}, T5, 206_720),
    ("dpt", {"num_virtual_tokens": 100, "rank": 10}, T5, 8_680),
    ("dept", {"num_virtual_tokens": 60, "rank": 30}, T5, 76_800),
    ("dept", {"num_virtual_tokens": 40, "rank": 45}, T5, 76_800),
    ("smop", {"num_virtual_tokens": 5, "num_prompts": 4}, T5, 18_432),
    ("attempt", {"num_virtual_tokens": 100}, T5, 231_936),
    ("attempt", {"num_virtual_tokens": 100, "train_norm": False}, T5, 230_400),
    ("spot", {"num_virtual_tokens": 100}, T5, 76_800),
    ("mpt", {"num_virtual_tokens": 100}, T5, 77_668),
    ("adaptive-prefix", {"num_virtual_tokens": 20}, BERT, 552_972),
    ("lora", {}, T5, 884_736),
    ("bitfit", {}, T5, 280_960),
    ("bitfit", {}, BERT, 102_912),
    ("adapter", {"reduction": 32}, T5, 1_855_104),
]


@pytest.mark.parametrize(
    ("name", "settings", "backbone", "trained"),
    ROWS,
    ids=[f"{name} {' '.join(f'{k}={v}' for k, v in settings.items())} {where}" for name, settings, where, _ in ROWS],
)
def test_trained_parameters(name: str, settings: dict[str, Any], backbone: str, trained: int) -> None:
    counted = count(example(name, **settings), backbone)
    assert counted is not None
    assert counted.trained == trained


def test_the_backbones_have_their_real_sizes() -> None:
    assert frozen(T5) == 222_903_552
    assert frozen(BERT) == 108_310_272


def test_a_head_comes_on_top() -> None:
    with prompt_of(example("prefix-tuning"), BERT) as prompt:
        assert prompt.head is not None
        assert sum(parameter.numel() for parameter in prompt.head.parameters()) == 768 * 2 + 2
    with prompt_of(example("prefix-tuning"), T5) as prompt:
        assert prompt.head is None


def test_a_backbone_without_the_site_has_no_count() -> None:
    assert count(example("prefix-tuning", **ONE_STACK), BERT) is None
