from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # as the command line does
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "helpers"))

from browsing import browser as browser  # a fixture
from saved import Cli
from transformers.utils import logging

logging.set_verbosity_error()
torch.set_num_threads(1)

# Modules of half a minute and more come first: what begins last decides how long a process waits for the other.
LONG = (
    "bench/test_runner.py",
    "experiments/test_every_method.py",
    "injection/test_input_hooks.py",
    "injection/test_user_compile.py",
    "backbones/test_quantized.py",
    "training/test_processes.py",
    "examples/test_examples.py",
    "docs/test_site.py",
    "docs/test_tutorial.py",
)
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    long = {Path(__file__).parent / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: long.get(item.path, len(LONG)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real GLUE, SuperGLUE, SQuAD and CoNLL data, where a copy lies next to the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no real data folder next to the checkout (shared/data)")
    return SHARED_DATA


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line, in this process."""
    return Cli(monkeypatch, capsys)


@pytest.fixture(autouse=True)
def no_cache_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests tokenise their rows themselves, and leave nothing behind; those of the cache name a folder."""
    monkeypatch.setattr("softprompts.tasks.cache.cache_folder", lambda: None)


@pytest.fixture(autouse=True)
def no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes die in tests, machines do not; waiting for the disk is half of the time of tests that write."""
    monkeypatch.setattr("os.fsync", lambda handle: None)
