"""Writes prompts as adapters of the PEFT library, which computes the same with them.

A prompt can be written if it folds to plain tokens or to a plain prefix that lies where PEFT puts it: trained with
``placement="front"`` or ``positions="shifted"``. A prefix without positions of its own can be written for rotary models
too, by rotating its keys once.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from softprompts.backbones.backbone import Backbone, Site, attention_through
from softprompts.backbones.kinds import trial
from softprompts.errors import SoftPromptError
from softprompts.injection.prompt import Prompt, require
from softprompts.injection.state import State, state_of
from softprompts.methods.baselines.lora import LoraConfig
from softprompts.methods.folded import fold
from softprompts.model.card import adapter_card
from softprompts.model.interop.peft_adapter import PREFIX, PROMPT, TOKENS, head_start
from softprompts.model.interop.peft_lora import lora_adapter
from softprompts.storage.files import require_folder, write_folder
from softprompts.storage.names import ADAPTER_CONFIG, ADAPTER_TENSORS
from softprompts.storage.saved_prompt import CONFIG_FILE

_TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}


def write_peft(model: Any, name: str, folder: str | Path) -> None:
    """Writes one prompt of an attached model as an adapter of PEFT; see `PromptModel.save_peft`."""
    prompt = require(model.prompts, name)
    require_folder(folder, "the adapter")
    folder = Path(folder)
    if (folder / CONFIG_FILE).exists():
        raise SoftPromptError(f"{folder} holds a prompt of ours, which would be read instead: name another folder")
    state = state_of(model)
    config, tensors = _Writer(name, prompt, state).adapter()
    if prompt.head is not None:
        config["modules_to_save"] = list(state.backbone.heads)
        start = head_start(config["peft_type"])
        tensors |= {f"{start}{key}": value for key, value in prompt.head.state_dict().items()}
    identity = state.backbone.identity
    config |= {"base_model_name_or_path": identity["name"] or None, "revision": identity["revision"]}
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    files = {
        "README.md": adapter_card(config["peft_type"], identity, prompt.config.method).encode(),
        ADAPTER_TENSORS: dump_tensors(plain, metadata={"format": "pt"}),
        ADAPTER_CONFIG: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
    }
    write_folder(folder, files)


def check_peft(model: Any, name: str) -> None:
    """Raises a `SoftPromptError` where PEFT cannot compute what a prompt does."""
    _Writer(name, require(model.prompts, name), state_of(model)).adapter()


class _Writer:
    """Makes the config and the tensors of an adapter from one prompt."""

    def __init__(self, name: str, prompt: Prompt, state: State):
        self.name, self.prompt, self.state = name, prompt, state
        self.backbone: Backbone = state.backbone
        self.model_name = state.model_class.__name__

    def refusal(self, reason: str) -> SoftPromptError:
        """Returns the error that says why the prompt cannot be written."""
        method = self.prompt.config.method
        return SoftPromptError(f"prompt '{self.name}' ({method}) cannot be written as a PEFT adapter: {reason}")

    def adapter(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Returns the adapter's config and the tensors of the prompt, without its head."""
        common: dict[str, Any] = {"auto_mapping": None, "inference_mode": True, "task_type": None}
        if isinstance(self.prompt.config, LoraConfig):
            settings, tensors = lora_adapter(self.prompt.method, self.backbone)
            return {**common, "task_type": self._task(), **settings}, tensors
        reason = self.prompt.method.cannot_fold()
        if reason is not None:
            raise self.refusal(reason)
        soft = fold(self.prompt.method)[1](None)
        if soft.update is not None:
            raise self.refusal("it changes the embeddings of the input, which PEFT's prompts cannot")
        if soft.tokens is not None and soft.keys is not None:
            raise self.refusal("it has tokens and a prefix, of which a PEFT adapter has one; leave out a part")
        if soft.tokens is not None:
            settings, table = self._tokens(soft.tokens[0])
        elif soft.keys is not None and soft.values is not None:
            settings, table = self._prefix(soft.keys[:, 0], soft.values[:, 0])
        else:
            raise self.refusal("it has neither tokens nor a prefix")
        common |= {"modules_to_save": None, "num_virtual_tokens": len(table), "task_type": self._task()}
        return {**common, **settings}, {PROMPT: table}

    def _task(self) -> str:
        kind, loss = self.backbone.kind, str(getattr(self.backbone.model, "loss_type", None))
        predicts = self.backbone.model.get_output_embeddings() is not None
        if kind != "encoder-decoder" and loss in _TASKS:
            return _TASKS[loss]
        if predicts and kind != "encoder":
            return "SEQ_2_SEQ_LM" if kind == "encoder-decoder" else "CAUSAL_LM"
        if kind != "encoder-decoder" and not predicts and not self.state.backbone.heads:
            return "FEATURE_EXTRACTION"
        raise self.refusal(f"PEFT has no task_type for {self.model_name}")

    def _tokens(self, tokens: Tensor) -> tuple[dict[str, Any], Tensor]:
        """Returns the settings and the table of an adapter of tokens in the input."""
        backbone = self.backbone
        reads_first = backbone.keep_first or backbone.reads_first
        if backbone.kind == "encoder" and reads_first and self.prompt.config.placement != "front":
            raise self.refusal(
                f"PEFT puts tokens before the first one, which {self.model_name} reads, these were trained behind it: "
                "train with placement='front'"
            )
        if backbone.reads_first and getattr(backbone.model.config, "classifier_pooling", "cls") != "cls":
            raise self.refusal("the classifier takes a mean over all tokens, prompt tokens among them in PEFT")
        settings = {
            "peft_type": TOKENS,
            "token_dim": tokens.shape[1],
            "num_attention_heads": 1,
            "num_layers": 1,
            "num_transformer_submodules": 1,
            "prompt_tuning_init": "RANDOM",
        }
        return settings, tokens

    def _prefix(self, keys: Tensor, values: Tensor) -> tuple[dict[str, Any], Tensor]:
        """Returns the settings and the table of an adapter of keys and values, each ``(sites, l, width)`` here."""
        backbone = self.backbone
        kind = "encoder.self" if backbone.kind == "encoder" else "decoder.self"
        indices = [index for index, site in enumerate(backbone.sites) if site.kind == kind]
        takes_cache = "past_key_values" in inspect.signature(type(backbone.entry).forward).parameters
        if backbone.kind == "encoder" and not takes_cache:
            raise self.refusal(f"{self.model_name} takes no past_key_values, through which PEFT gives prefixes")
        if self.prompt.sites != indices:
            raise self.refusal(f"PEFT's prefixes go to all {kind} attention and no other: train with sites=('{kind}',)")
        sites = [backbone.sites[index] for index in indices]
        length = keys.shape[1]
        if self.prompt.config.positions != "shifted":
            rotated = _rotated(self.state, sites, keys) if backbone.kind == "decoder" else None
            if rotated is None:
                raise self.refusal(
                    f"PEFT's prefix takes the first positions, which {self.model_name} tells apart, and this one has "
                    "none: train with positions='shifted'"
                )
            keys = rotated
        slots = torch.stack([keys, values], 1).flatten(0, 1)  # key 0, value 0, key 1, ...
        twice = backbone.kind == "encoder-decoder"
        if twice:
            # With twice the layers, each of the model's has slots of its own among those that PEFT deals out.
            slots = slots.new_zeros(4 * len(sites), *slots.shape[1:])
            slots[0::4], slots[1::4] = keys, values
        settings = {
            "peft_type": PREFIX,
            "token_dim": keys.shape[2],
            "num_attention_heads": sites[0].kv_heads,
            "num_layers": len(slots) // 2,
            "num_transformer_submodules": 2 if twice else 1,
            "prefix_projection": False,
            "encoder_hidden_size": None,
        }
        return settings, slots.transpose(0, 1).reshape(length, -1)


