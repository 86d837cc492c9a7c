"""A model from a saved prompt: the backbone that it names, with the prompt on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedModel

from softprompts.backbones import packaged
from softprompts.backbones.loading import quantizing
from softprompts.backbones.quantized import (
    BACKENDS,
    require_backend,
)
from softprompts.errors import SoftPromptError
from softprompts.model.attach import attach
from softprompts.model.formats import adapter_folder, require_no_task
from softprompts.model.interop import peft_reading
from softprompts.model.saving import put
from softprompts.storage.saved_prompt import read

AS_TRAINED = "as trained"


def load(
    path: str | Path,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    task_id: int | None = None,
    quantize: str | None = AS_TRAINED,
    **kwargs: Any,
) -> Any:
    """The backbone that a saved prompt names, with the prompt attached and set.

    Args:
        path: a run folder, a folder written by `save_prompt` or ``save_pretrained``, one with an adapter of PEFT's, or
            a hub id.
        revision: branch, tag or commit of the prompt's hub repository; the backbone's is the one that it was trained
            on.
        subfolder: the prompt's folder, where there are several.
        task_id: which task of a multitask adapter of PEFT's; not needed where it has one.
        quantize: keep the backbone's weights in few bits, a key of `softprompts.backbones.quantized.BACKENDS`; by default as the
            prompt was trained; None: as they come. A ``quantization_config`` goes before it.
        **kwargs: go to the backbone's ``from_pretrained`` (``dtype``, ``device_map``, ``quantization_config`` ...).

    Returns:
        The attached model, in evaluation mode.

    Raises:
        SoftPromptError: the prompt or its backbone cannot be read, or not be quantised here.
    """
    folder = adapter_folder(path, revision, subfolder)
    if folder is not None:
        model = attach(peft_reading.open_backbone(folder, None if quantize == AS_TRAINED else quantize, **kwargs))
        peft_reading.load_adapter(model, folder, task_id=task_id)
        return model.eval()
    config, tensors = read(path, revision, subfolder)
    require_no_task(path, task_id)
    backbone = config["backbone"]
    cls = getattr(transformers, str(backbone.get("class")), None)
    if not (isinstance(cls, type) and issubclass(cls, PreTrainedModel)):
        raise SoftPromptError(f"{path}: transformers has no model class '{backbone.get('class')}'")
    if not (isinstance(backbone.get("name"), str) and backbone["name"]):
        raise SoftPromptError(f"{path} does not name its backbone: load the model, attach it, then model.load_prompt")
    place = packaged.resolve_model(backbone["name"])
    of_backbone = backbone.get("revision") or "main"
    if quantize == AS_TRAINED:
        quantize = None if "quantization_config" in kwargs else _as_trained(backbone, str(path))
    elif quantize is not None:
        require_backend(quantize)
    try:
        if quantize is not None and "quantization_config" not in kwargs:
            known = {key: kwargs[key] for key in peft_reading.OF_CONFIG if key in kwargs}
            config_ = AutoConfig.from_pretrained(place, revision=of_backbone, **known)
            if getattr(config_, "quantization_config", None) is None:
                kwargs = {**quantizing(cls, config_, quantize), **kwargs}
        model = cls.from_pretrained(place, revision=of_backbone, **kwargs)
    except OSError as error:
        raise SoftPromptError(f"{path}: its backbone '{backbone['name']}' cannot be loaded") from error
    except (SafetensorError, RuntimeError) as error:  # damaged weights, or those of another shape
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise SoftPromptError(f"{path}: its backbone '{backbone['name']}' cannot be loaded ({reason})") from error
    attach(model, None)
    put(model, config, tensors, str(path))
    return model.eval()


def _as_trained(backbone: Mapping[str, Any], where: str) -> str | None:
    """How the backbone of a saved prompt was quantised; None where it was not, or where its own files are.

    Raises:
        SoftPromptError: what that needs is not there.
    """
    name = backbone.get("quantization")
    if not isinstance(name, str) or name not in BACKENDS:  # what only other libraries pack is packed in its files
        return None
    try:
        require_backend(name)
    except SoftPromptError as error:
        raise SoftPromptError(
            f"{where} was trained on a quantised backbone: {error}; softprompts.load(..., quantize=None) takes the "
            "weights as they come"
        ) from error
    return name
