"""What an attached model remembers, and which pass is under way.

The pass under way belongs to the call and not to the model: each thread has its own, so that threads that share a
model do not meet (torch.compile can trace a thread's own values, and no context variables). `Scope` objects form a
stack: around the whole of a ``generate`` (``inside=False``), and inside the forward pass of the model. A ``generate``
without any prompt is a scope too, whose pass is None.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from torch import nn
from transformers import PreTrainedModel

from softprompts.attention.prefix import plain_kernel
from softprompts.backbones.backbone import Backbone, attention_of
from softprompts.injection.batch_pass import Pass, RandomContexts
from softprompts.injection.layout import Layout
from softprompts.injection.prompt import PromptSet

STATE = "_softprompt_state"


@dataclass(frozen=True)
class Scope:
    """A stretch of a call and the pass that belongs to it."""

    state: State  # of the model that is called
    pass_: Pass | None  # the prompts of its rows; None: no row has one
    inside: bool  # whether the model's forward pass is under way; False around it, as in ``generate``
    outer: Scope | None  # the scope around this one
    by_hook: bool = False  # whether a hook of the entry module began it and ends it
    aside: bool = False  # whether calls in it are calls of their own, whatever is under way around it


class LastLayer(Protocol):
    """What computes a model's last layer for one column only."""

    def wanted(self, inputs: dict[str, Any]) -> bool:
        """Whether a pass with these arguments of ``forward`` gives out nothing but logits."""

    def read_column(self, layout: Layout) -> Any:
        """The column that the task head reads of a pass with this layout."""


class _Innermost(threading.local):
    scope: Scope | None = None


_INNERMOST = _Innermost()


class State:
    """What an attached model remembers: what it was before, and which prompts its calls use."""

    def __init__(self, model: PreTrainedModel):
        self.backbone = Backbone(model)
        # What the model was before.
        self.model_class = type(model)
        self.attention = [(config, plain_kernel(name)) for config, name in attention_of(model)]
        # By name, as parameters are replaced where embeddings are resized.
        named = model.named_parameters(remove_duplicate=False)
        self.trained = {name for name, parameter in named if parameter.requires_grad}
        self.modes = {module: module.training for module in model.modules()}
        self.ignored_on_save = model._keys_to_ignore_on_save
        # What is installed in it, see `softprompts.injection.wiring`.
        self.hooks: Any = None  # the `InputHooks`
        self.handles: list[Any] = []  # of all hooks but those at attention sites
        self.site_handles: list[Any] = []  # of hooks at attention sites whose states some prompt reads
        # See `softprompts.injection.changes`.
        self.needed: list[nn.Module] = []
        self.similar = 0  # modules of the kinds of the attention sites
        self.edges: list[tuple[dict[str, nn.Module | None], str, nn.Module | None, int]] = []
        self.last_layer: LastLayer | None = None
        # What `softprompts.model.self_check` found out, by the form of a prompt; None: nothing is to be checked.
        self.checked: dict[Any, str] | None = {}
        self.alike: Any = None  # what it found out about models like this one
        # Which prompts its calls use.
        self.active: str | None = None  # of calls that name none
        self.bare = False  # whether `set_prompt(None)` said that no prompt is to be active
        self.random_contexts: RandomContexts | None = None  # set by training
        self._last = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the model starts without a pass, whose tensors belong to the original's graph.
        return self.__dict__ | {"_last": None, "random_contexts": None}

    def __setstate__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values, _last=threading.local())

    @property
    def last_pass(self) -> Pass | None:
        """That of the last forward in this thread, for `PromptModel.penalties`."""
        return getattr(self._last, "pass_", None)

    @last_pass.setter
    def last_pass(self, pass_: Pass | None) -> None:
        self._last.pass_ = pass_

    @property
    def prompts(self) -> PromptSet:
        """The prompts on the model."""
        return cast(PromptSet, self.backbone.model.prompts)

    @property
    def scope(self) -> Scope | None:
        """The innermost scope of this model in the call under way."""
        scope = _INNERMOST.scope
        while scope is not None and scope.state is not self:
            scope = scope.outer
        return scope

    @property
    def current(self) -> Pass | None:
        """The pass that hooks and attention sites see: that of the forward pass under way."""
        scope = self.scope
        return None if scope is None or not scope.inside else scope.pass_

    @property
    def around(self) -> Scope | None:
        """The scope of the ``generate`` or of `under` around the forward pass."""
        scope = self.scope
        while scope is not None and (scope.inside or scope.state is not self):
            scope = scope.outer
        return None if scope is None or scope.aside else scope

    @property
    def surrounding(self) -> Pass | None:
        """The pass of the ``generate`` or of `under` around the forward pass."""
        around = self.around
        return None if around is None else around.pass_

    @contextlib.contextmanager
    def activate(self, pass_: Pass | None, inside: bool = True, aside: bool = False) -> Iterator[None]:
        """Within this context, hooks and attention sites see ``pass_``; with ``inside=False``, forward passes do.

        With ``aside=True`` (and None), what is under way around it does not reach the calls in it.
        """
        outer = _INNERMOST.scope
        _INNERMOST.scope = Scope(self, pass_, inside, outer, aside=aside)
        try:
            yield
        finally:
            _INNERMOST.scope = outer

    @contextlib.contextmanager
    def under(self, names: str | Sequence[str | None]) -> Iterator[None]:
        """Makes the prompts of these names those of calls to parts of the model, past its own forward."""
        with self.activate(self.open(names), inside=False):
            yield

    def enter(self, pass_: Pass) -> None:
        """Begins a scope in a hook, where no context manager can be; the hook behind the module calls `leave`."""
        _INNERMOST.scope = Scope(self, pass_, True, _INNERMOST.scope, by_hook=True)

    def leave(self) -> None:
        """Ends the scope that `enter` began."""
        scope = self.scope
        _INNERMOST.scope = None if scope is None else scope.outer

    def open(self, names: str | Sequence[str | None] | None, context_mask: Any = None) -> Pass | None:
        """A pass for the named prompts, or for the active one; None when no row has a prompt.

        Raises:
            SoftPromptError: unknown name.
        """
        if names is None:
            names = self.active
        if names is None or (not isinstance(names, str) and set(names) == {None}):
            return None
        return Pass(self.prompts, names, context_mask, self.random_contexts)


def state_of(model: Any) -> State:
    """What an attached model remembers."""
    return cast(State, model.__dict__[STATE])


def is_attached(model: Any) -> bool:
    """Whether `attach` has been called on the model."""
    return isinstance(model, nn.Module) and STATE in model.__dict__
