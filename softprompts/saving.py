"""A prompt on disk: its config as JSON, its full trainable state as safetensors, and a card for people.

The tensors are named within the prompt (``method.*``, ``head.*``), so that a prompt can be loaded under any name. The
config carries the identity of the backbone and the hash of the tensors; loading checks both before it touches a model.

A new folder appears whole. In a folder that is there already the files are replaced one after the other, each whole:
two files cannot be replaced at once, so a process killed between tensors and config leaves a pair that does not match.
`read` refuses it, as the hash tells; a training run that is resumed saves its prompt again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from softprompts import __version__, sharded
from softprompts.card import card
from softprompts.card import counted as counted
from softprompts.errors import SoftPromptError
from softprompts.files import write_atomic, write_folder
from softprompts.hub import asking
from softprompts.injection import state_of
from softprompts.methods.base import make_config
from softprompts.names import ADAPTER_CONFIG, ADAPTER_TENSORS
from softprompts.prompt import Prompt, new_prompt, require, sizes_of

CONFIG_FILE = "softprompt_config.json"
TENSOR_FILE = "softprompt.safetensors"
PROMPT = "prompt"  # the folder of the prompt within a run folder
FORMAT = 1
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_LARGEST = 1_000_000  # numbers up to this are believed in a config: sizes of vocabularies and the like
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


def identity(model: Any) -> dict[str, Any]:
    """What a prompt must know of its backbone to be put back on the right one."""
    state = state_of(model)
    return {
        **state.backbone.identity,
        "class": state.model_class.__name__,
        "sites": [[site.kind, site.kv_heads * site.head_dim] for site in state.backbone.sites],
    }


def save_prompt(
    model: Any,
    name: str,
    path: str | Path,
    metadata: dict[str, Any] | None = None,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes one prompt of an attached model; see `PromptModel.save_prompt`.

    Args:
        model: the model.
        name: the prompt.
        path: the folder.
        metadata: JSON values to keep with it.
        state: the model's state, where somebody has gathered it from several processes already.
    """
    prompt = require(model.prompts, name)
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise SoftPromptError(f"cannot save to {folder}: it is a file, not a folder")
    config, content = described(model, name, metadata, state)
    if state is None and not sharded.writes(prompt):
        return
    write_folder(folder, files_of(config, content, card(config)))


def files_of(config: dict[str, Any], content: bytes, text: str) -> dict[str, bytes]:
    """The files of a saved prompt, in the order in which they are written.

    Args:
        config: see `described`.
        content: likewise.
        text: its card.
    """
    config_text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    return {"README.md": text.encode(), TENSOR_FILE: content, CONFIG_FILE: config_text.encode()}


def described(
    model: Any, name: str, metadata: dict[str, Any] | None = None, state: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Any], bytes]:
    """What is saved of a prompt: its config, and the file of its tensors.

    Args:
        model: an attached model.
        name: the prompt.
        metadata: JSON values to keep with it; None: those that it was loaded with.
        state: see `save_prompt`.
    """
    prompt = require(model.prompts, name)
    tensors = _tensors(prompt, f"prompts.{name}.", state)
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
        "metadata": prompt.metadata if metadata is None else metadata,
    }
    return config, content


