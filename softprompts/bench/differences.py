"""The lines below a table that say how its setting differs from the paper's, and what the paper does not state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from softprompts.bench.recipe import ELSEWHERE, Recipe


def setting_notes(recipe: Recipe) -> tuple[str, ...]:
    """How the setting differs from the paper's, and what the paper does not state; empty at scales on other models."""
    if recipe.scale in ELSEWHERE:
        return ()
    notes = [f"Differs from what was published: {sentence}" for sentence in recipe.differences]
    for sentence, places in _places_of(recipe).items():
        notes += [f"Differs from what was published, {place}: {sentence}" for place in places]
    if recipe.unstated:
        notes.append(f"Not stated in the paper, taken here: {'; '.join(recipe.unstated)}")
    return tuple(note if note.endswith(".") else f"{note}." for note in notes)


def _places_of(recipe: Recipe) -> dict[str, list[str]]:
    """By what differs somewhere, the rows, models and tasks where it does, in words."""
    found: dict[str, dict[tuple[str, str], list[str]]] = {}  # by sentence, then row and model: tasks
    run_on: dict[tuple[str, str], list[str]] = {}
    for row, model in recipe.rows_by_model():
        run_on[row.label, model] = [task for task in recipe.tasks if not row.only_tasks or task in row.only_tasks]
        for task in run_on[row.label, model]:
            for sentence in recipe.differences_of(row, task, model):
                found.setdefault(sentence, {}).setdefault((row.label, model), []).append(task)
    return {sentence: _in_words(recipe, cells, run_on) for sentence, cells in found.items()}


def _in_words(
    recipe: Recipe, cells: Mapping[tuple[str, str], list[str]], run_on: Mapping[tuple[str, str], list[str]]
) -> list[str]:
    """Cells that have something in common: "PT-2 and SPT on RoBERTa-large (RTE, WiC)", rows of like places together."""
    lines: dict[tuple[str, str], list[str]] = {}  # by models and tasks: labels of rows
    for row in recipe.rows:
        models: dict[str, list[str]] = {}  # by tasks
        for model in row.models:
            tasks = cells.get((row.label, model))
            if tasks:
                part = "" if tasks == run_on[row.label, model] else f" ({', '.join(tasks)})"
                models.setdefault(part, []).append(model)
        for part, named in models.items():
            where = "" if len(named) == len(row.models) else f" on {', '.join(named)}"
            lines.setdefault((where, part), []).append(row.label)
    return [f"{_joined(recipe, labels)}{where}{part}" for (where, part), labels in lines.items()]


def _joined(recipe: Recipe, labels: Sequence[str]) -> str:
    """Labels of rows, those of a whole grid by their common name; "all rows" for all."""
    if len(labels) == len(recipe.rows):
        return "all rows"
    of_name: dict[str, list[str]] = {}
    for row in recipe.rows:
        of_name.setdefault(row.name, []).append(row.label)
    short = [row.name if set(of_name[row.name]) <= set(labels) else row.label for row in recipe.rows]
    kept = [name for name, row in zip(short, recipe.rows, strict=True) if row.label in labels]
    mark = "; " if any("," in name for name in kept) else ", "
    return mark.join(dict.fromkeys(kept))
