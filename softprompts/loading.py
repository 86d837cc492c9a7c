"""A model from a saved prompt: the backbone that it names, with the prompt on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel

from softprompts import packaged
from softprompts.errors import SoftPromptError
from softprompts.interop import peft_reading
from softprompts.model import attach
from softprompts.saving import adapter_folder, load_prompt, read


def load(
    path: str | Path,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    task_id: int | None = None,
    **kwargs: Any,
) -> Any:
    """The backbone that a saved prompt names, with the prompt attached and set.

    Args:
        path: a folder written by `save_prompt` or ``save_pretrained``, one with an adapter of PEFT's, or a hub id.
        revision: branch, tag or commit of the prompt's hub repository; the backbone's is the one that it was trained
            on.
        subfolder: the prompt's folder, where there are several.
        task_id: which task of a multitask adapter of PEFT's; not needed where it has one.
        **kwargs: go to the backbone's ``from_pretrained`` (``dtype``, ``device_map`` ...).

    Returns:
        The attached model, in evaluation mode.

    Raises:
        SoftPromptError: the prompt or its backbone cannot be read.
    """
    folder = adapter_folder(path, revision, subfolder)
    if folder is not None:
        model = attach(peft_reading.open_backbone(folder, **kwargs))
        load_prompt(model, folder, task_id=task_id)
        return model.eval()
    config, _ = read(path, revision, subfolder)
    backbone = config["backbone"]
    cls = getattr(transformers, str(backbone.get("class")), None)
    if not (isinstance(cls, type) and issubclass(cls, PreTrainedModel)):
        raise SoftPromptError(f"{path}: transformers has no model class '{backbone.get('class')}'")
    if not (isinstance(backbone.get("name"), str) and backbone["name"]):
        raise SoftPromptError(f"{path} does not name its backbone: load the model, attach it, then model.load_prompt")
    try:
        model = cls.from_pretrained(
            packaged.resolve_model(backbone["name"]), revision=backbone.get("revision") or "main", **kwargs
        )
    except OSError as error:
        raise SoftPromptError(f"{path}: its backbone '{backbone['name']}' cannot be loaded") from error
    attach(model, None)
    load_prompt(model, path, revision=revision, subfolder=subfolder, task_id=task_id)
    return model.eval()
