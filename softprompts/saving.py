"""A prompt on disk: its config as JSON, its full trainable state as safetensors, and a card for people.

The tensors are named within the prompt (``method.*``, ``head.*``), so that a prompt can be loaded under any name. The
config carries the identity of the backbone and the hash of the tensors; loading checks both before it touches a model.

A new folder appears whole. In a folder that is there already the files are replaced one after the other, each whole:
two files cannot be replaced at once, so a process killed between tensors and config leaves a pair that does not match.
`read` refuses it, as the hash tells; a training run that is resumed saves its prompt again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from softprompts import __version__
from softprompts.errors import SoftPromptError
from softprompts.files import sync_folder, temporary_beside, write_atomic
from softprompts.hub import asking
from softprompts.injection import state_of
from softprompts.methods.base import make_config
from softprompts.prompt import Prompt, new_prompt, require

CONFIG_FILE = "softprompt_config.json"
TENSOR_FILE = "softprompt.safetensors"
PROMPT = "prompt"  # the folder of the prompt within a run folder
FORMAT = 1


def prompt_folder(source: str | Path) -> Path:
    """The saved prompt behind a run folder, a prompt folder or a hub id, which is fetched.

    Raises:
        SoftPromptError: a run folder without a prompt, or nothing of that name.
    """
    folder = Path(source)
    if folder.is_dir():
        if not (folder / CONFIG_FILE).is_file():
            if (folder / PROMPT / CONFIG_FILE).is_file():
                return folder / PROMPT
            if (folder / "config.yaml").is_file():
                raise SoftPromptError(f"{folder}: this run has not saved a prompt yet; go on with --resume")
        return folder
    name = str(source)
    if folder.is_file():
        raise SoftPromptError(f"{name} is a file; name a run folder or a prompt folder")
    if name.startswith((".", "/", "~")) or name.count("/") != 1:  # no hub id
        raise SoftPromptError(f"{name}: no such folder")
    with asking(name) as offline:
        try:
            fetched = snapshot_download(
                name, allow_patterns=[CONFIG_FILE, TENSOR_FILE, "README.md"], local_files_only=offline
            )
        except Exception as error:  # the hub's client has a dozen kinds
            reason = "which cannot be reached" if offline else type(error).__name__
            raise SoftPromptError(f"{name}: no such folder, and no such prompt on the hub ({reason})") from error
    return Path(fetched)


def identity(model: Any) -> dict[str, Any]:
    """What a prompt must know of its backbone to be put back on the right one."""
    state = state_of(model)
    return {
        **state.backbone.identity,
        "class": state.model_class.__name__,
        "sites": [[site.kind, site.kv_heads * site.head_dim] for site in state.backbone.sites],
    }


def save_prompt(model: Any, name: str, path: str | Path, metadata: dict[str, Any] | None = None) -> None:
    """Writes one prompt of an attached model; see `PromptModel.save_prompt`."""
    prompt = require(model.prompts, name)
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise SoftPromptError(f"cannot save to {folder}: it is a file, not a folder")
    tensors = {key: value.detach().cpu().contiguous() for key, value in prompt.state_dict().items()}
    content = dump_tensors(tensors)
    config: dict[str, Any] = {
        "format": FORMAT,
        "softprompts_version": __version__,
        "name": name,
        "method": prompt.config.method,
        "config": prompt.method.stored().to_dict(),
        "backbone": identity(model),
        "labels": prompt.labels if prompt.head is not None else None,
        "tensors": {
            key: [str(value.dtype).removeprefix("torch."), list(value.shape)] for key, value in tensors.items()
        },
        "frozen": [key for key, _ in prompt.named_buffers() if key in tensors],
        "sha256": hashlib.sha256(content).hexdigest(),
        "metadata": metadata or {},
    }
    config_text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    _write_together(
        folder, {"README.md": card(config).encode(), TENSOR_FILE: content, CONFIG_FILE: config_text.encode()}
    )


def _write_together(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Writes a folder's files in this order; a folder that is not there yet appears with all of them."""
    if folder.exists():
        for name, content in contents.items():
            write_atomic(folder / name, content)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(folder)
    try:
        temporary.mkdir()
        for name, content in contents.items():
            write_atomic(temporary / name, content)
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(folder.parent)


