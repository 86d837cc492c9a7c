"""Writes docs/study: a page for each claim and a first page with all verdicts, from the results that are committed.

    python docs/tools/study_pages.py

Results come there by `softprompts bench collect study/c1`; docs/study/surprises.yaml is written by hand and taken in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from softprompts.bench.charts import Estimate, forest_of
from softprompts.bench.effects import EffectTable
from softprompts.bench.recipe import FACTOR, Recipe, RecipeRow, as_text
from softprompts.bench.recipe_file import load_recipe, recipe_names
from softprompts.bench.result_tables import table_of
from softprompts.bench.results import Findings, kept_findings
from softprompts.bench.significance import Difference
from softprompts.bench.verdicts import FAILS, HOLDS, MISSING, OPEN, Statement, claim_verdict, margin_of, statements
from softprompts.bench.vitals import idle_notes, vitals_tables
from softprompts.errors import SoftPromptError
from softprompts.plotting import have_matplotlib, svg
from softprompts.storage.files import write_text_atomic
from softprompts.storage.tables import escape, markdown_table

FOLDER = Path(__file__).parents[1] / "study"
SURPRISES = "surprises.yaml"
COMMAND = "python docs/tools/study_pages.py"
_MEAN = "mean over tasks"
_WORDS = {"True": "on", "False": "off", "None": "none"}
_HEADS = (_MEAN, "95 % interval", "seeds")


@dataclass(frozen=True)
class Claim:
    """A recipe with ``claims``, its kept results, and what they say."""

    name: str
    findings: Findings
    statements: Sequence[Statement]
    effects: EffectTable | None
    surprises: Sequence[str]

    @property
    def recipe(self) -> Recipe:
        """The recipe."""
        return self.findings.recipe

    @property
    def title(self) -> str:
        """What the claim is about."""
        title = self.recipe.title.removeprefix("Study, ")
        return title[0].upper() + title[1:]

    @property
    def verdict(self) -> str:
        """Over all its statements."""
        return claim_verdict(self.statements)

    @property
    def done(self) -> int:
        """Number of runs that have a result."""
        return len(self.findings.outcomes) + len(self.findings.searched)

    @property
    def runs(self) -> str:
        """How many runs there are."""
        planned = self.done + self.findings.missing
        if not self.findings.missing:
            return f"All {planned:,} planned runs are done."
        return f"{self.done:,} of {planned:,} planned runs are done; a search or an open effect may ask for more."


def read_claim(source: str | Path, surprises: Sequence[str] = ()) -> Claim:
    """A claim by its recipe and the results that this keeps."""
    findings = kept_findings(load_recipe(source))
    judged, made = statements(findings)
    shown = None if made is None or not made.differences else replace(made, digits=2)
    return Claim(findings.recipe.name.rpartition("/")[2], findings, judged, shown, surprises)


def claim_page(claim: Claim) -> str:
    """The page of a claim, without the files of its figure."""
    recipe, effects = claim.recipe, claim.effects
    parts = [
        f"# {claim.title}",
        f"{recipe.about} [All claims](index.md); how a verdict is made is told under "
        f"[verdicts](../benchmarks.md#verdicts). Made by `{COMMAND}` from committed results.",
        f"**Verdict: {claim.verdict}.** {claim.runs}",
        _statements(claim.statements),
        _choice(claim),
    ]
    if _forest(claim):
        parts.append(_picture(claim.name, "Effect and 95 % interval of each statement, task by task"))
    parts += ["## Arms and protocol", _protocol(recipe), _arms(claim.findings)]
    if claim.findings.outcomes and recipe.search is not None:
        parts += [_rates(claim.findings)]
    if effects is not None:
        parts += ["## Effects", effects.markdown().rstrip()]
    if claim.findings.outcomes:
        parts += ["## Scores", _scores(claim.findings)]
        parts += ["## Vitals", *_vitals(claim.findings)]
    parts += ["## Surprises", "\n".join(f"- {one}" for one in claim.surprises) or "None noted."]
    return "\n\n".join(parts) + "\n"


def first_page(claims: Sequence[Claim]) -> str:
    """The page of all verdicts."""
    done = len({one.folder for claim in claims for one in (*claim.findings.outcomes, *claim.findings.searched)})
    rows = []
    for claim in claims:
        rows.append([f"[**{escape(claim.title)}**]({claim.name}.md)", f"**{claim.verdict}**", "", "", "", ""])
        for one in claim.statements:
            counts = [f"{len(one.where(verdict))}" for verdict in (HOLDS, FAILS, OPEN, MISSING)]
            rows.append([_says(one), one.verdict, *_mean(one.mean), "/".join(counts)])
    parts = [
        "# What the papers' ideas are worth",
        "Claims of the four papers, decided at the scale of the packaged 22M-parameter encoder: every arm has its own "
        f"searched rate, and is scored on rows where nothing was chosen. {done:,} runs are done. Made by `{COMMAND}` "
        "from committed results; a verdict is made by [one rule](../benchmarks.md#verdicts).",
        _filled(("claim", "verdict", *_HEADS, "tasks"), rows, "llrrrr"),
        f"Mean over tasks: in points, over the tasks that have all seeds. Tasks: on how many it {HOLDS}/{FAILS}/is "
        f"{OPEN}/is {MISSING} told.",
    ]
    if _overview(claims):
        parts.append(_picture("index", "Mean over tasks and 95 % interval of each statement"))
    noted = [f"- [{claim.title}]({claim.name}.md): {one}" for claim in claims for one in claim.surprises]
    parts += ["## Surprises", "\n".join(noted) or "None noted."]
    return "\n\n".join(parts) + "\n"


def write_pages(sources: Iterable[str | Path], folder: Path, surprises: Mapping[str, Sequence[str]]) -> list[Path]:
    """Writes the pages of some recipes, and figures where matplotlib is there; returns the files."""
    claims = [read_claim(source) for source in sources]
    if foreign := surprises.keys() - {claim.name for claim in claims}:
        raise SoftPromptError(f"{SURPRISES}: there is no claim '{min(foreign)}'")
    claims = [replace(claim, surprises=surprises.get(claim.name) or ()) for claim in claims]
    texts = {f"{claim.name}.md": claim_page(claim) for claim in claims} | {"index.md": first_page(claims)}
    if have_matplotlib():
        for name, groups, margin in (
            *((claim.name, _forest(claim), margin_of(claim.recipe)) for claim in claims),
            ("index", _overview(claims), max(margin_of(claim.recipe) for claim in claims)),
        ):
            (folder / f"{name}.svg").unlink(missing_ok=True)
            if groups:
                texts[f"{name}.svg"] = svg(forest_of(groups, "effect (points)", margin, _MEAN), f"study-{name}")
    for name, text in texts.items():
        write_text_atomic(folder / name, text)
    return [folder / name for name in texts]


def _says(one: Statement) -> str:
    return escape(one.says + (f", {one.model}" if one.model else ""))


def _mean(d: Difference | None) -> tuple[str, str, str]:
    """Mean, interval and number of seeds as text."""
    if d is None or d.mean is None or d.low is None or d.high is None:
        return "-", "-", "-"
    return f"{d.mean:+.2f}", f"{d.low:+.2f} to {d.high:+.2f}", str(d.pairs)


def _statements(judged: Sequence[Statement]) -> str:
    rows = []
    for one in judged:
        places = [escape(_tasks(one, verdict)) for verdict in (HOLDS, FAILS, OPEN, MISSING)]
        rows.append([_says(one), f"**{one.verdict}**", *_mean(one.mean), *places])
    heads = ("statement", "verdict", *_HEADS, "holds on", "does not hold on", "not decided on", "not yet")
    return _filled(heads, rows, "llrrrl")


def _filled(heads: Sequence[str], rows: Sequence[Sequence[str]], sides: str) -> str:
    """A table without the columns in which nothing stands."""
    kept = [place for place in range(len(heads)) if any(row[place] not in ("", "-") for row in rows)]
    lines = [[row[place] for place in kept] for row in rows]
    return markdown_table([heads[i] for i in kept], lines, "".join(sides.ljust(len(heads), sides[-1])[i] for i in kept))


def _tasks(one: Statement, verdict: str) -> str:
    """The tasks of a verdict, those of the same reason together."""
    reasons: dict[str, list[str]] = {}
    for told in one.where(verdict):
        seeds = (
            "" if told.seeds is None else f"; {f'about {told.seeds:,}' if told.seeds <= 1000 else 'over 1,000'} needed"
        )
        reasons.setdefault("" if verdict == HOLDS else f" ({told.why}{seeds})", []).append(told.task)
    names = {why: "all tasks" if len(found) == len(one.tasks) else ", ".join(found) for why, found in reasons.items()}
    return "; ".join(f"{found}{why}" for why, found in names.items()) or "-"


def _choice(claim: Claim) -> str:
    """What the verdicts say to somebody who chooses a method."""
    if all(one.verdict == MISSING for one in claim.statements):
        return "For a choice: nothing is told yet."
    said = []
    words = {HOLDS: "Better", FAILS: "Not better", OPEN: "Open", MISSING: "Not told yet"}
    for verdict, word in words.items():
        found = []
        for one in claim.statements:
            if one.verdict == verdict:
                mean = _mean(one.mean)[0]
                points = f" ({mean} points on average)" if verdict in (HOLDS, FAILS) and mean != "-" else ""
                found.append(f"{one.better} than {one.than}{f' on {one.model}' if one.model else ''}{points}")
        if found:
            said.append(f"{word}: {'; '.join(found)}.")
    return f"For a choice: {escape(' '.join(said))}"


def _picture(name: str, what: str) -> str:
    return (
        f"![{what}]({name}.svg)\n\n{what}. Filled points are told apart from zero; the grey band is what does not "
        "count as an effect."
    )


def _protocol(recipe: Recipe) -> str:
    training, data, search, more = recipe.training, recipe.data, recipe.search, recipe.more_seeds
    said = [
        f"{', '.join(recipe.models.values())}; {training.get('max_steps')} steps of {training.get('batch_size')} rows, "
        f"at most {data.get('max_train', 0):,} training rows, inputs of {recipe.max_length} tokens."
    ]
    if search is not None:
        said.append(
            "Rates: each arm on each task trains with "
            f"{', '.join(map(as_text, search.factors))} times its default rates ({len(search.seeds)} seeds each, at "
            f"most {search.extend} further factors where an edge wins), scored on one half of the validation rows."
        )
    said.append(f"Then {len(recipe.seeds)} new seeds, scored on the other half, paired by seed.")
    if more is not None:
        said.append(
            f"Seeds are added up to {more.to} where the interval of an effect to the baseline contains zero and the "
            f"mean is above {more.effect:g} points."
        )
    if not recipe.evaluate:
        said.append("The prompt of the last step is scored, once: there are no curves over steps.")
    return " ".join(said) + " More under [a study](../benchmarks.md#a-study)."


def _arms(findings: Findings) -> str:
    rows = []
    for row, model in findings.recipe.rows_by_model():
        cell = next(cell for cell in findings.recipe.cells() if cell.row is row and cell.model == model)
        values = {**findings.recipe.settings_of(cell, {}), **row.training}
        said = ", ".join(f"{name} {_WORDS.get(str(value)) or as_text(value)}" for name, value in values.items())
        trained = findings.trained(row, model)
        label = f"{escape(row.label)}{' (baseline)' if row.baseline else ''}"
        rows.append(
            [label, *_of_model(findings, model), row.method, escape(said) or "-", f"{trained[0]:,}" if trained else "-"]
        )
    return markdown_table(
        ("arm", *_head(findings), "method", "settings", "trained"), rows, "l" * (3 + len(_head(findings))) + "r"
    )


def _rates(findings: Findings) -> str:
    """The searched factors of all learning rates."""
    rows = []
    for row, model in findings.recipe.rows_by_model():
        rows.append(
            [
                escape(row.label),
                *_of_model(findings, model),
                *(_factor(findings, row, t, model) for t in findings.recipe.tasks),
            ]
        )
    table = markdown_table(
        ("rates, times the default", *_head(findings), *findings.recipe.tasks),
        rows,
        "l" * (1 + len(_head(findings))) + "r",
    )
    return f"{table}\n\n\\* the largest or smallest factor that was tried."


def _scores(findings: Findings) -> str:
    """The table of scores, without the rates, which have a table of their own."""
    table = table_of(findings)
    notes = tuple(note for note in table.notes if not note.startswith("Learning rates of"))
    return replace(table, notes=notes).markdown().strip()


def _factor(findings: Findings, row: RecipeRow, task: str, model: str) -> str:
    runs = findings.runs(row, task, model)
    if not runs:
        return "-"
    factor = float(runs[0].choice[FACTOR])
    tried = [
        float(one.choice[FACTOR])
        for one in findings.searched
        if (one.row.label, one.task, one.model) == (row.label, task, model)
    ]
    return as_text(factor) + ("\\*" if tried and factor in (min(tried), max(tried)) else "")


def _head(findings: Findings) -> tuple[str, ...]:
    return ("model",) if len(findings.recipe.models) > 1 else ()


def _of_model(findings: Findings, model: str) -> tuple[str, ...]:
    return (model,) if len(findings.recipe.models) > 1 else ()


def _vitals(findings: Findings) -> Iterable[str]:
    """Means over seeds, by which a null effect can be told from a mechanism that did not act."""
    yield "Means over seeds at the end of training; names are those of [vitals](../analysis.md#vitals)."
    for table in vitals_tables(findings):
        rows = [
            [escape(row), f"`{name}`", *("-" if value is None else f"{value:.3g}" for value in values)]
            for row, name, values in table.lines
        ]
        yield ("" if len(findings.recipe.models) < 2 else f"*{table.title}*\n\n") + markdown_table(
            table.heads, rows, "llr"
        )
    notes = [f"- {escape(note)}" for note in idle_notes(findings)]
    yield "\n".join(["Parts that did not act:\n", *notes]) if notes else "Every part acted in every run."


def _estimate(label: str, d: Difference | None, told: bool) -> list[Estimate]:
    """As a list: empty without an interval."""
    if d is None or d.mean is None or d.low is None or d.high is None:
        return []
    return [Estimate(label, d.mean, d.low, d.high, told)]


def _forest(claim: Claim) -> dict[str, list[Estimate]]:
    """By statement, the effects on tasks and their mean; without those that have none."""
    groups = {}
    for one in claim.statements:
        groups[one.says + (f", {one.model}" if one.model else "")] = [
            estimate
            for told in one.tasks
            if told.effect is not None
            for estimate in _estimate(told.task, told.effect.difference, told.effect.verdict in ("better", "worse"))
        ] + _overall(one)
    return {name: group for name, group in groups.items() if group}


def _overall(one: Statement) -> list[Estimate]:
    return _estimate("", one.mean, one.mean is not None and one.mean.verdict in ("better", "worse"))


def _overview(claims: Sequence[Claim]) -> dict[str, list[Estimate]]:
    """By statement of all claims, the mean over tasks."""
    groups = {f"{claim.name.upper()} {one.says}": _overall(one) for claim in claims for one in claim.statements}
    return {name: group for name, group in groups.items() if group}


def main() -> None:
    """Writes the pages of all recipes in recipes/study."""
    surprises = yaml.safe_load((FOLDER / SURPRISES).read_text(encoding="utf-8")) or {}
    for path in write_pages([name for name in recipe_names() if name.startswith("study/")], FOLDER, surprises):
        print(path)


if __name__ == "__main__":
    main()
