"""Saved prompts for analysis. They are read without a backbone; it is loaded once, when an analysis first needs it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from softprompts.backbones import packaged
from softprompts.backbones.backbone import quiet
from softprompts.backbones.loading import context_room, tokenizer_of
from softprompts.errors import SoftPromptError
from softprompts.injection.state import state_of
from softprompts.methods.about import View
from softprompts.methods.compose import restored_config
from softprompts.methods.contract import Method, MethodConfig, Rows
from softprompts.methods.sources import rebuilt
from softprompts.model.load import load
from softprompts.storage.hub import quiet_hub
from softprompts.storage.saved_prompt import prompt_folder, read
from softprompts.training.prediction import evaluating


class DoesNotApplyError(SoftPromptError):
    """The prompt's method has nothing that this analysis shows; other errors say what is missing or wrong."""


@dataclass(frozen=True)
class PromptTensors:
    """What a prompt hands over, without an axis for the rows: the same for all, or the mean over some.

    Attributes:
        tokens: ``(l, d)``; None where there are none.
        keys: ``(S, l, w)``, gates multiplied in; None likewise.
        values: like ``keys``.
    """

    tokens: Tensor | None
    keys: Tensor | None
    values: Tensor | None


class LoadedBackbone(NamedTuple):
    """A backbone that some prompts are on, and its tokenizer."""

    model: Any
    tokenizer: Any


