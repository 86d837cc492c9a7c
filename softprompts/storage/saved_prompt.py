"""Saved prompts as files: where they are, what is in them, and the checks that need no model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from softprompts.errors import SoftPromptError, first_line, shown
from softprompts.storage.files import read_json
from softprompts.storage.hub import quiet_hub
from softprompts.storage.names import ADAPTER_CONFIG, ADAPTER_TENSORS
from softprompts.storage.names import CONFIG_FILE as CONFIG_FILE
from softprompts.storage.names import PROMPT as PROMPT
from softprompts.storage.runs import located, near
from softprompts.validation import translated

TENSOR_FILE = "softprompt.safetensors"
FORMAT = 1
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_FILES = (CONFIG_FILE, TENSOR_FILE, ADAPTER_CONFIG, ADAPTER_TENSORS, "README.md")
_SUBFOLDER = re.compile(r"[A-Za-z0-9][\w-]*(/[A-Za-z0-9][\w-]*)*", re.ASCII)


class _Config(BaseModel):
    """What all readers of a config rely on; the settings of the method and the backbone are checked by their owners."""

    model_config = ConfigDict(strict=True)

    format: int
    method: str
    config: dict[str, Any]
    backbone: dict[str, Any]
    tensors: dict[str, Any]
    sha256: str
    name: str = ""
    labels: list[str] | None = None


def prompt_folder(source: str | Path, revision: str | None = None, subfolder: str | None = None) -> Path:
    """Returns the folder of the prompt in a run folder, a prompt folder or a hub repository, which is downloaded.

    Args:
        source: the folder or the id, or the name of a run in ``runs``.
        revision: branch, tag or commit of a hub repository; its main branch by default.
        subfolder: a folder within it, where it holds several prompts.

    Raises:
        SoftPromptError: a run folder without a prompt, or nothing of that name.
    """
    folder = Path(source := located(source))
    if subfolder is not None and not _SUBFOLDER.fullmatch(subfolder):
        raise SoftPromptError(
            f"subfolder {subfolder!r}: name folders by letters, digits, '_' and '-', with '/' between"
        )
    if folder.is_dir():
        folder = folder if subfolder is None else folder / subfolder
        if not (folder / CONFIG_FILE).is_file():
            if (folder / PROMPT / CONFIG_FILE).is_file():
                return folder / PROMPT
            if (folder / "config.yaml").is_file():
                raise SoftPromptError(f"{folder}: this run has not saved a prompt yet; go on with --resume")
        return folder
    name = str(source)
    if folder.is_file():
        raise SoftPromptError(f"{name} is a file; name a run folder or a prompt folder")
    return _from_hub(name, revision, subfolder)


def files_of(config: dict[str, Any], content: bytes, card: str) -> dict[str, bytes]:
    """Returns the content of a saved prompt's files in the order of writing; ``content`` is the tensors' file."""
    config_text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    return {"README.md": card.encode(), TENSOR_FILE: content, CONFIG_FILE: config_text.encode()}


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads and checks the config and tensors of the saved prompt in a folder, see `prompt_folder`.

    Raises:
        SoftPromptError: nothing there, damaged, or of an unknown format.
    """
    config, config_path = read_config(folder)
    tensor_path = config_path.with_name(TENSOR_FILE)
    if not tensor_path.is_file():
        raise SoftPromptError(f"{tensor_path} is missing: the saved prompt is incomplete")
    content = tensor_path.read_bytes()
    if hashlib.sha256(content).hexdigest() != config["sha256"]:
        raise SoftPromptError(
            f"{tensor_path} is not the file that {CONFIG_FILE} was saved with (truncated or edited, or saving was "
            "cut short): copy or save the prompt again"
        )
    tensors = tensors_in(content, tensor_path)
    if types_of(tensors) != config["tensors"]:
        raise SoftPromptError(f"{config_path} lists other tensors than {TENSOR_FILE} holds: one of them was edited")
    return config, tensors


def read_config(folder: Path) -> tuple[dict[str, Any], Path]:
    """Reads and checks the config of a saved prompt, but not its tensors; returns the config and its file.

    Raises:
        SoftPromptError: nothing there, damaged, or of an unknown format.
    """
    config_path = folder / CONFIG_FILE
    if not config_path.is_file() and (folder / ADAPTER_CONFIG).is_file():
        raise SoftPromptError(
            f"{folder} is a PEFT adapter, which does not say all that is needed here: softprompts.load or "
            "model.load_prompt read it, and save_prompt writes it as a prompt of ours"
        )
    if not config_path.is_file():
        prompts = sorted(file.parent.name for file in folder.glob(f"*/{CONFIG_FILE}"))
        hint = f"; it holds several: {', '.join(prompts)}" if prompts else ""
        raise SoftPromptError(f"{folder} holds no saved prompt: {CONFIG_FILE} is missing{hint}")
    config = read_json(config_path)
    if config.get("format", FORMAT) != FORMAT:
        raise SoftPromptError(
            f"{config_path} has format {shown(config['format'])}; this version reads {FORMAT}: update softprompts"
        )
    try:
        _Config.model_validate(config)
    except ValidationError as error:
        raise SoftPromptError(f"{translated(error, str(config_path))}: no saved prompt, or an edited one") from error
    return config, config_path


def tensors_in(content: bytes, path: Path) -> dict[str, Tensor]:
    """Returns the tensors in the bytes of a safetensors file; no code in it is run.

    Raises:
        SoftPromptError: it is no such file; names ``path``.
    """
    try:
        return load_tensors(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError, OverflowError) as error:
        raise SoftPromptError(f"{path} is no safetensors file, or a damaged one ({first_line(error)})") from error


def types_of(tensors: Mapping[str, Tensor]) -> dict[str, list[Any]]:
    """Returns the type and shape of each tensor, as a config lists them."""
    return {key: [str(value.dtype).removeprefix("torch."), list(value.shape)] for key, value in tensors.items()}


def _from_hub(name: str, revision: str | None, subfolder: str | None) -> Path:
    """Downloads the files of a prompt, and nothing else of its repository, into the hub's cache."""
    if name.startswith((".", "/", "~")) or name.count("/") != 1 or "\\" in name:  # no hub id
        raise SoftPromptError(f"{name}: no such folder{near(name)}")
    import huggingface_hub  # here: the list of methods need not wait for it

    within = "" if subfolder is None else f"{subfolder}/"
    files = [f"{within}{file}" for file in _FILES]
    # The configs of folders beside it tell which other prompts there are.
    files += [] if within else [f"*/{CONFIG_FILE}"]
    with quiet_hub(name) as local_files_only:
        try:
            snapshot = huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=files, local_files_only=local_files_only
            )
        except Exception as error:  # the hub's client has a dozen kinds
            reason = "which cannot be reached" if local_files_only else type(error).__name__
            raise SoftPromptError(f"{name}: no such folder, and no such prompt on the hub ({reason})") from error
    folder = Path(snapshot) / within
    if not folder.is_dir():
        raise SoftPromptError(f"{name} holds no saved prompt in '{subfolder}'")
    return folder
