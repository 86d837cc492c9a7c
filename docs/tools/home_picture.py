"""Draws docs/accuracy.svg, the picture of the home page, from the table of docs/comparison.md.

python docs/tools/home_picture.py
"""

from __future__ import annotations

import re
from pathlib import Path

from softprompts.plotting import Point, draw_points, new_figure, place_labels, style_of, svg
from softprompts.storage.files import write_text_atomic

DOCS = Path(__file__).parents[1]
PICTURE = DOCS / "accuracy.svg"
_ROW = re.compile(r"^\| (\S+) \| ([\d.]+) ± ([\d.]+) \| ([\d,]+) \|", re.MULTILINE)
_GROUPS = (  # in the order of their colours
    ("full", "head-only"),
    ("lora", "adapter", "adapterdrop", "adamix", "bitfit"),
    ("prefix-tuning", "multi-mask", "selective-prefix", "adaptive-prefix"),
    ("prompt-tuning", "p-tuning", "residual", "mpt", "spot", "superpos", "smop", "attempt", "dept", "ept", "dpt"),
)


def measured() -> dict[str, tuple[float, float, int]]:
    """Accuracy, its standard deviation over seeds, and trained numbers, by method; combinations are left out."""
    rows = _ROW.findall((DOCS / "comparison.md").read_text(encoding="utf-8"))
    return {
        name: (float(mean), float(std), int(size.replace(",", ""))) for name, mean, std, size in rows if "+" not in name
    }


def draw() -> str:
    """The picture as SVG."""
    figure, (axes,) = new_figure(8.6, 4.6)
    points, reach = [], []
    for name, (mean, std, size) in measured().items():
        group = next(number for number, names in enumerate(_GROUPS) if name in names)
        points.append(Point(size, (mean,), name, group))
        reach.append(Point(size, (mean - std, mean + std), name, group))  # names keep clear of the bars
        axes.errorbar(size, mean, yerr=std, color=style_of(group)["color"], capsize=3, linewidth=1, alpha=0.6)
    draw_points(axes, points, label=False)
    axes.set_ylabel("accuracy in %")
    axes.set_xlabel("trained numbers, on a logarithmic axis")
    axes.set_ylim(51, 88)
    place_labels(axes, reach)
    return svg(figure, "accuracy")


if __name__ == "__main__":
    write_text_atomic(PICTURE, draw())
    print(f"wrote {PICTURE.name}")
