"""What prompts ask of a trainer besides a loss and an optimizer, for Hugging Face's Trainer and those made from it.

An attached model trains under `transformers.Trainer`, ``Seq2SeqTrainer`` and TRL's ``SFTTrainer`` as it is, with three
things left out that our own loop does: each component's own learning rate, losses that need a second pass
(`Method.compare`: AdaMix's consistency, MPT's teacher), and under TRL, which computes the loss past the model's
forward, penalties and what a prompt may see. `PromptTraining` does them:

    class PromptTrainer(PromptTraining, transformers.Trainer): ...
"""

from __future__ import annotations

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
    """The trained parameters of all prompts on a model, one group for each component of each, as optimizers take them.

    Args:
        model: an attached model.
        rates: learning rates by prompt ("rte") or component ("rte.head"), which goes before; others keep the method's
            own defaults.
        weight_decay: of all groups; None: each component's own.

    Returns:
        Groups with ``params``, ``lr``, ``weight_decay`` and ``name`` ("rte.head").

    Raises:
        SoftPromptError: ``rates`` names no such prompt or component, or there is nothing to train.
    """
    components = {
        f"{name}.{part}": component
        for name, prompt in model.prompts.items()
        for part, component in prompt.components().items()
    }
    rates = dict(rates or {})
    for name in rates:
        if name not in components and name not in model.prompts:
            raise SoftPromptError(f"rates: there is no prompt or component '{name}'; {nearest(name, components)}")
    groups = []
    for name, component in components.items():
        parameters = [parameter for parameter in component.parameters if parameter.requires_grad]
        if parameters:
            groups.append(
                {
                    "params": parameters,
                    "lr": rates.get(name, rates.get(name.partition(".")[0], component.learning_rate)),
                    "weight_decay": component.weight_decay if weight_decay is None else weight_decay,
                    "name": name,
                }
            )
    if not groups:
        raise SoftPromptError("there are no prompts to train on this model")
    return groups


class PromptTraining:
    """Put before a trainer's class, it trains prompts as our own loop does.

    - Without an optimizer of the caller's, AdamW has a group for each component (`parameter_groups`) with the rates of
      `learning_rates` and the methods' defaults; ``TrainingArguments.learning_rate`` is of no matter then.
    - A prompt whose method compares passes has its further passes, and their loss.
    - Where the trainer calls the base model and not the model (TRL), prompts see no targets and their penalties count.

    Attributes:
        learning_rates: by prompt or component, see `parameter_groups`.
        teachers: by prompt, the prompt on the same model that teaches it.
    """

    learning_rates: Mapping[str, float] = {}
    teachers: Mapping[str, str] = {}

    def create_optimizer(self, model: Any = None) -> Any:
        """AdamW over the components of all prompts, unless there is an optimizer already."""
        trainer: Any = self
        if trainer.optimizer is None:
            groups = parameter_groups(trainer.model, self.learning_rates)
            trainer.optimizer = torch.optim.AdamW(groups)
        return trainer.optimizer

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        """The trainer's own loss, with what else the prompts' methods ask for.

        Raises:
            SoftPromptError: a method learns from a teacher, and `teachers` names none.
        """
        base: Any = super()
        own: Any = self
        attached = own.model
        if not is_attached(attached):
            raise SoftPromptError("PromptTraining trains attached models: sp.attach(model, ...) first")
        state, labels = state_of(attached), inputs.get("labels")
        pass_, names = self._pass(attached, inputs, labels), inputs.get("prompt_names")
        with state.activate(pass_, inside=False):
            made = base.compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        loss, count = made[0] if return_outputs else made, kwargs.get("num_items_in_batch")
        if pass_ is not None and state.last_pass is not pass_ and pass_.penalties and labels is not None:
            penalty = sum(pass_.penalties.values())
            loss = loss + (penalty if count is None else penalty * ((labels != -100).sum() / count))
        if attached.training and labels is not None:
            loss = loss + self._compared(attached, inputs, names, count)
        return (loss, made[1]) if return_outputs else loss

    def _pass(self, model: Any, inputs: Mapping[str, Any], labels: Tensor | None) -> Any:
        """The pass of a trainer that calls the base model; None where the model's forward opens it."""
        if "forward" not in model.__dict__:  # no trainer has put one of its own on the model, as TRL does
            return None
        seen = None if labels is None or labels.ndim != 2 else context_of(labels)
        return state_of(model).open(inputs.get("prompt_names"), seen)

    def _compared(self, model: Any, inputs: Mapping[str, Any], names: Any, count: Any) -> Tensor | float:
        rows = len(inputs["labels"])
        given = model.active_prompt if names is None else names
        owners: list[Any] = [given] * rows if given is None or isinstance(given, str) else list(given)
        wanted = [name for name in dict.fromkeys(owners) if name is not None]
        if not any(require(model.prompts, name).method.compares for name in wanted):
            return 0.0
        if None in owners:
            raise SoftPromptError("rows without a prompt cannot share a batch with prompts that compare passes")
        for name in wanted:
            check_teachers(model, name, self.teachers.get(name))
        batch = {
            key: inputs[key] for key in ("input_ids", "attention_mask", "token_type_ids", "labels") if key in inputs
        }
        first = run_pass(model, batch, owners, wants_states(model, wanted))
        sums = comparisons(model, batch, owners, first, {name: self.teachers.get(name) for name in wanted})
        total: Tensor | float = sum(sums.values())
        return total / (len(first.logits) if count is None else count)
