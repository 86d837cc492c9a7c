"""Vitals of methods at the start and after training, on several backbones: do their mechanisms act?

    python benchmarks/vitals.py [METHOD[,SETTING=VALUE...] ...] [--backbones encoder,smollm2,t5] [--task reviews]
                                [--data-dir DIR] [--steps 300] [--batch 16] [--seeds 0]
                                [--score] [--results build/vitals/results.jsonl] [--table] [--quick]
                                [--summary] [--into docs/defaults.md]

A variant of a method is its name with settings behind it, and rates of components: multi-mask,num_masks=2,
rate.router=1e-3. Without any, those of `CHANGED` are measured: defaults that changed, before and now. "start" is before
the first step, with the gradients of the first step; "end" after the last one. --score also scores the last step's
prompt, on test rows where the task has some. A result is a line of the file; what is in the file is not done again.

It ends in a Markdown table of all named variants, means over seeds; --table prints the table alone and trains nothing.
--summary prints one table of all results of the file, whatever their steps, with the vitals of mechanisms alone; with
--into it stands between the two marks of a page, too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import backbones
from common import numbers, parse, parser
from report import write_between

from softprompts.commands.method_settings import method_config
from softprompts.experiments.workbench import Workbench
from softprompts.storage.tables import markdown_table
from softprompts.tasks.data import Data
from softprompts.training import Lane, TrainConfig, train
from softprompts.training.vitals import rows_to_look_at, vitals_of

NAME, RATE = "measured", "rate."
START, END = "<!-- vitals: made by benchmarks/vitals.py -->", "<!-- end of vitals -->"
# Variants by what the summary calls them.
CHANGED = {
    "multi-mask, before": "multi-mask,router_input=raw,mask_mean=2.5,mask_std=0.5,rate.router=1e-3",
    "multi-mask, masks from N(1, 1)": "multi-mask,mask_mean=1,mask_std=1",
    "multi-mask": "multi-mask",
    "selective-prefix, before": "selective-prefix,selective_loss=1e-4",
    "selective-prefix": "selective-prefix",
    "superpos": "superpos",
    "ept, before": "ept,units=raw,update_scale=1.0,spaces_init=linear,align=zero,svd_scale=none",
    "ept": "ept",
}
SHOWN = {"encoder": "packaged encoder", "smollm2": "SmolLM2", "t5": "T5's stand-in"}
OF_ALL = ("gradient.", "moved.", "tokens.", "gates.mean")  # vitals that the summary leaves out


def main() -> None:
    arguments = parser(__doc__, rounds=1)
    arguments.add_argument("methods", nargs="*", metavar="METHOD[,SETTING=VALUE...]")
    arguments.add_argument("--backbones", type=lambda text: text.split(","), default=["encoder"])
    arguments.add_argument("--task", default="reviews")
    arguments.add_argument("--data-dir")
    arguments.add_argument("--steps", type=int, default=300)
    arguments.add_argument("--batch", type=int, default=16)
    arguments.add_argument("--max-length", type=int, default=128)
    arguments.add_argument("--seeds", type=numbers, default=[0])
    arguments.add_argument("--score", action="store_true")
    arguments.add_argument("--results", type=Path, default=Path("build/vitals/results.jsonl"))
    arguments.add_argument("--table", action="store_true")
    arguments.add_argument("--summary", action="store_true")
    arguments.add_argument("--into", type=Path)
    options = parse(arguments, steps=10)
    options.methods = options.methods or list(CHANGED.values())
    if options.summary:
        text = summary(known(options.results), options)
        print(text)
        if options.into is not None:
            write_between(options.into, START, END, text)
        return
    done = {key(result) for result in known(options.results)}
    for backbone in [] if options.table else options.backbones:
        wanted = [each for each in runs(options) if each["backbone"] == backbone and key(each) not in done]
        if not wanted:
            continue
        data = Data(task=options.task, **({} if options.data_dir is None else {"data_dir": options.data_dir}))
        bench = Workbench(backbones.KNOWN[backbone](), data, max_length=options.max_length)
        for each in wanted:
            result = {**each, **measured(bench, each, options.score)}
            options.results.parent.mkdir(parents=True, exist_ok=True)
            with options.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
            print(
                f"{backbone} {each['method']} seed {each['seed']}: {'; '.join(result['idle'])} ({result['seconds']} s)",
                flush=True,
            )
    asked = {key(each) for each in runs(options)}
    print(tables([result for result in known(options.results) if key(result) in asked], options))


def runs(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All runs that are asked for."""
    fixed = {"task": options.task, "steps": options.steps, "batch": options.batch}
    for backbone in options.backbones:
        for method in options.methods:
            for seed in options.seeds:
                yield {"backbone": backbone, "method": method, "seed": seed, **fixed}


