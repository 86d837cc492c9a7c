"""A classifier that reads the first position needs no other position from the last layer.

In the last layer of an encoder all positions are needed as keys and values, but where the task head reads the first
one only ([CLS]), its query, its attention, and its way through the rest of the layer are all that matters. `install`
tries this on a model when it is attached: it looks which modules of the last layer run after its attention, lets them
have the first position only, and keeps to it where the layer and the logits come out the same and the logits do not
depend on any other position (they stay finite when all others are made NaN). Models that fail the trial, or that have
no such layer, are left as they are. What is found is used in passes with a prompt whose logits alone are asked for.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from softprompts.backbones.kinds import trial
from softprompts.injection.layout import EncoderLayout, Layout
from softprompts.injection.speedups.read_column import READ_COLUMN, ReadColumn
from softprompts.injection.state import State

_WIDE_OUTPUTS = ("output_hidden_states", "output_attentions")
_TRIAL = ((1, 1, 1, 1, 1), (1, 1, 1, 0, 0))  # the attention mask of the trial


class NarrowLastLayer:
    """What of an attached model's last layer runs for the read column only.

    Attributes:
        layer: the last layer.
        site: its attention module.
        source: the module that makes the queries and nothing else; None where there is no such module.
        parts: modules behind the attention that are given the read column only.
        pooled: whether the head gets its column from a pooler inside the base model, which sees columns as we lay them
            out; otherwise it sees them in the input's order.
    """

    def __init__(self, state: State, layer: nn.Module, site: nn.Module, source: nn.Module | None):
        self.state = state
        self.layer, self.site, self.source = layer, site, source
        self.parts: list[nn.Module] = []
        self.pooled = False
        self.trial: ReadColumn | None = None
        around = [m for m in state.backbone.entry.modules() if any(child is layer for child in m.modules())]
        self._visible = [*around, *layer.modules()]

    def install(self) -> list[Any]:
        """Puts the hooks in; returns their handles, with itself as that of the attention module."""
        self.site.__dict__[READ_COLUMN] = self.column_of
        handles: list[Any] = [self, self.layer.register_forward_hook(self.after_layer)]
        for module in self.parts if self.source is None else [self.source, *self.parts]:
            handles.append(module.register_forward_pre_hook(self.before_part, with_kwargs=True))
        if self.source is not None:
            handles.append(self.source.register_forward_hook(self.after_source))
        return handles

    def remove(self) -> None:
        """Leaves the attention module as it was."""
        self.site.__dict__.pop(READ_COLUMN, None)

    def wanted(self, inputs: dict[str, Any]) -> bool:
        """Whether a pass with these arguments of ``forward`` gives out nothing but logits."""
        config = self.state.backbone.model.config
        if inputs.get("labels") is not None:  # a loss that is not ours may look at anything
            return False
        if any(inputs.get(name) or getattr(config, name, False) for name in _WIDE_OUTPUTS):
            return False
        return torch.compiler.is_compiling() or not self._watched()

    def _watched(self) -> bool:
        """Whether someone has put a hook of their own where it would see less than all columns."""
        for module in self._visible:
            for hook in [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]:
                owner = getattr(hook, "__self__", None)
                if owner is self or owner is self.state.hooks:
                    continue
                if not str(getattr(hook, "__module__", "")).startswith("transformers."):
                    return True
        return False

    def read_column(self, layout: Layout) -> ReadColumn:
        """See `softprompts.injection.state.LastLayer`."""
        assert isinstance(layout, EncoderLayout)
        return ReadColumn(0 if self.pooled else layout.first(), layout.length + layout.columns)

    # --- bound methods, so that a deep copy of the model has its own ------------------------------------------------

    def column_of(self, query: Tensor | None = None) -> ReadColumn | None:
        """The column to read in the pass under way; None: all."""
        if self.state.current is None:
            return self.trial
        return cast("ReadColumn | None", self.state.current.read_column)

    def before_part(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Gives a module the read column of its hidden states."""
        read = self.column_of()
        if read is None:
            return None
        return tuple(map(read.narrow, args)), {name: read.narrow(value) for name, value in kwargs.items()}

    def after_source(self, module: nn.Module, args: Any, output: Tensor) -> Any:
        """Repeats the query of the read column, so that attention gets as many queries as before."""
        read = self.column_of()
        return None if read is None else output.expand(-1, read.width, -1)

    def after_layer(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Leaves no column in the layer's output that would be wrong."""
        read = self.column_of()
        if read is None:
            return None
        return tuple(map(read.narrow, output)) if isinstance(output, tuple) else read.narrow(output)


# --- the trial ----------------------------------------------------------------------------------------------------


def install(state: State) -> NarrowLastLayer | None:
    """What of a model's last layer can be left out, installed; None where all of it is needed or nothing is known.

    Args:
        state: of a model whose attention sites are already served by our attention functions.
    """
    backbone = state.backbone
    if backbone.kind != "encoder" or not (backbone.heads and backbone.sites and backbone.text_input):
        return None
    site = backbone.sites[-1].module
    layer = _layer_of(backbone.entry, site)
    if layer is None or getattr(site, "is_causal", False):
        return None
    try:
        with trial(backbone.model):
            narrow = _tried(state, layer, site)
    except Exception:  # a model that takes other inputs, or other shapes, than the trial's: it runs as ever
        return None
    state.handles += [] if narrow is None else narrow.install()
    return narrow


def _layer_of(entry: nn.Module, site: nn.Module) -> nn.Module | None:
    """The innermost member of a list of modules around an attention module."""
    path = next(name for name, module in entry.named_modules() if module is site).split(".")
    for end in range(len(path), 0, -1):
        if isinstance(entry.get_submodule(".".join(path[: end - 1])), nn.ModuleList):
            return entry.get_submodule(".".join(path[:end]))
    return None


def _tried(state: State, layer: nn.Module, site: nn.Module) -> NarrowLastLayer | None:
    order, source, wide, logits = _watch(state, layer, site)
    if order.count(site) != 1 or not logits.isfinite().all():
        return None  # a layer that runs several times, or a head that reads more
    after = order[order.index(site) + 1 :]
    narrow = NarrowLastLayer(state, layer, site, source)
    narrow.parts = [module for module in after if order.count(module) == 1 and module is not layer]
    narrow.trial = read = ReadColumn(0, wide.shape[1])
    seen: dict[int, Tensor] = {}
    met: list[nn.Module] = []

    def meet(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [*args, *kwargs.values()]
        if module not in met and any(read.narrow(value) is not value for value in given):
            met.append(module)

    # Registered before ours, so that it sees what came in.
    watching = [module.register_forward_pre_hook(meet, with_kwargs=True) for module in narrow.parts]
    handles = narrow.install()
    kept = False
    try:
        watching.append(layer.register_forward_hook(lambda module, args, output: seen.update({0: _states(output)})))
        narrow_logits = _logits(state)
        kept = _agree(seen[0], wide[:, :1]) and _agree(narrow_logits, logits)
        if kept:
            narrow.pooled = _is_pooled(state)
    finally:
        for handle in [*watching, *handles]:
            handle.remove()
        narrow.trial = None
    if not kept:
        return None
    narrow.parts = met
    return narrow


def _watch(state: State, layer: nn.Module, site: nn.Module) -> tuple[list[nn.Module], nn.Module | None, Tensor, Tensor]:
    """One pass as ever, but with NaN in all columns but the first behind the last layer.

    Returns:
        The layer's modules in the order in which they were called (``site`` stands where it attends), the one that
        makes the queries, the layer's output before NaN went in, and the logits.
    """
    order: list[nn.Module] = []
    made: list[tuple[nn.Module, Tensor]] = []
    source: list[nn.Module] = []
    wide: list[Tensor] = []

    def attends(query: Tensor) -> None:
        order.append(site)
        for module, output in made:
            same = output.untyped_storage().data_ptr() == query.untyped_storage().data_ptr()
            if same and output.ndim == 3 and output.numel() == query.numel():
                source[:] = [module]

    def spoil(module: nn.Module, args: Any, output: Any) -> Any:
        states = _states(output)
        wide.append(states)
        spoilt = torch.cat([states[:, :1], torch.full_like(states[:, 1:], float("nan"))], 1)
        return (spoilt, *output[1:]) if isinstance(output, tuple) else spoilt

    inside = [module for module in layer.modules() if module is not site]
    handles: list[Any] = [module.register_forward_pre_hook(lambda module, _: order.append(module)) for module in inside]
    leaves = [module for module in inside if isinstance(module, nn.Linear)]
    handles += [m.register_forward_hook(lambda module, _, output: made.append((module, output))) for m in leaves]
    handles.append(layer.register_forward_hook(spoil))
    site.__dict__[READ_COLUMN] = attends
    try:
        logits = _logits(state)
    finally:
        del site.__dict__[READ_COLUMN]
        for handle in handles:
            handle.remove()
    return order, source[0] if source else None, wide[-1], logits


def _is_pooled(state: State) -> bool:
    """Whether the logits do without the base model's last hidden state."""

    def spoil(module: nn.Module, args: Any, output: Any) -> Any:
        output["last_hidden_state"] = torch.full_like(output["last_hidden_state"], float("nan"))
        return output

    handle = state.backbone.entry.register_forward_hook(spoil)
    try:
        return bool(_logits(state).isfinite().all())
    finally:
        handle.remove()


def _logits(state: State) -> Tensor:
    """The model's logits on two short rows, one of them padded, without any prompt."""
    backbone = state.backbone
    mask = torch.tensor(_TRIAL, device=backbone.device)
    ids = torch.arange(1, mask.numel() + 1, device=backbone.device).view(mask.shape) % backbone.vocabulary_size
    with state.activate(None):
        output = state.model_class.forward(backbone.model, input_ids=ids, attention_mask=mask)
    return cast(Tensor, output[0] if isinstance(output, tuple) else output.logits)


def _states(output: Any) -> Tensor:
    return cast(Tensor, output[0] if isinstance(output, tuple) else output)


def _agree(one: Tensor, other: Tensor) -> bool:
    """Equal up to rounding; never where something is not finite."""
    tolerance = max(1e-5, 4 * torch.finfo(other.dtype).eps)
    if one.shape != other.shape:
        return False
    return bool((one - other).abs().max() <= tolerance * other.abs().max().clamp(min=1e-3))
