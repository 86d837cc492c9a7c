"""``softprompts tasks``: the list, and ``softprompts tasks show``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from softprompts.commands import options
from softprompts.commands.options import OUTPUT, option
from softprompts.commands.terminal import err, number_table, out
from softprompts.errors import SoftPromptError
from softprompts.tasks.catalog import task_kinds, task_names, task_outline
from softprompts.tasks.data import Data

tasks = typer.Typer(invoke_without_command=True, help="List the tasks that are known by name; or show one.")

_PERCENTILES = ("50%", "90%", "99%", "longest")
_MOST_LABELS = 20
_MOST_READ = 2  # choices of a row that are shown


@tasks.callback()
def list_tasks(context: typer.Context) -> None:
    """List the tasks that are known by name."""
    if context.invoked_subcommand is not None:
        return
    table = Table("task", "kind", "what is asked")
    kinds = task_kinds()
    for name, about in task_names():
        table.add_row(name, kinds[name], about)
    out.print(table)
    out.print("One of them: softprompts tasks show NAME")
    out.print("Your own: --task FILE.yaml, or --data FILE --kind KIND --text COLUMN --label COLUMN")


_OTHER_OPTIONS = ("task", "answering", "invalid", "few_shot", "few_shot_seed", "few_shot_protocol")


@tasks.command("show")
@options.with_options
def show_task(
    *,
    task: Annotated[
        str | None, typer.Argument(metavar="[NAME_OR_YAML]", help="A task by name, or your own as a YAML file.")
    ] = None,
    data: Annotated[Data, options.DATA_OPTIONS.drop(*_OTHER_OPTIONS)],
    model: Annotated[options.ModelSettings, options.MODEL_OPTIONS.drop("quantize")],
    examples: Annotated[int, option(OUTPUT, "Number of rows to show.", min=0)] = 3,
    as_json: Annotated[bool, option(OUTPUT, "All of it as JSON, nothing shortened.", "--json")] = False,
) -> None:
    """Show a task: fields, labels, templates, how long its rows are for a model, and how models read them."""
    from softprompts.backbones.loading import load_tokenizer
    from softprompts.tasks.describe import describe

    if (task is None) == (data.train is None):
        raise SoftPromptError("name a task, or give --data FILE, and not both")
    about, templates = ("", []) if task is None else task_outline(task)
    with err.status("loading the data"):
        loaded = (data if task is None else replace(data, task=task)).load()
        tokenizer, model_kind, limit = load_tokenizer(model.name)
        outline = describe(loaded, tokenizer, model_kind, limit, model.max_length, examples)
    template = data.template or (templates[0] if templates else None)
    outline |= {"about": about, "templates": templates, "template": template}
    outline |= {"model": model.name, "model_kind": model_kind}
    if as_json:
        print(json.dumps(outline, indent=2, ensure_ascii=False))
    else:
        _show_outline(outline)


def _show_outline(outline: Mapping[str, Any]) -> None:
    facts = Table.grid(Column(), Column(overflow="fold"), padding=(0, 2))
    facts.add_row("task", outline["task"] + (f": {outline['about']}" if outline["about"] else ""))
    facts.add_row("kind", f"{outline['kind']}: {outline['what']}")
    facts.add_row("source", outline["source"])
    facts.add_row("fields", ", ".join(outline["fields"]))
    if outline["words"] and outline["words"] != outline["labels"]:
        facts.add_row("label words", _some(outline["words"]))
    facts.add_row("metrics", ", ".join(outline["metrics"]))
    if outline["templates"]:
        facts.add_row("templates", ", ".join(outline["templates"]) + f" (below: {outline['template']})")
    takes = "any number of tokens" if outline["context"] is None else f"{outline['context']:,} tokens"
    facts.add_row("model", f"{outline['model']} ({outline['model_kind']}), takes {takes}")
    first = f"; of a longer row {outline['cut_first'][0]} is cut" if outline["cut_first"] else ""
    if outline["kind"] == "span" and outline["model_kind"] == "encoder":
        first = "; a longer context is read in windows"
    facts.add_row("max length", f"{outline['max_length']:,} tokens{first}")
    out.print(facts)
    limits = {f"over {outline['max_length']:,}": "over_max_length"}
    if outline["context"] not in (None, outline["max_length"]):
        limits[f"over {outline['context']:,}"] = "over_context"
    rows = []
    for split, said in outline["splits"].items():
        tokens = (said["tokens"][part] for part in _PERCENTILES)
        rows.append([split, *(f"{n:,}" for n in (said["rows"], *tokens, *(said[key] for key in limits.values())))])
    percentiles = [f"{part} tokens" if part == "50%" else part for part in _PERCENTILES]
    out.print(number_table(["split", "rows", *percentiles, *limits], rows, ["split"]))
    _show_labels(outline["kind"], {split: said["labels"] for split, said in outline["splits"].items()})
    for place, example in enumerate(outline["examples"], start=1):
        answer = example["answer"]
        shown = " ".join(answer) if outline["kind"] == "tagging" else answer
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
    rows = []
    for name in list(names)[:_MOST_LABELS]:
        if kind == "regression":
            rows.append([name, *(f"{said[name]:.2f}" for said in counts.values())])
        else:
            shares = [(said[name], max(1, sum(said.values()))) for said in counts.values()]
            rows.append([name, *(f"{count:,} ({100 * count / all_:4.1f} %)" for count, all_ in shares)])
    header = {"regression": "score", "tagging": "tag"}.get(kind, "label")
    out.print(number_table([header, *counts], rows, [header]))
    if len(names) > _MOST_LABELS:
        out.print(f"  and {len(names) - _MOST_LABELS} more labels (--json has all)")


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
