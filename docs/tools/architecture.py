"""Draws docs/architecture.svg: the rooms of the package floor by floor, and which room imports which.

    python docs/tools/architecture.py

Floors are those of the contract in pyproject.toml, arrows are read from the imports. What the ground floor offers to
all is drawn without arrows.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import grimp

from softprompts.plotting import COLOURS

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs" / "architecture.svg"
PACKAGE = "softprompts"
WIDTH, FLOOR, BOX, LEFT = 1080, 96, 40, 36
STYLE = """
  text { font: 14px system-ui, sans-serif; text-anchor: middle; fill: %(ink)s }
  .box { fill: %(raised)s; stroke: %(link)s; rx: 6 }
  .ground { stroke: %(edge)s }
  .arrow { stroke: %(link)s; stroke-opacity: .45; fill: none; marker-end: url(#head) }
  #head path { fill: %(link)s; fill-opacity: .6 }
  .number { fill: %(soft)s; font-size: 12px }
"""


def style() -> str:
    """The style sheet, in the colours of light and of dark pages."""
    light, dark = ({name: pair[scheme] for name, pair in COLOURS.items()} for scheme in (0, 1))
    return f"{STYLE % light}  @media (prefers-color-scheme: dark) {{{STYLE % dark}}}\n"


def floors() -> list[list[str]]:
    """The rooms of each floor, from the ground."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = next(contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers")
    return [[room.strip() for room in re.split(r"[|:]", layer)] for layer in reversed(layers)]


def edges() -> set[tuple[str, str]]:
    """Which room imports which, type-checking imports and those inside functions included."""
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    found = set()
    for module in graph.modules - {PACKAGE}:
        for imported in graph.find_modules_directly_imported_by(module) - {PACKAGE}:
            pair = module.split(".")[1], imported.split(".")[1]
            if pair[0] != pair[1]:
                found.add(pair)
    return found


def draw() -> str:
    """The picture as SVG."""
    rooms = floors()
    height = FLOOR * len(rooms)
    boxes: dict[str, tuple[float, float, float]] = {}  # left, top, width
    for number, names in enumerate(rooms):
        widths = [24 + 9 * len(name) for name in names]
        gap = (WIDTH - LEFT - sum(widths)) / (len(names) + 1)
        left = LEFT + gap
        for name, width in zip(names, widths, strict=True):
            boxes[name] = (left, height - FLOOR * (number + 1) + (FLOOR - BOX) / 2, width)
            left += width + gap
    lines = []
    for source, target in sorted(edges()):
        if target in rooms[0] or source not in boxes or target not in boxes:
            continue
        (x1, y1, w1), (x2, y2, w2) = boxes[source], boxes[target]
        start, end = (x1 + w1 / 2, y1 + BOX), (x2 + w2 / 2, y2)
        if y1 == y2:  # on one floor: from side to side
            right = x2 > x1
            start, end = (x1 + w1 * right, y1 + BOX / 2), (x2 + w2 * (not right), y2 + BOX / 2)
        bend = (end[1] - start[1]) / 2
        lines.append(
            f'<path class="arrow" d="M{start[0]:.0f} {start[1]:.0f} C{start[0]:.0f} {start[1] + bend:.0f} '
            f'{end[0]:.0f} {end[1] - bend:.0f} {end[0]:.0f} {end[1] - 3 * (y1 != y2):.0f}"/>'
        )
    for number, names in enumerate(rooms):
        middle = height - FLOOR * (number + 1) + FLOOR / 2 + 5
        lines.append(f'<text class="number" x="18" y="{middle:.0f}">{number + 1}</text>')
        for name in names:
            left, top, width = boxes[name]
            kind = "box" if number else "box ground"
            lines.append(f'<rect class="{kind}" x="{left:.0f}" y="{top:.0f}" width="{width}" height="{BOX}"/>')
            lines.append(f'<text x="{left + width / 2:.0f}" y="{middle:.0f}">{name}</text>')
    marker = '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
            'aria-label="Rooms of the package by floor, with arrows to the rooms that they import">',
            f"<style>{style()}</style>",
            f'<defs>{marker}<path d="M0 0 L8 4 L0 8 z"/></marker></defs>',
            *lines,
            "</svg>",
            "",
        ]
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
    print(f"wrote {PICTURE.relative_to(ROOT)}")
