"""`make check`: which tests belong to which file."""

from __future__ import annotations

from pathlib import Path

import pytest
from changed import outermost, path_for

TESTS = Path(__file__).parent


@pytest.mark.parametrize(
    ("file", "tests"),
    [
        ("softprompts/methods/baselines/lora.py", "methods"),
        ("softprompts/predictor.py", "test_predictor.py"),
        ("softprompts/__main__.py", "test_public.py"),
        ("tests/storage/test_hub.py", "storage/test_hub.py"),
        ("tests/bench/grids.py", "bench"),
        ("tests/conftest.py", "."),
        ("recipes/quick.yaml", "bench"),
        ("docs/index.md", "docs"),
        ("tests/storage/test_gone.py", None),
        ("README.md", None),
    ],
)
def test_a_files_tests_are_those_of_its_room(file: str, tests: str | None) -> None:
    assert path_for(file, TESTS) == (None if tests is None else TESTS / tests)


def test_what_lies_in_a_chosen_folder_is_not_named_again() -> None:
    paths = [TESTS / name for name in ("model/test_attach.py", "model", "storage/test_hub.py", "storage/test_hub.py")]
    assert outermost(paths) == [TESTS / "model", TESTS / "storage/test_hub.py"]
