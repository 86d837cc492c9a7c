"""Writing prompts as adapters of the PEFT library, which computes the same with them.

A prompt is written when it folds to plain tokens or to a plain prefix that PEFT can put where it is. What was trained
with ``placement="front"`` and ``positions="shifted"`` lies where PEFT has it; a prefix without positions of its own can
still be written for rotary models, by turning its keys once.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from softprompts.backbones.backbone import (
    Backbone,
    Site,
    attention_of,
    restore_attention,
    set_attention,
    trial,
)
from softprompts.errors import SoftPromptError
from softprompts.injection.prompt import Prompt, require
from softprompts.injection.state import State, state_of
from softprompts.methods.baselines.lora import LoraConfig
from softprompts.methods.contract import MethodConfig
from softprompts.methods.folded import fold
from softprompts.model.interop.peft_adapter import HEAD, LORA, PREFIX, PROMPT
from softprompts.model.interop.peft_lora import lora_adapter
from softprompts.storage import saved_prompt
from softprompts.storage.files import write_folder
from softprompts.storage.names import ADAPTER_CONFIG, ADAPTER_TENSORS

_TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
_TURN = "softprompts|turn"


def write_peft(model: Any, name: str, folder: str | Path) -> None:
    """Writes one prompt of an attached model as an adapter that ``peft.PeftModel.from_pretrained`` loads.

    Args:
        model: the attached model.
        name: the prompt.
        folder: where; made if it is not there.

    Raises:
        SoftPromptError: unknown name, a folder with something else in it, or a prompt that PEFT cannot compute: one
            that has no plain form, or whose tokens or positions are not where PEFT has them (the error says with
            which placement to train).
    """
    prompt = require(model.prompts, name)
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise SoftPromptError(f"cannot write to {folder}: it is a file, not a folder")
    if (folder / saved_prompt.CONFIG_FILE).exists():
        raise SoftPromptError(
            f"{folder} holds a saved prompt of ours, which would be read instead: name another folder"
        )
    state = state_of(model)
    writing = _Writing(name, prompt, state)
    config, tensors = writing.adapter()
    if prompt.head is not None:
        start = PREFIX if config["peft_type"] == LORA else HEAD
        config["modules_to_save"] = list(state.original_heads)
        tensors |= {f"{start}{key}": value for key, value in prompt.head.state_dict().items()}
    identity = state.backbone.identity
    config |= {"base_model_name_or_path": identity["name"] or None, "revision": identity["revision"]}
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    write_folder(
        folder,
        {
            "README.md": _card(config, prompt.config).encode(),
            ADAPTER_TENSORS: dump_tensors(plain, metadata={"format": "pt"}),
            ADAPTER_CONFIG: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
        },
    )


class _Writing:
    """One prompt on its way.

    Args:
        name: of the prompt.
        prompt: the prompt.
        state: of its model.
    """

    def __init__(self, name: str, prompt: Prompt, state: State):
        self.name, self.prompt, self.state = name, prompt, state
        self.backbone: Backbone = state.backbone
        self.model_name = state.model_class.__name__

    def refusal(self, why: str) -> SoftPromptError:
        """The error that says why it cannot be written."""
        method = self.prompt.config.method
        return SoftPromptError(f"prompt '{self.name}' ({method}) cannot be written as a PEFT adapter: {why}")

    def adapter(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The adapter's config and the tensors of its prompt."""
        if isinstance(self.prompt.config, LoraConfig):
            settings, tensors = lora_adapter(self.prompt.method, self.backbone)
            return {"auto_mapping": None, "inference_mode": True, "task_type": self._task(), **settings}, tensors
        reason = self.prompt.method.cannot_fold()
        if reason is not None:
            raise self.refusal(reason)
        _, plain = fold(self.prompt.method)
        soft = plain(None)
        if soft.update is not None:
            raise self.refusal("it changes the embeddings of the input, which PEFT's prompts cannot")
        if soft.tokens is not None and soft.keys is not None:
            raise self.refusal("it has tokens and a prefix, of which a PEFT adapter has one; leave out a part")
        if soft.tokens is not None:
            kind, more, table = self._tokens(soft.tokens[0])
        elif soft.keys is not None and soft.values is not None:
            kind, more, table = self._prefix(soft.keys[:, 0], soft.values[:, 0])
        else:
            raise self.refusal("it has neither tokens nor a prefix")
        config = {
            "auto_mapping": None,
            "inference_mode": True,
            "modules_to_save": None,
            "num_virtual_tokens": len(table),
            "peft_type": kind,
            "task_type": self._task(),
            **more,
        }
        return config, {PROMPT: table}

    def _task(self) -> str:
        loss = getattr(self.backbone.model, "loss_type", None)
        predicts = self.backbone.model.get_output_embeddings() is not None
        if self.backbone.kind == "encoder-decoder":
            if predicts:
                return "SEQ_2_SEQ_LM"
        elif loss in _TASKS:
            return _TASKS[str(loss)]
        elif predicts and self.backbone.kind == "decoder":
            return "CAUSAL_LM"
        elif not predicts and not self.state.original_heads:
            return "FEATURE_EXTRACTION"
        raise self.refusal(f"PEFT has no task_type for {self.model_name}")

    def _tokens(self, tokens: Tensor) -> tuple[str, dict[str, Any], Tensor]:
        backbone, config = self.backbone, self.prompt.config
        first = backbone.keep_first or backbone.reads_first
        if backbone.kind == "encoder" and first and config.placement != "front":
            raise self.refusal(
                f"PEFT puts tokens before the first one, which {self.model_name} reads, these were trained behind it: "
                "train with placement='front'"
            )
        if backbone.reads_first and getattr(backbone.model.config, "classifier_pooling", "cls") != "cls":
            raise self.refusal("the classifier takes a mean over all tokens, prompt tokens among them in PEFT")
        sizes = {"token_dim": tokens.shape[1], "num_attention_heads": 1, "num_layers": 1}
        return "PROMPT_TUNING", {**sizes, "num_transformer_submodules": 1, "prompt_tuning_init": "RANDOM"}, tokens

    def _prefix(self, keys: Tensor, values: Tensor) -> tuple[str, dict[str, Any], Tensor]:
        backbone, shifted = self.backbone, self.prompt.config.positions == "shifted"
        kind = "encoder.self" if backbone.kind == "encoder" else "decoder.self"
        indices = [index for index, site in enumerate(backbone.sites) if site.kind == kind]
        if backbone.kind == "encoder":
            taken = inspect.signature(type(backbone.entry).forward).parameters
            if "past_key_values" not in taken:
                raise self.refusal(f"{self.model_name} takes no past_key_values, through which PEFT gives prefixes")
        if self.prompt.sites != indices:
            raise self.refusal(
                f"PEFT gives prefixes to {kind} attention only, and to all of it: train with sites=('{kind}',)"
            )
        sites = [backbone.sites[index] for index in indices]
        length = keys.shape[1]
        if not shifted:
            turned = _turned(self.state, sites, keys) if backbone.kind == "decoder" else None
            if turned is None:
                raise self.refusal(
                    f"PEFT's prefix takes the first positions, which {self.model_name} tells apart, and this one has "
                    "none: train with positions='shifted'"
                )
            keys = turned
        slots = torch.stack([keys, values], 1).flatten(0, 1)  # key 0, value 0, key 1, ...
        copies = 1
        if backbone.kind == "encoder-decoder":
            # With twice the layers, each of the model's has slots of its own among those that PEFT deals out.
            copies, dealt = 2, slots.new_zeros(4 * len(sites), *slots.shape[1:])
            dealt[0::4], dealt[1::4] = keys, values
            slots = dealt
        sizes = {
            "token_dim": keys.shape[2],
            "num_attention_heads": sites[0].kv_heads,
            "num_layers": len(slots) // 2,
            "num_transformer_submodules": copies,
            "prefix_projection": False,
            "encoder_hidden_size": None,
        }
        return "PREFIX_TUNING", sizes, slots.transpose(0, 1).reshape(length, -1)