class Saved:
    """One saved prompt.

    Args:
        source: run folder, prompt folder or hub id.
        name: what to call it; None: by its task and method.
        backbones: those that are loaded already, shared by several prompts.
        model: folder or hub id of its backbone, where it is not where the prompt says; see `softprompts.load`.

    Attributes:
        place: the prompt folder.
        config: what is in ``softprompt_config.json``.
        name: what to call it in titles.

    Raises:
        SoftPromptError: there is no saved prompt, or it is damaged.
    """

    def __init__(
        self,
        source: str | Path,
        name: str | None = None,
        backbones: dict[Any, LoadedBackbone] | None = None,
        model: str | None = None,
    ):
        self.source, self.model = Path(source), model
        self.place = prompt_folder(source)
        self.config, self._tensors = read(self.place)
        self.meta: dict[str, Any] = self.config.get("metadata") or {}
        task = self.meta.get("task")
        self.name = name or (f"{task} ({self.config['method']})" if task else self.source.name or str(source))
        self._backbones = {} if backbones is None else backbones

    # --- without the backbone ---------------------------------------------------------------------------------------

    @cached_property
    def method_config(self) -> MethodConfig:
        """The settings of its method."""
        return restored_config(self.config, str(self.place))

    @cached_property
    def sites(self) -> tuple[str, ...]:
        """A name for each attention site that its prefix goes to: "encoder.self 0" ..."""
        wanted = self.method_config.sites
        counts: dict[str, int] = {}
        names = []
        for kind, _ in self.config["backbone"].get("sites") or []:
            counts[kind] = counts.get(kind, -1) + 1
            if wanted is None or kind in wanted:
                names.append(f"{kind} {counts[kind]}")
        return tuple(names)

    @cached_property
    def method(self) -> Method:
        """Its module on the CPU, in eval mode, with the saved tensors.

        Raises:
            SoftPromptError: it changes modules of its backbone, and so is not made without it.
        """
        config = self.method_config
        if config.uses_parts:
            raise self.lacks("changes the model's own modules; no prompt to look at")
        return rebuilt(config, self.config, self._tensors, str(self.place)).eval()

    def views(self, what: str, rows: Rows | None = None, of: Method | None = None) -> list[View]:
        """The method's views of this name, in float32 and without gradients; see `Method.views`.

        Args:
            what: "masks", "gates", ...
            rows: for what depends on the input.
            of: another module of the method; None: the trained one.
        """
        method = self.method if of is None else of
        with evaluating(method):
            return [
                replace(view, values=view.values.detach().float().cpu())
                for view in method.views(rows)
                if view.what == what
            ]

    def view(self, what: str, otherwise: str, rows: Rows | None = None) -> View:
        """The first of `views` of this name.

        Raises:
            SoftPromptError: its method has none, in the words of ``otherwise``: "has no masks of its own".
        """
        views = self.views(what, rows)
        if not views:
            raise self.lacks(otherwise)
        return views[0]

    def lacks(self, what: str) -> DoesNotApplyError:
        """The error of an analysis that does not apply: "prompt-tuning has no masks of its own"."""
        return DoesNotApplyError(f"{self.name}: {self.config['method']} {what}")

    def tensors(self, rows: Rows | None = None, of: Method | None = None) -> PromptTensors:
        """The prompt as tensors.

        Args:
            rows: for a prompt that depends on the input, which is then the mean over them.
            of: see `views`.

        Raises:
            SoftPromptError: it depends on the input and there are no rows, or on what its layers get.
        """
        method = self.method if of is None else of
        if method.per_row and rows is None:
            raise self.lacks("has no tokens of its own, they depend on the input")
        if method.reads_states:
            raise DoesNotApplyError(f"{self.name}: the prefix of {self.config['method']} depends on what layers get")
        with evaluating(method):
            prompt = method(rows if method.per_row else None)
            tokens = None if prompt.tokens is None else prompt.tokens.float().mean(0)
            gates = 1.0 if prompt.gates is None else prompt.gates.float().unsqueeze(-1)
            keys, values = (None if x is None else (x.float() * gates).mean(1) for x in (prompt.keys, prompt.values))
        return PromptTensors(tokens, keys, values)

    # --- with it ----------------------------------------------------------------------------------------------------

    @cached_property
    def loaded(self) -> LoadedBackbone:
        """Its backbone with the prompt on it under `attached_name`, and the tokenizer.

        Raises:
            SoftPromptError: they cannot be loaded.
        """
        backbone = self.config["backbone"]
        key = (self.model or backbone.get("name"), backbone.get("revision"), backbone.get("class"))
        if key not in self._backbones:
            path = packaged.resolve_model(str(self.model or backbone.get("name") or ""))
            with quiet(), quiet_hub(path) as offline:
                model = load(self.place, model=self.model and path, local_files_only=offline)
                try:
                    tokenizer = tokenizer_of(path, offline)
                except Exception as error:  # a damaged or foreign folder fails anywhere
                    raise SoftPromptError(f"{self.name}: the tokenizer of '{path}' cannot be loaded") from error
            model.forget_prompt(model.active_prompt)
            self._backbones[key] = LoadedBackbone(model, tokenizer)
        backbone_loaded = self._backbones[key]
        self.attached_name = f"shown-{len(backbone_loaded.model.prompts)}"
        backbone_loaded.model.load_prompt(self.place, self.attached_name)
        return backbone_loaded

    @property
    def max_length(self) -> int:
        """Most tokens of an input."""
        loaded, trained_with = self.loaded, int(self.meta.get("max_length", 256))
        taken = loaded.model.prompts[self.attached_name].config.input_tokens
        room = context_room(loaded.model, loaded.tokenizer, taken)
        return trained_with if room is None else min(trained_with, room)

    def rows_of(self, batch: dict[str, Tensor]) -> Rows:
        """A padded batch as the method gets it."""
        backbone = state_of(self.loaded.model).backbone
        with torch.no_grad():
            embeddings = cast(Tensor, backbone.embeddings(batch["input_ids"].to(backbone.device)))
        return Rows(embeddings.float().cpu(), batch["attention_mask"].bool())

    def vocabulary(self) -> Tensor:
        """The backbone's input embeddings ``(V, d)`` in float32, as its layers get them."""
        backbone = state_of(self.loaded.model).backbone
        with torch.no_grad():
            table = backbone.embeddings(torch.arange(backbone.vocabulary_size, device=backbone.device))
        return cast(Tensor, table).float().cpu()

    def words(self, ids: Sequence[int]) -> list[str]:
        """The tokens of ids as the tokenizer writes them; an id beyond its vocabulary is written as a number."""
        words = self.loaded.tokenizer.convert_ids_to_tokens(list(ids))
        return [f"<{number}>" if word is None else str(word) for number, word in zip(ids, words, strict=True)]

    def at_start(self, what: str) -> tuple[Tensor | None, str]:
        """The first of `views` of this name as it was before training; None where it cannot be had, and then why."""
        try:
            return self.views(what, of=self.untrained)[0].values, ""
        except SoftPromptError as error:
            return None, str(error)

    @cached_property
    def untrained(self) -> Method:
        """Its module as it was before training: made anew from config, seed and backbone.

        Raises:
            SoftPromptError: that cannot be done, and why.
        """
        seed, settings = self.meta.get("seed"), self.meta.get("settings")
        config = self.method_config
        if seed is None or settings is None:
            raise SoftPromptError(f"{self.name}: no seed was kept, so that its start cannot be made again")
        if json.loads(json.dumps(config.identity())) != settings:
            raise SoftPromptError(f"{self.name}: it started from other saved prompts, which it does not keep")
        loaded, name = self.loaded, f"{self.attached_name}-start"
        loaded.model.add_prompt(name, config, tokenizer=loaded.tokenizer, seed=int(seed))
        method: Method = loaded.model.prompts[name].method
        loaded.model.forget_prompt(name)
        return method.eval()


def open_prompts(
    sources: Iterable[str | Path | Saved], names: Sequence[str] | None = None, model: str | None = None
) -> list[Saved]:
    """Reads saved prompts; what they need of backbones is loaded once, when it is first asked for.

    Args:
        sources: run folders, prompt folders or hub ids; what is open already stays as it is.
        names: what to call each; None: by task and method, and by folder where these are the same.
        model: their backbone, where it is not where they say.

    Raises:
        SoftPromptError: no saved prompt at one of them, or not a name for each.
    """
    places = list(sources)
    if names is not None and len(names) != len(places):
        raise SoftPromptError(f"there are {len(names)} names for {len(places)} prompts: give one for each")
    backbones: dict[Any, LoadedBackbone] = {}
    prompts = [
        place if isinstance(place, Saved) else Saved(place, None if names is None else names[index], backbones, model)
        for index, place in enumerate(places)
    ]
    called = [prompt.name for prompt in prompts]
    for place, prompt in zip(places, prompts, strict=True):
        if names is None and called.count(prompt.name) > 1 and not isinstance(place, Saved):
            prompt.name = f"{prompt.name}, {prompt.source.name}"
    return prompts
