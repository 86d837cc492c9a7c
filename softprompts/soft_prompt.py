"""What a method hands over to the model, and nothing else: the tensors that steer the frozen backbone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Frozen:
    """A module of the backbone as a prompt that changes it gets to see it, for the rows of this prompt.

    Attributes:
        module: the module; its parameters are read and never written to.
        run: its forward pass.
    """

    module: nn.Module
    run: Callable[..., Tensor]

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the module makes of its input."""
        return self.run(*args, **kwargs)

    def with_parameters(self, tensors: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """What it would make of its input with these parameters, by their names in it, in place of its own."""
        own = self.module._parameters
        likes = {name: cast(nn.Parameter, own[name]) for name in tensors}
        given = {
            name: tensor.to(device=likes[name].device, dtype=likes[name].dtype) for name, tensor in tensors.items()
        }
        # Of a twin: another thread may be in the module itself.
        twin = object.__new__(type(self.module))
        twin.__dict__.update(self.module.__dict__, _parameters={**own, **given})
        return cast(Tensor, type(twin).forward(twin, *args, **kwargs))

    def uniform(self, seed: int, size: tuple[int, ...], device: torch.device) -> Tensor:
        """Numbers in [0, 1) of ``size`` ``(R, ...)``, which follow from a seed that the method draws once per pass.

        So a recomputed pass draws the same.
        """
        generator = torch.Generator(device).manual_seed(seed)
        return torch.rand(size, generator=generator, device=device)

    def behind(self, way: PartWay) -> Frozen:
        """The same module with a first change in front, for a second one to be put on top of it."""
        return dataclasses.replace(self, run=lambda *args, **kwargs: way(self, *args, **kwargs))


# How rows go through a module: ``way(frozen, *args, **kwargs)`` with the arguments of the module's forward.
PartWay = Callable[..., Tensor]

# Of the place of a site among those the prompt was built for, the states (R, n, d_site) that the site is called with,
# and which of their columns ``(R, n)`` are input that a prompt may depend on (None: all); gives gates ``(R, l)``.
GateOf = Callable[[int, Tensor, Tensor | None], Tensor]


@dataclass
class SoftPrompt:
    """The output of a method for one group of rows that share a prompt.

    ``R`` is the number of rows; a leading 1 in its place means that all rows share the tensor, which is how
    everything that does not depend on the input is computed once per step.

    Attributes:
        tokens: ``(R|1, l, d)``, embeddings that go in front of the input (on encoders with a pooler: after its
            first token).
        update: ``(R|1, m, d)``, added to the input embeddings; entry ``i`` goes to a row's ``i``-th real token.
            Tokens from the ``m``-th on get none.
        keys: ``(S, R|1, l, w)``, prefix keys of the ``S`` attention sites the prompt was built for, in their order;
            ``w = kv_heads * head_dim``.
        values: ``(S, R|1, l, w)``, the matching prefix values.
        gates: ``(S, R|1, l)``, what prefix keys and values are multiplied with, where a site attends: a prefix that is
            shared by all rows need not be copied for each of them. None: 1.
        gate_of: further gates, which depend on what a site gets from the layers before it; see `GateOf`.
        selectivity: alpha of Selective Prefix Tuning (Eq. 5-6): the attention weights of prefix columns are
            multiplied by ``sigmoid(alpha * score)`` before they are normalised. None: plain attention.
        penalty: scalar that joins the loss.
        modules: by the path of a module of the backbone (see `Part`), how the rows go through it instead: a function
            that gets a `Frozen` module and the module's arguments, and returns what the module is to return. Only
            paths that the method names in `Method.changes`.
    """

    tokens: Tensor | None = None
    update: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None
    gates: Tensor | None = None
    gate_of: GateOf | None = None
    selectivity: float | None = None
    penalty: Tensor | None = None
    modules: Mapping[str, PartWay] | None = None

    def fault(self, rows: int, sites: int, width: int, hidden_size: int) -> str | None:
        """What does not fit ``rows`` rows and these sizes (``S``, ``w`` and ``d``), in words; None where all does."""
        if (self.keys is None) is not (self.values is None):
            return "keys and values go together, and one of them is missing"
        length = None if self.keys is None or self.keys.dim() != 4 else self.keys.shape[2]
        wanted: dict[str, tuple[int | None, ...]] = {  # -1: 1 or the number of rows; None: any number
            "keys": (sites, -1, length, width),
            "values": (sites, -1, length, width),
            "gates": (sites, -1, length),
            "tokens": (-1, None, hidden_size),
            "update": (-1, None, hidden_size),
        }
        for name, sizes in wanted.items():
            tensor = getattr(self, name)
            if tensor is None:
                continue
            fits = tensor.dim() == len(sizes) and all(
                size is None or got == size or (size == -1 and got in (1, rows))
                for got, size in zip(tensor.shape, sizes, strict=True)
            )
            if not fits:
                told = ", ".join(
                    "any" if size is None else f"1 or {rows}" if size == -1 else str(size) for size in sizes
                )
                return f"{name} are of shape {tuple(tensor.shape)}, and have to be ({told})"
        return None


@dataclass(frozen=True)
class Part:
    """A module of the backbone that has parameters of its own and no modules in it that have, as a method may know it.

    Attributes:
        path: its name, from the base model on where it is part of that.
        kind: "linear" (weight ``(out, in)``), "conv1d" (weight ``(in, out)``), "norm", "embedding" or "other".
        roles: what it is for: "query", "key", "value" (a fused projection has all three), "attention.output",
            "ffn.in", "ffn.out", "input" and "output" (the embeddings at both ends); () where that cannot be told.
        in_features: width of what it takes; 0 for embeddings and "other".
        out_features: width of what it makes.
        layer: index of the layer in its stack; None outside of all layers.
        stack: "encoder" or "decoder"; "" outside of both.
        site: of the parts of an attention: "encoder.self", "decoder.self" or "decoder.cross"; "" for others.
        by_row: whether it sees the rows of the batch one by one; not so a table of relative positions.
        tensors: its frozen parameters by their names in it; tied ones are the same tensor.
        packed: whether its weight is quantised: its output can be changed, its numbers are not there to be copied.
    """

    path: str
    kind: str
    roles: tuple[str, ...] = ()
    in_features: int = 0
    out_features: int = 0
    layer: int | None = None
    stack: str = ""
    site: str = ""
    by_row: bool = True
    tensors: Mapping[str, Tensor] = dataclasses.field(default_factory=dict, repr=False)
    packed: bool = False

    @property
    def has_bias(self) -> bool:
        """Whether it adds a bias of its own."""
        return "bias" in self.tensors
