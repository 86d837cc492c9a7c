"""Saves prompts (the config as JSON, all trained values as safetensors, a card for people) and builds them anew.

The tensors are named within the prompt (``method.*``, ``head.*``), so that a prompt can be loaded under any name. The
config carries the identity of the backbone and the hash of the tensors; loading checks both before it touches a model.

A new folder appears whole. In a folder that is there already the files are replaced one after the other, each whole:
two files cannot be replaced at once, so a process killed between tensors and config leaves a pair that does not match.
`read` refuses it, as the hash differs; a training run that is resumed saves its prompt again.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from softprompts.backbones import sharded
from softprompts.backbones.backbone import Backbone
from softprompts.backbones.weights_sample import alike, sample_of
from softprompts.errors import SoftPromptError, first_line
from softprompts.injection.prompt import Prompt, new_prompt, require, seeded, shape_of
from softprompts.injection.state import state_of
from softprompts.methods.compose import restored_config
from softprompts.methods.contract import MethodConfig, Vocabulary
from softprompts.methods.imports import sources_of
from softprompts.model.card import card
from softprompts.storage.files import require_folder, write_atomic, write_folder
from softprompts.storage.saved_prompt import FLOATS, FORMAT, files_of, types_of
from softprompts.version import __version__

_LARGEST = 1_000_000  # numbers up to this are believed in a config: sizes of vocabularies and the like


def identity(model: Any) -> dict[str, Any]:
    """Returns the facts that tell whether a saved prompt belongs to an attached model."""
    state, sample = state_of(model), sample_of(model)
    return {
        **state.backbone.identity,
        **({"sample": sample} if sample is not None else {}),
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

    ``state`` is the model's state, if it has been gathered from several processes already.
    """
    prompt = require(model.prompts, name)
    require_folder(path, "the prompt")
    config, content = serialize(model, name, metadata, state)
    if state is not None or sharded.writes_files(prompt):
        write_folder(Path(path), files_of(config, content, card(config)))


def serialize(
    model: Any, name: str, metadata: dict[str, Any] | None = None, state: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Any], bytes]:
    """Returns the config of a prompt and its tensors as the bytes of a safetensors file; see `save_prompt`."""
    prompt = require(model.prompts, name)
    tensors = _tensors(prompt, f"prompts.{name}.", state)
    content = dump_tensors(tensors)
    code = {part: source.to_dict() for part, source in sources_of(prompt.config.method).items()}
    config: dict[str, Any] = {
        "format": FORMAT,
        "softprompts_version": __version__,
        "name": name,
        "method": prompt.config.method,
        "config": prompt.method.stored().to_dict(),
        **({"code": code} if code else {}),
        "backbone": identity(model),
        "labels": prompt.labels if prompt.head is not None else None,
        "tensors": types_of(tensors),
        "frozen": [key for key, _ in prompt.named_buffers() if key in tensors],
        "sha256": hashlib.sha256(content).hexdigest(),
        "metadata": prompt.metadata if metadata is None else metadata,
    }
    return config, content