def _rotated(state: State, sites: list[Site], keys: Tensor) -> Tensor | None:
    """Rotates keys ``(S, l, w)`` without positions as a rotary model does at position ``l``.

    Queries are then rotated by ``l`` more than before, which leaves all scores as they are. Two trial passes, of one
    token at positions 0 and ``l``, give the rotation and the proof of it.

    Returns:
        The keys; None if the model does something else.
    """
    model, length = state.backbone.model, keys.shape[1]
    rotations: dict[nn.Module, Any] = {}
    calls: dict[nn.Module, tuple[Any, Tensor]] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rotations[module] = kwargs.get("position_embeddings")

    def record(module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> None:
        calls[module] = (rotations.get(module), key.detach())

    def calls_at(position: int) -> dict[nn.Module, tuple[Any, Tensor]]:
        calls.clear()
        ids = torch.ones(1, 1, dtype=torch.long, device=state.backbone.device)
        model.base_model(input_ids=ids, position_ids=torch.full_like(ids, position))
        return dict(calls)

    try:
        with contextlib.ExitStack() as hooks, attention_through(model, record) as recorded, trial(model):
            for site in sites:
                hooks.enter_context(site.module.register_forward_pre_hook(note, with_kwargs=True))
            with state.activate(None):
                at_start, at_end = calls_at(0), calls_at(length)
    except Exception:  # a model that takes other inputs
        return None
    if not recorded:
        return None

    rotated = []
    for site, site_keys in zip(sites, keys, strict=True):
        rotate = getattr(sys.modules[type(site.module).__module__], "apply_rotary_pos_emb", None)
        if rotate is None or site.module not in at_start or site.module not in at_end:
            return None
        rotation, expected = at_end[site.module]
        try:
            cos, sin = rotation
            token = rotate(at_start[site.module][1], at_start[site.module][1], cos, sin)[1]
            by_head = site_keys.unflatten(-1, (site.kv_heads, site.head_dim)).transpose(0, 1)[None].to(expected)
            by_head = rotate(by_head, by_head, cos, sin)[1]
        except (TypeError, ValueError, RuntimeError):
            return None
        tolerance = max(1e-5, 8 * torch.finfo(expected.dtype).eps) * float(expected.abs().max().clamp(min=1e-3))
        if not torch.allclose(token, expected, rtol=0, atol=tolerance):
            return None
        rotated.append(by_head[0].transpose(0, 1).flatten(1).to(site_keys))
    return torch.stack(rotated)
