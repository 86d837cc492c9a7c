"""``softprompts evaluate``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softprompts.commands.options import BatchSize, DataDir, Source, with_imports
from softprompts.commands.parsing import pairs
from softprompts.commands.terminal import err, number_table, out
from softprompts.errors import SoftPromptError

if TYPE_CHECKING:
    from softprompts.tasks.errors_made import ClassScore, Errors

_SHOWN_MISTAKES = 5
_SHOWN_CLASSES = 12


@with_imports
def evaluate(
    source: Source,
    data: Annotated[
        str | None, typer.Option("--data", help="Labelled rows; default: the run's test rows, or validation rows.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="Column of the text; default: as in training, else 'text'.")] = None,
    text_pair: Annotated[str | None, typer.Option("--text-pair", help="Column of the second text or context.")] = None,
    field: Annotated[list[str] | None, typer.Option("--field", help="Column of a field, NAME=COLUMN.")] = None,
    label: Annotated[str | None, typer.Option(help="Column of the label; default: its usual name.")] = None,
    label_separator: Annotated[
        str | None, typer.Option(help="What stands between several labels in that column; default: as in training.")
    ] = None,
    data_dir: DataDir = None,
    output: Annotated[
        str | None,
        typer.Option("--report", help="The page to write; default: report.html in a run folder, with evaluation.json."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All numbers as JSON, and no page unless --report.")] = False,
    batch_size: BatchSize = 32,
) -> None:
    """Score a prompt on labelled rows: each label, what is taken for what, calibration, mistakes; with a page."""
    from softprompts.analysis.evaluation_page import write_page
    from softprompts.predictor import Predictor

    fields = pairs(field, "--field")
    if data is None and (text or text_pair or fields or label or label_separator):
        raise SoftPromptError("--text, --text-pair, --field and --label are about a file: give --data too")
    with err.status("scoring"):
        predictor = Predictor(source)
        found = predictor.evaluate(
            data,
            text=text,
            text_pair=text_pair,
            fields=fields,
            label=label,
            label_separator=label_separator,
            data_dir=data_dir,
            batch_size=batch_size,
        )
    if found.cut:
        err.print(found.cut, soft_wrap=True)
    page = Path(output) if output is not None else None
    if page is not None:
        write_page(page, found.errors, predictor.name, found.rows_of)
    elif not as_json and Path(source).is_dir() and predictor.folder != Path(source):
        page = write_report(Path(source), found.errors, predictor.name, found.rows_of)
    if as_json:
        print(json.dumps({"rows_of": found.rows_of, **found.errors.to_dict()}, indent=2, ensure_ascii=False))
        return
    show_errors(found.errors, found.rows_of)
    if page is not None:
        out.print(f"report: {page}", soft_wrap=True)


def write_report(run: Path, errors: Errors, title: str, rows_of: str) -> Path:
    """Writes evaluation.json and report.html into a run folder; returns the latter."""
    from softprompts.analysis.evaluation_page import write_page
    from softprompts.storage.files import write_json_atomic

    write_json_atomic(run / "evaluation.json", {"rows_of": rows_of, **errors.to_dict()})
    return write_page(run / "report.html", errors, title, rows_of)


def show_summary(errors: Errors, rows_of: str) -> None:
    """Prints in short how well each label or entity is found, or how far scores are off."""
    rest = len(errors.classes) - _SHOWN_CLASSES
    if rest > 0:
        worst = sorted(errors.classes, key=lambda one: one.f1)[:_SHOWN_CLASSES]
        _show_classes(errors, worst, f"{rows_of}, the {_SHOWN_CLASSES} worst of {len(errors.classes)}")
    elif errors.classes:
        _show_classes(errors, errors.classes, rows_of)
    else:
        _show_shares(errors, most=4)  # without the quantiles


def show_errors(errors: Errors, rows_of: str, mistakes: int = _SHOWN_MISTAKES) -> None:
    """Prints what a prompt gets right and wrong."""
    metrics = ", ".join(f"{name} {value:.4f}" for name, value in errors.metrics.items())
    out.print(f"{rows_of}, {errors.rows:,} rows: {metrics}", style="bold", soft_wrap=True)
    _show_shares(errors)
    if errors.classes:
        _show_classes(errors, errors.classes)
    if errors.confusion and len(errors.found) <= 12:
        table = [[one.name, *map(str, counts)] for one, counts in zip(errors.classes, errors.confusion, strict=True)]
        out.print(number_table(("label", *errors.found), table, {"label"}, title="rows by label and answer"))
    if errors.by_label:
        counts = [[one.name, *map(str, row)] for one, row in zip(errors.classes, errors.by_label, strict=True)]
        out.print(number_table(("label", "found", "wrongly given", "missed", "neither"), counts, {"label"}))
    if errors.calibration is not None:
        said, before = errors.calibration, errors.uncalibrated
        was = "" if before is None else f" (before temperature {before.error:.3f} and {before.brier:.3f})"
        out.print(f"calibration error {said.error:.3f}, Brier score {said.brier:.3f}{was} (0 is best)", soft_wrap=True)
    shown = errors.mistakes[:mistakes]
    written = errors.kind in ("text", "chat")
    if shown:
        sure = "most confident mistakes" if shown[0].weight is not None else "mistakes"
        sure = f"lowest {next(iter(errors.metrics))}" if written else sure
        out.print("largest residuals:" if errors.residuals else f"{sure}, of {errors.wrong:,}:")
    for one in shown:
        form = "" if one.weight is None else "{:+.2f}" if errors.residuals else "{:.3f}" if written else "{:.0%}"
        if errors.kind != "tagging":
            out.print(f"  {_short(one.text)}", soft_wrap=True)
        weight = f" ({form.format(one.weight)})" if form else ""
        truth, answer = (_short(text) if written else text for text in (one.truth, one.answer))
        out.print(f"    {'right' if written else 'label'} {truth}, answer {answer}{weight}", soft_wrap=True)


def _short(text: str, most: int = 150) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(text.split())
    return f"{line[:most]}{'…' * (len(line) > most)}"


def _show_shares(errors: Errors, most: int | None = None) -> None:
    if errors.right is not None:
        line = f"{'whole rows ' * (errors.kind == 'tagging')}right: {_share(errors.right)}"
        if errors.baseline is not None:
            name, share = errors.baseline
            line += f"; always '{name}': {_share(share)}"
        out.print(line, soft_wrap=True)
    for name, value in [*errors.residuals.items()][:most]:
        out.print(f"{name}: {value:.4g}")


def _show_classes(errors: Errors, classes: Sequence[ClassScore], title: str | None = None) -> None:
    head = "entity" if errors.kind == "tagging" else "label"
    rows = [
        (one.name, f"{one.precision:.3f}", f"{one.recall:.3f}", f"{one.f1:.3f}", f"{one.support:,}") for one in classes
    ]
    out.print(number_table((head, "precision", "recall", "F1", "support"), rows, {head}, title))


def _share(share: Any) -> str:
    return f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%})"
