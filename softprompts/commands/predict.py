"""``softprompts predict``."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from softprompts.commands.options import SAMPLING_OPTIONS, BatchSize, Place, Source, with_imports, with_options
from softprompts.commands.parsing import pairs
from softprompts.commands.terminal import err, out
from softprompts.errors import SoftPromptError
from softprompts.training.generation import Sampling

if TYPE_CHECKING:
    from softprompts.predictor import Predictor
    from softprompts.tasks.example import Row
    from softprompts.tasks.task_reader import Answer, Entry


@with_imports
@with_options
def predict(
    *,
    source: Source,
    texts: Annotated[list[str] | None, typer.Argument(metavar="[TEXT]...", help="Texts to label.")] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--file", "-f", help="CSV, TSV, JSONL, JSON, CoNLL, .txt with one text a line, or - for standard input."
        ),
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
    output: Annotated[
        str | None,
        typer.Option("--output", help="Write all rows with their columns and the answers: .csv, .tsv or .jsonl."),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="With --output: the probability of every label.")] = False,
    on_error: Annotated[
        str, typer.Option(help="Rows without a text: skip (an empty answer, counted at the end) or stop.")
    ] = "skip",
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Most tokens written for a text; default: as for the run's longest answer."),
    ] = None,
    sampling: Annotated[Sampling, SAMPLING_OPTIONS],
    batch_size: BatchSize = 32,
) -> None:
    """Label texts with a trained prompt (label and probability, tags, the answer found), or write what it answers."""
    from softprompts.predictor import Predictor
    from softprompts.tasks.task_reader import Entry

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
    if output is not None and file not in (None, "-") and Path(output).resolve() == Path(str(file)).resolve():
        raise SoftPromptError(f"--output {output} is the file that is read: name another one")
    if every and output is None:
        raise SoftPromptError("--all adds columns to a file: give --output too")
    if on_error not in ("skip", "stop"):
        raise SoftPromptError(f"--on-error {on_error}: it is skip or stop")
    with err.status("loading the model"):
        predictor = Predictor(source, model, max_new_tokens, sampling)
    if choice and not predictor.task.form.chooses:
        raise SoftPromptError(f"--choice is for multiple choice, and {source} is about {predictor.task.form.kind}")
    if file is not None:
        entries = predictor.reader.read_entries(file, text, text_pair, fields, separator)
    else:
        typed = [predictor.row(one, text_pair, fields, choice or ()) for one in (*(texts or (None,)),)]
        entries = [Entry(row, row) for row in typed]
    faults = [entry.fault for entry in entries if entry.fault is not None]
    if not any(entry.row for entry in entries):
        raise SoftPromptError(f"{file} holds no texts")
    if faults and (on_error == "stop" or len(faults) == len(entries)):
        raise SoftPromptError(faults[0])
    rows = [entry.fields for entry in entries if entry.fields is not None]
    answers = predictor(rows, batch_size=batch_size)
    if predictor.cut:
        err.print(predictor.cut, soft_wrap=True)
    if output is not None:
        rest = iter(answers)
        answered = [(entry, None if entry.fields is None else next(rest)) for entry in entries]
        _write_answers(answered, output, every, predictor.task.form.written)
    else:
        _show_answers(predictor, rows, answers)
    if faults:
        err.print(f"{len(faults)} of {len(entries)} rows have no answer, the first: {faults[0]}", soft_wrap=True)


def _show_answers(predictor: Predictor, rows: list[Row], answers: list[Answer]) -> None:
    form, first = predictor.task.form, predictor.fields[0]
    if form.written and len(answers) == 1:
        print(answers[0].label)
        return
    if form.written and not sys.stdout.isatty():
        for answer in answers:
            print(" ".join(answer.label.split()))
        return
    if not sys.stdout.isatty():
        for row, answer in zip(rows, answers, strict=True):
            print("\t".join([answer.label, _sure(answer), " ".join(_text(row[first]).split())]))
        return
    if form.kind == "tagging":
        from softprompts.predictor import marked

        for row, answer in zip(rows, answers, strict=True):
            words = row["words"]
            out.print(marked(words.split() if isinstance(words, str) else words, answer.tags))
        return
    has_probabilities = any(answer.probability is not None or answer.labels for answer in answers)
    header = "answer" if form.kind in ("span", "choice", "ranking", "text", "chat") else "label"
    table = Table(header, *["probability"] * has_probabilities, "text")
    for row, answer in zip(rows, answers, strict=True):
        table.add_row(answer.label, *[_sure(answer)] * has_probabilities, _text(row[first]))
    out.print(table)


def _sure(answer: Answer) -> str:
    """The probability of an answer, or of each of several labels."""
    if answer.labels:
        return ", ".join(_probability(answer.probabilities[name]) for name in answer.labels)
    return _probability(answer.probability)


def _text(value: Any) -> str:
    """A field's text, or its words."""
    return value if isinstance(value, str) else " ".join(value)


def _write_answers(entries: list[tuple[Entry, Answer | None]], output: str, every: bool, written: bool) -> None:
    """Writes all rows of a file with all of their columns, and answers in columns of their own behind them."""
    from softprompts.storage.files import write_text_atomic

    columns = list(dict.fromkeys(column for entry, _ in entries for column in entry.row))
    labels = list(dict.fromkeys(name for _, answer in entries if answer for name in answer.probabilities))
    several = any(answer and answer.probability is None and answer.probabilities for _, answer in entries)
    # Of several labels each has a probability of its own (--all), and a text that is written has none.
    names = ("answer",) if written else ("label",) if several else ("label", "probability")
    added = {name: f"predicted_{name}" if name in columns else name for name in names}
    as_json = output.lower().endswith((".jsonl", ".json"))
    chance: Callable[[float | None], Any] = (lambda value: value) if as_json else _probability
    lines: list[dict[str, Any]] = []
    for entry, answer in entries:
        line = {column: entry.row.get(column, "") for column in columns}
        line[added[names[0]]] = "" if answer is None else answer.label
        if several and as_json:
            line[added["label"]] = None if answer is None else list(answer.labels)
        if "probability" in added:
            line[added["probability"]] = chance(None if answer is None else answer.probability)
        if every:
            chances = {} if answer is None else answer.probabilities
            line |= {f"probability of {name}": chance(chances.get(name)) for name in labels}
        lines.append(line)
    text = io.StringIO()
    if as_json:
        text.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    else:
        writer = csv.writer(text, delimiter="\t" if output.lower().endswith(".tsv") else ",")
        writer.writerow(lines[0])
        writer.writerows([_cell(value) for value in line.values()] for line in lines)
    write_text_atomic(output, text.getvalue())
    out.print(f"{len(entries)} rows written to {output}", soft_wrap=True)


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)


def _probability(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
