"""A trained prompt that runs go on from, with more rows or others: its tensors are their start, its head's rows too."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from softprompts.backbones import task_head
from softprompts.backbones.quantized import BACKENDS
from softprompts.errors import SoftPromptError
from softprompts.injection.prompt import Prompt
from softprompts.methods.compose import restored_config
from softprompts.methods.contract import MethodConfig
from softprompts.model.formats import SavedPrompt
from softprompts.model.saving import fill, require_backbone
from softprompts.storage.runs import located
from softprompts.storage.saved_prompt import prompt_folder, read
from softprompts.tasks.data import Data
from softprompts.tasks.task import Task

_NAMED = ("classification", "tagging")  # kinds of tasks whose labels have names that rows of a file bring


class WarmStart(SavedPrompt):
    """A saved prompt to start from."""

    @classmethod
    def read(cls, source: str | Path) -> Self:
        """Reads a run by its name or folder, a prompt folder or a hub id; raises a `SoftPromptError` for others."""
        place = located(source)
        return cls(str(place), *read(prompt_folder(place)))

    @cached_property
    def method(self) -> MethodConfig:
        """The method's config, as it was saved."""
        return restored_config(self.config, self.where)

    @property
    def model(self) -> str:
        """The name of its backbone.

        Raises:
            SoftPromptError: it does not tell.
        """
        name = self.config["backbone"].get("name")
        if not name:
            raise SoftPromptError(f"{self.where} names no backbone: give its place (--model)")
        return str(name)

    @property
    def place(self) -> str:
        """Its folder as an absolute path, or its hub id."""
        return str(Path(self.where).resolve()) if Path(self.where).is_dir() else self.where

    @property
    def quantize(self) -> str | None:
        """How its backbone was quantised, a key of `BACKENDS`; None: not, or in the model's own files."""
        said = self.config["backbone"].get("quantization")
        return said if said in BACKENDS else None

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of its labels, of its head or of its task; empty where it has none."""
        return tuple(self.config.get("labels") or self._form.get("labels") or ())

    @property
    def _form(self) -> dict[str, Any]:
        form = (self.config.get("metadata") or {}).get("task_form")
        return form if isinstance(form, dict) else {}

    @property
    def identity(self) -> dict[str, Any]:
        """What identifies it in a run's settings: the hash of its tensors, and the labels of its head's rows."""
        labels = {"labels": list(self.labels)} if self.config.get("labels") else {}
        return {"sha256": self.config["sha256"], **labels}

    def record(self, task: Task) -> dict[str, Any]:
        """What results of runs say of it: which prompt it was, and the labels that are new, and that are gone."""
        names = task.label_names
        return {
            "sha256": self.config["sha256"],
            "name": self.config.get("name"),
            "task": (self.config.get("metadata") or {}).get("task"),
            "new_labels": [name for name in names if name not in self.labels],
            "gone_labels": [name for name in self.labels if name not in names] if names else [],
        }

    def with_labels(self, data: Data) -> Data:
        """The data of users' files with this prompt's labels, and behind them those that only the files have.

        A prompt goes on knowing the labels of which the new rows have none. Labels that the data name stay.
        """
        if data.train is None or data.labels or data.kind not in _NAMED or data.kind != self._form.get("kind"):
            return data
        found = data.load().label_names
        names = (*self.labels, *(name for name in found if name not in self.labels))
        return data if names == found else replace(data, labels=names)

    def check(self, method: MethodConfig, task: Task, encoder: bool) -> None:
        """Makes sure that a run of this method and task can go on from it.

        Raises:
            SoftPromptError: another method, another number of tokens, or a head for another kind of task.
        """
        if method.method != self.method.method:
            raise SoftPromptError(
                f"{self.where} is a prompt of {self.method.method}: a run of {method.method} cannot go on from it"
            )
        if "num_virtual_tokens" in method.settable() and method.num_virtual_tokens != self.method.num_virtual_tokens:
            raise SoftPromptError(
                f"{self.where} has {self.method.num_virtual_tokens} virtual tokens: a run with "
                f"{method.num_virtual_tokens} cannot go on from it (num_virtual_tokens)"
            )
        kind = self._form.get("kind", task.kind)
        if encoder and kind != task.kind:
            raise SoftPromptError(f"{self.where} has a head for {kind}: a run of {task.kind} cannot go on from it")

    def put_on(self, model: Any, name: str) -> None:
        """Fills a new prompt on a model with the tensors; rows of its head whose label is new stay as they are.

        Raises:
            SoftPromptError: the model is another one, or the prompt has tensors of other sizes.
        """
        require_backbone(model, self.config["backbone"], self.where)
        prompt: Prompt = model.prompts[name]
        tensors, new = self.tensors | self._output_layer(prompt), prompt.state_dict()
        shapes = [{key: value.shape for key, value in each.items()} for each in (tensors, new)]
        if differ := sorted(key for key in tensors | new if shapes[0].get(key) != shapes[1].get(key)):
            raise SoftPromptError(
                f"{self.where} has tensors of other shapes than a run with these settings ({', '.join(differ[:3])}): "
                "go on with the settings of its prompt"
            )
        fill(prompt, tensors, self.where)

    def _output_layer(self, prompt: Prompt) -> dict[str, Tensor]:
        """The tensors of the new head's last layer, with the saved rows of the labels that are known."""
        last = None if prompt.head is None else task_head.last_linear(prompt.head)
        if last is None:
            return {}
        known = {place: self.labels.index(label) for place, label in enumerate(prompt.labels) if label in self.labels}
        layer = {}
        for name, value in last[1].named_parameters():
            key = f"head.{last[0]}.{name}"
            saved = self.tensors.get(key)
            if saved is None or len(saved) != len(self.labels) or saved.shape[1:] != value.shape[1:]:
                raise SoftPromptError(f"{self.where} has another head than {type(prompt.head).__name__} of this model")
            layer[key] = value.detach().cpu().to(saved.dtype)
            layer[key][list(known)] = saved[list(known.values())]
        return layer
