"""`attach`: soft prompts in place on a frozen transformers model, every row of a batch with its own.

The model object stays what it was, a `PreTrainedModel` of its own class; it becomes an instance of a class made from
that class and `PromptModel`, as torch's ``fully_shard`` does it. What is in a prompt is told in `softprompts.injection.prompt`,
how it gets into the model in `softprompts.injection.state` (input tokens) and `softprompts.attention.prefix` (prefixes).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import create_masks_for_generate

from softprompts.backbones import quantized, sharded
from softprompts.errors import SoftPromptError
from softprompts.injection import (
    checkpointing,
    classification_loss,
    module_dispatch,
)
from softprompts.injection.batch_pass import Pass, context_of
from softprompts.injection.input_hooks import restored
from softprompts.injection.prompt import Prompt as Prompt
from softprompts.injection.prompt import PromptSet, new_prompt, require
from softprompts.injection.state import State, state_of
from softprompts.injection.state import is_attached as is_attached
from softprompts.methods.contract import MethodConfig
from softprompts.methods.folded import fold
from softprompts.model import formats, push, saving

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_ROW_INPUTS = ("input_ids", "inputs_embeds", "encoder_outputs", "input_features", "inputs", "decoder_input_ids")


class PromptModel:
    """What `attach` adds to a transformers model. Not made by itself."""

    prompts: PromptSet
    config: Any

    # --- forward and generate -------------------------------------------------------------------------------------

    def _prompted_forward(self, forward: Callable[..., Any], names: list[str], *args: Any, **kwargs: Any) -> Any:
        state = state_of(self)
        inputs = dict(zip(names, args, strict=False)) | kwargs
        prompt_names = inputs.pop("prompt_names", None)
        context_mask = inputs.pop("context_mask", None)
        pass_ = state.generating
        if pass_ is None:
            pass_ = self._resume(inputs, prompt_names)
        if pass_ is None:
            labels = inputs.get("labels")
            predicts = state.backbone.kind == "decoder" and not state.heads
            if context_mask is None and labels is not None and predicts and labels.ndim == 2:
                context_mask = context_of(labels)
            pass_ = state.open(prompt_names, context_mask)
            if pass_ is not None:
                self._check_names(pass_, inputs)
        state.last = pass_
        sharded.hold(cast(nn.Module, self), self.prompts)
        if pass_ is None:
            with state.activate(None), self._own_labels() if state.heads else contextlib.nullcontext():
                return forward(**inputs)
        fresh = "use_cache" in names and inputs.get("past_key_values") is None
        if fresh and checkpointing.is_on(cast(PreTrainedModel, self)):
            inputs["use_cache"] = False  # a recomputed layer would write to the cache twice
        own_loss = "labels" in inputs and state.heads and self._classifies
        labels = inputs.pop("labels") if own_loss else inputs.get("labels")
        pass_.logits_only = state.readout is not None and state.readout.wanted(inputs)
        with state.activate(pass_):
            entry = state.backbone.entry
            if entry is state.backbone.model:  # its own hooks would run before there is a pass
                _, inputs = state.before_entry(entry, (), inputs)
            output = forward(**inputs)
            if entry is state.backbone.model:
                output = state.after_entry(entry, (), inputs, output)
        return self._finish(output, pass_, labels, bool(own_loss), inputs.get("num_items_in_batch"))

    @contextlib.contextmanager
    def _own_labels(self) -> Iterator[None]:
        """The model's own labels while it computes a loss without any prompt."""
        problem = self.config.problem_type
        try:
            with self.disable_prompt():
                yield
        finally:  # transformers notes its guess there, which need not be right for the prompts
            self.config.problem_type = problem

    def _resume(self, inputs: dict[str, Any], names: Any) -> Pass | None:
        """The pass under which the given cache or encoder output was made, so that a loop by hand goes on with it."""
        cache, encoded = inputs.get("past_key_values"), inputs.get("encoder_outputs")
        for source in (cache, encoded):
            pass_ = getattr(source, "_softprompt_pass", None)
            if pass_ is None or (source is cache and cache is not None and not int(cache.get_seq_length())):
                continue
            if names is None or pass_.given == (names if isinstance(names, str) else list(names)):
                return cast(Pass, pass_)
        return None

    def _check_names(self, pass_: Pass, inputs: dict[str, Any]) -> None:
        if not isinstance(pass_.given, list):
            return
        given = next((v for k, v in inputs.items() if k in _ROW_INPUTS and isinstance(v, Tensor)), None)
        if given is not None and given.shape[0] != len(pass_.given):
            raise SoftPromptError(f"prompt_names has {len(pass_.given)} names for a batch of {given.shape[0]} rows")

    def _finish(self, output: Any, pass_: Pass, labels: Tensor | None, own_loss: bool, num_items: Any) -> Any:
        state = state_of(self)
        if not isinstance(output, tuple):
            if output.get("past_key_values") is not None and state.generating is None:
                output.past_key_values._softprompt_pass = pass_
            if state.backbone.kind == "encoder-decoder" and pass_.tokens is not None:
                for name in ("encoder_last_hidden_state", "encoder_hidden_states"):
                    if output.get(name) is not None:
                        output[name] = restored((output[name],), pass_.layout)[0]
        penalty = sum(pass_.penalties.values())
        if pass_.penalties and labels is not None and num_items is not None:
            # Trainer adds up the parts of an accumulated batch.
            penalty = penalty * ((labels != -100).sum() / num_items)
        if own_loss and labels is not None:
            logits = output[0] if isinstance(output, tuple) else output.logits
            problem = "token_classification" if self._classifies == "ForTokenClassification" else None
            problem = problem or self.config.problem_type
            loss = classification_loss.classification_loss(
                logits, labels, pass_, self.prompts, state.labels[0] or 0, problem, num_items
            )
            loss = loss + penalty
            if isinstance(output, tuple):
                return (loss, *output)
            output.loss = loss
            # Losses come first in transformers' outputs, and pipelines and Trainer rely on it.
            items = dict(output.items())
            return type(output)(**({"loss": items.pop("loss")} | items))
        if pass_.penalties:
            if isinstance(output, tuple):
                if output and isinstance(output[0], Tensor) and output[0].ndim == 0:
                    return (output[0] + penalty, *output[1:])
                return output
            if output.get("loss") is not None:
                output.loss = output.loss + penalty
        return output

    def generate(self, *args: Any, prompt_names: str | Sequence[str | None] | None = None, **kwargs: Any) -> Any:
        """`transformers`' generate; each row generates under its own prompt.

        Args:
            *args: as for the model's own ``generate``.
            prompt_names: one name per row, or one for all; None for the prompt set by `set_prompt`.
            **kwargs: as for the model's own ``generate``.
        """
        state = state_of(self)
        pass_ = self._resume(kwargs, prompt_names) or state.open(prompt_names)
        base: Any = super()
        if pass_ is None:
            with _bare(state):
                return base.generate(*args, **kwargs)
        cache = kwargs.get("past_key_values")
        if cache is not None and state.backbone.kind == "decoder" and pass_.has_input_part and cache.get_seq_length():
            raise SoftPromptError(
                "generate cannot go on from past_key_values that hold prompt tokens, which it would count as input: "
                "leave past_key_values out, or use a prefix method"
            )
        self._check_names(pass_, {"input_ids": args[0] if args else None} | kwargs)
        before, state.generating = state.generating, pass_
        try:
            return base.generate(*args, **kwargs)
        finally:
            state.generating = before

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: Any, generation_mode: Any, batch_size: int, max_cache_length: int
    ) -> Any:
        # Preallocated caches must also hold the prompt tokens of a decoder-only model.
        state = state_of(self)
        if state.generating is not None and state.backbone.kind == "decoder":
            max_cache_length += max((self._token_count(name) for name in state.generating.names), default=0)
        base: Any = super()
        return base._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )

    def create_masks_for_generate(self, *args: Any, **kwargs: Any) -> Any:
        """Leaves a 2-D mask as it is while prompt tokens are in play: its columns are still to be widened."""
        state = state_of(self)
        pass_ = state.generating or state.current
        if pass_ is not None and (pass_.has_input_part or pass_.needs_input) and "attention_mask" in kwargs:
            return kwargs["attention_mask"]
        own = getattr(state.model_class, "create_masks_for_generate", create_masks_for_generate)
        return own(*args, **kwargs)

    def _token_count(self, name: str | None) -> int:
        return 0 if name is None else self.prompts[name].config.input_tokens

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
    def backbone_dropout(self) -> bool:
        """Whether the frozen model keeps its dropout while training; takes effect with the next `train`."""
        return state_of(self).backbone_dropout

    @backbone_dropout.setter
    def backbone_dropout(self, on: bool) -> None:
        state_of(self).backbone_dropout = on

    @property
    def max_tokens(self) -> int | None:
        """Hard limit on tokens, prompt and input together, from a learned position table; None without one."""
        return state_of(self).backbone.max_tokens

    @property
    def penalties(self) -> dict[str, Tensor]:
        """The auxiliary loss of each prompt of the last forward pass that has one."""
        last = state_of(self).last
        return {} if last is None else last.penalties

    def add_prompt(
        self,
        name: str,
        config: MethodConfig,
        *,
        num_labels: int | None = None,
        labels: Sequence[str] | None = None,
        tokenizer: Any = None,
        seed: int | None = None,
    ) -> PromptModel:
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
        state = state_of(self)
        self._check_free(name)
        prompt = new_prompt(
            state.backbone,
            state.original_heads,
            state.labels[1],
            config,
            num_labels=num_labels,
            labels=labels,
            tokenizer=tokenizer,
            seed=seed,
        )
        return self.place_prompt(name, prompt)

    def place_prompt(self, name: str, prompt: Prompt) -> PromptModel:
        """Adds a prompt that was made for this model, such as one of `softprompts.model.saving.prompt_of`.

        Args:
            name: letters, digits, "_" and "-".
            prompt: no other model's.

        Returns:
            The model.

        Raises:
            SoftPromptError: the name is taken or not allowed.
        """
        self._check_free(name)
        state = state_of(self)
        prompt.train(cast(nn.Module, self).training)
        self.prompts._modules[name] = prompt
        state.watch_sites()
        module_dispatch.sync(state)
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

    def set_prompt(self, name: str | None) -> PromptModel:
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
        number, id2label, label2id = state.labels
        if labels:
            id2label = dict(enumerate(labels))
            label2id = {label: i for i, label in id2label.items()}
            number = len(labels)
        if state.heads:  # pipelines and Trainer read the label names here
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
            self._activate(before if before in self.prompts else None)
            state.bare = bare

    def delete_prompt(self, name: str) -> None:
        """Forgets a prompt.

        Raises:
            SoftPromptError: unknown name.
        """
        require(self.prompts, name)
        if state_of(self).active == name:
            self._activate(None)
        del self.prompts._modules[name]
        state_of(self).watch_sites()
        module_dispatch.sync(state_of(self))

    def fold(self, name: str) -> PromptModel:
        """Replaces a prompt by its plain, inference-size form with equal outputs.

        Raises:
            SoftPromptError: unknown name, or the method has no plain form (the reason is named).
        """
        prompt = require(self.prompts, name)
        prompt.config, prompt.method = fold(prompt.method)
        state_of(self).watch_sites()
        return self

    def save_prompt(self, name: str, path: str | Path, metadata: dict[str, Any] | None = None) -> None:
        """Writes one prompt to a folder: ``softprompt_config.json``, ``softprompt.safetensors`` and a model card.

        Of a sharded model, all processes have to call it together; the first one writes.

        Args:
            name: the prompt.
            path: the folder; made if it is not there.
            metadata: JSON values to keep with it, such as task, score and license; None: those that it was loaded with.

        Raises:
            SoftPromptError: unknown name.
        """
        saving.save_prompt(self, name, path, metadata)

    def load_prompt(
        self,
        path: str | Path,
        name: str | None = None,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        task_id: int | None = None,
    ) -> PromptModel:
        """Adds a saved prompt, under its own name or another.

        Args:
            path: a folder or hub id, of a prompt of ours or of an adapter of PEFT's (see docs/peft.md); only JSON and
                safetensors files are fetched and read.
            name: what it is to be called here; None: as it was ("default" for an adapter, which has no name).
            revision: branch, tag or commit of a hub repository.
            subfolder: its folder, where there are several.
            task_id: which task of a multitask adapter of PEFT's; not needed where it has one.

        Raises:
            SoftPromptError: the files are missing, damaged or for another backbone; nothing is loaded then.
        """
        formats.open_saved(path, revision, subfolder, task_id).add_to(self, name)
        return self

    def push_to_hub(
        self,
        repo_id: str,
        name: str | None = None,
        *,
        private: bool | None = None,
        commit_message: str | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        license: str | None = None,
        **ignored: Any,
    ) -> str:
        """Uploads prompts, and nothing of the backbone, to a repository of the hub, which is made when it is missing.

        Args:
            repo_id: "user/name".
            name: the prompt that goes into the repository itself; None: all, a folder each where there are several.
            private: whether a new repository is private; None: as the account has it.
            commit_message: of the commit; None: a line that names the prompts.
            token: of the hub; None: that of ``hf auth login``.
            revision: branch to commit to.
            create_pr: open a pull request instead.
            license: the hub's name of a licence, such as "mit", for the cards.
            **ignored: what else transformers' own method takes; there are no shards of a prompt.

        Returns:
            The address of the commit.

        Raises:
            SoftPromptError: unknown name, no prompt, or the hub refused; says why.
        """
        return push.push(self, repo_id, name, private, commit_message, token, revision, create_pr, license)

    def save_embeddings(self, name: str, path: str | Path) -> None:
        """Writes a prompt's tokens as embeddings, for servers that take these (vLLM's prompt embeddings).

        Args:
            name: a prompt that comes down to input tokens.
            path: a new folder: ``prompt_embeds.safetensors`` with the tokens ``(l, d)``, in the type and the scaling of
                the model's embeddings, and ``prompt_embeds.json``, which says what they are and where they go.

        Raises:
            SoftPromptError: unknown name; the prompt is something else; or there is a folder with something in it.
        """
        from softprompts.model.interop.embeddings import save_embeddings

        save_embeddings(self, name, path)

    def materialize(self, name: str, path: str | Path, tokenizer: Any = None) -> Path:
        """Writes the model with a prompt in it, as a directory that transformers loads without this library.

        Input tokens become tokens of the vocabulary, which the tokenizer puts into every text; changed weights are
        merged; the head becomes the model's own. This model stays as it is; there is a copy of it in memory meanwhile.

        Args:
            name: a prompt of input tokens, of changed weights (LoRA, BitFit, full fine-tuning), of nothing but a head,
                or a composition of these.
            path: a new folder; it appears once all is written.
            tokenizer: a fast one; None: that of the backbone, by its name.

        Returns:
            The folder.

        Raises:
            SoftPromptError: unknown name; the prompt, the architecture or the tokenizer does not allow it (the reason
                is named); or there is a folder with something in it.
        """
        from softprompts.model.interop.materialize import materialize

        return materialize(self, name, path, tokenizer)

    def save_peft(self, name: str, path: str | Path) -> None:
        """Writes one prompt as an adapter that the PEFT library loads, with the same outputs (see docs/peft.md).

        Args:
            name: the prompt.
            path: the folder; made if it is not there.

        Raises:
            SoftPromptError: unknown name, or PEFT cannot compute what this prompt does (the reason is named).
        """
        from softprompts.model.interop.peft_writing import write_peft

        write_peft(self, name, path)

    def save_pretrained(self, save_directory: str | Path, *, state_dict: Any = ..., **kwargs: Any) -> None:
        """Writes the prompts and nothing of the backbone.

        A single prompt goes into the folder itself, several into one folder each. HF Trainer passes ``state_dict`` and
        reads ``model.safetensors`` back: for it, that file is written as well, with only the prompts' tensors.
        """
        parted = any(map(sharded.is_sharded, self.prompts.parameters()))
        # Trainer has gathered what several processes have parts of, for the main one; without that, all take part here.
        gathered = state_dict if parted and isinstance(state_dict, Mapping) else None
        if gathered is not None and any(map(sharded.is_sharded, gathered.values())):  # it has only been collected
            gathered = None
        main = kwargs.get("is_main_process", True)
        if main and gathered is not None and not any(key.startswith("prompts.") for key in gathered):
            raise SoftPromptError(
                "the prompts of a sharded model were not gathered for saving: set fsdp_state_dict_type to "
                "FULL_STATE_DICT, or zero3_save_16bit_model to true"
            )
        if main or (parted and gathered is None):
            saving.save_all(self, save_directory, for_trainer=state_dict is not ..., state=gathered)

    def print_trainable_parameters(self) -> None:
        """Prints trained and total numbers of parameters."""
        trained, total = self.num_trainable_parameters()
        print(f"trainable params: {trained:,} || all params: {total:,} || trainable%: {100 * trained / total:.4f}")

    def num_trainable_parameters(self) -> tuple[int, int]:
        """Numbers of trained parameters and of all."""
        module = cast(nn.Module, self)
        trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
        return trained, sum(map(quantized.size, module.parameters()))

    # --- modes, checkpointing ---------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> PromptModel:
        """Puts the prompts in training mode; the frozen backbone stays in evaluation mode (no dropout there) unless
        ``attach`` was told ``backbone_dropout=True``.
        """
        module, state = cast(nn.Module, self), state_of(self)
        module.training = mode
        for child in module.children():
            child.train(mode if child is self.prompts else mode and state.backbone_dropout)
        return self

    @property
    def _classifies(self) -> str | None:
        """The kind of loss that we compute ourselves, as the number of labels is each prompt's own."""
        kind: str | None = self.loss_type  # type: ignore[attr-defined]
        return kind if kind in ("ForSequenceClassification", "ForTokenClassification") else None

    def _set_gradient_checkpointing(self, *args: Any, **kwargs: Any) -> None:
        base: Any = super()
        base._set_gradient_checkpointing(*args, **kwargs)
        checkpointing.wrap_functions(cast(PreTrainedModel, self), state_of(self))

    def enable_input_require_grads(self) -> None:
        """Does nothing: gradients reach prompts without it, and the embeddings' own would be wasted work."""


@contextlib.contextmanager
def _bare(state: State) -> Iterator[None]:
    before, state.active = state.active, None
    try:
        yield
    finally:
        state.active = before
