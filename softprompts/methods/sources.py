"""Source prompts: saved prompts of other tasks, that a prompt starts from or contains.

A source is a folder written by `save_prompt` (or the run folder around it, or a hub id). It is read without its
backbone: the method is rebuilt from its config and tensors. Most methods take sources of any method that folds to
input tokens.

A prompt that was built from sources is saved with its own tensors and without the sources' names (see
`Method.stored`), so that it loads where the sources are missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softprompts.errors import SoftPromptError
from softprompts.methods.compose import restored_config
from softprompts.methods.contract import Method, MethodConfig, Shape, Vocabulary
from softprompts.methods.folded import fold
from softprompts.storage.saved_prompt import prompt_folder, read, read_config

_SAME = ("model_type", "vocabulary")  # facts in which the backbones of prompts that go together agree


def saved_config(path: str) -> dict[str, Any]:
    """The content of a source's config file; its tensors are not read.

    Raises:
        SoftPromptError: there is no saved prompt, or its config is damaged.
    """
    return read_config(prompt_folder(path))[0]


def fingerprint(path: str) -> str:
    """The sha256 of a source's tensors, which identifies the source wherever its folder is."""
    return str(saved_config(path)["sha256"])


def name_of(path: str) -> str:
    """The task that a source was trained on, or else the name of its folder."""
    task = (saved_config(path).get("metadata") or {}).get("task")
    return task if isinstance(task, str) and task else Path(path).name


def rebuilt(config: MethodConfig, saved: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str) -> Method:
    """The module of a saved prompt on the CPU, without its backbone; ``saved`` is what its config file says.

    Raises:
        SoftPromptError: config and tensors do not fit each other.
    """
    backbone = saved["backbone"]
    width, size, sites = int(backbone["hidden_size"]), backbone.get("vocabulary"), backbone.get("sites") or []
    chosen = [kind for kind, _ in sites if config.uses_prefix and (config.sites is None or kind in config.sites)]
    vocabulary = Vocabulary(lambda ids: ids, size if isinstance(size, int) else 1)
    shape = Shape(width, len(chosen), max((kv_width for _, kv_width in sites), default=0), vocabulary).blank()
    # The tensors that are drawn here are overwritten; the caller's random state stays as it is.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        method = config.build(shape)
    state = {key.removeprefix("method."): value for key, value in tensors.items() if key.startswith("method.")}
    try:
        method.load_state_dict(state)
    except RuntimeError as error:
        raise SoftPromptError(f"{name}: config and tensors do not belong together; was it edited?") from error
    return method


def load_methods(
    owner: str,
    paths: Sequence[str],
    width: int,
    identity: Mapping[str, Any] | None = None,
    only: type[MethodConfig] | None = None,
) -> list[Method]:
    """The modules of some sources, rebuilt on the CPU without a backbone.

    Args:
        owner: the method that loads them, which begins the errors.
        paths: the sources.
        width: ``d`` of the backbone that they are loaded for.
        identity: what saved prompts record of that backbone; None or empty where it is not known.
        only: the config of the one method that is allowed; None: any method of input tokens.

    Raises:
        SoftPromptError: a source cannot be read, is of another method or has no input tokens, has another width, or was
            trained on another backbone than the first source or than the one that it is loaded for.
    """
    methods: list[Method] = []
    first: Mapping[str, Any] = {}
    for path in paths:
        source = f"{owner}: the source {path}"
        saved, tensors = read(prompt_folder(path))
        backbone = saved["backbone"]
        first = first or backbone
        if (size := backbone.get("hidden_size")) != width:
            raise SoftPromptError(f"{source} is for a backbone of width {size}, this one has {width}")
        if not _alike(backbone, first):
            raise SoftPromptError(
                f"{owner}: the sources {paths[0]} and {path} were trained on different backbones "
                f"({_name(first)} and {_name(backbone)})"
            )
        if identity and not _alike(backbone, identity):
            raise SoftPromptError(
                f"{source} was trained on another backbone ({_name(backbone)}) than this one ({_name(identity)})"
            )
        config = restored_config(saved, source)
        if only is not None and type(config) is not only:
            raise SoftPromptError(
                f"{source} is a {config.method} prompt: name one of {only.method}, whose tensors it can start from"
            )
        if only is None and (config.uses_prefix or not config.uses_tokens):
            raise SoftPromptError(
                f"{source} ({config.method}) does not consist of input tokens: "
                "name prompts of prompt-tuning or of a method that folds to tokens"
            )
        methods.append(rebuilt(config, saved, tensors, source))
    return methods


def load_tokens(
    owner: str, paths: Sequence[str], width: int, length: int | None = None, identity: Mapping[str, Any] | None = None
) -> list[Tensor]:
    """The input tokens ``(l, d)`` that each of some sources folds to, in float32.

    With a ``length``, those of a shorter source are repeated from its first on, and those of a longer one cut.

    Raises:
        SoftPromptError: see `load_methods`; or a source depends on the input or has more than tokens.
    """
    prompts = []
    for path, method in zip(paths, load_methods(owner, paths, width, identity), strict=True):
        try:
            prompt = fold(method)[1]()
        except SoftPromptError as error:
            raise SoftPromptError(f"{owner}: the source {path} is of no use here; {error}") from error
        if prompt.tokens is None or prompt.update is not None:
            raise SoftPromptError(
                f"{owner}: the source {path} ({method.config.method}) changes the input's embeddings too, "
                "so that its tokens mean nothing alone"
            )
        tokens = prompt.tokens[0].detach().float()
        prompts.append(tokens if length is None else tokens[torch.arange(length) % len(tokens)])
    return prompts


def blank(*sizes: int) -> Tensor:
    """A tensor that saved values are loaded into; NaN until then, so that it cannot pass for a prompt."""
    return torch.full(sizes, float("nan"))


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one.get(key) == other.get(key) for key in _SAME)


def _name(backbone: Mapping[str, Any]) -> str:
    return str(backbone.get("name") or backbone.get("model_type"))
