"""The colours of all pictures and pages, once: lines and bars of pictures, and variables for style sheets.

What is written or drawn in one of `COLOURS` has a contrast of at least 4.5 with the page, ``paper`` and ``raised``;
those of `SERIES` have one of at least 3.5 with white and with near-black, since a picture is read on both.
"""

from __future__ import annotations

SERIES = ("#2f7ed8", "#d9650b", "#1f9a5f", "#c9509f", "#8a7d1a", "#8f63d2", "#d6404e", "#0f95a0", "#7b8494", "#a5673f")
SHARES = "viridis"  # matplotlib's map for numbers from little to much
SIGNED = "RdBu_r"  # and for numbers around zero
GRID = "#808080"

# On light and on dark pages.
COLOURS = {
    "paper": ("#ffffff", "#15181c"),  # the page
    "ink": ("#1f2328", "#e6e8eb"),  # its text
    "soft": ("#59636e", "#a3acb7"),  # what is said aside
    "raised": ("#f5f6f8", "#1e2228"),  # boxes and lines that stand out
    "rule": ("#d5d9df", "#3a414b"),  # lines between things
    "edge": ("#767f8a", "#7d8793"),  # frames of fields and buttons
    "link": ("#0b5cad", "#7db7f5"),  # links, bars, the main button
    "on-link": ("#ffffff", "#10151a"),  # text on that
    "good": ("#0b5cad", "#7db7f5"),  # right, better: blue and red are told apart by all eyes
    "bad": ("#b3261e", "#f59a93"),  # wrong, worse, failed
}


def css() -> str:
    """`COLOURS` as variables of a style sheet, by the system's scheme or by ``data-theme`` of the root element."""
    lines = [f"  --{name}: light-dark({light}, {dark});" for name, (light, dark) in COLOURS.items()]
    themes = [f':root[data-theme="{theme}"] {{ color-scheme: {theme}; }}' for theme in ("light", "dark")]
    return "\n".join([":root {", "  color-scheme: light dark;", *lines, "}", *themes]) + "\n"
