"""TODO."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from softprompts.errors import SoftPromptError
from softprompts.storage.hub import asking
from softprompts.storage.names import ADAPTER_CONFIG, ADAPTER_TENSORS
from softprompts.storage.names import PROMPT as PROMPT

CONFIG_FILE = "softprompt_config.json"
TENSOR_FILE = "softprompt.safetensors"
FORMAT = 1
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_FILES = (CONFIG_FILE, TENSOR_FILE, ADAPTER_CONFIG, ADAPTER_TENSORS, "README.md")
_SUBFOLDER = re.compile(r"[A-Za-z0-9][\w-]*(/[A-Za-z0-9][\w-]*)*", re.ASCII)


def prompt_folder(source: str | Path, revision: str | None = None, subfolder: str | None = None) -> Path:
    """The saved prompt behind a run folder, a prompt folder or a hub id, which is fetched.

    Args:
        source: the folder or the id.
        revision: branch, tag or commit of a hub repository; its main branch by default.
        subfolder: a folder within it, where it holds several prompts.

    Raises:
        SoftPromptError: a run folder without a prompt, or nothing of that name.
    """
    folder = Path(source)
    if subfolder is not None and not _SUBFOLDER.fullmatch(subfolder):
        raise SoftPromptError(
            f"subfolder {subfolder!r}: name a folder by letters, digits, '_' and '-', with '/' between"
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


def files_of(config: dict[str, Any], content: bytes, text: str) -> dict[str, bytes]:
    """The files of a saved prompt, in the order in which they are written.

    Args:
        config: see `described`.
        content: likewise.
        text: its card.
    """
    config_text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    return {"README.md": text.encode(), TENSOR_FILE: content, CONFIG_FILE: config_text.encode()}


def read(
    path: str | Path, revision: str | None = None, subfolder: str | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The checked config and tensors of a saved prompt; a hub id is fetched first.

    Args:
        path: the folder or the id.
        revision: see `prompt_folder`.
        subfolder: likewise.

    Raises:
        SoftPromptError: nothing there, damaged, or of an unknown format.
    """
    config, config_path = read_config(path, revision, subfolder)
    tensor_path = config_path.with_name(TENSOR_FILE)
    if not tensor_path.is_file():
        raise SoftPromptError(f"{tensor_path} is missing: the saved prompt is incomplete")
    content = tensor_path.read_bytes()
    if hashlib.sha256(content).hexdigest() != config["sha256"]:
        raise SoftPromptError(
            f"{tensor_path} is not the file that {CONFIG_FILE} was saved with (truncated or edited, or saving was "
            "cut short): copy or save the prompt again"
        )
    try:
        tensors = load_tensors(content)
    except SafetensorError as error:
        raise SoftPromptError(f"{tensor_path} cannot be read ({error})") from error
    there = {key: [str(value.dtype).removeprefix("torch."), list(value.shape)] for key, value in tensors.items()}
    if there != config["tensors"]:
        raise SoftPromptError(f"{config_path} lists other tensors than {TENSOR_FILE} holds: one of them was edited")
    return config, tensors


def read_config(
    path: str | Path, revision: str | None = None, subfolder: str | None = None
) -> tuple[dict[str, Any], Path]:
    """The checked config of a saved prompt, and its file; a hub id is fetched first. The tensors are not looked at.

    Args:
        path: the folder or the id.
        revision: see `prompt_folder`.
        subfolder: likewise.

    Raises:
        SoftPromptError: nothing there, damaged, or of an unknown format.
    """
    folder = located(path, revision, subfolder)
    config_path = folder / CONFIG_FILE
    if not config_path.is_file() and (folder / ADAPTER_CONFIG).is_file():
        raise SoftPromptError(
            f"{folder} is a PEFT adapter, which does not say all that is needed here: softprompts.load or "
            "model.load_prompt read it, and save_prompt writes it as a prompt of ours"
        )
    if not config_path.is_file():
        inside = sorted(p.parent.name for p in folder.glob(f"*/{CONFIG_FILE}"))
        hint = f"; it holds several: {', '.join(inside)}" if inside else ""
        raise SoftPromptError(f"{folder} holds no saved prompt: {CONFIG_FILE} is missing{hint}")
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SoftPromptError(f"{config_path} is not valid JSON ({error}): the file is damaged") from error
    needed = ("format", "method", "config", "backbone", "tensors", "sha256")
    missing = [key for key in needed if not isinstance(config, dict) or key not in config]
    if missing:
        raise SoftPromptError(f"{config_path} lacks '{missing[0]}': it is no saved prompt, or an edited one")
    if config["format"] != FORMAT or config["format"] is True:
        raise SoftPromptError(
            f"{config_path} has format {config['format']!r}; this version reads {FORMAT}: update softprompts"
        )
    kinds = {"method": str, "config": dict, "backbone": dict, "tensors": dict, "sha256": str}
    labels = config.get("labels")
    wrong = [key for key, kind in kinds.items() if not isinstance(config[key], kind)]
    if labels is not None and not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        wrong.append("labels")
    if not isinstance(config.get("name", ""), str):
        wrong.append("name")
    if wrong:
        raise SoftPromptError(f"{config_path}: '{wrong[0]}' is not what a saved prompt has there; it was edited")
    return config, config_path


def located(path: str | Path, revision: str | None = None, subfolder: str | None = None) -> Path:
    """The folder of what is saved there; a hub id is fetched. See `prompt_folder`."""
    folder = Path(path)
    try:
        if subfolder is not None or folder.is_dir():
            return prompt_folder(path, revision, subfolder)
        return _from_hub(str(path), revision)
    except ValueError as error:  # a name that no file can have
        if isinstance(error, SoftPromptError):
            raise
        raise SoftPromptError(f"{str(path)!r}: no such folder") from error


def _from_hub(name: str, revision: str | None = None, subfolder: str | None = None) -> Path:
    """A prompt of a hub repository, in the hub's cache. Nothing but the files of a prompt is fetched."""
    if name.startswith((".", "/", "~")) or name.count("/") != 1 or "\\" in name:  # no hub id
        raise SoftPromptError(f"{name}: no such folder")
    within = "" if subfolder is None else f"{subfolder}/"
    files = [f"{within}{file}" for file in _FILES]
    with asking(name) as offline:
        try:
            # What other prompts there are, in folders of their own, is told by their configs.
            more = [] if within else [f"*/{CONFIG_FILE}"]
            fetched = snapshot_download(
                name, revision=revision, allow_patterns=[*files, *more], local_files_only=offline
            )
        except Exception as error:  # the hub's client has a dozen kinds
            reason = "which cannot be reached" if offline else type(error).__name__
            raise SoftPromptError(f"{name}: no such folder, and no such prompt on the hub ({reason})") from error
    return Path(fetched) / within
