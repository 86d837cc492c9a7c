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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from softprompts.backbones import sharded
from softprompts.errors import SoftPromptError
from softprompts.injection.prompt import Prompt, new_prompt, require, sizes_of
from softprompts.injection.state import state_of
from softprompts.methods.making import make_config
from softprompts.model.card import card
from softprompts.model.card import counted as counted
from softprompts.storage.files import write_atomic, write_folder
from softprompts.storage.saved_prompt import FLOATS, FORMAT, files_of, read
from softprompts.version import __version__

_LARGEST = 1_000_000  # numbers up to this are believed in a config: sizes of vocabularies and the like


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
    if labels is not None and not state.original_heads:
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