def _tensors(module: nn.Module, prefix: str, state: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """A module's tensors, whole, on the CPU."""
    if state is None:
        return sharded.whole(module)
    return {key.removeprefix(prefix): sharded.plain(value) for key, value in state.items() if key.startswith(prefix)}


def save_all(
    model: Any, path: str | Path, for_trainer: bool = False, state: Mapping[str, Tensor] | None = None
) -> None:
    """Writes every prompt of a model: one into ``path`` itself, several into a folder each; ``state`` as above."""
    folder = Path(path)
    names = list(model.prompts)
    if not names:
        raise SoftPromptError("there is no prompt to save; detach the model to save the backbone itself")
    for name in names:
        save_prompt(model, name, folder if len(names) == 1 else folder / name, state=state)
    if for_trainer:
        # Copies: prompts may share a part, and safetensors refuses tensors that share memory.
        tensors = {f"prompts.{key}": value for key, value in _tensors(model.prompts, "prompts.", state).items()}
        if state is not None or sharded.writes(model.prompts):
            write_atomic(folder / "model.safetensors", dump_tensors(tensors, metadata={"format": "pt"}))


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


def load_prompt(
    model: Any, path: str | Path, name: str | None = None, revision: str | None = None, subfolder: str | None = None
) -> str:
    """Adds a saved prompt of ours to an attached model; see `PromptModel.load_prompt`. Returns its name."""
    config, tensors = read(path, revision, subfolder)
    return put(model, config, tensors, str(path), name)


def put(model: Any, config: dict[str, Any], tensors: dict[str, Tensor], where: str, name: str | None = None) -> str:
    """Adds a prompt that was read (see `read`) to an attached model. Returns its name."""
    name = name or config.get("name") or "default"
    model.place_prompt(name, prompt_of(model, config, tensors, where))
    return cast(str, name)


def prompt_of(model: Any, config: dict[str, Any], tensors: dict[str, Tensor], path: str) -> Prompt:
    """A prompt for an attached model of what `read` gave. The model itself is left as it is.

    Raises:
        SoftPromptError: it is damaged or for another backbone.
    """
    _check_backbone(model, config["backbone"], path)
    state, labels = state_of(model), config.get("labels")
    if labels is not None and not state.heads:
        wanted = config["backbone"].get("class")
        raise SoftPromptError(
            f"{path} has a task head, but {type(model).__name__} has none: load the backbone as {wanted}"
        )
    settings = config["config"]
    stored = sum(value.numel() for value in tensors.values())
    for key, number in _numbers(settings):
        if number > max(stored, _LARGEST):  # before room is made for it
            raise SoftPromptError(
                f"{path}: its config asks for {key}={number}, its tensors hold {stored} numbers; was it edited?"
            )
    try:
        method = make_config(config["method"], **settings)
        if method.files():
            raise SoftPromptError(
                f"{path}: its config names {method.files()[0]!r}; a saved prompt needs no other files"
            )
        sizes = sizes_of(state.backbone, method)
        if sizes is not None:
            _check_tensors({f"method.{key}": size for key, size in sizes.items()}, tensors, path, "method.")
        prompt = new_prompt(
            state.backbone, state.original_heads, state.labels[1], method, labels=labels or None, seed=0
        )
    except SoftPromptError:
        raise
    except (TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError, AttributeError, LookupError) as error:
        reason = str(error).partition("\n")[0]
        raise SoftPromptError(f"{path}: no prompt can be made from its config ({reason}); was it edited?") from error
    fill(prompt, tensors, path)
    found = config.get("metadata")
    prompt.metadata = found if isinstance(found, dict) else {}
    return prompt


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """All whole numbers within a JSON value, each with the key that it stands behind."""
    if isinstance(value, int):
        yield key, value
    elif isinstance(value, list | dict):
        for name, part in value.items() if isinstance(value, dict) else ((key, part) for part in value):
            yield from _numbers(part, str(name))


def _check_tensors(
    wanted: Mapping[str, torch.Size], tensors: Mapping[str, Tensor], where: str, start: str = ""
) -> None:
    """Makes sure that the tensors whose names start so are those that are wanted."""
    for key in wanted.keys() ^ {key for key in tensors if key.startswith(start)}:
        kind = "lacks" if key in wanted else "has the unknown tensor"
        raise SoftPromptError(f"{where} {kind} '{key}': its config and tensors do not belong together")
    for key, shape in wanted.items():
        if tensors[key].shape != shape:
            raise SoftPromptError(
                f"{where}: '{key}' has shape {tuple(tensors[key].shape)}, its config asks for {tuple(shape)}"
            )


def fill(prompt: Prompt, tensors: dict[str, Tensor], where: str) -> None:
    """Loads stored tensors into a prompt.

    Raises:
        SoftPromptError: they are not those that the prompt has, or not finite; it may be changed by then.
    """
    own = prompt.state_dict()
    _check_tensors({key: value.shape for key, value in own.items()}, tensors, where)
    for key, value in tensors.items():
        floating = own[key].is_floating_point()
        fits = value.dtype in FLOATS if floating else value.dtype == own[key].dtype
        if not fits:
            wanted = "floating point numbers" if floating else str(own[key].dtype).removeprefix("torch.")
            raise SoftPromptError(
                f"{where}: '{key}' holds {str(value.dtype).removeprefix('torch.')}, which should be {wanted}"
            )
        if floating and not torch.isfinite(value).all():
            raise SoftPromptError(f"{where}: '{key}' holds values that are not finite")
    # A prompt keeps its type; one that mixes several could not be run.
    kinds = {value.dtype for value in tensors.values() if value.is_floating_point()}
    widest = functools.reduce(torch.promote_types, kinds) if kinds else torch.float32
    for key, value in [*prompt.named_parameters(), *prompt.named_buffers()]:
        if key in tensors:  # not every buffer is saved
            value.data = value.data.to(widest if value.is_floating_point() else value.dtype)
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
