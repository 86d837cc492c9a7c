"""TODO."""

from __future__ import annotations

import html
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

DAGGER = "†"


@dataclass(frozen=True)
class _Part:
    """One number of a cell, in words."""

    text: str
    value: float | None
    std: str | None
    delta: str | None
    rank: int
    published: str | None
    published_std: str | None
    published_ratio: str | None
    dagger: str
    mark: str
    scores: tuple[float, ...]


def _as_printed(value: float, digits: int) -> str:
    """A published number with the decimals it was printed with, and at least ``digits``."""
    return max(f"{value:.{digits}f}", f"{value:.10g}", key=len)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.10g}"


def _join(
    cell: Sequence[_Part], own: Callable[[_Part], str], known: Callable[[_Part], str], plain: Callable[[str], str] = str
) -> str:
    """A cell: its numbers, then the published ones in brackets."""
    text = "/".join(map(own, cell))
    if all(part.text == "-" for part in cell):
        text = "-"
    if any(part.published is not None for part in cell):
        dagger = next((part.dagger for part in cell if part.dagger), "")
        ratio = "/".join(part.published_ratio for part in cell if part.published_ratio)
        text += f" ({'/'.join(map(known, cell))}{plain(dagger)}{plain(f', {ratio}') if ratio else ''})"
    return text


def _md(text: str) -> str:
    """Text without meaning to Markdown."""
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " "))


def _md_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _md_part(part: _Part) -> str:
    text = {1: f"**{part.text}**", 2: f"<ins>{part.text}</ins>"}.get(part.rank, part.text)
    std = f"<sub>{part.std}</sub>" if part.std is not None else ""
    delta = f"<sup>{part.delta}</sup>" if part.delta is not None else ""
    return f"{text}{_md(part.mark)}{std}{delta}"


def _plain_part(part: _Part) -> str:
    text = f"*{part.text}*" if part.rank == 1 else part.text
    std = f" ±{part.std}" if part.std is not None else ""
    ratio = f" {part.delta}" if part.delta is not None and part.delta.startswith("×") else ""
    return f"{text}{part.mark}{std}{ratio}"


def _plain_published(part: _Part) -> str:
    return part.published or "-"


def _marked_published(part: _Part) -> str:
    """The published number as Markdown and HTML both have it."""
    std = f"<sub>{part.published_std}</sub>" if part.published_std is not None else ""
    return f"{part.published or '-'}{std}"


_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    DAGGER: r"\textdagger{}", "×": r"$\times$", "±": r"$\pm$", "≤": r"$\leq$", "≥": r"$\geq$", "−": "$-$",
    "α": r"$\alpha$", "β": r"$\beta$", "λ": r"$\lambda$", "μ": r"$\mu$", "ρ": r"$\rho$", "σ": r"$\sigma$",
    "τ": r"$\tau$", "θ": r"$\theta$", "γ": r"$\gamma$", "δ": r"$\delta$", "\n": " ",
}  # fmt: skip


def _tex(text: str) -> str:
    """Text without meaning to LaTeX."""
    return "".join(_TEX.get(character, character) for character in text)


def _tex_part(part: _Part) -> str:
    if part.value is None:
        return part.text
    text = {1: rf"\mathbf{{{part.text}}}", 2: rf"\underline{{{part.text}}}"}.get(part.rank, part.text)
    std = f"_{{{part.std}}}" if part.std is not None else ""
    delta = f"^{{{part.delta.replace('×', chr(92) + 'times')}}}" if part.delta is not None else ""
    return f"${text}{std}{delta}${_tex(part.mark)}"


def _tex_published(part: _Part) -> str:
    std = f"_{{{part.published_std}}}" if part.published_std is not None else ""
    return f"${part.published}{std}$" if part.published is not None else "-"


def _html_fact(fact: str) -> str:
    number = fact.split(" ")[0].replace(",", "")
    try:
        value = _number(float(number))
    except ValueError:
        value = fact
    return f'<td class="fact" data-value="{html.escape(value)}">{html.escape(fact)}</td>'


def _html_part(part: _Part) -> str:
    text = {1: f"<b>{part.text}</b>", 2: f"<u>{part.text}</u>"}.get(part.rank, part.text)
    std = f"<sub>{part.std}</sub>" if part.std is not None else ""
    delta = f'<sup class="delta">{part.delta}</sup>' if part.delta is not None else ""
    return f"{text}{html.escape(part.mark)}{std}{delta}"


def _html_cell(cell: Sequence[_Part]) -> str:
    values = [part.value for part in cell if part.value is not None]
    value = _number(statistics.fmean(values)) if values else ""
    kinds = ["number"]
    if any(part.text == "failed" for part in cell):
        kinds.append("failed")
    ranks = {part.rank for part in cell}
    kinds += [kind for rank, kind in ((1, "best"), (2, "second")) if rank in ranks]
    own = _join([replace(part, published=None) for part in cell], _html_part, _marked_published)
    text = _join(cell, _html_part, _marked_published)
    known = text[len(own) :].strip()
    if known:
        text = f'{own} <span class="published">{known}</span>'
    scores = "; ".join(", ".join(f"{score:.2f}" for score in part.scores) for part in cell if len(part.scores) > 1)
    title = f' title="{scores}"' if scores else ""
    return f'<td class="{" ".join(kinds)}" data-value="{value}"{title}>{text}</td>'
