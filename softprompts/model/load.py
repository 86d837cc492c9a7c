"""A model from a saved prompt: the backbone that the prompt names, with the prompt on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from softprompts.backbones.quantized import AS_TRAINED
from softprompts.model.attach import attach
from softprompts.model.formats import open_saved


def load(
    path: str | Path,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    task_id: int | None = None,
    model: str | Path | None = None,
    quantize: str | None = AS_TRAINED,
    **kwargs: Any,
) -> Any:
    """Loads the backbone that a saved prompt names, with the prompt attached and set.

    Args:
        path: a run folder, a folder written by `save_prompt` or ``save_pretrained``, one with an adapter of PEFT, or
            a hub id.
        revision: branch, tag or commit of the prompt's hub repository; the backbone's is the one that it was trained
            on.
        subfolder: the prompt's folder, where there are several.
        task_id: which task of a multitask adapter of PEFT; not needed if it has one.
        model: folder or hub id of the backbone, where it is no longer in the place that the prompt names. It must be
            the same model, which is checked by its sizes and a few of its weights.
        quantize: keep the backbone's weights in few bits, a key of `softprompts.backbones.quantized.BACKENDS`; by
            default as the prompt was trained; None: as they come. A ``quantization_config`` goes before it.
        **kwargs: go to the backbone's ``from_pretrained`` (``dtype``, ``device_map``, ``quantization_config`` ...).

    Returns:
        The attached model, in evaluation mode.

    Raises:
        SoftPromptError: the prompt or its backbone cannot be read, or not be quantised here; ``model`` is another one.
    """
    saved = open_saved(path, revision, subfolder, task_id)
    place = None if model is None else str(model)
    attached = attach(saved.load_backbone(quantize, place=place, **kwargs))
    saved.add_to(attached)
    return attached.eval()