def _tensors(module: nn.Module, prefix: str, state: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Returns whole copies of a module's tensors on the CPU."""
    if state is None:
        return sharded.whole_state(module)
    return {
        key.removeprefix(prefix): sharded.whole_tensor(value) for key, value in state.items() if key.startswith(prefix)
    }


def save_all(model: Any, path: str | Path, for_trainer: bool, state: Mapping[str, Tensor] | None) -> None:
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
        if state is not None or sharded.writes_files(model.prompts):
            write_atomic(folder / "model.safetensors", dump_tensors(tensors, metadata={"format": "pt"}))


def prompt_of(model: Any, config: dict[str, Any], tensors: dict[str, Tensor], path: str) -> Prompt:
    """Builds the prompt that was read from ``path`` for an attached model, which is left as it is.

    Raises:
        SoftPromptError: it is damaged or for another backbone.
    """
    _check_backbone(model, config["backbone"], path)
    state, labels, settings = state_of(model), config.get("labels"), config["config"]
    if labels is not None and not state.backbone.heads:
        raise SoftPromptError(
            f"{path} has a task head, but {type(model).__name__} has none: load the backbone as "
            f"{config['backbone'].get('class')}"
        )
    stored = sum(value.numel() for value in tensors.values())
    for key, number in _numbers(settings):
        if number > max(stored, _LARGEST):  # before memory is taken for it
            raise SoftPromptError(f"{path}: config has {key}={number}, tensors hold {stored} numbers; was it edited?")
    try:
        method = restored_config(config, path)
        if method.files():
            raise SoftPromptError(f"{path}: its config names {method.files()[0]!r}; saved prompts need no other files")
        sizes = _sizes_of(state.backbone, method)
        if sizes is not None:
            _check_tensors({f"method.{key}": size for key, size in sizes.items()}, tensors, path, "method.")
        prompt = new_prompt(state.backbone, method, labels=labels or None, seed=0)
    except SoftPromptError:
        raise
    except (TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError, AttributeError, LookupError) as error:
        raise SoftPromptError(f"{path}: its config makes no prompt ({first_line(error)}); was it edited?") from error
    fill(prompt, tensors, path)
    metadata = config.get("metadata")
    prompt.metadata = metadata if isinstance(metadata, dict) else {}
    return prompt


def _sizes_of(backbone: Backbone, config: MethodConfig) -> dict[str, torch.Size] | None:
    """The shapes of a method's tensors by name, without memory for them; None where it can only be built for real."""
    sites = backbone.chosen_sites(config.sites, config.method) if config.uses_prefix else []
    try:
        with seeded(0), torch.device("meta"):  # what is drawn there leaves the global state alone
            built = config.build(shape_of(backbone, config, sites, Vocabulary(backbone.embed, backbone.num_tokens)))
            return {key: value.shape for key, value in built.state_dict().items()}
    except SoftPromptError:
        raise
    except Exception:  # whatever a method computes with values at its start
        return None


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Yields all whole numbers within a JSON value, each with the nearest key around it."""
    if isinstance(value, int):
        yield key, value
    elif isinstance(value, list | dict):
        for name, inner in value.items() if isinstance(value, dict) else ((key, inner) for inner in value):
            yield from _numbers(inner, str(name))


def _check_tensors(expected: dict[str, torch.Size], tensors: Mapping[str, Tensor], where: str, start: str = "") -> None:
    """Makes sure that the tensors whose names start so are the expected ones."""
    for key in expected.keys() ^ {key for key in tensors if key.startswith(start)}:
        kind = "lacks" if key in expected else "has the unknown tensor"
        raise SoftPromptError(f"{where} {kind} '{key}': its config and tensors do not belong together")
    for key, shape in expected.items():
        if tensors[key].shape != shape:
            raise SoftPromptError(
                f"{where}: '{key}' has shape {tuple(tensors[key].shape)}, its config asks for {tuple(shape)}"
            )


def fill(prompt: Prompt, tensors: dict[str, Tensor], where: str) -> None:
    """Loads stored tensors into a prompt.

    Raises:
        SoftPromptError: they are not those that the prompt has, or not finite; it may be changed by then.
    """
    state = prompt.state_dict()
    _check_tensors({key: value.shape for key, value in state.items()}, tensors, where)
    for key, value in tensors.items():
        dtype = state[key].dtype
        if value.dtype not in (FLOATS if dtype.is_floating_point else (dtype,)):
            given, wanted = (str(each).removeprefix("torch.") for each in (value.dtype, dtype))
            wanted = "floating point numbers" if dtype.is_floating_point else wanted
            raise SoftPromptError(f"{where}: '{key}' holds {given}, which should be {wanted}")
        if dtype.is_floating_point and not torch.isfinite(value).all():
            raise SoftPromptError(f"{where}: '{key}' holds values that are not finite")
    # A prompt keeps its type; one that mixes several could not be run.
    kinds = {value.dtype for value in tensors.values() if value.is_floating_point()}
    widest = functools.reduce(torch.promote_types, kinds) if kinds else torch.float32
    for key, value in [*prompt.named_parameters(), *prompt.named_buffers()]:
        if key in tensors:  # not every buffer is saved
            value.data = value.data.to(widest if value.is_floating_point() else value.dtype)
    prompt.load_state_dict(tensors)


def require_backbone(model: Any, saved: dict[str, Any], where: str) -> None:
    """Makes sure that a model is the one that a prompt was trained on, by its sizes and by some of its weights.

    Raises:
        SoftPromptError: it is another one; begins with ``where``.
    """
    _check_backbone(model, saved, where)
    trained_on, there = saved.get("sample"), sample_of(model)
    if isinstance(trained_on, list) and there is not None and not alike(trained_on, there):
        raise SoftPromptError(f"{where} was trained on another backbone ({saved.get('name')}): its weights are others")


def _check_backbone(model: Any, saved: dict[str, Any], where: str) -> None:
    own = identity(model)
    for key in ("model_type", "hidden_size", "sites", "vocabulary"):
        theirs, ours = saved.get(key), own[key]
        if theirs == ours or (key == "sites" and not theirs):
            continue
        if key == "sites":
            theirs, ours = f"{len(theirs) if isinstance(theirs, list) else theirs} attention sites", len(ours)
        raise SoftPromptError(
            f"{where} was trained on another backbone ({saved.get('name') or saved.get('model_type')}): "
            f"{key.replace('_', ' ')} {theirs}, this model has {ours}"
        )
