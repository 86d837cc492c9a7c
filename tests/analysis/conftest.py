from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from saved import model_folder, rows, write_csv

import softprompts as sp
from softprompts.experiments.workbench import Workbench
from softprompts.tasks.data import Data
from softprompts.training import TrainConfig
from tests.analysis.reading import Train


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Trains a method for a few steps on texts whose label a word gives away; the run folder."""
    root = tmp_path_factory.mktemp("runs")
    data = write_csv(root / "data.csv", rows())

    benches: dict[str, Workbench] = {}
    folders: dict[str, Path] = {}

    def run(config: sp.MethodConfig, family: str = "bert", seed: int = 0, **training: Any) -> Path:
        key = f"{config} {family} {seed} {training}"
        if key not in folders:
            asked = TrainConfig(**{"max_steps": 4, "batch_size": 8, "seed": seed, "learning_rate": 0.05, **training})
            if family not in benches:
                benches[family] = Workbench(model_folder(family), Data(train=str(data)), max_length=12)
            folders[key], _ = benches[family].run(config, asked, root=root, progress=False)
        return folders[key]

    return run
