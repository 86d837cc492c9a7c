"""What all heat maps share."""

from __future__ import annotations

import numpy as np
import pytest

from softprompts.analysis.drawing import colour_bar, colours_of, heat_map, on_colour
from softprompts.plotting import ON_COLOUR, SHARES, SIGNED, empty_figure


def test_a_scale_is_fixed_unless_all_would_be_one_colour() -> None:
    wide, narrow = np.array([[0.1, 0.9]]), np.array([[0.245, 0.255]])
    assert colours_of(0, 1, wide) == {"low": 0, "high": 1, "colours": SHARES}
    assert colours_of(0, 1, narrow) == {"low": 0.245, "high": 0.255, "colours": SHARES}
    assert colours_of(0, 1, narrow, wide) == {"low": 0, "high": 1, "colours": SHARES}  # panels have one scale
    assert colours_of(-1, 1, wide) == {"low": -1, "high": 1, "colours": SIGNED}
    # Around zero there are two colours for more and less; they would say nothing of values that are all alike.
    assert colours_of(-1, 1, 1 - narrow) == {"low": 0.745, "high": 0.755, "colours": SHARES}
    same = np.full((2, 2), 0.25)
    assert colours_of(0, 1, same) == {"low": 0, "high": 1, "colours": SHARES}  # one colour is the truth


def test_text_on_a_cell_can_be_read_on_any_scale() -> None:
    pytest.importorskip("matplotlib")
    figure = empty_figure(3, 2)
    axes = figure.subplots()
    values = np.array([[0.245, 0.255]])
    image = heat_map(axes, values, numbers=".3f", **colours_of(0, 1, values))
    colour_bar(figure, image, axes)
    assert [text.get_color() for text in axes.texts] == ["white", ON_COLOUR]  # dark to bright, though both are 1/4
    assert on_colour(image, 0.245) == "white"
