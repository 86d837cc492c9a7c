"""TODO."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from softprompts.backbones import packaged, task_head
from softprompts.backbones.backbone import kind_of, position_limit, quiet
from softprompts.backbones.quantized import (
    quantization_config,
    require_backend,
)
from softprompts.errors import SoftPromptError
from softprompts.processes import shared_state
from softprompts.storage.hub import asking


def load_backbone(
    model: str, tokens: bool = False, quantize: str | None = None
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and model of the class that suits the model's kind: a classifier for encoders, else a language model.

    Args:
        model: alias, local path or hub id.
        tokens: whether an encoder's classifier is one of tokens.
        quantize: see `Workbench`.

    Raises:
        SoftPromptError: there is no such model, it cannot be read, or not be quantised here.
    """
    return _load_backbone(model, tokens, quantize)[:2]


def _load_backbone(
    model: str, tokens: bool = False, quantize: str | None = None
) -> tuple[PreTrainedTokenizerBase, PreTrainedModel, frozenset[str]]:
    """`load_backbone`, and the names of tensors that the model's files lack."""
    import transformers

    if quantize is not None:
        require_backend(quantize, shared_state().device)

    with naming_model(model) as (path, offline):
        config = AutoConfig.from_pretrained(path, local_files_only=offline)
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=offline)
        kind = kind_of(config)
        cls: Any
        if kind == "encoder" and tokens:
            cls = transformers.AutoModelForTokenClassification
        elif kind == "encoder":
            cls = transformers.AutoModelForSequenceClassification
        elif kind == "encoder-decoder":
            cls = transformers.AutoModelForSeq2SeqLM
        else:
            cls = transformers.AutoModelForCausalLM
        more = {} if quantize is None else quantizing(cls, config, quantize)
        loaded, info = cls.from_pretrained(path, local_files_only=offline, output_loading_info=True, **more)
    return tokenizer, loaded, frozenset(info["missing_keys"])


def load_tokenizer(model: str) -> tuple[PreTrainedTokenizerBase, str, int | None]:
    """A model's tokenizer, which kind of model it is, and how many tokens it takes at once (None: any number).

    Its weights are not read.

    Raises:
        SoftPromptError: there is no such model, or it cannot be read.
    """
    from transformers import AutoModel

    with naming_model(model) as (path, offline):
        config = AutoConfig.from_pretrained(path, local_files_only=offline)
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=offline)
        with torch.device("meta"):
            empty = AutoModel.from_config(config)
    kind = kind_of(config)
    hard = position_limit(empty.get_encoder() if kind == "encoder-decoder" else empty)
    return tokenizer, kind, _said_context(config, tokenizer) if hard is None else hard


@contextlib.contextmanager
def naming_model(model: str) -> Iterator[tuple[str, bool]]:
    """Where a model lies, and whether the hub cannot be asked; what goes wrong within is told in one line."""
    if not model.strip():
        raise SoftPromptError("the model's name is empty; name a hub id or a local folder")
    path = packaged.resolve_model(model)
    if path.startswith((".", "/", "~")) and not Path(path).expanduser().is_dir():
        raise SoftPromptError(f"no such model '{model}': there is no such folder")
    local = Path(path).expanduser().is_dir()
    if local:  # absolute, so that a prompt finds its backbone from any folder
        path = str(Path(path).expanduser().resolve())
    try:
        with quiet(), asking(path) as offline:
            yield path, offline
    except SoftPromptError:
        raise
    except Exception as error:  # a damaged or foreign folder fails anywhere
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        if local:
            raise SoftPromptError(f"the model '{model}' cannot be loaded from its folder ({reason[:200]})") from error
        reason = "the hub cannot be reached" if offline else reason[:160]
        raise SoftPromptError(
            f"no such model '{model}': neither a local folder nor to be had from the hub ({reason})"
        ) from error


def context_room(model: Any, tokenizer: PreTrainedTokenizerBase, taken: int) -> int | None:
    """Tokens of an attached model's context that are left for the input; None where nothing limits them.

    The context is the model's position table, or else what its config or tokenizer says.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        taken: tokens that a prompt takes.
    """
    limit = _said_context(model.config, tokenizer) if model.max_tokens is None else int(model.max_tokens)
    return None if limit is None else limit - taken


def _said_context(config: Any, tokenizer: PreTrainedTokenizerBase) -> int | None:
    said = getattr(config.get_text_config(), "max_position_embeddings", None)
    if said is None and tokenizer.model_max_length < 1_000_000:
        said = tokenizer.model_max_length
    return None if said is None else int(said)


def quantizing(cls: Any, config: Any, name: str, device: torch.device | None = None) -> dict[str, Any]:
    """What ``from_pretrained`` needs beside the model's name to load it quantised, its task head left as it is.

    Args:
        cls: the model's class, or one of transformers' auto classes.
        config: the model's config.
        name: a key of `BACKENDS`.
        device: where the model is going to be; None: where Accelerate trains.

    Raises:
        SoftPromptError: it cannot be had here.
    """
    from softprompts.processes import shared_state

    device = shared_state().device if device is None else device
    require_backend(name, device)
    with torch.device("meta"):
        empty = cls.from_config(config) if hasattr(cls, "_model_mapping") else cls(config)
    # Without a device map of its own, transformers puts it on the CPU or on the first of the GPUs.
    place = {} if device.type == "cpu" else {"device_map": {"": device}}
    return {"quantization_config": quantization_config(name, task_head.find(empty)), **place}
