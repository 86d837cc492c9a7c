"""A bench's report: one page of HTML that needs nothing from outside, and its figures as files beside it.

Template, style sheet and script are in ``page/``; Jinja2 escapes all values. A content security policy with the hash of
the script keeps the page from loading anything.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from softprompts.bench.charts import value_text
from softprompts.bench.effects import EffectTable, effects
from softprompts.bench.figures import ReportFigure, figures_of
from softprompts.bench.recipe import PAPER, Recipe
from softprompts.bench.recipe_file import recipe_names
from softprompts.bench.result_tables import tables_of
from softprompts.bench.results import load_findings
from softprompts.bench.significance import Significance, significance
from softprompts.bench.table_forms import DAGGER
from softprompts.bench.tables import Table
from softprompts.bench.vitals import VitalsTable, idle_notes, vitals_tables
from softprompts.errors import SoftPromptError
from softprompts.experiments.compare import score_of
from softprompts.plotting import NO_MATPLOTLIB, css, have_matplotlib, write_files
from softprompts.storage.files import require_folder, write_text_atomic
from softprompts.training import TrainConfig
from softprompts.version import __version__

if TYPE_CHECKING:
    from softprompts.bench.results import Findings, Outcome

REPORT, FIGURES = "report.html", "figures"
_ALWAYS = ("max_steps", "epochs", "batch_size", "optimizer")  # settings of training that a report always has
_MOST_VALUES = 3  # of a setting, that are told one by one
_ROW_COUNTS = ("train_rows", "eval_rows", "test_rows")


@dataclass(frozen=True)
class _Cell:
    """A cell of the list of runs: its text, its value for sorting, and its link."""

    text: str
    value: float | None = None
    link: str | None = None


def write_report(
    findings: Findings,
    folder: str | Path,
    *,
    tables: Sequence[Table] | None = None,
    figures: Sequence[ReportFigure] | None = None,
    compared: Sequence[Significance | EffectTable] | None = None,
) -> list[Path]:
    """Writes ``report.html`` and, of each figure, ``figures/*.svg``, ``*.png`` and ``*.csv``.

    Args:
        findings: results of the bench.
        folder: where the report goes.
        tables: the tables; None: those of `tables_of`.
        figures: the figures; None: those of the recipe.
        compared: differences between the lines of each table; None: `compared_of`.

    Returns:
        What was written, the page first.

    Raises:
        SoftPromptError: the folder is a file, or a prompt that is to be pictured is missing.
    """
    folder = Path(folder)
    require_folder(folder, "the report")
    tables = tables_of(findings) if tables is None else tables
    figures = figures_of(findings) if figures is None else figures
    paths = [write_files(one.figure, folder / FIGURES, one.name, one.csv) for one in figures]
    compared = compared_of(findings, tables) if compared is None else compared
    page = resources.files("softprompts.bench") / "page"
    script = (page / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string((page / "report.html.jinja").read_text(encoding="utf-8")).render(
        version=__version__,
        recipe=findings.recipe,
        kicker=_kicker(findings),
        setting=_setting(findings.recipe),
        state=_state(findings),
        facts=list(_facts(findings)),
        command=_command(findings),
        tables=[_shown(table) for table in tables],
        figures=[_figure(one, files) for one, files in zip(figures, paths, strict=True)],
        no_pictures=None if have_matplotlib() else f"{NO_MATPLOTLIB}.",
        significance=[
            {"title": one.title, "html": Markup(one.html()), "notes": one.notes()}
            for one in compared
            if one.differences
        ],
        vitals=[_vitals(table) for table in vitals_tables(findings)],
        idle=idle_notes(findings),
        notes=list(_notes(findings, tables)),
        runs=[_run(findings, one, folder) for one in findings.outcomes],
        style=Markup(css() + (page / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
    )
    write_text_atomic(folder / REPORT, text)
    return [folder / REPORT, *itertools.chain.from_iterable(paths)]


def compared_of(findings: Findings, tables: Sequence[Table]) -> list[Significance | EffectTable]:
    """The differences between the lines of each table, also by task where there are seeds enough; of costs none."""
    if findings.recipe.measure == "cost":
        return []
    by_task = effects(findings, tables[0]) if findings.recipe.table == "scores" else None
    return [*map(significance, tables), *([] if by_task is None else [by_task])]


def _command(findings: Findings) -> str | None:
    """The command that repeats the bench of a shipped recipe."""
    recipe = findings.recipe
    if recipe.name not in recipe_names() or recipe.variant:
        return None
    return f"softprompts bench run {recipe.name}{f' --scale {recipe.scale}' if recipe.scale else ''}"


def _figure(figure: ReportFigure, files: Sequence[Path]) -> dict[str, Any]:
    """A figure for the page, with links to its files."""
    names = {".svg": "SVG", ".png": "PNG", ".csv": "numbers (CSV)"}
    svg = "".join(path.read_text(encoding="utf-8") for path in files if path.suffix == ".svg")
    return {
        "name": figure.name,
        "title": figure.title,
        "caption": figure.caption,
        "svg": Markup(svg[svg.find("<svg") :]),
        "width": 0 if figure.figure is None else round(96 * figure.figure.get_figwidth()),
        "files": [(names[path.suffix], f"{FIGURES}/{path.name}") for path in files],
    }


def _shown(table: Table) -> dict[str, Any]:
    """A table for the page, its notes apart: they stand below the box in which it scrolls."""
    return {
        "title": table.title,
        "html": Markup(replace(table, notes=(), legend=False).html()),
        "notes": table.all_notes(),
        "texts": [("Markdown", table.markdown()), ("LaTeX", table.latex()), ("CSV", table.csv())],
    }


def _vitals(table: VitalsTable) -> dict[str, Any]:
    """A table of vitals for the page."""
    cells = [
        [_Cell(row), _Cell(name), *(_Cell("-" if v is None else f"{v:.3g}", v) for v in numbers)]
        for row, name, numbers in table.lines
    ]
    return {"title": table.title, "heads": table.heads, "lines": cells}


def _kicker(findings: Findings) -> str:
    recipe = findings.recipe
    scale = f"scale {recipe.scale}" if recipe.scale else ""
    shows = f"{recipe.paper}: {recipe.shows}" if recipe.paper and recipe.shows else recipe.shows or recipe.paper
    return " · ".join(part for part in (f"recipe {recipe.name}", scale, shows) if part)


def _state(findings: Findings) -> dict[str, Any]:
    done, failed = len(findings.outcomes), sorted(findings.failed.items())
    everything = done + findings.missing
    return {
        "done": done,
        "all": everything,
        "failed": failed,
        "waiting": max(0, findings.missing - len(failed)),
        "percent": 100 * done // everything if everything else 0,
    }


def _setting(recipe: Recipe) -> str:
    """What ran at a scale that is not the paper's, whose setting the recipe's own words describe."""
    if not recipe.paper or recipe.scale in ("", PAPER):
        return ""
    counts = ((len(recipe.rows), "row"), (len(recipe.tasks), "task"), (len(recipe.seeds), "seed"))
    what = ", ".join(f"{count:,} {name}{'s' * (count > 1)}" for count, name in counts)
    return f"Here, at scale {recipe.scale}: {what}, on {', '.join(recipe.models)}."


def _facts(findings: Findings) -> Iterable[tuple[str, str]]:
    """Names and values for the head of the page: what ran, at the scale that it ran at."""
    recipe, results = findings.recipe, [one.result for one in findings.outcomes]
    yield "Models", ", ".join(name if name == place else f"{name} ({place})" for name, place in recipe.models.items())
    yield "Tasks", ", ".join(recipe.tasks)
    yield "Rows of the table", f"{len(recipe.rows):,}"
    yield "Seeds", ", ".join(map(str, recipe.seeds))
    cost = recipe.cost
    measured = f"training cost: {cost.steps} steps after {cost.warmup_steps}" if recipe.measure == "cost" else "scores"
    yield "Measures", measured
    cells = recipe.cells()
    plans = [recipe.training_of(cell).to_dict() for cell in cells]
    plans = [plan | {"epochs": None} if plan["max_steps"] else plan for plan in plans]  # epochs are not used then
    training = list(_settings(plans, _ALWAYS, TrainConfig().to_dict()))
    yield "Training", ", ".join([*training, f"inputs of {_either(recipe.length_of(cell) for cell in cells)} tokens"])
    if data := list(_settings([recipe.layers(cell, "data")[1] for cell in cells])):
        yield "Data", ", ".join(data)
    if rows := list(_row_counts(findings)):
        yield "Rows to train on, validate on, test on", "; ".join(rows)
    versions: dict[str, dict[str, None]] = {}
    for result in results:
        for name, number in result.get("versions", {}).items():
            versions.setdefault(name, {})[number] = None
    if versions:
        yield "Versions", ", ".join(f"{name} {' and '.join(numbers)}" for name, numbers in versions.items())
    devices = list(dict.fromkeys(str(result["device"]) for result in results if result.get("device")))
    if devices:
        yield "Device", ", ".join(devices)


def _settings(
    plans: Sequence[Mapping[str, Any]], always: Sequence[str] = (), usual: Mapping[str, Any] | None = None
) -> Iterable[str]:
    """Settings of runs in words: those that are not the usual ones, and some always; several values are told apart."""
    for name in dict.fromkeys(name for plan in plans for name in plan if name != "seed"):
        values = [plan.get(name) for plan in plans]
        if name in always or any(value != (usual or {}).get(name) for value in values):
            words = _either(value for value in values if value is not None or name not in always)
            if words:
                yield f"{name.replace('_', ' ')} {words}"


def _either(values: Iterable[Any]) -> str:
    """Different values as "a or b"; of many how many there are."""
    words = list(dict.fromkeys(_value(value) or "default" for value in values))
    return " or ".join(words) if len(words) <= _MOST_VALUES else f"by row ({len(words)} values)"


def _row_counts(findings: Findings) -> Iterable[str]:
    """Of each task, how many rows its runs had; where runs differ, the least and the greatest number."""
    for task in findings.recipe.tasks:
        results = [one.result for one in findings.outcomes if one.task == task]
        counts = [sorted({int(result.get(key) or 0) for result in results}) for key in _ROW_COUNTS]
        if results and any(map(any, counts)):
            told = (f"{of[0]:,}" if of[0] == of[-1] else f"{of[0]:,} to {of[-1]:,}" for of in counts)
            yield f"{task} {', '.join(told)}"


def _notes(findings: Findings, tables: Sequence[Table]) -> Iterable[str]:
    """How numbers were measured, and which of them can be compared."""
    recipe, results = findings.recipe, [one.result for one in findings.outcomes]
    if recipe.measure == "cost":
        yield (
            f"Costs are of {recipe.cost.steps} steps after {recipe.cost.warmup_steps} that are not counted, one "
            "run at a time. They are this machine's; only ratios carry over to another."
        )
    else:
        rows = [bool(result.get("test_rows")) for result in results]
        if rows and all(rows):
            kept = "that did best on validation rows" if recipe.evaluate else "of the last step"
            yield f"Scores are on test rows, with the prompt {kept}."
        elif rows:
            which = "Where a task has no test rows, scores" if any(rows) else "Scores"
            yield (
                f"{which} are the best of all evaluations on validation rows: chosen by what they are read from, so "
                "they lean to the high side."
            )
        if recipe.search is not None:
            seeds = ", ".join(map(str, recipe.search.seeds))
            yield (
                f"Learning rates are searched for each row, task and model: {len(findings.searched):,} runs with the "
                f"seeds {seeds}, scored on validation rows; they are not in the tables."
            )
        if any(row.choose for row in recipe.rows):
            yield "Where a row chooses among settings, the best by mean validation score is taken, per task and model."
        diverged = sum(one.diverged for one in findings.outcomes)
        if diverged:
            yield f"{diverged:,} runs diverged (a loss that is no number); they have no score."
        lanes = max((int(result.get("lanes", 1)) for result in results), default=1)
        if lanes > 1:
            yield f"Up to {lanes} runs shared each pass: times are even shares, memory is that of the whole process."
    if any(DAGGER in note for table in tables for note in table.all_notes()):
        yield (
            f"Published numbers with {DAGGER} are from another setting than this one (model, rows, budget or scale) "
            "and are shown for orientation: no difference to them says that one method is better than another."
        )
    elif recipe.published is not None:
        yield "Published numbers are of the same setting: same model, protocol and budget, nothing overridden."
    else:
        yield "No published numbers belong to this recipe."


def _run(findings: Findings, one: Outcome, folder: Path) -> dict[str, _Cell]:
    """The cells of a run by the heads of their columns."""
    recipe, result = findings.recipe, one.result
    cells = {"row": _Cell(one.row.label), "task": _Cell(one.task)}
    if len(recipe.models) > 1:
        cells["model"] = _Cell(one.model)
    cells["seed"] = _Cell(str(one.seed), one.seed)
    if recipe.search is not None or any(row.choose for row in recipe.rows):
        cells["choice"] = _Cell(", ".join(f"{name} {_value(value)}" for name, value in one.choice.items()))
    if recipe.measure == "cost":
        cost = result["cost"]
        cells["s/100 steps"] = _number(cost["seconds_per_100_steps"], 2)
        cells["peak GB"] = _number(cost["peak_memory"] / 1e9, 2)
    else:
        metric = next((column.metric for column in recipe.columns if column.task == one.task), "")
        score, validation = score_of(dict(result), metric), result.get("metrics", {}).get(metric)
        cells["metric"] = _Cell(metric)
        cells["score"] = _number(None if score is None else 100 * score, 1)
        cells["validation"] = _number(None if validation is None else 100 * validation, 1)
    try:
        link = quote(Path(os.path.relpath(one.folder, folder)).as_posix())
    except ValueError:  # another drive
        link = one.folder.resolve().as_uri()
    if any(run.result.get("idle") for run in findings.outcomes):
        cells["idle"] = _Cell("; ".join(result.get("idle", [])))
    cells["steps"], cells["stopped by"] = _number(result.get("steps"), 0), _Cell(str(result.get("stop_reason", "")))
    return cells | {"seconds": _number(result.get("seconds"), 0), "folder": _Cell(one.folder.name, link=link)}


def _number(value: float | None, digits: int) -> _Cell:
    return _Cell("-") if value is None else _Cell(f"{value:,.{digits}f}", float(value))


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {_value(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    return value_text(value)


def write_outputs(folder: str | Path, root: str | Path) -> tuple[list[Table], list[Path]]:
    """Writes tables (Markdown, CSV, LaTeX, HTML) and report of the results that a bench has so far.

    Args:
        folder: the bench's folder.
        root: where run folders live.

    Returns:
        The tables, and all files that were written.

    Raises:
        SoftPromptError: there is no bench, or no run of it has ended.
    """
    folder = Path(folder)
    require_folder(folder, "the report")
    findings = load_findings(folder, root)
    if not findings.outcomes:
        raise SoftPromptError(f"{folder}: no run of this bench has ended yet, so there is nothing to show")
    tables = tables_of(findings)
    compared = compared_of(findings, tables)
    forms = {
        "md": "\n\n".join([*(table.markdown() for table in tables), *(one.markdown() for one in compared)]),
        "tex": "\n\n".join(table.latex() for table in tables),
        "html": "\n".join(table.html() for table in tables),
    }
    texts = {f"tables.{ending}": text for ending, text in forms.items()}
    for number, table in enumerate(tables, start=1):
        texts["tables.csv" if number == 1 else f"tables-{number}.csv"] = table.csv()
    for one in compared:
        if isinstance(one, EffectTable):
            texts["effects.csv"] = one.csv()
    for name, text in texts.items():
        write_text_atomic(folder / name, text)
    files = [folder / name for name in texts]
    return list(tables), [*files, *write_report(findings, folder, tables=tables, compared=compared)]
