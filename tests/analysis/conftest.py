from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from reading import Train
from saved import model_folder, rows, write_csv

import softprompts as sp
from softprompts.experiment import Data, Workbench
from softprompts.training import TrainConfig


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Trains a method for a few steps on texts whose label a word gives away; the run folder."""
    root = tmp_path_factory.mktemp("runs")
    data = write_csv(root / "data.csv", rows())

    def run(config: sp.MethodConfig, family: str = "bert", seed: int = 0, **training: Any) -> Path:
        asked = TrainConfig(**{"max_steps": 4, "batch_size": 8, "seed": seed, "learning_rate": 0.05, **training})
        bench = Workbench(model_folder(family), Data(train=str(data)), max_length=12)
        folder, _ = bench.run(config, asked, root=root, reuse=True, progress=False)
        return folder

    return run
