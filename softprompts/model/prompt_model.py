"""What an attached model can do: forward and generate with a prompt a row, and prompts by name.

The model object stays what it was, a `PreTrainedModel` of its own class; it becomes an instance of a class made from
that class and `PromptModel`, as torch's ``fully_shard`` does it.
"""

from __future__ import annotations

import contextlib
import functools
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForSequenceClassificationLoss

from softprompts.backbones import quantized, sharded
from softprompts.backbones.kinds import CACHES
from softprompts.backbones.task_head import mean_loss, token_loss
from softprompts.errors import SoftPromptError
from softprompts.injection.batch_pass import Pass, context_of
from softprompts.injection.outputs import own_mask, restore_encoders, restored
from softprompts.injection.prompt import Prompt, PromptSet, new_prompt, require
from softprompts.injection.recorded_prefix import recorded_prefix
from softprompts.injection.state import state_of
from softprompts.injection.wiring import checkpoints, follow_changes, follow_checkpointing, follow_prompts
from softprompts.methods.contract import MethodConfig
from softprompts.methods.folded import fold
from softprompts.model.files import PromptFiles
from softprompts.model.generation import PromptGeneration, are_of
from softprompts.model.noise import follow_noise
from softprompts.model.penalties import has_loss, labels_share, watch_penalties
from softprompts.model.self_check import require_exact

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
# Losses that we compute ourselves, as the number of labels is each prompt's own.
_OWN_LOSSES = ("ForSequenceClassification", "ForTokenClassification")


