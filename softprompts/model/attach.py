"""`attach`: soft prompts in place on a frozen transformers model, every row of a batch with its own."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from softprompts.errors import SoftPromptError, first_line
from softprompts.injection.prompt import PromptSet
from softprompts.injection.state import is_attached, state_of
from softprompts.injection.wiring import detach, follow_prompts, wire
from softprompts.methods.contract import MethodConfig
from softprompts.methods.registry import methods
from softprompts.model.prompt_model import PromptModel
from softprompts.model.self_check import alike, note_alike


def _copied(model: Any) -> Any:
    made = object.__new__(type(model))
    made.__dict__.update(model.__dict__)
    return made


def _deeply_copied(model: Any, memo: dict[int, Any]) -> Any:
    made = memo[id(model)] = object.__new__(type(model))
    made.__dict__.update(copy.deepcopy(model.__dict__, memo))
    return made


def _pickled(model: Any, protocol: Any) -> tuple[Any, ...]:
    """For pickle and ``torch.save(model)``: a plain model that shares its tensors, and the prompts."""
    state = state_of(model)
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    trained = state.trained | {name for name, tensor in tensors if tensor.requires_grad}
    twin = copy.deepcopy(model, {id(tensor): _sharing(tensor, name in trained) for name, tensor in tensors})
    prompts, settings = twin.prompts, (state.active, state.bare, model.backbone_dropout, model.training)
    return _unpickled, (detach(twin), prompts, *settings)


def _sharing(tensor: Tensor, trained: bool) -> Tensor:
    """A parameter of the same values, which can be set to train without a change in the model that it is from."""
    return nn.Parameter(tensor.detach(), trained) if type(tensor) is nn.Parameter else tensor


def _unpickled(plain: Any, prompts: PromptSet, active: Any, bare: bool, backbone_dropout: bool, training: bool) -> Any:
    state = wire(plain, _attached_class(type(plain)), backbone_dropout)  # type: ignore[arg-type]
    plain._modules["prompts"] = prompts
    follow_prompts(state)
    plain._activate(active)
    state.bare = bare
    modes = {module: module.training for module in prompts.modules()}
    plain.train(training)
    for module, mode in modes.items():
        module.training = mode
    return plain


@functools.cache
def _attached_class(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The class of an attached ``base``: same name and module, so that whoever goes by names sees no difference."""
    signature = inspect.signature(base.forward)
    names = [name for name in signature.parameters if name != "self"]

    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self._prompted_forward(functools.partial(base.forward, self), names, *args, **kwargs)

    extra = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
        for name in ("prompt_names", "context_mask")
    ]
    parameters = sorted([*signature.parameters.values(), *extra], key=lambda parameter: parameter.kind)  # **kwargs last
    forward.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]

    def new(cls: Any, *args: Any, **kwargs: Any) -> Any:
        """An instance for whoever copies one; to ``type(model)(config)`` and ``from_pretrained``, a plain model."""
        return base(*args, **kwargs) if args or kwargs else object.__new__(cls)

    members = {"forward": forward, "__new__": new, "__module__": base.__module__, "__doc__": base.__doc__}
    members |= {"__reduce_ex__": _pickled, "__copy__": _copied, "__deepcopy__": _deeply_copied}
    return cast("type[PreTrainedModel]", type(base.__name__, (PromptModel, base), members))


def attach(
    model: PreTrainedModel,
    config: MethodConfig | str | Path | None = None,
    name: str | None = None,
    *,
    task_id: int | None = None,
    num_labels: int | None = None,
    labels: Sequence[str] | None = None,
    tokenizer: Any = None,
    seed: int | None = None,
    backbone_dropout: bool = False,
    check: bool = True,
) -> Any:
    """Freezes a transformers model and puts a soft prompt on it, in place.

    Args:
        model: any `transformers.PreTrainedModel`.
        config: the first prompt: the config of a new one, or the folder or hub id of a saved one, ours or an adapter
            of PEFT's (see `PromptModel.load_prompt`). None attaches without one (`load_prompt` and `add_prompt` add
            some later).
        name: its name; None for that of a saved prompt, else "default".
        task_id: which task of a multitask adapter of PEFT's.
        num_labels: outputs of its task head; None for as many as the model's own head has.
        labels: names of its labels.
        tokenizer: for initialisation from text.
        seed: makes the initialisation repeatable.
        backbone_dropout: keep the frozen model's dropout on while training (SuperPos-Prompt, section 4.3, found it
            better off, and off is faster).
        check: when the first prompt of a form joins the model, now or later, run a few tokens to see that it acts as it
            should (see `softprompts.model.self_check`), and refuse it if not.

    Returns:
        The same object.

    Raises:
        SoftPromptError: it is not a transformers model, is attached already, or the method does not fit it, or is not
            exact on it.
    """
    if not isinstance(model, PreTrainedModel):
        raise SoftPromptError(f"attach takes a transformers PreTrainedModel, not a {type(model).__name__}")
    if is_attached(model):
        raise SoftPromptError("this model is attached already; use model.add_prompt for another prompt")
    saved = config if isinstance(config, str | Path) else None
    if saved is not None and any(value is not None for value in (num_labels, labels, tokenizer, seed)):
        raise SoftPromptError(
            "a saved prompt has its own labels and values: leave out num_labels, labels, tokenizer, seed"
        )
    if isinstance(config, str) and config in methods() and not Path(config).is_dir():
        raise SoftPromptError(f"'{config}' is a method, not a saved prompt: pass its config, make_config('{config}')")
    if saved is None and task_id is not None:
        raise SoftPromptError("task_id is for a multitask adapter of PEFT: name its folder in place of a config")
    known = alike(model) if check else None
    try:
        state = wire(model, _attached_class(type(model)), backbone_dropout)  # type: ignore[arg-type]  # can be hashed
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError, NotImplementedError) as error:
        if isinstance(error, SoftPromptError):
            raise
        raise SoftPromptError(f"{type(model).__name__} cannot take soft prompts ({first_line(error)})") from error
    state.checked = {} if check else None
    note_alike(state, known)
    if config is not None:
        try:
            attached = cast(PromptModel, model)
            if isinstance(config, str | Path):
                attached.load_prompt(config, name, task_id=task_id)
            else:
                settings: Any = {"num_labels": num_labels, "labels": labels, "tokenizer": tokenizer, "seed": seed}
                attached.add_prompt(name or "default", config, **settings)
        except BaseException:
            detach(model)
            raise
    return model
