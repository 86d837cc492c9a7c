"""EPT's readings, starts and rates on reviews and SST-2, at equal trained numbers.

    python benchmarks/ept_variants.py STAGE ... --data-dir DIR [--tasks sst2,reviews] [--steps 150] [--batch 8]
                                      [--seeds 1000] [--size small] [--backbone encoder] [--start] [--shown]
                                      [--runs build/ept_variants] [--json FILE]

SST-2: 4,000 training sentences, none of which is a part of a validation sentence; the variants
are compared on 300 other sentences of the training split, or with --shown on the validation set. Reviews: its training
rows, compared on its validation rows, or with --shown on its test rows. Each run is scored once, after its last step.
Sizes: "small" 10 tokens and 12 ranks of 40 tokens for 96 positions, "default" those of the method.
What is done already is not done again: the same command goes on where it was interrupted.

Beside the scores stand the vitals of the first seed's prompt at the start and after training.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import backbones
import torch
from common import parse, parser, show, write_texts
from report import table as table_text
from transformers import AutoModel

from softprompts.backbones.packaged import resolve_model
from softprompts.experiments.run_record import Run
from softprompts.experiments.workbench import Workbench
from softprompts.methods import MethodConfig, Shape, Vocabulary, make_config
from softprompts.tasks import Example, load_task
from softprompts.tasks.data import Data
from softprompts.training import TrainConfig
from softprompts.training.vitals import rows_to_look_at, vitals_of

TRAIN, OTHERS, MAX_LENGTH = 4000, 300, 96
_KEPT = {"num_virtual_tokens": 10, "rank": 12, "max_length": 96}
SIZES: dict[str, dict[str, dict[str, int]]] = {
    "small": {
        "ept": {**_KEPT, "source_tokens": 40, "space_hidden_size": 64},
        "dept": _KEPT,
        "dpt": {"num_virtual_tokens": 20},
    },
    "default": {},
}
Settings = dict[str, Any]
Variant = tuple[str, Settings, dict[str, float]]  # method, settings, rates by component
READINGS: list[Settings] = [
    {"fusion_mode": mode, "svd_scale": scale, "align": align}
    for mode, scale, align in itertools.product(
        ("values_ab", "literal", "axis_p"), ("none", "sqrt"), ("zero", "tile", "sample")
    )
]
PAPER = {"units": "raw", "update_scale": 1.0, "spaces_init": "linear"}
OLD = {**PAPER, "align": "zero", "svd_scale": "none"}
STAGES: dict[str, list[Variant]] = {
    "readings": [("ept", reading, {}) for reading in READINGS],
    "readings-paper": [("ept", {**reading, **PAPER}, {}) for reading in READINGS],
    # The default, and what it differs by from the reading that was the default before, one at a time.
    "parts": [
        ("ept", {}, {}),
        *(("ept", {"update_scale": scale}, {}) for scale in (0.1, 1.0)),
        *(("ept", {}, {"low_rank": rate}) for rate in (1e-3, 1e-2)),
        *(("ept", {}, {"prompt": rate}) for rate in (0.03, 0.3)),
        ("ept", {"align": "tile"}, {}),
        ("ept", {"spaces_init": "linear"}, {}),
        ("ept", OLD, {}),
        ("ept", OLD, {"prompt": 6e-3, "low_rank": 3e-4, "spaces": 3e-4}),
    ],
    "old-new": [("ept", OLD, {}), ("ept", {}, {})],
    "dept": [("dept", {}, {"low_rank": rate}) for rate in (5e-3, 5e-4, 1e-4)],
    "dpt": [
        ("dpt", {"init_scale": scale}, {"factors": rate}) for scale, rate in ((0.5, 1e-2), (None, 1e-2), (None, 3e-3))
    ],
    "superpos": [
        ("superpos", {}, {"embeddings": embeddings, "weights": weights})
        for embeddings, weights in ((3e-3, 1e-2), (1e-2, 1e-2), (3e-3, 3e-3), (1e-3, 1e-3))
    ],
}


def main() -> None:
    arguments = parser(__doc__, rounds=1)
    arguments.add_argument("stages", nargs="+", choices=STAGES)
    arguments.add_argument("--data-dir", type=Path, required=True)
    arguments.add_argument("--tasks", type=lambda text: text.split(","), default=["sst2", "reviews"])
    arguments.add_argument("--steps", type=int, default=150)
    arguments.add_argument("--batch", type=int, default=8)
    arguments.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[1000])
    arguments.add_argument("--size", choices=SIZES, default="small")
    arguments.add_argument("--backbone", choices=backbones.KNOWN, default="encoder")
    arguments.add_argument("--start", action="store_true", help="vitals at the start, of the embeddings alone")
    arguments.add_argument("--shown", action="store_true", help="score on rows that tables show")
    arguments.add_argument("--runs", type=Path, default=Path("build/ept_variants"))
    options = parse(arguments, steps=10)
    model = backbones.KNOWN[options.backbone]()
    if options.start:
        for stage in options.stages:
            show_starts(stage, model, options)
        return
    benches = {task: Workbench(model, rows_of(task, options), max_length=MAX_LENGTH) for task in options.tasks}
    found = {stage: measured(stage, benches, options) for stage in options.stages}
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


def show_starts(stage: str, model: str, options: argparse.Namespace) -> None:
    """The vitals at the start of each variant, on a backbone's embeddings alone."""
    table = AutoModel.from_pretrained(resolve_model(model)).get_input_embeddings()
    shape = Shape(table.embedding_dim, 0, 0, Vocabulary(table, table.num_embeddings))
    length = table.weight.detach().norm(dim=1).mean()
    lines: dict[str, dict[str, float]] = {}
    for method, settings, _ in STAGES[stage]:
        config = make_config(method, **SIZES[options.size].get(method, {}), **settings)
        torch.manual_seed(options.seeds[0])
        built = config.build(shape)
        with torch.no_grad():
            prompt = built()
            line = {vital.name: float(vital.value) for vital in built.vitals() if vital.value is not None}
            line["tokens.norm"] = float(prompt.tokens.norm(dim=-1).mean() / length)
            if prompt.update is not None:
                line["update.norm"] = float(prompt.update.norm(dim=-1).mean() / length)
        lines[name(method, settings, {})] = line
    head = list(next(iter(lines.values())))
    print(table_text([stage, *head], [[label, *(f"{line[key]:.2g}" for key in head)] for label, line in lines.items()]))