def save_all(model: Any, path: str | Path, for_trainer: bool = False) -> None:
    """Writes every prompt of a model: one into ``path`` itself, several into a folder each."""
    folder = Path(path)
    names = list(model.prompts)
    if not names:
        raise SoftPromptError("there is no prompt to save; detach the model to save the backbone itself")
    for name in names:
        save_prompt(model, name, folder if len(names) == 1 else folder / name)
    if for_trainer:
        # Copies: prompts may share a part, and safetensors refuses tensors that share memory.
        state = {f"prompts.{k}": v.detach().cpu().contiguous().clone() for k, v in model.prompts.state_dict().items()}
        write_atomic(folder / "model.safetensors", dump_tensors(state, metadata={"format": "pt"}))


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The checked config and tensors of a saved prompt; a hub id is fetched first.

    Raises:
        SoftPromptError: nothing there, damaged, or of an unknown format.
    """
    config, config_path = read_config(path)
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


def read_config(path: str | Path) -> tuple[dict[str, Any], Path]:
    """The checked config of a saved prompt, and its file; a hub id is fetched first. The tensors are not looked at.

    Raises:
        SoftPromptError: nothing there, damaged, or of an unknown format.
    """
    folder = Path(path)
    if not folder.is_dir():
        folder = _from_hub(str(path))
    config_path = folder / CONFIG_FILE
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


def _from_hub(name: str) -> Path:
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise SoftPromptError(f"{name}: no such folder")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=[CONFIG_FILE, TENSOR_FILE, "README.md"]))
    except Exception as error:
        raise SoftPromptError(f"{name}: no such folder, and no such prompt on the hub") from error


def load_prompt(model: Any, path: str | Path, name: str | None = None) -> str:
    """Adds a saved prompt to an attached model; see `PromptModel.load_prompt`. Returns its name."""
    config, prompt = saved_prompt(model, path)
    name = name or config.get("name") or "default"
    model.place_prompt(name, prompt)
    return cast(str, name)


def saved_prompt(model: Any, path: str | Path) -> tuple[dict[str, Any], Prompt]:
    """A saved prompt for an attached model, with its config. The model itself is left as it is.

    Raises:
        SoftPromptError: the files are missing, damaged or for another backbone.
    """
    config, tensors = read(path)
    _check_backbone(model, config["backbone"], str(path))
    state, labels = state_of(model), config.get("labels")
    if labels is not None and not state.heads:
        wanted = config["backbone"].get("class")
        raise SoftPromptError(
            f"{path} has a task head, but {type(model).__name__} has none: load the backbone as {wanted}"
        )
    stored = sum(value.numel() for value in tensors.values())
    parts = config["config"].get("parts")
    for settings in (config["config"], *(parts if isinstance(parts, list) else ())):
        asked = settings.get("num_virtual_tokens", 0) if isinstance(settings, dict) else 0
        if isinstance(asked, int) and asked > stored:  # before room is made for them
            raise SoftPromptError(
                f"{path}: its config asks for {asked} virtual tokens, its tensors hold {stored} numbers"
            )
    try:
        method = make_config(config["method"], **config["config"])
        prompt = new_prompt(
            state.backbone, state.original_heads, state.labels[1], method, labels=labels or None, seed=0
        )
    except SoftPromptError:
        raise
    except (TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        raise SoftPromptError(f"{path}: no prompt can be made from its config ({reason}); was it edited?") from error
    _fill(prompt, tensors, str(path))
    return config, prompt


def _fill(prompt: Prompt, tensors: dict[str, Tensor], where: str) -> None:
    own = prompt.state_dict()
    for key in own.keys() ^ tensors.keys():
        kind = "lacks" if key in own else "has the unknown tensor"
        raise SoftPromptError(f"{where} {kind} '{key}': its config and tensors do not belong together")
    for key, value in tensors.items():
        if value.shape != own[key].shape:
            raise SoftPromptError(
                f"{where}: '{key}' has shape {tuple(value.shape)}, its config asks for {tuple(own[key].shape)}"
            )
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise SoftPromptError(f"{where}: '{key}' holds values that are not finite")
    for key, value in [*prompt.named_parameters(), *prompt.named_buffers()]:
        if key in tensors:  # not every buffer is saved
            value.data = value.data.to(tensors[key].dtype)
    prompt.load_state_dict(tensors)


def _check_backbone(model: Any, saved: dict[str, Any], where: str) -> None:
    own = identity(model)
    for key in ("model_type", "hidden_size", "sites", "vocabulary"):
        theirs, ours = saved.get(key), own[key]
        if theirs != ours and not (key == "sites" and not theirs):
            count = len(theirs) if isinstance(theirs, list) else theirs
            shown = (f"{count} attention sites", f"{len(ours)}") if key == "sites" else (theirs, ours)
            raise SoftPromptError(
                f"{where} was trained on another backbone ({saved.get('name') or saved.get('model_type')}): "
                f"{key.replace('_', ' ')} {shown[0]}, this model has {shown[1]}"
            )


def counted(config: Mapping[str, Any]) -> tuple[int, int]:
    """How many numbers a saved prompt trains, its head included, and how many stay as they are (frozen sources)."""
    frozen = set(config.get("frozen") or ())
    sizes = {key: torch.Size(shape).numel() for key, (_, shape) in config["tensors"].items()}
    still = sum(size for key, size in sizes.items() if key in frozen)
    return sum(sizes.values()) - still, still


def card(config: dict[str, Any]) -> str:
    """A model card from what was saved."""
    meta, backbone = config["metadata"], config["backbone"]
    base = backbone["name"] or backbone["model_type"]
    trained, frozen = counted(config)
    sizes = f"{trained:,} parameters" + (f" (and {frozen:,} numbers that stay as they are)" if frozen else "")
    lines = ["---", "library_name: softprompts"]
    if "/" in base and not base.startswith(("/", ".")):
        lines += [f"base_model: {base}", "base_model_relation: adapter"]
    lines += [
        "tags:",
        "- soft-prompt",
        f"- {config['method']}",
        "---",
        "",
        f"# {config['method']} for {base}",
        "",
        f"A soft prompt of {sizes} for the frozen `{base}` (`{backbone['class']}`).",
        "",
        "```python",
        "import softprompts as sp",
        'model = sp.load("this folder")',
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| method | {config['method']} |",
    ]
    lines += [f"| {key} | {value} |" for key, value in config["config"].items() if value is not None]
    if config.get("labels"):
        lines.append(f"| labels | {', '.join(config['labels'])} |")
    lines += [f"| {key} | {value} |" for key, value in meta.items() if isinstance(value, (str, int, float))]
    lines += [f"| softprompts | {config['softprompts_version']} |", ""]
    return "\n".join(lines)