class PromptModel(PromptGeneration, PromptFiles):
    """What `attach` adds to a transformers model: prompts by name. Not made by itself.

    Attributes:
        prompts: the prompts.
        backbone_dropout: whether the frozen model keeps its dropout while training; takes effect with the next `train`.
    """

    prompts: PromptSet
    backbone_dropout: bool
    config: Any
    loss_type: Any

    # --- forward --------------------------------------------------------------------------------------------------

    def _prompted_forward(self, forward: Callable[..., Any], names: list[str], *args: Any, **kwargs: Any) -> Any:
        """``forward``, which is that of the model's own class and has parameters of these names, under prompts."""
        state, model = state_of(self), cast(PreTrainedModel, self)
        inputs = dict(zip(names, args, strict=False)) | kwargs
        prompt_names, context_mask = inputs.pop("prompt_names", None), inputs.pop("context_mask", None)
        pass_ = self._pass_for(inputs, prompt_names, context_mask)
        state.last_pass = pass_
        sharded.hold(model, self.prompts)
        if pass_ is None:
            return self._bare_forward(forward, inputs)
        follow_changes(state)
        if inputs.get("past_key_values") is None and checkpoints(model):
            pass_.without_cache = True  # a recomputed layer would write to the cache twice
            if "use_cache" in names:
                inputs["use_cache"] = False
        if inputs.get("labels") is not None and "past_key_values" not in names and "use_cache" in names:
            inputs.setdefault("use_cache", False)  # recurrent states may change in place, which no gradient survives
        own_loss = bool("labels" in inputs and state.backbone.heads and self.loss_type in _OWN_LOSSES)
        labels = inputs.pop("labels") if own_loss else inputs.get("labels")
        pass_.logits_only = state.last_layer is not None and state.last_layer.wanted(inputs)
        entry, split = state.backbone.entry, state.backbone.kind == "encoder-decoder" and pass_.has_tokens
        as_tuple = split and not (self.config.return_dict if (given := inputs.get("return_dict")) is None else given)
        if as_tuple:  # which does not say what is what
            inputs["return_dict"] = True
        if pass_.has_tokens and entry is not model:
            tables = inputs.get("output_router_logits") or getattr(self.config, "output_router_logits", False)
            pass_.mask_around = own_mask(inputs, tables)
        with state.activate(pass_):
            if entry is model:  # its own hooks would run before there is a pass
                _, inputs = state.hooks.before_entry(entry, (), inputs)
            output = forward(**inputs)
            if entry is model:
                output = state.hooks.after_entry(entry, (), inputs, output)
        if not isinstance(output, tuple):
            for name in CACHES:
                if hasattr(output.get(name), "__dict__"):
                    output[name]._softprompt_pass = pass_
        pass_.mask_around = None
        if split:
            restore_encoders(output, pass_.layout)
        elif entry is not model:
            output = restored(output, pass_.layout, states=False)
        output = self._with_loss(output, pass_, labels, own_loss, inputs.get("num_items_in_batch"))
        return output.to_tuple() if as_tuple else output

    def _bare_forward(self, forward: Callable[..., Any], inputs: dict[str, Any]) -> Any:
        """``forward`` without any prompt, with a loss by the model's own labels, whichever prompt is active."""
        state, labels, tokens = state_of(self), inputs.get("labels"), self.loss_type == "ForTokenClassification"
        number: Any = state.backbone.labels[0]
        own_loss = state.backbone.heads and self.loss_type in _OWN_LOSSES
        with state.activate(None):
            if labels is None or not own_loss or (tokens and self.config.num_labels == number):
                return forward(**inputs)
            output = forward(**inputs | {"labels": None})
        logits, num_items = output[0] if isinstance(output, tuple) else output.logits, inputs.get("num_items_in_batch")
        if tokens:
            return _with_loss_first(output, token_loss(logits[..., :number], labels.to(logits.device), num_items))
        # A namespace, as transformers notes there which problem it takes the labels for.
        own = SimpleNamespace(num_labels=number, problem_type=self.config.problem_type)
        loss = ForSequenceClassificationLoss(labels, logits, own, num_items_in_batch=num_items)
        return _with_loss_first(output, loss)

    def _pass_for(self, inputs: Mapping[str, Any], names: Any, context_mask: Any) -> Pass | None:
        """The pass of a forward: that of the call around it, that which its cache comes from, or a new one."""
        state = state_of(self)
        around = state.around
        if around is not None and (names is None or are_of(around.pass_, names)):
            return around.pass_
        pass_ = self._pass_of(inputs, names)
        if pass_ is None:
            labels = inputs.get("labels")
            language_model = state.backbone.kind == "decoder" and not state.backbone.heads
            if context_mask is None and language_model and labels is not None and labels.ndim == 2:
                context_mask = context_of(labels)
            pass_ = state.open(names, context_mask)
            self._require_name_per_row(pass_, inputs)
            if context_mask is None and language_model:
                self._require_context(pass_)
        return pass_

    def _require_context(self, pass_: Pass | None) -> None:
        """Refuses training by a loss that is computed elsewhere, on tokens that the prompts could look at."""
        if pass_ is None or not (cast(nn.Module, self).training and torch.is_grad_enabled()):
            return
        for name, prompt in pass_.prompts.items():
            if prompt.method.per_row or prompt.method.reads_states:
                raise SoftPromptError(
                    f"prompt '{name}' looks at the input, and nothing says which of it is to be predicted: pass "
                    "labels, or context_mask=, True for tokens that are given"
                )

    def _with_loss(self, output: Any, pass_: Pass, labels: Tensor | None, own_loss: bool, num_items: Any) -> Any:
        """The model's output with our loss, where the number of labels is each prompt's own, and with penalties."""
        as_tuple = isinstance(output, tuple)
        own_loss = own_loss and labels is not None
        if pass_.penalties and not own_loss and not has_loss(output):
            watch_penalties(cast(nn.Module, self), pass_, output)
            return output
        penalty: Any = pass_.taken_penalty(labels_share(self, labels, num_items)) if pass_.penalties else 0
        if own_loss and labels is not None:
            logits = output[0] if as_tuple else output.logits
            loss = self._own_loss(logits, labels.to(logits.device), pass_, num_items) + penalty
            return _with_loss_first(output, loss)
        if pass_.penalties and as_tuple:
            return (output[0] + penalty, *output[1:])
        if pass_.penalties:
            output.loss = output.loss + penalty
        return output

    def _own_loss(self, logits: Tensor, labels: Tensor, pass_: Pass, num_items: Any) -> Tensor:
        """The loss of a classifier, each row's by the labels of its prompt, or else by those of the model."""
        if self.loss_type == "ForTokenClassification":
            return token_loss(logits, labels, num_items)
        groups, own_number = pass_.groups(len(logits), logits.device), state_of(self).backbone.labels[0] or 0
        prompts = [None if name is None else self.prompts[name] for name in groups.names]
        numbers = [own_number if prompt is None else prompt.num_labels or logits.shape[-1] for prompt in prompts]
        rows = zip(groups.split(logits), groups.split(labels), numbers, strict=True)
        return mean_loss(rows, self.config.problem_type, num_items)

    # --- prompts by name --------------------------------------------------------------------------------------------

    @property
    def backbone_kind(self) -> str:
        """One of "encoder", "decoder" and "encoder-decoder"."""
        return state_of(self).backbone.kind

    @property
    def active_prompt(self) -> str | None:
        """The prompt of calls that name none."""
        return state_of(self).active

    @property
    def max_tokens(self) -> int | None:
        """Hard limit on tokens, prompt and input together, from a learned position table; None without one."""
        return state_of(self).backbone.max_tokens

    @property
    def penalties(self) -> dict[str, Tensor]:
        """The auxiliary loss of each prompt of the last forward pass that has one."""
        last = state_of(self).last_pass
        if last is None:
            return {}
        last.penalties_taken = True
        return last.penalties

    def add_prompt(
        self,
        name: str,
        config: MethodConfig,
        *,
        num_labels: int | None = None,
        labels: Sequence[str] | None = None,
        tokenizer: Any = None,
        seed: int | None = None,
    ) -> Self:
        """Adds a freshly initialised prompt under a new name.

        Args:
            name: letters, digits, "_" and "-".
            config: which method, and its settings.
            num_labels: outputs of the task head; None for as many as the model's own head has.
            labels: names of the labels (gives ``num_labels`` too).
            tokenizer: needed by initialisation from text; found by the model's name when not given.
            seed: makes the initialisation repeatable without touching the global random state.

        Returns:
            The model.

        Raises:
            SoftPromptError: the name is taken or not allowed, or the method does not fit the model.
        """
        self._check_free(name)
        state = state_of(self)
        settings: Any = {"num_labels": num_labels, "labels": labels, "tokenizer": tokenizer, "seed": seed}
        prefix_of = functools.partial(recorded_prefix, state)
        return self.place_prompt(name, new_prompt(state.backbone, config, **settings, prefix_of=prefix_of))

    def place_prompt(self, name: str, prompt: Prompt) -> Self:
        """Adds a prompt that was made for this model, such as one of `softprompts.model.saving.prompt_of`.

        Raises:
            SoftPromptError: the name is taken or not allowed, or the prompt is not exact on this model.
        """
        self._check_free(name)
        state = state_of(self)
        require_exact(state, prompt)
        prompt.train(cast(nn.Module, self).training)
        self.prompts._modules[name] = prompt
        follow_prompts(state)
        sharded.hold(cast(nn.Module, self), prompt)
        if state.active is None and not state.bare:
            self._activate(name)
        return self

    def _check_free(self, name: str) -> None:
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            raise SoftPromptError(f"prompt name '{name}': use letters, digits, '_' and '-' only")
        if hasattr(state_of(self).backbone.embeddings.weight, "full_tensor"):
            raise SoftPromptError(f"prompt '{name}': prompts are added and loaded before a model is sharded, not after")
        if name in self.prompts:
            raise SoftPromptError(f"there is a prompt named '{name}' already; delete_prompt it or choose another name")

    def set_prompt(self, name: str | None) -> Self:
        """Chooses the prompt of calls that name none; None for the bare backbone, also when prompts are added later.

        Raises:
            SoftPromptError: unknown name.
        """
        if name is not None:
            require(self.prompts, name)
        self._activate(name)
        state_of(self).bare = name is None
        return self

    def _activate(self, name: str | None) -> None:
        state = state_of(self)
        state.active = name
        labels = self.prompts[name].labels if name is not None else []
        number, id2label, label2id = state.backbone.labels
        if labels:
            id2label = dict(enumerate(labels))
            label2id = {label: i for i, label in id2label.items()}
            number = len(labels)
        if state.backbone.heads:  # pipelines and Trainer read the label names here
            self.config.id2label, self.config.label2id = id2label, label2id
            if hasattr(self, "num_labels"):
                self.num_labels = number

    @contextlib.contextmanager
    def disable_prompt(self) -> Iterator[None]:
        """Within this context, calls that name no prompt run the bare backbone."""
        state = state_of(self)
        before, bare = state.active, state.bare
        self.set_prompt(None)
        try:
            yield
        finally:
            if before is None or before in self.prompts:
                self._activate(before)
            else:
                self._activate_in_place_of(before)
            state.bare = bare

    def delete_prompt(self, name: str) -> None:
        """Forgets a prompt. Where it was the active one, the first that is left becomes active, and a warning says so.

        Raises:
            SoftPromptError: unknown name.
        """
        was_active = state_of(self).active == name
        self.forget_prompt(name)
        if was_active:
            self._activate_in_place_of(name)

    def _activate_in_place_of(self, deleted: str) -> None:
        left = next(iter(self.prompts), None)
        self._activate(left)
        if left is not None:
            warnings.warn(f"the active prompt '{deleted}' was deleted: '{left}' is active now", stacklevel=3)

    def forget_prompt(self, name: str) -> None:
        """`delete_prompt` for a prompt that was there for a while only: if it was active, none is, and no warning.

        Raises:
            SoftPromptError: unknown name.
        """
        require(self.prompts, name)
        if state_of(self).active == name:
            self._activate(None)
        del self.prompts._modules[name]
        follow_prompts(state_of(self))

    def fold(self, name: str) -> Self:
        """Replaces a prompt by its plain, inference-size form with equal outputs.

        Raises:
            SoftPromptError: unknown name, or the method has no plain form (the reason is named).
        """
        prompt = require(self.prompts, name)
        prompt.config, prompt.method = fold(prompt.method)
        follow_prompts(state_of(self))
        return self

    def print_trainable_parameters(self) -> None:
        """Prints trained and total numbers of parameters."""
        trained, total = self.num_trainable_parameters()
        print(f"trainable params: {trained:,} || all params: {total:,} || trainable%: {100 * trained / total:.4f}")

    def num_trainable_parameters(self) -> tuple[int, int]:
        """Numbers of trained parameters and of all."""
        module = cast(nn.Module, self)
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        return trained, sum(map(quantized.size, module.parameters()))

    def _replicate_for_data_parallel(self) -> Any:
        raise SoftPromptError(
            "torch.nn.DataParallel copies a model without what puts prompts into it: run one process for each GPU "
            "(torchrun, accelerate launch), or make one GPU visible"
        )

    # --- modes, checkpointing ---------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Puts the prompts in training mode; the frozen backbone stays in evaluation mode (no dropout there) unless
        ``attach`` was told ``backbone_dropout=True``.
        """
        module = cast(nn.Module, self)
        module.training = mode
        for child in module.children():
            child.train(mode if child is self.prompts else mode and self.backbone_dropout)
        follow_noise(module, state_of(self).backbone.embeddings, mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves and converts the model. Prompts move along, and keep their precision where the model's is halved."""

        def without_halving(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in (torch.float16, torch.bfloat16) else moved

        modules, base = cast(nn.Module, self)._modules, cast(Any, super())
        prompts = modules.pop("prompts")
        try:
            base._apply(fn, recurse)
        finally:
            modules["prompts"] = prompts
        cast(Any, self.prompts)._apply(without_halving, recurse)
        return self

    def set_attn_implementation(self, *args: Any, **kwargs: Any) -> None:
        """As the model's own; prefixes go on reaching attention."""
        base: Any = super()
        base.set_attn_implementation(*args, **kwargs)
        follow_changes(state_of(self))

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        base: Any = super()
        base._set_gradient_checkpointing(*args, **kwargs)
        follow_checkpointing(state_of(self))

    def enable_input_require_grads(self) -> None:
        """Does nothing: gradients reach prompts without it, and the embeddings' own would be wasted work."""


def _with_loss_first(output: Any, loss: Tensor) -> Any:
    """A model's output with a loss in front, where transformers' pipelines and Trainer look for it."""
    if isinstance(output, tuple):
        return (loss, *output)
    return type(output)(loss=loss, **{key: value for key, value in output.items() if key != "loss"})
