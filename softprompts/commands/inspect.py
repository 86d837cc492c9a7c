"""``softprompts inspect``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from softprompts.commands.options import DataDir, Place, Sources, with_imports
from softprompts.commands.terminal import number_table, out
from softprompts.errors import SoftPromptError

_OF_TENSORS = ("mean", "std", "largest")


@with_imports
def inspect(
    sources: Sources,
    plots: Annotated[bool, typer.Option("--plots", help="Draw what it learned, as PNG and SVG, with CSV.")] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", help="Folder for them; default: 'plots' in the run or prompt folder; of several: here."
        ),
    ] = None,
    data_dir: DataDir = None,
    model: Place = None,
    rows: Annotated[int, typer.Option(min=1, help="Most rows of the task, for pictures that need some.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="All of it as JSON.")] = False,
) -> None:
    """Show what is in a saved prompt, ours or an adapter of PEFT's; draw what it learned; compare several."""
    from softprompts.model.formats import open_saved
    from softprompts.storage.files import require_folder

    if output is not None:
        require_folder(output, "the pictures")
    prompts = []
    for source in sources:
        config, tensors = open_saved(source).describe()
        numbers = {name: _numbers(tensors[name]) for name in config["tensors"]}
        prompts.append({**config, "tensors": numbers, "vitals": _vitals(source), "test_metrics": _tested(source)})
    if not as_json:
        for prompt in prompts:
            _show_prompt(prompt)
    pictures = {"plots": _draw(sources, output, data_dir, rows, model, show=not as_json)} if plots else {}
    if as_json:
        record = {**prompts[0], **pictures} if len(prompts) == 1 else {"prompts": prompts, **pictures}
        print(json.dumps(record, indent=2, ensure_ascii=False))
    elif len(sources) > 1 and not plots:
        _show_similarities(sources)


def _vitals(source: str) -> dict[str, Any]:
    """Of a run folder, the vitals of the first evaluation, of the prompt that is kept, and of the last, by step."""
    from softprompts.storage import run_folder

    lines = [line for line in run_folder.load_metrics(source) if line.get("vitals")]
    kept = run_folder.load_result(source)["best_step"] if run_folder.is_done(source) else None
    ends = {line["step"] for line in (*lines[:1], *lines[-1:])}
    return {str(line["step"]): line["vitals"] for line in lines if line["step"] in {*ends, kept}}


def _numbers(value: Any) -> dict[str, Any]:
    """A tensor in a few numbers."""
    return {
        "shape": list(value.shape),
        "type": str(value.dtype).removeprefix("torch."),
        "mean": float(value.float().mean()),
        "std": float(value.float().std(unbiased=False)),
        "largest": float(value.float().abs().max()),
    }


def _tested(source: str) -> dict[str, float]:
    """Of a run folder, the scores on test rows; {} without any."""
    from softprompts.storage import run_folder

    return dict(run_folder.load_result(source).get("test_metrics") or {}) if run_folder.is_done(source) else {}


def _show_prompt(config: dict[str, Any]) -> None:
    """What it is for and how well it does, then what it is, then the numbers in it."""
    from softprompts.model.card import count_parameters

    meta, backbone, stats = config.get("metadata") or {}, config["backbone"], config["tensors"]
    facts = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 2))
    for name, text in _results(meta, config["test_metrics"]):
        facts.add_row(name, text)
    if config.get("labels"):
        facts.add_row("labels", ", ".join(config["labels"]))
    facts.add_row("method", config["method"])
    facts.add_row("settings", ", ".join(f"{k}={v}" for k, v in config["config"].items() if v is not None))
    facts.add_row("backbone", f"{backbone.get('name') or backbone.get('model_type')} ({backbone.get('class')})")
    sizes = {name: (one["type"], one["shape"]) for name, one in stats.items()}
    trained, frozen = count_parameters({**config, "tensors": sizes})
    facts.add_row("trained", f"{trained:,} numbers" + (f"; {frozen:,} more stay as they are" if frozen else ""))
    out.print(facts)
    if vitals := config["vitals"]:
        rows = [
            (name, *("-" if (value := of.get(name)) is None else f"{value:.3g}" for of in vitals.values()))
            for name in next(iter(vitals.values()))
        ]
        out.print(number_table(("vital", *(f"step {step}" for step in vitals)), rows, {"vital"}))
    rows = [
        (name, " x ".join(map(str, one["shape"])), one["type"], *(f"{one[key]:.4g}" for key in _OF_TENSORS))
        for name, one in stats.items()
    ]
    table = number_table(("tensor", "shape", "type", *_OF_TENSORS), rows, {"tensor", "type"})
    table.columns[0].min_width, table.columns[0].overflow = None, "fold"
    out.print(table)


def _results(meta: dict[str, Any], tested: dict[str, float]) -> Iterator[tuple[str, str]]:
    """What a prompt was trained on, and its scores, as far as that is known."""
    if meta.get("task") is not None:
        yield "task", str(meta["task"])
    scores = meta.get("metrics") or ({} if meta.get("score") is None else {"score": meta["score"]})
    at = "" if meta.get("step") is None else f" at step {meta['step']:,}"
    for name, found, rows, end in (
        ("validation", scores, meta.get("eval_rows"), at),
        ("test", tested, meta.get("test_rows"), ""),
        ("one answer", (meta.get("constant_scores") or {}) if scores else {}, None, " (the commonest, for all rows)"),
    ):
        if found:
            on = f" on {rows:,} rows" if rows else ""
            yield name, ", ".join(f"{metric} {value:.4g}" for metric, value in found.items()) + on + end
    if meta.get("train_rows") is not None:
        seed = "" if meta.get("seed") is None else f", seed {meta['seed']}"
        yield "trained on", f"{meta['train_rows']:,} rows{seed}"


def _draw(
    sources: list[str], output: str | None, data_dir: str | None, rows: int, model: str | None, show: bool
) -> list[dict[str, Any]]:
    """Writes the pictures, and lists what each is and where it lies."""
    from softprompts.analysis import open_prompts, plots_folder, write_figures

    folder, records = Path(output) if output is not None else plots_folder(sources), []
    left_out = []
    for picture in write_figures(open_prompts(sources, model=model), folder, data_dir=data_dir, rows=rows):
        records.append({"what": picture.what, "files": [str(file) for file in picture.files], "text": picture.text})
        if not picture.applies:
            left_out.append(picture.what)
        elif show:
            where = f"{picture.files[0]} (.svg, .csv). " if picture.files else "no picture; "
            out.print(f"{picture.what}: {where}{picture.text}", soft_wrap=True)
    if show and left_out:
        out.print(f"nothing to draw of: {', '.join(left_out)} (why: --json)", soft_wrap=True)
    return records


def _show_similarities(sources: list[str]) -> None:
    from softprompts.analysis import open_prompts, similarities

    try:
        similar, reasons = similarities(open_prompts(sources), with_start=False)
    except SoftPromptError as error:
        similar, reasons = [], [str(error)]
    for matrix in similar:
        table = Table(f"cosine of {matrix.part}, pooled", *map(str, range(1, len(matrix.names) + 1)))
        for number, (name, line) in enumerate(zip(matrix.names, matrix.pooled, strict=True), start=1):
            table.add_row(f"{number} {name}", *(f"{value:.2f}" for value in line))
        out.print(table)
    for reason in reasons:
        out.print(f"not compared: {reason}", soft_wrap=True)
