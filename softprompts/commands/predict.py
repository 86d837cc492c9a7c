"""``softprompts predict``."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from softprompts.commands.options import BatchSize, Place
from softprompts.commands.parsing import pairs
from softprompts.commands.terminal import err, out
from softprompts.errors import SoftPromptError


def predict(
    source: Annotated[str, typer.Argument(metavar="RUN_OR_PROMPT", help="Run folder, prompt folder or hub id.")],
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts to label.")] = None,
    file: Annotated[
        str | None, typer.Option("--file", "-f", help="CSV, TSV, JSONL, JSON, CoNLL, or .txt with one text a line.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="Column of the text; default: as in training, else 'text'.")] = None,
    text_pair: Annotated[
        str | None,
        typer.Option("--text-pair", help="Column of the second text or context; without --file, the text itself."),
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option("--field", help="A field of the task, NAME=TEXT; with --file its column, NAME=COLUMN."),
    ] = None,
    separator: Annotated[
        str | None,
        typer.Option(help="What separates the file's columns, 'tab' for one; default: by its name and rows."),
    ] = None,
    model: Place = None,
    choice: Annotated[list[str] | None, typer.Option(help="One of the texts to choose from (multiple choice).")] = None,
    output: Annotated[str | None, typer.Option("--output", help="Write a CSV file instead of a table.")] = None,
    batch_size: BatchSize = 32,
) -> None:
    """Label texts with a trained prompt: label and probability, tags, or the answer found."""
    from softprompts.predictor import Predictor

    fields = pairs(field, "--field")
    if bool(texts or (fields and file is None)) == (file is not None):
        raise SoftPromptError("give texts, or --file FILE with texts, and not both")
    if len(texts or ()) > 1 and (text_pair is not None or fields or choice):
        given = "--text-pair" if text_pair is not None else "--field" if fields else "--choice"
        raise SoftPromptError(f"{given} goes with one text; put several rows into a file")
    if separator is not None and file is None:
        raise SoftPromptError("--separator is about a file: give --file too")
    if choice and file is not None:
        raise SoftPromptError("--choice goes with one text; a file has its choices in columns")
    if output is not None and Path(output).is_dir():
        raise SoftPromptError(f"--output {output} is a folder; name a file")
    with err.status("loading the model"):
        predictor = Predictor(source, model)
    if file is not None:
        rows = predictor.read(file, text, text_pair, fields, separator)
    else:
        rows = [predictor.row(one, text_pair, fields, choice or ()) for one in (*(texts or (None,)),)]
    answers = predictor(rows, batch_size=batch_size)
    if predictor.cut:
        err.print(predictor.cut, soft_wrap=True)
    if output is not None:
        _write_answers(predictor, rows, answers, output)
        return
    form, first = predictor.task.form, predictor.fields[0]
    if not sys.stdout.isatty():
        for row, answer in zip(rows, answers, strict=True):
            print("\t".join([answer.label, _probability(answer.probability), " ".join(_text(row[first]).split())]))
        return
    if form.kind == "tagging":
        from softprompts.predictor import marked

        for row, answer in zip(rows, answers, strict=True):
            words = row["words"]
            out.print(marked(words.split() if isinstance(words, str) else words, answer.tags))
        return
    has_probabilities = any(answer.probability is not None for answer in answers)
    header = "answer" if form.kind in ("span", "choice", "ranking") else "label"
    table = Table(header, *["probability"] * has_probabilities, "text")
    for row, answer in zip(rows, answers, strict=True):
        table.add_row(answer.label, *[_probability(answer.probability)] * has_probabilities, _text(row[first]))
    out.print(table)


def _text(value: Any) -> str:
    """A field's text, or its words."""
    return value if isinstance(value, str) else " ".join(value)


def _write_answers(predictor: Any, rows: list[Any], answers: list[Any], output: str) -> None:
    from softprompts.storage.files import write_text_atomic

    form = predictor.task.form
    extra = ["choices"] if form.chooses and not form.choices else []
    lines = [[*predictor.fields, *extra, "label", "probability"]]
    for row, answer in zip(rows, answers, strict=True):
        values = [_text(row[name]) for name in predictor.fields]
        choices = [json.dumps(list(row["choices"]), ensure_ascii=False) for _ in extra]
        lines.append([*values, *choices, answer.label, _probability(answer.probability)])
    text = io.StringIO()
    csv.writer(text).writerows(lines)
    write_text_atomic(output, text.getvalue())
    out.print(f"{len(answers)} rows written to {output}", soft_wrap=True)


def _probability(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
