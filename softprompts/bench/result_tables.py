"""Results of a bench as tables: of scores, of costs, or of one standardized score over all tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from softprompts.bench.column_names import AVERAGE, tasks_of
from softprompts.bench.differences import setting_notes
from softprompts.bench.published import PublishedTable, published
from softprompts.bench.recipe import FACTOR, Column, Recipe, RecipeRow, as_text
from softprompts.bench.results import Findings
from softprompts.bench.significance import standardized
from softprompts.bench.tables import Line, Table, TableEntry, with_average
from softprompts.errors import SoftPromptError

_UNITS = {"seconds_per_100_steps": "s/100 steps", "peak_memory": "GB"}
_SHARE = "% trainable"
_AGREE = "="  # behind a number: all of its seeds have one score
# A line that trains more of the backbone than this stands for fine-tuning, the reference that papers do not rank.
_WHOLE = 0.5


def table_of(findings: Findings) -> Table:
    """The table of a bench of scores; the lines of several models are in groups.

    Raises:
        SoftPromptError: the bench measures costs (see `tables_of`), or names published numbers that do not exist.
    """
    recipe = findings.recipe
    if recipe.measure == "cost":
        raise SoftPromptError(f"bench '{recipe.name}' measures costs, which are two tables: use tables_of")
    reference = _reference(recipe)
    lines: list[Line] = []
    for row, name in recipe.rows_by_model():
        published_row = _published_row(reference, row, name)
        entries = tuple(
            _score_entry(findings, row, column, name, reference).beside(reference, published_row, column.name)
            for column in recipe.columns
        )
        line = _line(findings, row, name, entries, published_row)
        if reference is not None and published_row is not None and _SHARE in reference.facts:
            trained, share = line.facts
            line = replace(line, facts=(trained, f"{share} ({reference.fact(published_row, _SHARE)})"))
        lines.append(line)
    table = Table(
        title=_title(recipe),
        columns=tuple(column.name for column in recipe.columns),
        lines=tuple(lines),
        facts=("trained", _SHARE),
        comparable=recipe.same_setting and not recipe.differences,
        otherwise=_otherwise(recipe, reference),
        deltas="difference",
        under=_scored(findings),
        notes=(
            *_missing(findings),
            *_agreeing(findings),
            *_factors(findings),
            *_scored_elsewhere(findings, reference),
            *setting_notes(recipe),
        ),
    )
    if len(tasks_of(table.columns)) < 2 or AVERAGE in table.columns:
        return table
    heads = {column.task: column.name.partition(":")[0] for column in recipe.columns}
    groups = {name: [heads[task] for task in tasks if task in heads] for name, tasks in recipe.averages.items()}
    return with_average(table, reference, groups)


def tables_of(findings: Findings) -> tuple[Table, ...]:
    """All tables of a bench: one of scores, or one of seconds per 100 steps and one of peak memory.

    Costs have ratios to the baseline row in place of differences, since only these carry over from machine to machine.
    A recipe whose table is "standardized" has one score over all tasks per model, see `softprompts.bench.significance`.
    """
    recipe = findings.recipe
    if recipe.measure == "cost":
        return tuple(_cost_table(findings, what) for what in _UNITS)
    if recipe.table == "standardized":
        return (_standardized_table(findings),)
    return (table_of(findings),)


def _reference(recipe: Recipe) -> PublishedTable | None:
    return None if recipe.published is None else published(recipe.published)


def _published_row(reference: PublishedTable | None, row: RecipeRow, model: str) -> str | None:
    return None if reference is None or row.published is None else reference.row_of(row.published, model)


def _line(
    findings: Findings, row: RecipeRow, model: str, entries: tuple[TableEntry, ...], published_row: str | None
) -> Line:
    facts, ranked = ("-", "-"), True
    results = [run.result for task in findings.recipe.tasks for run in findings.runs(row, task, model)]
    if results:
        counts = sorted({(int(r["trained_parameters"]), int(r["backbone_parameters"])) for r in results})
        ranked = counts[0][0] <= _WHOLE * counts[0][1]
        # What trains copies of the whole backbone stands in its place; all else comes on top of it.
        shares = [100 * count / (count + backbone if ranked else max(count, backbone)) for count, backbone in counts]
        facts = _range([f"{count:,}" for count, _ in counts]), _range([_share(share) for share in shares])
    several = len(findings.recipe.models) > 1
    return Line(row.label, entries, row.group, model if several else None, facts, row.baseline, ranked, published_row)


def _score_entry(
    findings: Findings, row: RecipeRow, column: Column, model: str, reference: PublishedTable | None
) -> TableEntry:
    scores = dict(sorted(findings.scores(row, column, model).items()))
    differs = bool(findings.recipe.differences_of(row, column.task, model))
    agree = findings.seeds_agree(row, column, model)
    return TableEntry(
        tuple(scores.values()),
        tuple(scores),
        wanted=len(findings.recipe.seeds),
        failed=not scores and bool(findings.runs(row, column.task, model)),
        other_setting=differs or bool(_other_rows(findings, row, column.task, model, reference)),
        mark=_AGREE if agree else "",
    )


def _agreeing(findings: Findings) -> Iterator[str]:
    """Says where all seeds have one score, which a mean and its deviation do not show."""
    recipe = findings.recipe
    places = []
    for row, model in recipe.rows_by_model():
        for column in recipe.columns:
            if findings.seeds_agree(row, column, model):
                on = f" on {model}" if len(recipe.models) > 1 else ""
                stuck = all(run.stuck for run in findings.runs(row, column.task, model))
                places.append(f"{row.label}{on}, {column.name}{' (one answer for all rows)' if stuck else ''}")
    if places:
        yield f"{_AGREE} All seeds have the very same score: {'; '.join(places)}."


def _scored(findings: Findings) -> tuple[str, ...]:
    """Of each column its metric, where the head does not say it, and on how many rows it is computed."""
    return tuple(", ".join(_scored_by(findings, column)) for column in findings.recipe.columns)


def _scored_by(findings: Findings, column: Column) -> Iterator[str]:
    if ":" not in column.name:
        yield column.metric.replace("_", " ")
    results = [run.result for run in findings.outcomes if run.task == column.task]
    for kind, key in (("test", "test_rows"), ("validation", "eval_rows")):
        counts = sorted({int(result[key]) for result in results if result.get(key)})
        if counts:
            yield f"{_range([f'{count:,}' for count in counts])} {kind} rows"
            return


def _other_rows(
    findings: Findings, row: RecipeRow, task: str, model: str, reference: PublishedTable | None
) -> str | None:
    """The kind of rows that scores are on ("test" or "validation") where the published ones are on the other."""
    if reference is None or not reference.scored_on:
        return None
    kinds = {"test" if run.result.get("test_rows") else "validation" for run in findings.runs(row, task, model)}
    return next((kind for kind in sorted(kinds) if kind != reference.scored_on), None)


def _scored_elsewhere(findings: Findings, reference: PublishedTable | None) -> Iterator[str]:
    """Says of which tasks our scores are on other rows than the published ones."""
    if reference is None:
        return
    columns = {column.task for column in findings.recipe.columns if column.name in reference.columns}
    found: dict[str, list[str]] = {}
    for task in findings.recipe.tasks:
        kinds = (_other_rows(findings, row, task, name, reference) for row, name in findings.recipe.rows_by_model())
        if task in columns and (kind := next(filter(None, kinds), None)):
            found.setdefault(kind, []).append(task)
    for kind, tasks in found.items():
        yield f"Scores of {', '.join(tasks)} are on {kind} rows here, published on {reference.scored_on} rows."


def _cost_table(findings: Findings, what: str) -> Table:
    recipe = findings.recipe
    reference = _reference(recipe)
    # A paper has a table of each: the recipe names one of them.
    if reference is not None and reference.unit != _UNITS[what]:
        reference = published(reference.companion) if reference.companion is not None else None
    tasks = tuple(dict.fromkeys(column.task for column in recipe.columns))
    lines: list[Line] = []
    for row, name in recipe.rows_by_model():
        published_row = _published_row(reference, row, name)
        entries = []
        for task in tasks:
            cost = findings.cost(row, task, name)
            values = () if cost is None else (cost[0] if what == "seconds_per_100_steps" else cost[1],)
            entries.append(TableEntry(values).beside(reference, published_row, task))
        lines.append(replace(_line(findings, row, name, tuple(entries), published_row), ranked=True))
    otherwise = "" if recipe.same_setting else _otherwise(recipe, reference)
    kind = "seconds per 100 steps" if what == "seconds_per_100_steps" else "peak memory (GB)"
    table = Table(
        title=f"{_title(recipe)}: {kind}",
        columns=tasks,
        lines=tuple(lines),
        facts=("trained", _SHARE),
        higher_is_better=False,
        digits=2,
        comparable=False,  # another machine
        otherwise=f"{otherwise or 'another machine'}; ratios carry over, seconds and bytes do not",
        deltas="ratio",
        notes=(*_missing(findings), *setting_notes(recipe)),
    )
    return with_average(table, reference) if len(tasks) > 1 else table


def _standardized_table(findings: Findings) -> Table:
    """One score over all tasks per row and model; the scale of a task spans the lines of all models."""
    recipe = findings.recipe
    scores = table_of(findings)
    overall = standardized(scores)
    reference = _reference(recipe)
    lines = []
    for row in recipe.rows:
        entries = []
        for name in recipe.models:
            model = name if len(recipe.models) > 1 else None
            score = overall.get((model, row.label))
            entry = TableEntry() if score is None else TableEntry((score.mean,), known_std=score.std)
            parts = [line.entries for line in scores.lines if (line.model, line.name) == (model, row.label)]
            differs = any(one.other_setting for entries in parts for one in entries)
            entry = replace(entry, other_setting=differs)
            entries.append(entry.beside(reference, _published_row(reference, row, name), name))
        ranked = all(line.ranked for line in scores.lines if line.name == row.label)
        lines.append(Line(row.label, tuple(entries), row.group, None, (), row.baseline, ranked))
    return Table(
        title=_title(recipe),
        columns=tuple(recipe.models),
        lines=tuple(lines),
        comparable=recipe.same_setting and not recipe.differences,
        otherwise=_otherwise(recipe, reference),
        notes=(
            "Standardized score: each task's scores, mean over seeds, are put on a scale from 0 (the worst of all "
            "lines and models here) to 100 (the best); mean over tasks, their standard deviation as a subscript.",
            *_missing(findings),
            *setting_notes(recipe),
        ),
    )


def _title(recipe: Recipe) -> str:
    return f"{recipe.title} ({next(iter(recipe.models))})" if len(recipe.models) == 1 else recipe.title


def _otherwise(recipe: Recipe, reference: PublishedTable | None) -> str:
    """How the setting differs from the published one, in words."""
    if reference is None:
        return ""
    if recipe.same_setting:
        return "see the lines below"
    seeds = "1 seed" if len(recipe.seeds) == 1 else f"{len(recipe.seeds)} seeds"
    ours = f"scale '{recipe.scale}', {', '.join(recipe.models)}, {seeds}"
    return f"{reference.setting}; here {ours}"


def _missing(findings: Findings) -> tuple[str, ...]:
    if not findings.missing:
        return ()
    runs = "1 run has" if findings.missing == 1 else f"{findings.missing:,} runs have"
    failed = f", {len(findings.failed)} of them because they failed" if findings.failed else ""
    return (f"Not complete: {runs} no result{failed}.",)


def _factors(findings: Findings) -> Iterator[str]:
    """The factors of the default learning rates that a search has chosen, row by row."""
    recipe = findings.recipe
    for row, name in recipe.rows_by_model() if recipe.search is not None else ():
        runs = [(task, findings.runs(row, task, name)) for task in recipe.tasks]
        chosen = ", ".join(f"{task} {as_text(float(found[0].choice[FACTOR]))}" for task, found in runs if found)
        on = f" on {name}" if len(recipe.models) > 1 else ""
        if chosen:
            yield f"Learning rates of {row.label}{on}, times its defaults: {chosen}."


def _range(texts: Sequence[str]) -> str:
    """The first and the last of sorted texts, such as sizes of prompts that differ between tasks."""
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"


def _share(percent: float) -> str:
    if percent >= 10:
        text = f"{percent:.1f}"
    else:
        text = f"{percent:.4f}" if percent >= 0.001 else f"{percent:.2g}"
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text