def key(result: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a result is of."""
    return tuple(result[name] for name in ("backbone", "method", "seed", "task", "steps", "batch"))


def known(file: Path) -> list[dict[str, Any]]:
    """The results in a file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def measured(bench: Workbench, run: Mapping[str, Any], score: bool) -> dict[str, Any]:
    """Trains once for a step and once to the end; returns the vitals of both, and the score where it is wanted."""
    name, *settings = run["method"].split(",")
    given = dict(setting.split("=", 1) for setting in settings)
    rates = {key.removeprefix(RATE): float(given.pop(key)) for key in list(given) if key.startswith(RATE)}
    config = method_config(name, given)
    length = bench.room(config)
    features, began = bench.features("train", length), time.perf_counter()
    split = "test" if bench.task.test else "validation"

    def trained(steps: int) -> Any:
        budget = {"max_steps": steps, "batch_size": run["batch"], "eval_every": steps, "seed": run["seed"]}
        budget["learning_rates"] = rates
        scored = bench.rows.evaluation(split, length) if score and steps == run["steps"] else None
        lane = Lane(NAME, TrainConfig(**budget), features, validation=scored)
        result = train(bench.model, [lane], pad_id=bench.pad_id, progress=False)[0]
        if not result.done:
            raise KeyboardInterrupt(result.message)
        return result

    with bench.backbone.trial(NAME, config, bench.task, run["seed"]):
        first = vitals_of(bench.model.prompts[NAME], rows_to_look_at(bench.model, features, bench.pad_id))
        step = trained(1).vitals
    with bench.backbone.trial(NAME, config, bench.task, run["seed"]):
        last = trained(run["steps"])
    gradients = {name: value for name, value in step.items() if name.startswith("gradient.") or name == "penalty"}
    seconds = round(time.perf_counter() - began, 1)
    ended = {"end": last.vitals, "idle": last.idle, "score": last.score, "seconds": seconds}
    return {"start": {**first.numbers, **gradients}, **ended}


def tables(results: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> str:
    """A table for each variant: a line for a vital, columns for the start and the end on each backbone."""
    parts = []
    for method in options.methods:
        heads, columns, notes = ["vital"], [], []
        for backbone in options.backbones:
            own = [result for result in results if (result["method"], result["backbone"]) == (method, backbone)]
            if own:
                heads += [f"{backbone}, start", "end"]
                columns += [[result[end] for result in own] for end in ("start", "end")]
                scores = ", ".join("-" if result["score"] is None else f"{100 * result['score']:.1f}" for result in own)
                idle = [sentence for result in own for sentence in result["idle"]]
                counted = [f"{sentence} ({idle.count(sentence)} of {len(own)})" for sentence in dict.fromkeys(idle)]
                notes.append(f"{backbone}: score {scores}; {'; '.join(counted) or 'all parts act'}")
        names = list(dict.fromkeys(name for column in columns for found in column for name in found))
        lines = [[f"`{name}`", *(cell(column, name) for column in columns)] for name in names]
        listed = "\n".join(f"- {note}" for note in notes)
        parts.append(f"`{method}`\n\n{markdown_table(heads, lines, 'lr')}\n\n{listed}\n")
    return "\n".join(parts)


def summary(results: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> str:
    """A line for a variant's vital, a column for each backbone: at the start, after training."""
    lines, idle, names_of = [], [], {variant: name for name, variant in CHANGED.items()}
    budgets = {r["backbone"]: f"{r['steps']} x {r['batch']}" for r in results if r["method"] in options.methods}
    shown = [backbone for backbone in options.backbones if backbone in budgets]
    for method in options.methods:
        own = {r["backbone"]: r for r in results if r["method"] == method}
        names = dict.fromkeys(name for r in own.values() for name in r["end"] if not name.startswith(OF_ALL))
        for name in names:
            pairs = [[cell([own[b][end]], name) for end in ("start", "end")] if b in own else ["-"] for b in shown]
            lines.append([names_of.get(method, method), f"`{name}`", *(" > ".join(pair) for pair in pairs)])
        called = names_of.get(method, method)
        idle += [f"- {called} on {SHOWN[b]}: {'; '.join(own[b]['idle'])}" for b in shown if b in own and own[b]["idle"]]
    heads = [f"{SHOWN[backbone]} ({budgets[backbone]})" for backbone in shown]
    said = "\n".join(idle)
    return f"{markdown_table(['variant', 'vital', *heads], lines, 'llr')}\n\nSaid in the last lines:\n\n{said}\n"


def cell(found: Sequence[Mapping[str, float | None]], name: str) -> str:
    """The mean of a vital, three digits of it."""
    values = [value for each in found if (value := each.get(name)) is not None]
    return f"{statistics.fmean(values):.3g}" if values else "-"


if __name__ == "__main__":
    main()
