"""The forms of a table: the same cells as Markdown, LaTeX, HTML and plain text."""

from __future__ import annotations

import html
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from softprompts.storage.tables import escape, markdown_table

DAGGER = "†"


@dataclass(frozen=True)
class Number:
    """One number of a cell, in words.

    Attributes:
        text: as it is shown, or what stands in its place.
        value: to sort by.
        std: standard deviation.
        delta: difference or ratio to the baseline.
        rank: 1 for the best of its column, 2 for the second, else 0.
        published: the published number.
        published_std: and its standard deviation.
        published_ratio: and its ratio to the baseline's.
        dagger: `DAGGER` where the published number is of another setting.
        mark: a sign behind the number.
        scores: those that it is the mean of.
    """

    text: str
    value: float | None = None
    std: str | None = None
    delta: str | None = None
    rank: int = 0
    published: str | None = None
    published_std: str | None = None
    published_ratio: str | None = None
    dagger: str = ""
    mark: str = ""
    scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class GridLine:
    """A line: the headings above it, its name, its texts, and its cells with a number per column that they show."""

    headings: tuple[str, ...]
    name: str
    facts: tuple[str, ...]
    cells: tuple[tuple[Number, ...], ...]
    indented: bool
    baseline: bool


@dataclass(frozen=True)
class Grid:
    """All that the forms of a table need; ``under`` is what stands below the heads of columns, or empty."""

    title: str
    facts: tuple[str, ...]
    columns: tuple[str, ...]
    under: tuple[str, ...]
    lines: tuple[GridLine, ...]
    notes: tuple[str, ...]
    higher_is_better: bool

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads of all columns; that of the names is empty."""
        return ("", *self.facts, *self.columns)

    @property
    def under_heads(self) -> tuple[str, ...]:
        """What stands below each of the heads."""
        return ("",) * (1 + len(self.facts)) + (self.under or ("",) * len(self.columns))

    def joined_heads(self, pattern: str, escape: Callable[[str], str] = str) -> list[str]:
        """The heads with what is below them, by a pattern of the two."""
        pairs = zip(self.heads, self.under_heads, strict=True)
        return [pattern.format(escape(head), escape(under)) if under else escape(head) for head, under in pairs]


@dataclass(frozen=True)
class Form:
    """How one form writes a number.

    Attributes:
        best: pattern of the best number of a column.
        second: pattern of the second.
        std: pattern of a standard deviation.
        delta: pattern of a difference or ratio.
        number: pattern of ``text``, ``mark``, ``std`` and ``delta``.
        published: pattern of a published number and its standard deviation.
        times: sign of a ratio.
        differences: whether differences are written, or ratios alone.
        escape: makes a text one without meaning.
    """

    best: str
    second: str
    std: str
    delta: str
    number: str = "{text}{mark}{std}{delta}"
    published: str = "{}{}"
    times: str = "×"
    differences: bool = True
    escape: Callable[[str], str] = str

    def cell(self, numbers: Sequence[Number]) -> tuple[str, str]:
        """The cell's own numbers, and the published ones in brackets ("" where there are none)."""
        own = "-" if all(one.text == "-" for one in numbers) else "/".join(map(self._number, numbers))
        if all(one.published is None for one in numbers):
            return own, ""
        dagger = next((one.dagger for one in numbers if one.dagger), "")
        ratio = "/".join(one.published_ratio for one in numbers if one.published_ratio)
        end = self.escape(f"{dagger}, {ratio}" if ratio else dagger)
        return own, f"({'/'.join(map(self._published, numbers))}{end})"

    def joined(self, numbers: Sequence[Number]) -> str:
        """A cell with the published numbers behind its own."""
        return " ".join(part for part in self.cell(numbers) if part)

    def _number(self, one: Number) -> str:
        if one.value is None:
            return one.text
        has_delta = one.delta is not None and (self.differences or one.delta.startswith("×"))
        return self.number.format(
            text=("{}", self.best, self.second)[one.rank].format(one.text),
            mark=self.escape(one.mark),
            std="" if one.std is None else self.std.format(one.std),
            delta=self.delta.format(str(one.delta).replace("×", self.times)) if has_delta else "",
        )

    def _published(self, one: Number) -> str:
        if one.published is None:
            return "-"
        return self.published.format(
            one.published, "" if one.published_std is None else self.std.format(one.published_std)
        )


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


_MARKDOWN = Form("**{}**", "<ins>{}</ins>", "<sub>{}</sub>", "<sup>{}</sup>", escape=escape)
_PLAIN = Form("*{}*", "{}", " ±{}", " {}", published="{}", differences=False)
_HTML = Form("<b>{}</b>", "<u>{}</u>", "<sub>{}</sub>", '<sup class="delta">{}</sup>', escape=html.escape)
_LATEX = Form(
    r"\mathbf{{{}}}", r"\underline{{{}}}", "_{{{}}}", "^{{{}}}",
    number="${text}{std}{delta}${mark}", published="${}{}$", times=r"\times", escape=_tex,
)  # fmt: skip


def markdown(grid: Grid) -> str:
    """A table as GitHub shows it, its title above and its notes below."""
    rows = []
    for line in grid.lines:
        rows += [[f"*{escape(heading)}*", *[""] * (len(grid.heads) - 1)] for heading in line.headings]
        rows.append([escape(line.name), *map(escape, line.facts), *map(_MARKDOWN.joined, line.cells)])
    table = markdown_table(grid.joined_heads("{}<br><sub>{}</sub>", escape), rows, "l" * (1 + len(grid.facts)) + "r")
    notes = "".join(f"\n{escape(note)}  " for note in grid.notes).rstrip()
    return f"**{escape(grid.title)}**\n\n{table}\n" + (f"{notes}\n" if notes else "")


