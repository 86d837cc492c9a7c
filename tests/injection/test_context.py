"""What prompts may see of the input, and where it is in a step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from softprompts.injection.context import view_of_decoder, view_of_input, without_padding
from softprompts.injection.layout import CausalLayout, Tokens

CPU = torch.device("cpu")


def backbone(kind: str, pad_id: int | None) -> Any:
    text = SimpleNamespace(pad_token_id=pad_id)
    return SimpleNamespace(kind=kind, model=SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: text)))


def test_padding_at_the_end_of_rows_without_a_mask_is_not_seen() -> None:
    # All rows end with a 9: it is a token then. The first token of a row is one whatever it is.
    ids = torch.tensor([[5, 9, 6, 7, 9], [5, 6, 9, 0, 9], [9, 9, 9, 9, 9]])
    with pytest.warns(UserWarning, match="^dict got rows that end with padding or a token 0, and no attention_mask"):
        visible = without_padding(ids, backbone("decoder", 9), dict)
    assert visible.long().tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 1], [1, 0, 0, 0, 1]]


@pytest.mark.parametrize(("kind", "rows"), [("encoder", 2), ("decoder", 1)])
def test_encoders_and_single_rows_show_all(kind: str, rows: int) -> None:
    ids = torch.tensor([[5, 6, 0, 0], [5, 6, 7, 8]])[:rows]
    assert without_padding(ids, backbone(kind, 0), dict).all()


def test_embeddings_show_all() -> None:
    assert without_padding(torch.zeros(2, 3, 4), backbone("decoder", 0), dict).tolist() == [[True] * 3] * 2


def test_the_input_is_where_the_layout_puts_it() -> None:
    visible = torch.tensor([[False, True, True], [True, True, True]])
    layout = CausalLayout(visible, (2, 3), Tokens(torch.zeros(1, 2, 4), None, 2), CPU)
    assert view_of_input(visible, layout, 3, 0).long().tolist() == [[0, 0, 0, 1, 1], [0, 0, 1, 1, 1]]
    assert view_of_input(visible, layout, 1, 5).long().tolist() == [[1], [1]]
    longer = CausalLayout(None, (2, 4), Tokens(torch.zeros(1, 2, 4), None, 2), CPU)  # a token was generated
    assert view_of_input(visible, longer, 4, 0).long().tolist() == [[0, 0, 0, 1, 1, 0], [0, 0, 1, 1, 1, 0]]


def test_a_decoder_shows_the_first_token_of_each_row() -> None:
    ids, mask = torch.ones(2, 3, dtype=torch.long), torch.tensor([[0, 1, 1], [1, 1, 1]])
    assert view_of_decoder({"input_ids": ids, "attention_mask": mask}).long().tolist() == [[0, 1, 0], [1, 0, 0]]
    assert view_of_decoder({"inputs_embeds": torch.zeros(2, 3, 4)}).long().tolist() == [[1, 0, 0]] * 2
