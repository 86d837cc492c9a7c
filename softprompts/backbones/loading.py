"""Loads backbones and their tokenizers by name, as they are or quantised, and says how many tokens they take."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from softprompts.backbones import gguf, packaged, task_head
from softprompts.backbones.backbone import position_table, quiet
from softprompts.backbones.kinds import kind_of
from softprompts.backbones.quantized import quantization_config, require_backend
from softprompts.errors import SoftPromptError, first_line, shown
from softprompts.processes import shared_state
from softprompts.storage.hub import quiet_hub

CLASSES = {
    "encoder": "AutoModelForSequenceClassification",
    "encoder-decoder": "AutoModelForSeq2SeqLM",
    "decoder": "AutoModelForCausalLM",
}
_OF_CONFIG = ("local_files_only", "cache_dir", "token", "trust_remote_code")  # arguments that a config takes too


def load_backbone(
    model: str, tokens: bool = False, quantize: str | None = None
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel, frozenset[str]]:
    """Loads the tokenizer and the model, a classifier for encoders and a language model otherwise.

    Args:
        model: alias, local path or hub id.
        tokens: whether an encoder gets a classifier of tokens in place of texts.
        quantize: see `Workbench`.

    Returns:
        The tokenizer, the model, and the names of the tensors that its files lack.

    Raises:
        SoftPromptError: there is no such model, it cannot be read, or not be quantised here.
    """
    with model_files(model) as (path, local_files_only):
        place, file = gguf.located(path)
        config = AutoConfig.from_pretrained(place, local_files_only=local_files_only, **file)
        tokenizer = tokenizer_of(path, local_files_only)
        kind = kind_of(config)
        cls: Any = getattr(transformers, CLASSES[kind])
        if kind == "decoder" and type(config) not in cls._model_mapping:
            cls = transformers.AutoModelForImageTextToText
        if kind == "encoder" and tokens:
            cls = transformers.AutoModelForTokenClassification
        if file and quantize is not None:
            raise SoftPromptError(f"the weights of '{model}' are quantised in the file: leave out --quantize")
        more = {} if quantize is None else quantization_arguments(cls, config, quantize)
        more |= {"local_files_only": local_files_only, "output_loading_info": True, **file}
        loaded, info = cls.from_pretrained(place, **more)
    return tokenizer, gguf.as_plain(loaded, path), frozenset(info["missing_keys"])


def load_for_prompt(
    cls: Any,
    name: str,
    revision: str | None,
    owner: str,
    quantize: str | None = None,
    from_config: Callable[[Any], dict[str, Any]] | None = None,
    **kwargs: Any,
) -> Any:
    """Loads the backbone that a saved prompt names.

    Args:
        cls: the model's class, or one of transformers' auto classes.
        name: its alias, folder or hub id.
        revision: branch, tag or commit of its hub repository; None: "main".
        owner: the prompt; begins errors.
        quantize: a key of `BACKENDS`; None, or weights that are quantised in their files: as they come.
        from_config: returns more arguments of ``from_pretrained``, given the model's config.
        **kwargs: go to ``from_pretrained``; a ``quantization_config`` goes before ``quantize``.

    Raises:
        SoftPromptError: it cannot be loaded, or not be quantised here.
    """
    path, revision = packaged.resolve_model(name), revision or "main"
    place, file = gguf.located(path)
    if quantize is not None:
        require_backend(quantize)
    try:
        if quantize is not None or from_config is not None:
            known = {key: kwargs[key] for key in _OF_CONFIG if key in kwargs}
            config = AutoConfig.from_pretrained(place, revision=revision, **known, **file)
            kwargs |= {} if from_config is None else from_config(config)
            packed = "quantization_config" in kwargs or getattr(config, "quantization_config", None) is not None
            if quantize is not None and not packed:
                kwargs = {**quantization_arguments(cls, config, quantize), **kwargs}
        return gguf.as_plain(cls.from_pretrained(place, revision=revision, **kwargs, **file), path)
    except SoftPromptError:
        raise
    except Exception as error:  # a dozen kinds, for what a name can be of and for damaged weights
        moved = "" if Path(path).expanduser().exists() else "; has it moved? Name its place: model=... or --model"
        raise SoftPromptError(
            f"{owner}: its backbone {shown(name)} cannot be loaded ({first_line(error)}){moved}"
        ) from error


def tokenizer_of(path: str, local_files_only: bool) -> PreTrainedTokenizerBase:
    """Loads the tokenizer in a folder or a GGUF file, or of a hub id."""
    place, file = gguf.located(path)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place, local_files_only=local_files_only, **file)
    return tokenizer


def load_tokenizer(model: str) -> tuple[PreTrainedTokenizerBase, str, int | None]:
    """Loads a model's tokenizer; tells the model's kind and how many tokens it takes at once (None: any number).

    The model's weights are not read.

    Raises:
        SoftPromptError: there is no such model, or it cannot be read.
    """
    with model_files(model) as (path, local_files_only):
        place, file = gguf.located(path)
        config = AutoConfig.from_pretrained(place, local_files_only=local_files_only, **file)
        tokenizer = tokenizer_of(path, local_files_only)
        with torch.device("meta"):
            empty = AutoModel.from_config(config)
    kind = kind_of(config)
    limit, _ = position_table(empty.get_encoder() if kind == "encoder-decoder" else empty)
    return tokenizer, kind, _said_context(config, tokenizer) if limit is None else limit


@contextlib.contextmanager
def model_files(model: str) -> Iterator[tuple[str, bool]]:
    """Finds a model's files; errors of loading them within this context are told in one line that names the model.

    Yields:
        The folder, GGUF file or hub id, and the value of ``local_files_only`` to load it with.
    """
    if not model.strip():
        raise SoftPromptError("the model's name is empty; name a hub id or a local folder")
    path = packaged.resolve_model(model)
    local = Path(path).expanduser().is_dir() or gguf.is_gguf(path)
    if path.startswith((".", "/", "~")) and not local:
        raise SoftPromptError(f"no such model '{model}': there is no such folder")
    if local:  # absolute, so that a prompt finds its backbone from any folder
        path = str(Path(path).expanduser().resolve())
    try:
        with quiet(), quiet_hub(path) as local_files_only:
            yield path, local_files_only
    except SoftPromptError:
        raise
    except Exception as error:  # a damaged or foreign folder fails anywhere
        reason = first_line(error).rstrip(".")
        if local:
            place = "file" if gguf.is_gguf(path) else "folder"
            raise SoftPromptError(f"the model '{model}' cannot be loaded from its {place} ({reason})") from error
        reason = "the hub cannot be reached" if local_files_only else reason[:160]
        raise SoftPromptError(
            f"no such model '{model}': neither a local folder nor to be had from the hub ({reason})"
        ) from error


def context_room(model: Any, tokenizer: PreTrainedTokenizerBase, taken: int) -> int | None:
    """Returns how many tokens an attached model takes behind those ``taken`` by a prompt; None: any number.

    The limit is the model's position table, or else what its config or tokenizer says.
    """
    limit = _said_context(model.config, tokenizer) if model.max_tokens is None else int(model.max_tokens)
    return None if limit is None else limit - taken


def _said_context(config: Any, tokenizer: PreTrainedTokenizerBase) -> int | None:
    said = getattr(config.get_text_config(), "max_position_embeddings", None)
    if said is None and tokenizer.model_max_length < 1_000_000:
        said = tokenizer.model_max_length
    return None if said is None else int(said)


def quantization_arguments(cls: Any, config: Any, name: str, device: torch.device | None = None) -> dict[str, Any]:
    """Returns the arguments of ``from_pretrained`` that load a model quantised, with its task head left as it is.

    Args:
        cls: the model's class, or one of transformers' auto classes.
        config: the model's config.
        name: a key of `BACKENDS`.
        device: where the model is going to be; None: where Accelerate trains.

    Raises:
        SoftPromptError: it cannot be had here.
    """
    device = shared_state().device if device is None else device
    require_backend(name, device)
    with torch.device("meta"):
        empty = cls.from_config(config) if hasattr(cls, "_model_mapping") else cls(config)
    # Without a device map of its own, transformers puts it on the CPU or on the first of the GPUs.
    place = {} if device.type == "cpu" else {"device_map": {"": device}}
    return {"quantization_config": quantization_config(name, task_head.find(empty)), **place}
