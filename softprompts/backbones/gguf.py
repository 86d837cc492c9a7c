"""Models in GGUF files (llama.cpp's format), which transformers reads with their weights in full precision again."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from softprompts.errors import SoftPromptError

_ENDING = ".gguf"


def is_gguf(path: str) -> bool:
    """Whether a model's name is that of a GGUF file which is there."""
    return path.lower().endswith(_ENDING) and Path(path).expanduser().is_file()


def located(path: str) -> tuple[str, dict[str, Any]]:
    """What transformers' ``from_pretrained`` takes for a folder, a hub id or a GGUF file: a name, and more arguments.

    Raises:
        SoftPromptError: the package that reads GGUF files is missing.
    """
    if not is_gguf(path):
        return path, {}
    if importlib.util.find_spec("gguf") is None:
        raise SoftPromptError(f"'{path}' takes the package gguf, of the extra 'gguf': pip install gguf")
    file = Path(path).expanduser().resolve()
    return str(file.parent), {"gguf_file": file.name}


def as_plain(model: Any, path: str) -> Any:
    """Makes a model that was read from a GGUF file, if it was, a plain one that is called by that file."""
    if is_gguf(path):
        # Its weights are no longer quantised, but transformers goes on treating it so.
        del model.config.quantization_config
        model.hf_quantizer = None
        model.is_quantized = False
        model.config._name_or_path = str(Path(path).expanduser().resolve())
    return model