def measured(stage: str, benches: Mapping[str, Workbench], options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Scores by task, and numbers of the first seed's prompts, of each variant of a stage."""
    lines: dict[str, dict[str, Any]] = {}
    for (method, settings, component_rates), seed, task in itertools.product(STAGES[stage], options.seeds, benches):
        bench, label = benches[task], name(method, settings, component_rates)
        config = make_config(method, **SIZES[options.size].get(method, {}), **settings)
        training = TrainConfig(
            max_steps=options.steps,
            batch_size=options.batch,
            eval_every=options.steps,
            seed=seed,
            learning_rates=component_rates,
        )
        line = lines.setdefault(label, {task: [] for task in benches})
        line.setdefault("start", start_of(bench, config, seed))
        ((_, result),) = bench.run_all([Run(config, training)], root=options.runs, progress=False)
        line[task].append(0.0 if result is None else float(result["metrics"].get("accuracy") or 0.0))
        line.setdefault("end", {} if result is None else result["vitals"])
        print(
            f"{stage} {task} seed {seed} {label}: {100 * line[task][-1]:.1f} {shown(line['start'], line['end'])}",
            flush=True,
        )
    cells = [
        [label, *(scores(line[task]) for task in benches), *shown(line["start"], line.get("end", {})).values()]
        for label, line in lines.items()
    ]
    first = next(iter(lines.values()))
    show(stage, ["variant", *benches, *shown(first["start"], first.get("end", {}))], cells)
    return lines


def scores(values: list[float]) -> str:
    if not values:
        return "-"
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{spread}"


def name(method: str, settings: Settings, component_rates: Mapping[str, float]) -> str:
    shown = [method, *map(str, settings.values()), *(f"{key} {value:g}" for key, value in component_rates.items())]
    return " ".join(shown)


def rows_of(task: str, options: argparse.Namespace) -> Data:
    """Rows to train on, and rows to score on."""
    if task == "reviews":
        loaded = load_task("reviews")
        train, others, shown = loaded.train, loaded.validation, loaded.test
    else:
        loaded = load_task("glue/sst2", options.data_dir)
        shown = loaded.test or loaded.validation
        train, others = apart(loaded.train, shown)
    options.runs.mkdir(parents=True, exist_ok=True)
    files = {}
    for part, examples in {"train": train, "validation": shown if options.shown else others}.items():
        file = options.runs / f"{task}-{part}{'-shown' * options.shown}.jsonl"
        write_texts(file, examples)
        files[part] = str(file)
    return Data(**files)


def apart(train: list[Example], shown: list[Example]) -> tuple[list[Example], list[Example]]:
    """Training rows that are no part of a row that is shown: those to train on, and others."""
    words = "\n".join(" ".join(example.text.split()) for example in shown)
    kept = [example for example in train if " ".join(example.text.split()) not in words]
    drawn = random.Random("rows").sample(kept, TRAIN + OTHERS)
    return drawn[:TRAIN], drawn[TRAIN:]


def start_of(bench: Workbench, config: MethodConfig, seed: int) -> dict[str, float | None]:
    """The vitals of a prompt at its start."""
    rows = rows_to_look_at(bench.model, bench.features("train", bench.room(config)), bench.pad_id)
    with bench.backbone.trial("start", config, bench.task, seed):
        return vitals_of(bench.model.prompts["start"], rows).numbers


def shown(start: Mapping[str, float | None], end: Mapping[str, float | None]) -> dict[str, str]:
    """Vitals from start to end, those that have both in front."""
    both = {name: f"{value or 0:.2g} > {end[name] or 0:.2g}" for name, value in start.items() if name in end}
    return both | {name: f"{value or 0:.2g}" for name, value in {**start, **end}.items() if name not in both}


if __name__ == "__main__":
    main()
