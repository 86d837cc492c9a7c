from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("fastapi_offline")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

import softprompts as sp
from tests.serving.servers import Running, running, save, service_of


@pytest.fixture(scope="package")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three prompts; nobody changes it."""
    folder = tmp_path_factory.mktemp("prompts")
    save("bert", folder, "films", "two", sp.PrefixTuningConfig(num_virtual_tokens=2))
    save("bert", folder, "pairs", "pair", sp.PromptTuningConfig(num_virtual_tokens=2))
    save("bert", folder, "words", "tags", sp.PromptTuningConfig(num_virtual_tokens=2))
    return folder


@pytest.fixture
def server(films: Path) -> Iterator[Running]:
    with running(service_of("bert", films)) as made:
        yield made
