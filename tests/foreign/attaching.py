"""Makes the models that transformers' tests build come out attached, with a prompt of a given form on them."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from torch import Tensor
from transformers import PreTrainedModel

import softprompts as sp
from softprompts.injection.state import is_attached
from softprompts.model.prompt_model import PromptModel

LENGTH = 3
FORMS: dict[str, sp.MethodConfig] = {
    "off": sp.PromptTuningConfig(num_virtual_tokens=LENGTH),
    "prefix": sp.PrefixTuningConfig(num_virtual_tokens=LENGTH),
    "input": sp.PromptTuningConfig(num_virtual_tokens=LENGTH),
    "multi-mask": sp.MultiMaskConfig(num_virtual_tokens=LENGTH, num_masks=2, router_dropout=0.0),
}
_FOLDER = "softprompt"  # in that of a saved model


class _Maker:
    """Attaches whole models when they are made or loaded, and leaves the models that they are made of alone."""

    def __init__(self, form: str, classes: Iterable[type]):
        self.form = form
        self.classes = set(classes)
        self.depth = 0  # of constructors under way

    def attach(self, model: Any, saved: Path | None = None) -> None:
        if self.depth or type(model) not in self.classes or is_attached(model):
            return
        if any(parameter.is_meta for parameter in model.parameters()):  # nothing to attach to yet
            return
        if saved is not None and saved.is_dir() and json.loads((saved / "of.json").read_text()) == type(model).__name__:
            sp.attach(model, saved)
        else:
            sp.attach(model, FORMS[self.form], seed=0)
        if self.form == "off":
            model.set_prompt(None)

    @contextlib.contextmanager
    def making(self) -> Iterator[None]:
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def init(self, own: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(own)
        def init(model: Any, *args: Any, **kwargs: Any) -> None:
            with self.making():
                own(model, *args, **kwargs)
            self.attach(model)

        return init

    def maker(self, own: Any) -> Any:
        """``own`` is a class method that returns a model, or a model and what is to be said of it."""

        @functools.wraps(own.__func__)
        def make(cls: Any, *args: Any, **kwargs: Any) -> Any:
            with self.making():
                made = own.__func__(cls, *args, **kwargs)
            source = kwargs.get("pretrained_model_name_or_path", args[0] if args else None)
            saved = Path(source) / _FOLDER if isinstance(source, str | Path) else None
            self.attach(made[0] if isinstance(made, tuple) else made, saved)
            return made

        return classmethod(make)


def _save(model: Any, save_directory: Any, *args: Any, **kwargs: Any) -> None:
    """Saves an attached model in two: the plain model as transformers does, and its prompt as we do."""
    sp.detach(copy.deepcopy(model)).save_pretrained(save_directory, *args, **kwargs)
    folder = Path(save_directory) / _FOLDER
    model.save_prompt("default", folder)
    (folder / "of.json").write_text(json.dumps(type(model).__name__))


def _cut(maps: Any) -> Any:
    """Attention maps without the columns of prompts, which stand in front."""
    if isinstance(maps, Tensor):
        return maps[..., LENGTH:]
    return maps if maps is None else tuple(map(_cut, maps))


def _without_prompts(own: Callable[..., None], at: int, form: str) -> Callable[..., None]:
    """A check of attention maps' shape, its argument ``at`` or ``attentions``, that leaves the prompt's columns out."""
    of_decoder = own.__name__ == "_check_attentions_for_generate"

    @functools.wraps(own)
    def check(*args: Any, **kwargs: Any) -> None:
        beside_encoder = any(getattr(value, "is_encoder_decoder", False) for value in [*args, *kwargs.values()])
        if form == "input" and of_decoder and beside_encoder:  # the prompt is the encoder's
            return own(*args, **kwargs)
        if "attentions" in kwargs:
            return own(*args, **kwargs | {"attentions": _cut(kwargs["attentions"])})
        return own(*args[:at], _cut(args[at]), *args[at + 1 :], **kwargs)

    return check


@contextlib.contextmanager
def attached(form: str, case: type, classes: Iterable[type]) -> Iterator[None]:
    """Within this context, models of ``classes`` come out attached, and are saved with their prompt.

    Where a test of ``case`` checks shapes of attention maps, it looks past the columns of the prompt.
    """
    maker = _Maker(form, classes)
    with contextlib.ExitStack() as patches:

        def patch(owner: Any, name: str, value: Any) -> None:
            patches.enter_context(mock.patch.object(owner, name, value))

        for model_class in maker.classes:
            patch(model_class, "__init__", maker.init(model_class.__init__))
        for name in ("from_pretrained", "_from_config"):
            patch(PreTrainedModel, name, maker.maker(PreTrainedModel.__dict__[name]))
        patch(PromptModel, "save_pretrained", _save)
        if form != "off":
            for name, at in (("_check_attentions_for_generate", 2), ("_check_encoder_attention_for_generate", 1)):
                if hasattr(case, name):
                    patch(case, name, _without_prompts(getattr(case, name), at, form))
        yield
