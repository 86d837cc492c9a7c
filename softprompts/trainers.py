"""Trains prompts under Hugging Face's Trainer and the trainers derived from it.

An attached model trains under `transformers.Trainer`, ``Seq2SeqTrainer`` and TRL's ``SFTTrainer`` as it is, except for
three things: a learning rate for each component; losses that need a second pass (`Method.compare`: AdaMix's
consistency, MPT's teacher); and under TRL, which does not call the model's forward, penalties and hiding the targets
from prompts. `PromptTraining` adds them:

    class PromptTrainer(PromptTraining, transformers.Trainer): ...
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from softprompts.errors import SoftPromptError, nearest
from softprompts.injection.batch_pass import context_of
from softprompts.injection.prompt import require
from softprompts.injection.state import is_attached, state_of
from softprompts.training.extra_passes import check_teachers, comparisons, wants_states
from softprompts.training.losses import run_pass


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

    - Without an optimizer of the caller's, AdamW has a group for each component (`parameter_groups`) with the rates of
      `learning_rates` and the methods' defaults; ``TrainingArguments.learning_rate`` has no effect then.
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
        """AdamW over the components of all prompts, unless the trainer has an optimizer."""
        trainer: Any = self
        if trainer.optimizer is None:
            trainer.optimizer = torch.optim.AdamW(parameter_groups(trainer.model, self.learning_rates))
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
        state, labels = state_of(attached), inputs.get("labels")
        pass_ = self._open_pass(attached, inputs, labels)
        names = inputs.get("prompt_names")  # the model takes them out of the inputs
        with contextlib.nullcontext() if pass_ is None else state.activate(pass_, inside=False):
            result = base.compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        loss, count = result[0] if return_outputs else result, kwargs.get("num_items_in_batch")
        if pass_ is not None and state.last_pass is not pass_ and pass_.penalties and labels is not None:
            penalty = sum(pass_.penalties.values())
            loss = loss + (penalty if count is None else penalty * ((labels != -100).sum() / count))
        if attached.training and labels is not None:
            loss = loss + self._comparison_loss(attached, inputs, names, count)
        return (loss, result[1]) if return_outputs else loss

    def _open_pass(self, model: Any, inputs: Mapping[str, Any], labels: Tensor | None) -> Any:
        """The pass of a trainer that calls the base model; None where the model's forward opens it."""
        if "forward" not in model.__dict__:  # TRL replaces the model's forward by its own
            return None
        seen = None if labels is None or labels.ndim != 2 else context_of(labels)
        return state_of(model).open(inputs.get("prompt_names"), seen)

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
