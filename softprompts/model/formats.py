"""The formats of saved prompts that are read: ours, and adapters of the PEFT library; from a folder or the hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor
from transformers import PreTrainedModel

from softprompts.backbones.loading import load_for_prompt
from softprompts.backbones.quantized import AS_TRAINED, BACKENDS, require_backend
from softprompts.backbones.weights_sample import alike, sample_of
from softprompts.errors import SoftPromptError
from softprompts.model.interop.peft_adapter import read_adapter
from softprompts.model.interop.peft_reading import SavedAdapter
from softprompts.model.saving import prompt_of
from softprompts.storage.names import ADAPTER_CONFIG
from softprompts.storage.saved_prompt import CONFIG_FILE, prompt_folder, read


def open_saved(
    path: str | Path, revision: str | None = None, subfolder: str | None = None, task_id: int | None = None
) -> SavedPrompt | SavedAdapter:
    """Reads a saved prompt in the format that it has; one of ours goes before an adapter in the same folder.

    Args:
        path: a run folder, a prompt folder, one with an adapter of PEFT, or a hub id.
        revision: branch, tag or commit of a hub repository.
        subfolder: its folder, where there are several.
        task_id: which task of a multitask adapter of PEFT; not needed if it has one.

    Raises:
        SoftPromptError: the files are missing or damaged, or a task was chosen of a prompt of ours, which has one.
    """
    folder = prompt_folder(path, revision, subfolder)
    if not (folder / CONFIG_FILE).is_file() and (folder / ADAPTER_CONFIG).is_file():
        return SavedAdapter(read_adapter(folder), task_id)
    if task_id is not None:
        raise SoftPromptError(f"{path}: task_id is for multitask adapters of PEFT; this is a prompt of one task")
    return SavedPrompt(str(path), *read(folder))


@dataclass(frozen=True)
class SavedPrompt:
    """A saved prompt of ours that was read.

    Attributes:
        where: its folder or hub id; begins errors.
        config: its config, see `softprompts.storage.saved_prompt.read`.
        tensors: its tensors.
    """

    where: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    def describe(self) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
        """Returns its config and its tensors."""
        return self.config, self.tensors

    def add_to(self, model: Any, name: str | None = None) -> str:
        """Adds it to an attached model, under its own name or another; see `prompt_of`."""
        name = name or str(self.config.get("name") or "default")
        model.place_prompt(name, prompt_of(model, self.config, self.tensors, self.where))
        return name

    def load_backbone(self, quantize: str | None = AS_TRAINED, place: str | None = None, **kwargs: Any) -> Any:
        """Loads the plain model that the prompt was trained on, from another place if one is given.

        The rest is as in `softprompts.load`.

        Raises:
            SoftPromptError: it cannot be loaded, or the other place holds another model.
        """
        backbone = self.config["backbone"]
        cls = getattr(transformers, str(backbone.get("class")), None)
        if not (isinstance(cls, type) and issubclass(cls, PreTrainedModel)):
            raise SoftPromptError(f"{self.where}: transformers has no model class '{backbone.get('class')}'")
        name = backbone.get("name") if place is None else place
        if not (isinstance(name, str) and name):
            raise SoftPromptError(f"{self.where} names no backbone: load the model, attach it, then model.load_prompt")
        if quantize == AS_TRAINED:
            trained = str(backbone.get("quantization"))  # no key of `BACKENDS` if the model's own files are quantised
            quantize = trained if trained in BACKENDS and "quantization_config" not in kwargs else None
        if quantize is not None and quantize == backbone.get("quantization"):
            try:
                require_backend(quantize)
            except SoftPromptError as error:
                raise SoftPromptError(
                    f"{self.where} was trained on a quantised backbone: {error}; softprompts.load(..., quantize=None) "
                    "takes the weights as they come"
                ) from error
        if place is None:
            return load_for_prompt(cls, name, backbone.get("revision"), self.where, quantize, **kwargs)
        model = load_for_prompt(cls, name, None, self.where, quantize, **kwargs)
        trained_on, there = backbone.get("sample"), sample_of(model)
        if isinstance(trained_on, list) and there is not None and not alike(trained_on, there):
            raise SoftPromptError(
                f"{self.where}: '{place}' holds other weights than its backbone ({backbone.get('name')}) had: name the "
                "place of that model, or attach another one yourself and load_prompt"
            )
        return model
