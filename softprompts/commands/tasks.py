"""``softprompts tasks`` and ``softprompts tasks show``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from softprompts.commands.options import WorkbenchOptions, grouped
from softprompts.commands.terminal import err, out, plain_table
from softprompts.errors import SoftPromptError

tasks_app = typer.Typer(invoke_without_command=True, help="List the tasks that are known by name; or show one.")

_PERCENTILES = ("50%", "90%", "99%", "longest")
_MOST_LABELS = 20
_MOST_READ = 2  # choices of a row that are shown


@tasks_app.callback()
def tasks(context: typer.Context) -> None:
    """List the tasks that are known by name."""
    if context.invoked_subcommand is not None:
        return
    from softprompts.tasks.catalog import task_kinds, task_names

    table = Table("task", "kind", "what is asked")
    kinds = task_kinds()
    for name, about in task_names():
        table.add_row(name, kinds[name], about)
    out.print(table)
    out.print("One of them: softprompts tasks show NAME")
    out.print("Your own: --task FILE.yaml, or --data FILE --kind KIND --text COLUMN --label COLUMN")


@dataclass(frozen=True, kw_only=True)
class _ShowOptions(WorkbenchOptions):
    task: Annotated[
        str | None, typer.Argument(metavar="[NAME_OR_YAML]", help="A task by name, or your own as a YAML file.")
    ] = None
    answer: str | None = field(init=False, default=None)
    invalid: str | None = field(init=False, default=None)
    few_shot: int | None = field(init=False, default=None)
    few_shot_seed: int = field(init=False, default=0)
    few_shot_protocol: str = field(init=False, default="even")


@tasks_app.command("show")
@grouped
def show_task(
    *,
    source: _ShowOptions,
    examples: Annotated[int, typer.Option(min=0, help="Number of rows to show.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="All of it as JSON, nothing shortened.")] = False,
) -> None:
    """Show a task: fields, labels, templates, how long its rows are for a model, and how models read them."""
    from softprompts.backbones.loading import load_tokenizer
    from softprompts.tasks.catalog import task_outline
    from softprompts.tasks.describe import describe

    if (source.task is None) == (source.data is None):
        raise SoftPromptError("name a task, or give --data FILE, and not both")
    rows = source.to_data()
    about, templates = ("", []) if source.task is None else task_outline(source.task)
    with err.status("loading the data"):
        loaded = rows.load()
        tokenizer, model_kind, limit = load_tokenizer(source.model)
        found = describe(loaded, tokenizer, model_kind, limit, source.max_length, examples)
    found = {
        **found,
        "about": about,
        "templates": templates,
        "template": source.template or (templates[0] if templates else None),
    }
    found.update(model=source.model, model_kind=model_kind)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    _show_task(found)


def _show_task(found: Mapping[str, Any]) -> None:
    facts = Table.grid(Column(), Column(overflow="fold"), padding=(0, 2))
    facts.add_row("task", found["task"] + (f": {found['about']}" if found["about"] else ""))
    facts.add_row("kind", f"{found['kind']}: {found['what']}")
    facts.add_row("source", found["source"])
    facts.add_row("fields", ", ".join(found["fields"]))
    if found["words"] and found["words"] != found["labels"]:
        facts.add_row("label words", _some(found["words"]))
    facts.add_row("metrics", ", ".join(found["metrics"]))
    if found["templates"]:
        facts.add_row("templates", ", ".join(found["templates"]) + f" (below: {found['template']})")
    takes = "any number of tokens" if found["context"] is None else f"{found['context']:,} tokens"
    facts.add_row("model", f"{found['model']} ({found['model_kind']}), takes {takes}")
    first = f"; of a longer row {found['cut_first'][0]} is cut" if found["cut_first"] else ""
    if found["kind"] == "span" and found["model_kind"] == "encoder":
        first = "; a longer context is read in windows"
    facts.add_row("max length", f"{found['max_length']:,} tokens{first}")
    out.print(facts)
    limits = {f"over {found['max_length']:,}": "over_max_length"}
    if found["context"] not in (None, found["max_length"]):
        limits[f"over {found['context']:,}"] = "over_context"
    table = _numbers_of("split", "rows", *(f"{part} tokens" if part == "50%" else part for part in _PERCENTILES))
    for header in limits:
        table.add_column(header, justify="right")
    for split, said in found["splits"].items():
        tokens = [f"{said['tokens'][part]:,}" for part in _PERCENTILES]
        table.add_row(split, f"{said['rows']:,}", *tokens, *(f"{said[key]:,}" for key in limits.values()))
    out.print(table)
    _show_labels(found["kind"], {split: said["labels"] for split, said in found["splits"].items()})
    for place, example in enumerate(found["examples"], start=1):
        answer = example["answer"]
        shown = " ".join(answer) if found["kind"] == "tagging" else answer
        shown = ", ".join(shown) if isinstance(shown, list) else shown
        written = example["written"]
        beside = "" if written is None or written in (shown, answer) else f" (a language model writes: {written})"
        out.print(f"example {place} (row {example['id']}): {_short(str(shown))}{beside}")
        for index, texts in enumerate(example["encoder"][:_MOST_READ]):
            for part, text in enumerate(texts):
                many = f" {index + 1}" if len(example["encoder"]) > 1 else ""
                _paragraph(f"encoder{many}" if part == 0 else "  and", text)
        if len(example["encoder"]) > _MOST_READ:
            _paragraph("", f"(and {len(example['encoder']) - _MOST_READ} more to choose from)")
        if example["language_model"] is not None:
            _paragraph("language model", example["language_model"])
        out.print()


def _show_labels(kind: str, counts: Mapping[str, Mapping[str, float]]) -> None:
    names = next(iter(counts.values()))
    if not names:
        return
    table = _numbers_of("score" if kind == "regression" else "tag" if kind == "tagging" else "label", *counts)
    for name in list(names)[:_MOST_LABELS]:
        if kind == "regression":
            table.add_row(name, *(f"{said[name]:.2f}" for said in counts.values()))
        else:
            shares = [(said[name], max(1, sum(said.values()))) for said in counts.values()]
            table.add_row(name, *(f"{count:,} ({100 * count / all_:4.1f} %)" for count, all_ in shares))
    out.print(table)
    if len(names) > _MOST_LABELS:
        out.print(f"  and {len(names) - _MOST_LABELS} more labels (--json has all)")


def _numbers_of(first: str, *others: str) -> Table:
    table = plain_table()
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _paragraph(head: str, text: str) -> None:
    """A text behind its name, wrapped and shortened to some lines."""
    grid = Table.grid(Column(width=16), Column(overflow="fold"), padding=(0, 1))
    grid.add_row(f"  {head}", _short(text))
    out.print(grid)


def _short(text: str, most: int = 400) -> str:
    """The beginning and the end of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most * 3 // 4]} ... {line[-most // 4 :]}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:_MOST_LABELS]) + (f" and {len(names) - _MOST_LABELS} more" if len(names) > 20 else "")
