"""Trains prompts under Hugging Face's Trainer and the trainers derived from it.

An attached model trains under `transformers.Trainer`, ``Seq2SeqTrainer`` and TRL's ``SFTTrainer`` as it is, except for
three things: a learning rate for each component; losses that need a second pass (`Method.compare`: AdaMix's
consistency, MPT's teacher); and under TRL, which does not call the model's forward, penalties and hiding the targets
from prompts. `PromptTraining` adds them:

    class PromptTrainer(PromptTraining, transformers.Trainer): ...
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from softprompts.errors import SoftPromptError, nearest
from softprompts.injection.batch_pass import context_of
from softprompts.injection.prompt import require
from softprompts.injection.state import is_attached, state_of
from softprompts.model.penalties import labels_share
from softprompts.training.extra_passes import check_teachers, comparisons, wants_states
from softprompts.training.losses import run_pass

_USUAL_RATE = 5e-5  # of TrainingArguments


def parameter_groups(
    model: Any, rates: Mapping[str, float] | None = None, weight_decay: float | None = None
) -> list[dict[str, Any]]:
    """The trained parameters of all prompts of a model, a group for each component, as torch's optimizers take them.

    Args:
        model: an attached model.
        rates: learning rates by component ("rte.head") or, for all other components of a prompt, by prompt ("rte");
            defaults are the method's.
        weight_decay: of components that have none of their own.

    Returns:
        Groups with ``params``, ``lr``, ``weight_decay`` and ``name`` ("rte.head").

    Raises:
        SoftPromptError: ``rates`` names an unknown prompt or component, or there is nothing to train.
    """
    components = {
        f"{name}.{part}": component
        for name, prompt in model.prompts.items()
        for part, component in prompt.components().items()
    }
    rates = rates or {}
    for name in rates:
        if name not in components and name not in model.prompts:
            raise SoftPromptError(f"rates: there is no prompt or component '{name}'; {nearest(name, components)}")
    groups = [
        {
            "params": parameters,
            "lr": rates.get(name, rates.get(name.partition(".")[0], component.learning_rate)),
            "weight_decay": component.decay(weight_decay),
            "name": name,
        }
        for name, component in components.items()
        if (parameters := [parameter for parameter in component.parameters if parameter.requires_grad])
    ]
    if not groups:
        raise SoftPromptError("there are no prompts to train on this model")
    return groups


class PromptTraining:
    """A mix-in that stands before a trainer's class.

    - Without an optimizer of the caller's, that of ``TrainingArguments.optim`` has a group for each component
      (`parameter_groups`) with the rates of `learning_rates` and the methods' defaults;
      ``TrainingArguments.learning_rate`` has no effect then, which a warning says where it was set.
    - Penalties join losses that the trainer computes itself (``label_smoothing_factor``, ``compute_loss_func``).
    - Prompts whose method compares passes get their further passes, and the loss of the comparison.
    - Where the trainer calls the base model in place of the model (TRL), prompts see no targets and their penalties
      join the loss.

    Attributes:
        learning_rates: by prompt or component, see `parameter_groups`.
        teachers: by prompt, the prompt on the same model that teaches it.
    """

    learning_rates: Mapping[str, float] = {}
    teachers: Mapping[str, str] = {}

    def create_optimizer(self, model: Any = None) -> Any:
        """The optimizer over the components of all prompts, unless the trainer has one.

        Raises:
            SoftPromptError: it takes no groups of parameters.
        """
        trainer: Any = self
        if trainer.optimizer is not None:
            return trainer.optimizer
        args = trainer.args
        groups = parameter_groups(trainer.model, self.learning_rates, args.weight_decay or None)
        kind, settings = trainer.get_optimizer_cls_and_kwargs(args, trainer.model)
        if wrong := {"params", "model", "optimizer_dict"} & settings.keys():
            raise SoftPromptError(
                f"optim={args.optim} chooses its own {wrong.pop()}: take one that has groups, or adamw"
            )
        by_prompt = {name.partition(".")[0] for name in self.learning_rates}
        if args.learning_rate != _USUAL_RATE and not by_prompt:
            rates = ", ".join(f"{group['name']} {group['lr']:g}" for group in groups)
            warnings.warn(
                f"learning_rate={args.learning_rate:g} has no effect under PromptTraining: set its learning_rates; the "
                f"methods' own are {rates}",
                stacklevel=2,
            )
        trainer.optimizer = kind(groups, **settings)
        return trainer.optimizer

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """The trainer's own loss, with the further losses of the prompts' methods.

        Raises:
            SoftPromptError: a method learns from a teacher, and `teachers` names none.
        """
        base: Any = super()
        trainer: Any = self
        attached = trainer.model
        if not is_attached(attached):
            raise SoftPromptError("PromptTraining trains attached models: sp.attach(model, ...) first")
        given, inputs = dict(inputs), self._with_context(attached, inputs)
        state, labels = state_of(attached), inputs.get("labels")
        pass_ = self._open_pass(attached, inputs, labels)
        names = inputs.get("prompt_names")  # the model takes them out of the inputs
        with contextlib.ExitStack() as scopes:
            if pass_ is not None:
                scopes.enter_context(state.activate(pass_, inside=False))
            reference = getattr(trainer, "ref_model", None)
            if pass_ is not None and reference is not attached and is_attached(reference):
                own = state_of(reference).open(None, pass_.context_mask)
                scopes.enter_context(state_of(reference).activate(own, inside=False))
            result = base.compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        loss, count = result[0] if return_outputs else result, kwargs.get("num_items_in_batch")
        if pass_ is not None and state.last_pass is not pass_ and pass_.penalties:
            penalty = sum(pass_.penalties.values())
            whole = count is None or labels is None
            loss = loss + (penalty if whole else penalty * ((labels != -100).sum() / count))
        if attached.training and labels is not None:
            loss = loss + self._comparison_loss(attached, given, names, count)
        last = state.last_pass
        if pass_ is None and last is not None and last.penalties and labels is not None and self._computes_loss():
            loss = loss + last.taken_penalty(labels_share(attached, labels, count))
        return (loss, result[1]) if return_outputs else loss

    def _computes_loss(self) -> bool:
        """Whether the trainer takes the labels out of the model's inputs, and computes the loss from its logits."""
        trainer: Any = self
        return trainer.label_smoother is not None or trainer.compute_loss_func is not None

    def _with_context(self, model: Any, inputs: Any) -> Any:
        """The inputs, with what prompts may see of a language model's rows where the trainer takes out the labels."""
        labels = inputs.get("labels")
        heads = state_of(model).backbone.heads
        elsewhere = self._computes_loss() and labels is not None and labels.ndim == 2 and not heads
        if not elsewhere or model.backbone_kind != "decoder" or "context_mask" in inputs:
            return inputs
        return {**inputs, "context_mask": context_of(labels)}

    def _open_pass(self, model: Any, inputs: Mapping[str, Any], labels: Tensor | None) -> Any:
        """The pass of a trainer that calls the base model; None where the model's forward opens it."""
        if "forward" not in model.__dict__:  # TRL replaces the model's forward by its own
            return None
        if labels is None and inputs.get("completion_mask") is not None:  # TRL's preference trainers
            labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        seen = None if labels is None or labels.ndim != 2 else context_of(labels)
        pass_ = state_of(model).open(inputs.get("prompt_names"), seen)
        if seen is None:
            model._require_context(pass_)
        return pass_

    def _comparison_loss(self, model: Any, inputs: Mapping[str, Any], names: Any, count: Any) -> Tensor | float:
        names = model.active_prompt if names is None else names
        owners: list[Any] = [names] * len(inputs["labels"]) if names is None or isinstance(names, str) else list(names)
        prompts = [name for name in dict.fromkeys(owners) if name is not None]
        if not any(require(model.prompts, name).method.compares for name in prompts):
            return 0.0
        if None in owners:
            raise SoftPromptError("rows without a prompt cannot share a batch with prompts that compare passes")
        teachers = {name: self.teachers.get(name) for name in prompts}
        for name, teacher in teachers.items():
            check_teachers(model, name, teacher)
        keys = ("input_ids", "attention_mask", "token_type_ids", "labels")
        batch = {key: inputs[key] for key in keys if key in inputs}
        first = run_pass(model, batch, owners, wants_states(model, prompts))
        losses = comparisons(model, batch, owners, first, teachers)
        return torch.stack(list(losses.values())).sum() / (len(first.logits) if count is None else count)
