"""EPT's readings, starts and rates on reviews and SST-2, at equal trained numbers.

    python benchmarks/ept_variants.py STAGE --data-dir DIR [--tasks sst2,reviews] [--steps 150] [--batch 8]
                                      [--seeds 1] [--size small] [--runs build/ept_variants] [--json FILE]

The packaged encoder. SST-2: 4,000 training sentences, none of which is a part of a validation sentence; the variants
are compared on 300 other sentences of the training split, or with --shown on the validation set. Reviews: its training
rows, compared on its validation rows, or with --shown on its test rows. Each run is scored once, after its last step.
Sizes: "small" 10 tokens and 12 ranks of 40 tokens for 96 positions, "default" those of the method.
What is done already is not done again: the same command goes on where it was interrupted.

Numbers of a prompt, at the start and after training: update and prompt relative to the embeddings' norm, fusion and
spaces relative to the prompt's, share of the fusion's weight on rows of zeros, and how many rows the weight is on
(exp of its entropy).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from common import parse, parser, show, write_texts

from softprompts.experiments.run_record import Run
from softprompts.experiments.workbench import Workbench
from softprompts.methods import make_config
from softprompts.methods.ept import EPT
from softprompts.tasks import Example, load_task
from softprompts.tasks.data import Data
from softprompts.training import TrainConfig

TRAIN, OTHERS = 4000, 300
_KEPT = {"num_virtual_tokens": 10, "rank": 12, "max_length": 96}
SIZES: dict[str, dict[str, dict[str, int]]] = {
    "small": {"ept": {**_KEPT, "source_tokens": 40, "space_hidden_size": 64}, "dept": _KEPT},
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
STAGES: dict[str, list[Variant]] = {}


def rates(prompt: float, low_rank: float, spaces: float) -> dict[str, float]:
    return {"prompt": prompt, "low_rank": low_rank, "spaces": spaces}


def main() -> None:
    arguments = parser(__doc__, rounds=1)
    arguments.add_argument("stage", choices=STAGES)
    arguments.add_argument("--data-dir", type=Path, required=True)
    arguments.add_argument("--tasks", type=lambda text: text.split(","), default=["sst2", "reviews"])
    arguments.add_argument("--steps", type=int, default=150)
    arguments.add_argument("--batch", type=int, default=8)
    arguments.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[1000])
    arguments.add_argument("--size", choices=SIZES, default="small")
    arguments.add_argument("--shown", action="store_true", help="score on rows that tables show")
    arguments.add_argument("--runs", type=Path, default=Path("build/ept_variants"))
    options = parse(arguments, steps=10)
    lines: dict[str, dict[str, Any]] = {}
    for task in options.tasks:
        bench = Workbench(options.model, rows_of(task, options), max_length=96)
        for method, settings, component_rates in STAGES[options.stage]:
            label = name(method, settings, component_rates)
            config = make_config(method, **SIZES[options.size].get(method, {}), **settings)
            for seed in options.seeds:
                training = TrainConfig(
                    max_steps=options.steps,
                    batch_size=options.batch,
                    eval_every=options.steps,
                    seed=seed,
                    learning_rates=component_rates,
                )
                ((folder, result),) = bench.run_all([Run(config, training)], root=options.runs, progress=False)
                score = 0.0 if result is None else float(result["metrics"].get("accuracy") or 0.0)
                line = lines.setdefault(label, {})
                line.setdefault(task, []).append(score)
                if method == "ept":
                    line.setdefault("numbers", numbers(bench, config, seed, folder / "prompt"))
                print(
                    f"{options.stage} {task} seed {seed} {label}: {100 * score:.1f} {line.get('numbers')}", flush=True
                )
    cells = [
        [label, *(scores(line[task]) for task in options.tasks), *line.get("numbers", {}).values()]
        for label, line in lines.items()
    ]
    head = next((list(line["numbers"]) for line in lines.values() if "numbers" in line), [])
    show(options.stage, ["variant", *options.tasks, *head], cells)
    if options.json is not None:
        options.json.write_text(json.dumps(lines, indent=1), encoding="utf-8")


def scores(values: list[float]) -> str:
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


def numbers(bench: Workbench, config: Any, seed: int, folder: Path) -> dict[str, str]:
    """What the parts of the prompt do, at the start and after training."""
    with bench.backbone.trial("start", config, bench.task, seed):
        start = parts(bench, bench.model.prompts["start"].method)
    bench.model.load_prompt(folder, "end")
    end = parts(bench, bench.model.prompts["end"].method)
    bench.backbone.drop("end")
    return {key: f"{start[key]:.3g} > {end[key]:.3g}" for key in start}


@torch.no_grad()
def parts(bench: Workbench, method: EPT) -> dict[str, float]:
    """The numbers of one prompt."""
    config, found = method.config, method()
    table = bench.model.get_input_embeddings().weight
    length = table[: min(len(table), 5000)].float().norm(dim=1).mean()
    prompt, update = method.prompt, method.a @ method.b
    weights = (prompt @ update.T / math.sqrt(prompt.shape[1])).softmax(0 if config.fusion_mode == "axis_p" else 1)
    fused = method.fuse(prompt, update) - prompt
    spaces = found.tokens[0] / method.unit - prompt - fused
    shares = weights / weights.sum(1, keepdim=True)
    own = prompt.norm(dim=1).mean()
    zero = update.norm(dim=1) < 1e-9
    return {
        "prompt": float(found.tokens.norm(dim=-1).mean() / length),
        "update": float(found.update.norm(dim=-1).mean() / length),
        "fusion": float(fused.norm(dim=1).mean() / own),
        "spaces": float(spaces.norm(dim=1).mean() / own),
        "on zeros": float(shares[:, zero].sum(1).mean()),
        "rows": float(torch.exp(-(shares * (shares + 1e-30).log()).sum(1)).mean()),
    }


RAW = {"units": "raw"}
STAGES["readings-raw"] = [
    ("ept", {**RAW, **reading}, rates(2e-2 * f, 1e-3 * f, 1e-3 * f)) for f in (0.3,) for reading in READINGS
]
UNITS = {"svd_scale": "sqrt", "align": "sample"}
STAGES["units"] = [
    ("ept", RAW, rates(2e-2, 1e-3, 1e-3)),
    ("ept", {**UNITS, "update_scale": 0.1, "spaces_init": "zeros"}, rates(0.3, 3e-3, 1e-3)),
    ("ept", {**UNITS, "update_scale": 1.0, "spaces_init": "zeros"}, rates(0.3, 3e-3, 1e-3)),
    ("ept", {**UNITS, "update_scale": 0.1, "spaces_init": "linear"}, rates(0.3, 3e-3, 1e-3)),
    ("ept", {**UNITS, "update_scale": 0.1, "spaces_init": "zeros"}, rates(0.1, 1e-2, 1e-3)),
    ("dept", {}, {"prompt": 2e-2, "low_rank": 5e-3}),
    ("dept", {}, {"prompt": 2e-2, "low_rank": 5e-4}),
    ("ept", {**UNITS, "update_scale": 0.1, "spaces_init": "zeros"}, rates(0.1, 1e-3, 1e-3)),
    ("ept", {**UNITS, "update_scale": 0.1, "spaces_init": "zeros"}, rates(0.1, 3e-3, 3e-4)),
]

if __name__ == "__main__":
    main()