def _turned(state: State, sites: list[Site], keys: Tensor) -> Tensor | None:
    """Keys ``(S, l, w)`` without positions as a rotary model turns those at position ``l``.

    Queries are then turned by ``l`` more than before, which leaves all scores as they are. Two trial passes, of one
    token at positions 0 and ``l``, give the turning and the proof of it; None where the model does otherwise.
    """
    model, length = state.backbone.model, keys.shape[1]
    before = attention_of(model)
    met: dict[nn.Module, tuple[Any, Tensor]] = {}
    given: dict[nn.Module, Any] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given[module] = kwargs.get("position_embeddings")

    def record(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **_: Any
    ) -> tuple[Tensor, None]:
        met[module] = (given.get(module), key.detach())
        return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3]), None

    def keys_at(position: int) -> dict[nn.Module, tuple[Any, Tensor]]:
        met.clear()
        ids = torch.ones(1, 1, dtype=torch.long, device=state.backbone.device)
        model.base_model(input_ids=ids, position_ids=torch.full_like(ids, position))
        return dict(met)

    AttentionInterface.register(_TURN, record)
    AttentionMaskInterface.register(_TURN, lambda *_, **__: None)
    hooks = [site.module.register_forward_pre_hook(note, with_kwargs=True) for site in sites]
    try:
        if not set_attention(model, _TURN):
            return None
        with trial(model), state.activate(None):
            start, end = keys_at(0), keys_at(length)
    except Exception:  # a model that takes other inputs
        return None
    finally:
        restore_attention(before)
        for hook in hooks:
            hook.remove()

    turned = []
    for site, own in zip(sites, keys, strict=True):
        turn = getattr(sys.modules[type(site.module).__module__], "apply_rotary_pos_emb", None)
        if turn is None or site.module not in start or site.module not in end:
            return None
        angles, at_end = end[site.module]
        try:
            cos, sin = angles
            once = turn(start[site.module][1], start[site.module][1], cos, sin)[1]
            wide = own.unflatten(-1, (site.kv_heads, site.head_dim)).transpose(0, 1)[None].to(at_end)
            after = turn(wide, wide, cos, sin)[1]
        except (TypeError, ValueError, RuntimeError):
            return None
        tolerance = max(1e-5, 8 * torch.finfo(at_end.dtype).eps) * float(at_end.abs().max().clamp(min=1e-3))
        if not torch.allclose(once, at_end, rtol=0, atol=tolerance):
            return None
        turned.append(after[0].transpose(0, 1).flatten(1).to(own))
    return torch.stack(turned)


def _card(config: Mapping[str, Any], method: MethodConfig) -> str:
    base = config["base_model_name_or_path"]
    lines = ["---", "library_name: peft"]
    if base and "/" in base and not base.startswith(("/", ".")):
        lines.append(f"base_model: {base}")
    lines += [
        "tags:",
        "- soft-prompt",
        "---",
        "",
        f"# {config['peft_type']} for {base or 'a frozen model'}",
        "",
        f"Trained with softprompts ({method.method}), written for PEFT:",
        "",
        "```python",
        "from peft import PeftModel",
        'model = PeftModel.from_pretrained(base_model, "this folder")',
        "```",
        "",
    ]
    return "\n".join(lines)
