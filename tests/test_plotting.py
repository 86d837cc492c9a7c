"""The style of pictures, and what becomes of them as files."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from browsing import Page

from softprompts.plotting import (
    ON_COLOUR,
    SERIES,
    Point,
    draw_points,
    legend_below,
    new_figure,
    place_labels,
    plain,
    png,
    short,
    style_of,
    svg,
)

pytest.importorskip("matplotlib")
from matplotlib.image import imread

# Twelve methods in a crowd, and one far away.
CROWD = [Point(20_000 + 900 * i, (70 + 0.3 * i, 70.8 + 0.3 * i), f"method-{i}", i) for i in range(12)]
POINTS = [*CROWD, Point(22_000_000, (90.0,), "full", 12)]


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("page", ["#ffffff", "#15181c"])
def test_colours_stand_out_on_light_and_dark_pages(page: str) -> None:
    assert min(contrast(colour, page) for colour in SERIES) >= 3.5


def test_forty_styles_differ() -> None:
    assert len({tuple(style_of(index).values()) for index in range(40)}) == 40


def test_numbers_and_words_of_an_axis() -> None:
    assert [short(v) for v in (0.5, 12, 12_500, 22_713_216, 3e9)] == ["0.5", "12", "12.5k", "22.71M", "3G"]
    assert plain("a $x$\n_b") == r"a \$x\$ _b" and plain("_hidden") == " _hidden"


def test_names_lie_on_no_other_name_and_on_no_point() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure, (axes,) = new_figure(8, 5)
    draw_points(axes, POINTS, label=False)
    axes.set_xlim(1_000, 200_000_000)
    notes = place_labels(axes, POINTS)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    boxes = [note.get_window_extent(renderer) for note in notes]
    assert [note.get_text() for note in notes] == [point.label for point in POINTS]
    assert not [(i, j) for (i, a), (j, b) in combinations(enumerate(boxes), 2) if a.overlaps(b)]
    frame = axes.get_window_extent(renderer)
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 for box in boxes)
    for point in POINTS:
        x, y = axes.transData.transform((point.x, point.mean))
        assert not any(box.contains(x, y) for box in boxes)


def drawn(title: str = "a < b & $c$") -> object:
    figure, (axes,) = new_figure(6, 4)
    axes.set_title(plain(title))
    (line,) = axes.plot([1, 2], [3, 4], color=SERIES[0])
    legend_below(figure, [line], ["_one & two"], 6)
    return figure


def test_svg_is_the_same_each_time_and_has_ids_of_its_own() -> None:
    text = svg(drawn(), "first figure")  # type: ignore[arg-type]
    assert text == svg(drawn(), "first figure")  # type: ignore[arg-type]
    root = ElementTree.fromstring(text.encode())
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "a < b & $c$" in texts and " _one & two" in texts
    assert "#ffffff" not in text
    assert not re.search(r"20\d\d-\d\d-\d\d", text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(set(ids)) == len(ids) and all(name.startswith("first-figure-") for name in ids)
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) <= set(ids)


# The colours of all that is drawn with black.
INK = """() => [...document.querySelectorAll("text, use, path")].flatMap((part) => {
  const style = getComputedStyle(part), said = part.getAttribute("style") || "";
  const text = part.tagName === "text" && !said.includes("fill");
  const stroke = said.includes("stroke: #000000") || said.includes("stroke: #010101");
  return [...(text || said.includes("fill: #010101") ? [style.fill] : []), ...(stroke ? [style.stroke] : [])];
})"""


@pytest.mark.parametrize(("scheme", "ink"), [("light", "rgb(31, 35, 40)"), ("dark", "rgb(230, 232, 235)")])
def test_ink_follows_the_page_and_text_on_a_heat_map_does_not(
    browser: Any, tmp_path: Path, scheme: str, ink: str
) -> None:
    (tmp_path / "a.svg").write_text(svg(drawn(), "a"))  # type: ignore[arg-type]
    with Page(browser, tmp_path / "a.svg", scheme=scheme) as opened:
        colours = opened.page.evaluate(INK)
        assert len(colours) > 20 and set(colours) == {ink} and opened.asked == [(tmp_path / "a.svg").as_uri()]
        if scheme == "dark":  # nothing that is drawn is darker than the page, ticks included
            opened.page.evaluate("document.documentElement.style.background = 'rgb(21, 24, 28)'")
            pixels = imread(io.BytesIO(opened.page.screenshot()))[:, :, :3]
            assert pixels.max() > 0.8 and pixels.max(2).min() > 0.1
    figure, (axes,) = new_figure(6, 4)
    axes.imshow([[0.0, 1.0]])
    axes.text(0, 0, "on a cell", color=ON_COLOUR)
    (tmp_path / "b.svg").write_text(svg(figure, "b"))
    with Page(browser, tmp_path / "b.svg", scheme=scheme) as opened:
        assert set(opened.page.evaluate(INK)) == {ink, "rgb(1, 1, 1)"}


def test_two_figures_of_a_page_share_no_id() -> None:
    first, second = (svg(drawn(), name) for name in ("a", "b"))  # type: ignore[arg-type]
    assert not set(re.findall(r'\bid="([^"]+)"', first)) & set(re.findall(r'\bid="([^"]+)"', second))


def test_png_is_white_and_the_same_each_time() -> None:
    content = png(drawn())  # type: ignore[arg-type]
    assert content.startswith(b"\x89PNG") and content == png(drawn())  # type: ignore[arg-type]