def plain_lines(grid: Grid) -> list[list[str]]:
    """The lines as plain text, for a terminal: the best of a column between asterisks, no differences."""
    lines = []
    for line in grid.lines:
        lines += [[heading] for heading in line.headings]
        name = f"  {line.name}" if line.indented else line.name
        lines.append([name, *line.facts, *map(_PLAIN.joined, line.cells)])
    return lines


def latex(grid: Grid) -> str:
    r"""A ``table`` to be used with the package booktabs; text is escaped."""
    width = len(grid.heads)
    kind = "table*" if width > 9 else "table"
    out = [
        r"% needs \usepackage{booktabs}",
        rf"\begin{{{kind}}}[t]",
        r"\centering",
        rf"\caption{{{_tex(grid.title)}}}",
        r"\scriptsize" if width > 9 else r"\small",
        r"\setlength{\tabcolsep}{4pt}",
        rf"\begin{{tabular}}{{l{'l' * len(grid.facts)}{'r' * len(grid.columns)}}}",
        r"\toprule",
        " & ".join(map(_tex, grid.heads)) + r" \\",
        *(
            [" & ".join(rf"\scriptsize {_tex(one)}" if one else "" for one in grid.under_heads) + r" \\"]
            if grid.under
            else []
        ),
        r"\midrule",
    ]
    for index, line in enumerate(grid.lines):
        if line.headings and index:
            out.append(r"\midrule")
        out += [rf"\multicolumn{{{width}}}{{l}}{{\textit{{{_tex(heading)}}}}} \\" for heading in line.headings]
        out.append(" & ".join([_tex(line.name), *map(_tex, line.facts), *map(_LATEX.joined, line.cells)]) + r" \\")
    out += [r"\bottomrule", r"\end{tabular}"]
    if grid.notes:
        notes = r" \\ ".join(map(_tex, grid.notes))
        out.append(rf"\par\smallskip\parbox{{\linewidth}}{{\footnotesize {notes}}}")
    return "\n".join([*out, rf"\end{{{kind}}}"]) + "\n"


def html_form(grid: Grid) -> str:
    """A ``<table>``: numbers to sort by in ``data-value``, a ``<tbody>`` per group, notes in ``<tfoot>``."""
    kinds = ["name", *["fact"] * len(grid.facts), *["number"] * len(grid.columns)]
    groups: list[tuple[tuple[str, ...], list[str]]] = []
    for line in grid.lines:
        if line.headings or not groups:
            groups.append((line.headings, []))
        name = html.escape(line.name)
        cells = [f'<th scope="row" data-value="{name}">{name}</th>', *map(_html_fact, line.facts)]
        kind = ' class="baseline"' if line.baseline else ""
        groups[-1][1].append(f"<tr{kind}>{''.join([*cells, *map(_html_cell, line.cells)])}</tr>")
    kind = f'class="results" data-higher-is-better="{str(grid.higher_is_better).lower()}"'
    heads = grid.joined_heads("{}<small>{}</small>", html.escape)
    return html_table(kind, grid.title, list(zip(heads, kinds, strict=True)), groups, grid.notes)


def html_table(
    attributes: str,
    title: str,
    heads: Sequence[tuple[str, str]],
    groups: Iterable[tuple[Sequence[str], Sequence[str]]],
    notes: Sequence[str] = (),
) -> str:
    """A ``<table>``.

    Args:
        attributes: of the element.
        title: its caption.
        heads: HTML and class of each column.
        groups: of each ``<tbody>``, the headings and the rows as HTML.
        notes: what its ``<tfoot>`` says.
    """
    cells = "".join(f'<th scope="col" class="{kind}">{head}</th>' for head, kind in heads)
    out = [f"<table {attributes}>", f"<caption>{html.escape(title)}</caption>", f"<thead><tr>{cells}</tr></thead>"]
    for headings, rows in groups:
        cell = f'<th colspan="{len(heads)}" scope="rowgroup">'
        shown = [f'<tr class="group">{cell}<span>{html.escape(heading)}</span></th></tr>' for heading in headings]
        out += ["<tbody>", *shown, *rows, "</tbody>"]
    if notes:
        text = "<br>".join(map(html.escape, notes))
        out.append(f'<tfoot><tr><td colspan="{len(heads)}">{text}</td></tr></tfoot>')
    return "\n".join([*out, "</table>"]) + "\n"


def in_full(value: str | float | None) -> str:
    """A value for programs: numbers with ten digits, "" for None."""
    return "" if value is None else value if isinstance(value, str) else f"{value:.10g}"


def _html_fact(fact: str) -> str:
    try:
        value = in_full(float(fact.split(" ")[0].replace(",", "")))
    except ValueError:
        value = fact
    return f'<td class="fact" data-value="{html.escape(value)}">{html.escape(fact)}</td>'


def _html_cell(numbers: Sequence[Number]) -> str:
    values = [one.value for one in numbers if one.value is not None]
    ranks = {one.rank for one in numbers}
    flags = {"failed": any(one.text == "failed" for one in numbers), "best": 1 in ranks, "second": 2 in ranks}
    kinds = " ".join(["number", *(kind for kind, flag in flags.items() if flag)])
    own, published = _HTML.cell(numbers)
    text = f'{own} <span class="published">{published}</span>' if published else own
    scores = "; ".join(", ".join(f"{score:.2f}" for score in one.scores) for one in numbers if len(one.scores) > 1)
    title = f' title="{scores}"' if scores else ""
    return (
        f'<td class="{kinds}" data-value="{in_full(statistics.fmean(values) if values else None)}"{title}>{text}</td>'
    )
