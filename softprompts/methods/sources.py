"""Saved prompts as the start, or a fixed part, of others: the prompts of source tasks.

A source is a folder written by `save_prompt` (or the run folder around it, or a hub id), of any method that comes down
to input tokens. It is read without its backbone: the method is rebuilt from its config and tensors, and folded.

What is made from sources is saved with its own tensors and without the sources' names (see `Method.stored`), so that it
loads where the sources are not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softprompts.errors import SoftPromptError
from softprompts.methods.contract import Method, MethodConfig, Shape, Vocabulary
from softprompts.methods.folded import fold
from softprompts.methods.making import make_config

_SAME = ("model_type", "vocabulary")  # what the backbones of prompts that go together share


def checked_paths(owner: str, field: str, value: Any) -> tuple[str, ...]:
    """The names of some sources, as texts.

    Args:
        owner: the method, which begins the error.
        field: the setting.
        value: one name or several.

    Raises:
        SoftPromptError: anything else.
    """
    names = (value,) if isinstance(value, str | PathLike) else value
    fine = isinstance(names, Sequence) and all(isinstance(name, str | PathLike) and fspath(name) for name in names)
    if not fine:
        raise SoftPromptError(f"{owner}: {field} must name folders of saved prompts, not {value!r}")
    return tuple(str(name) for name in names)


def read_source(path: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of a saved prompt, or of the one in a run folder.

    Raises:
        SoftPromptError: nothing usable there.
    """
    # Here and not on top: both import what imports the methods.
    from softprompts.storage.saved_prompt import prompt_folder, read

    return read(prompt_folder(path))


def described(path: str) -> dict[str, Any]:
    """The config of a source alone; its tensors are not read.

    Raises:
        SoftPromptError: nothing usable there.
    """
    from softprompts.storage.saved_prompt import prompt_folder, read_config

    return read_config(prompt_folder(path))[0]


def fingerprint(path: str) -> str:
    """The sha256 of a source's tensors, which stands for the source wherever it lies."""
    return str(described(path)["sha256"])


def name_of(path: str) -> str:
    """The task that a source was trained on, or else the name of its folder."""
    task = (described(path).get("metadata") or {}).get("task")
    return task if isinstance(task, str) and task else Path(path).name


def load_methods(
    owner: str,
    paths: Sequence[str],
    width: int,
    identity: Mapping[str, Any] | None = None,
    only: type[MethodConfig] | None = None,
) -> list[Method]:
    """The methods of some sources, rebuilt on the CPU without a backbone.

    Args:
        owner: the method that asks, which begins the errors.
        paths: the sources.
        width: ``d`` of the backbone that they are wanted for.
        identity: what saved prompts say of that backbone; None or empty where it is not known.
        only: the config of the method that they must be of; None: any that comes down to input tokens.

    Raises:
        SoftPromptError: a source cannot be read, is of another method or has no input tokens, has another width, or was
            trained on another backbone than the first or than the one that they are wanted for.
    """
    found: list[Method] = []
    first: dict[str, Any] = {}
    for path in paths:
        config, tensors = read_source(path)
        backbone = config["backbone"]
        if backbone.get("hidden_size") != width:
            raise SoftPromptError(
                f"{owner}: the source {path} is for a backbone of width {backbone.get('hidden_size')}, "
                f"this one has {width}"
            )
        first = first or backbone
        if any(backbone.get(key) != first.get(key) for key in _SAME):
            raise SoftPromptError(
                f"{owner}: the sources {paths[0]} and {path} were trained on different backbones "
                f"({_name(first)} and {_name(backbone)})"
            )
        if identity and any(backbone.get(key) != identity.get(key) for key in _SAME):
            raise SoftPromptError(
                f"{owner}: the source {path} was trained on another backbone ({_name(backbone)}) than this one "
                f"({_name(identity)})"
            )
        made = make_config(config["method"], **config["config"])
        if only is not None and type(made) is not only:
            raise SoftPromptError(
                f"{owner}: the source {path} is a {made.method} prompt: name one of {only.method}, whose tensors it "
                "can start from"
            )
        if only is None and (made.uses_prefix or not made.uses_tokens):
            raise SoftPromptError(
                f"{owner}: the source {path} ({made.method}) does not consist of input tokens: "
                "name prompts of prompt-tuning or of a method that folds to tokens"
            )

        def no_words(ids: Tensor) -> Tensor:
            return torch.zeros(len(ids), width)

        size = backbone.get("vocabulary")
        vocabulary = Vocabulary(no_words, size if isinstance(size, int) else 1, (), lambda text: [0])
        # What is drawn here is overwritten; the random numbers of the prompt that is being built stay as they are.
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            method = made.build(Shape(hidden_size=width, num_sites=0, kv_width=0, vocabulary=vocabulary))
        own = {key.removeprefix("method."): value for key, value in tensors.items() if key.startswith("method.")}
        try:
            method.load_state_dict(own)
        except RuntimeError as error:
            raise SoftPromptError(
                f"{owner}: config and tensors of the source {path} do not belong together; was it edited?"
            ) from error
        found.append(method)
    return found


def load_tokens(
    owner: str,
    paths: Sequence[str],
    width: int,
    length: int | None = None,
    identity: Mapping[str, Any] | None = None,
) -> list[Tensor]:
    """The input tokens that some sources come down to.

    Args:
        owner: the method that asks, which begins the errors.
        paths: the sources.
        width: ``d`` of the backbone that they are wanted for.
        length: repeat the tokens of a shorter source from its first on, and cut a longer one; None: as they are.
        identity: what saved prompts say of that backbone; None or empty where it is not known.

    Returns:
        Tokens ``(l, d)`` of each, in float32.

    Raises:
        SoftPromptError: see `load_methods`; or a source depends on the input or has more than tokens.
    """
    found = []
    for path, method in zip(paths, load_methods(owner, paths, width, identity), strict=True):
        try:
            _, plain = fold(method)
        except SoftPromptError as error:
            raise SoftPromptError(f"{owner}: the source {path} is of no use here; {error}") from error
        prompt = plain()
        if prompt.tokens is None or prompt.update is not None:
            raise SoftPromptError(
                f"{owner}: the source {path} ({method.config.method}) changes the input's embeddings too, "
                "so that its tokens mean nothing alone"
            )
        tokens = prompt.tokens[0].detach().float()
        found.append(tokens if length is None else tokens[torch.arange(length) % len(tokens)])
    return found


def blank(*sizes: int) -> Tensor:
    """Room for stored tensors; not a number until they are loaded, so that it cannot pass for a prompt."""
    return torch.full(sizes, float("nan"))


def _name(backbone: Mapping[str, Any]) -> str:
    return str(backbone.get("name") or backbone.get("model_type"))
