"""What a method hands over to the model, and nothing else: the tensors that steer the frozen backbone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

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
    """

    tokens: Tensor | None = None
    update: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None
    gates: Tensor | None = None
    gate_of: GateOf | None = None
    selectivity: float | None = None
    penalty: Tensor | None = None
