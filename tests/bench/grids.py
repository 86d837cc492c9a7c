"""A small grid on a tiny random model, in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from saved import model_folder, rows, write_csv

TRAINING = {"max_steps": 8, "batch_size": 8, "eval_every": 2}


def write_grid(folder: Path, **changes: Any) -> Path:
    """Writes a recipe with its tasks beside it: 2 methods, 2 tasks, 2 seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, seed in (("first", 0), ("second", 2)):
        for split in ("train", "validation"):
            lines = rows(32, seed + (split == "validation"))
            for index, line in enumerate(lines):
                if index % 5 == 0:  # some labels are wrong, so that scores differ
                    line["label"] = "positive"
            write_csv(folder / f"{task}-{split}.csv", lines)
        declared = {"train": f"{task}-train.csv", "validation": f"{task}-validation.csv"}
        (folder / f"{task}.yaml").write_text(yaml.safe_dump(declared))
    recipe: dict[str, Any] = {
        "title": "A small grid",
        "models": {"Tiny": model_folder("bert")},
        "seeds": [0, 1],
        "training": TRAINING,
        "tasks": {"First": "first.yaml", "Second": "second.yaml"},
        "rows": [
            {"name": "Head", "method": "head-only", "baseline": True},
            {"name": "Prefix", "method": "prefix-tuning", "settings": {"num_virtual_tokens": 2}},
        ],
        **changes,
    }
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path
