"""Where columns go when prompt tokens join a batch, against a construction row by row in plain Python."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from softprompts.injection.layout import CausalLayout, EncoderLayout, Layout, Tokens, positions_of

CPU = torch.device("cpu")


def layout_of(
    mask: Tensor | None, shape: tuple[int, int], tokens: Tokens | None, causal: bool, keep_first: int = 0
) -> Layout:
    if causal:
        return CausalLayout(mask, shape, tokens, CPU)
    return EncoderLayout(mask, shape, tokens, CPU, keep_first)


def random_mask(rows: int, columns: int, kind: str) -> Tensor | None:
    mask = torch.ones(rows, columns, dtype=torch.bool)
    if kind == "none":
        return None
    for row in range(rows):
        cut = int(torch.randint(0, columns - 1, ()))
        if kind == "right" or (kind == "both" and row % 2):
            mask[row, columns - cut :] = False
        elif kind in ("left", "both"):
            mask[row, :cut] = False
    if kind == "holes":
        mask = torch.rand(rows, columns) < 0.6
        mask[range(rows), torch.randint(0, columns, (rows,))] = True
    return mask


def naive(mask: Tensor, count: int, length: int, causal: bool, keep_first: int) -> list[tuple[str, int]]:
    """One row's columns in their new order: ("own", i) for prompt token i, ("input", j) for input column j."""
    begin = mask.tolist().index(True)
    real = [("input", j) for j in range(begin, len(mask))]  # with what is hidden behind the first
    padding = [("input", j) for j in range(begin)]
    own = [("own", i) for i in range(count)]
    unused = [("own", i) for i in range(count, length)]
    if causal:
        lead = real[0][1]
        columns = [("input", j) for j in range(len(mask))]
        return columns[:lead] + unused + own + columns[lead:]
    first = min(len(real), keep_first)
    return real[:first] + own + real[first:] + unused + padding


def expected(layout: Layout, mask: Tensor, counts: list[int]) -> tuple[list[list[tuple[str, int]]], Tensor]:
    order = [
        naive(row, count, layout.length, isinstance(layout, CausalLayout), int(layout.keep_first))
        for row, count in zip(mask, counts, strict=True)
    ]
    seen = [
        [index < counts[r] if kind == "own" else bool(mask[r, index]) for kind, index in row]
        for r, row in enumerate(order)
    ]
    return order, torch.tensor(seen)


CASES = [
    (kind, counts, causal, keep)
    for kind in ("none", "full", "right", "left", "both", "holes")
    for counts in ("equal", "differing", "zero")
    for causal, keep in ((True, 0), (False, 0), (False, 1))
    if not (causal and kind == "holes")
]


@pytest.mark.parametrize(("kind", "counted", "causal", "keep_first"), CASES)
@pytest.mark.parametrize("seed", range(3))
def test_layout_equals_a_construction_row_by_row(
    kind: str, counted: str, causal: bool, keep_first: int, seed: int
) -> None:
    torch.manual_seed(seed)
    rows, columns, length, width = 4, 6, 3, 2
    mask = random_mask(rows, columns, kind)
    counts = {"equal": [3, 3, 3, 3], "differing": [3, 1, 0, 2], "zero": [0, 3, 0, 0]}[counted]
    own = torch.randn(rows, length, width)
    for row, count in enumerate(counts):
        own[row, count:] = 0
    tokens = Tokens(own, None if counted == "equal" else torch.tensor(counts), length)
    layout = layout_of(mask, (rows, columns), tokens, causal, keep_first)
    real = torch.ones(rows, columns, dtype=torch.bool) if mask is None else mask
    order, seen = expected(layout, real, counts)

    given = torch.randn(rows, columns, width)
    moved = layout.embeddings(given, tokens)
    ids = torch.randint(5, 60, (rows, columns))
    moved_ids = layout.ids(ids)
    assert moved.shape == (rows, length + columns, width)
    for r, row in enumerate(order):
        for place, (source, index) in enumerate(row):
            if not seen[r, place]:
                continue  # what nobody sees may lie in any order
            assert torch.equal(moved[r, place], own[r, index] if source == "own" else given[r, index])
            assert moved_ids[r, place] == (0 if source == "own" else ids[r, index])
    if layout.new_mask is None:
        assert seen.all()
    else:
        assert torch.equal(layout.new_mask, seen)
    assert torch.equal(layout.restore(moved), given)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["right", "left", "both"])
def test_without_tokens_only_encoders_with_left_padding_are_reordered(kind: str, causal: bool) -> None:
    torch.manual_seed(0)
    mask = random_mask(3, 6, kind)
    assert mask is not None
    given = torch.randn(3, 6, 2)
    layout = layout_of(mask, (3, 6), None, causal)
    moved = layout.embeddings(given, None)
    if causal or kind == "right":
        assert torch.equal(moved, given)
    else:
        for row in range(3):
            begin = mask[row].tolist().index(True)
            assert torch.equal(moved[row, : 6 - begin], given[row, begin:])
            assert layout.new_mask is not None
            assert layout.new_mask[row].tolist() == [*mask[row, begin:].tolist(), *[False] * begin]
    assert torch.equal(layout.restore(moved), given)


@pytest.mark.parametrize("kind", ["none", "right", "left", "both"])
@pytest.mark.parametrize("counted", ["equal", "differing"])
def test_causal_positions_count_real_tokens_and_continue_the_callers(kind: str, counted: str) -> None:
    torch.manual_seed(3)
    mask = random_mask(4, 6, kind)
    counts = [2, 2, 2, 2] if counted == "equal" else [2, 0, 1, 2]
    tokens = Tokens(torch.randn(4, 2, 3), None if counted == "equal" else torch.tensor(counts), 2)
    layout = CausalLayout(mask, (4, 6), tokens, CPU)
    real = torch.ones(4, 6, dtype=torch.bool) if mask is None else mask
    natural = positions_of(real)
    derived = layout.positions(None, mask)
    shifted = layout.positions(natural, mask)
    spread = layout.positions(natural * 10 + 5, mask)
    assert shifted is not None
    assert spread is not None
    order, seen = expected(layout, real, counts)
    for r, row in enumerate(order):
        visible = [place for place in range(8) if seen[r, place]]
        count = list(range(len(visible)))
        if derived is not None:
            assert derived[r, visible].tolist() == count
        assert shifted[r, visible].tolist() == count
        wanted = [
            5 + i if s == "own" else 10 * int(natural[r, i]) + 5 + counts[r] for s, i in (row[v] for v in visible)
        ]
        assert spread[r, visible].tolist() == wanted


def test_encoder_positions_leave_the_first_token_alone() -> None:
    tokens = Tokens(torch.randn(2, 3, 4), None, 3)
    layout = EncoderLayout(None, (2, 4), tokens, CPU, 1)
    given = torch.tensor([[0, 1, 2, 3]]).expand(2, -1)
    assert layout.positions(given, None).tolist() == [[0, 1, 2, 3, 4, 5, 6]] * 2  # type: ignore[union-attr]


def test_one_layout_serves_repeated_rows() -> None:
    mask = torch.tensor([[False, True, True], [True, True, False]])
    layout = CausalLayout(mask, (2, 3), Tokens(torch.randn(1, 2, 4), None, 2), CPU)
    hidden = torch.randn(2, 5, 4)
    twice = hidden.repeat_interleave(2, 0)
    assert torch.equal(layout.restore(twice), layout.restore(hidden).repeat_interleave(2, 0))
