"""Rows of a batch through modules of the backbone that their prompts change: LoRA, adapters, trained biases or copies.

A method hands over, by the path of a module, how its rows go through it (`SoftPrompt.modules`). While an attached
prompt names a module in `Method.changes`, a function stands in for that module's forward:

- a batch with one prompt goes its way as a whole;
- the rows of several prompts are put side by side prompt by prompt, go their ways, and are joined in the order of the
  batch. The frozen module itself runs once for all rows, when the first of the prompts asks for what it makes;
- rows without such a way, and calls without a prompt, get what the frozen module makes.

A module that all rows share (an embedding of positions ``(1, n)``) runs once per prompt, and makes an output for every
row.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from softprompts.errors import SoftPromptError
from softprompts.injection.rows import PLACES, Split
from softprompts.soft_prompt import Frozen, PartWay

if TYPE_CHECKING:
    from softprompts.injection.state import State

_SLOT = "_softprompt_part"


@dataclass
class _Slot:
    """What a module whose forward is replaced remembers.

    Attributes:
        state: the attached model's.
        path: the module's.
        by_row: whether it sees the rows of the batch one by one.
        before: the forward that stood in for the module's own already; None where none did.
    """

    state: State
    path: str
    by_row: bool
    before: Callable[..., Tensor] | None


def sync(state: State) -> None:
    """Lets rows through the modules that some prompt of the model changes, and leaves all others alone."""
    prompts = cast(Any, state.backbone.model).prompts
    wanted = {path for prompt in prompts.values() for path in prompt.method.changes}
    for part, module in state.backbone.parts:
        if part.path in wanted and _SLOT not in module.__dict__:
            module.__dict__[_SLOT] = _Slot(state, part.path, part.by_row, module.__dict__.get("forward"))
            module.__dict__["forward"] = types.MethodType(_forward, module)
        elif part.path not in wanted:
            _remove(module)


def uninstall(state: State) -> None:
    """Undoes `sync` everywhere."""
    for _, module in state.backbone.parts:
        _remove(module)


def _remove(module: nn.Module) -> None:
    slot: _Slot | None = module.__dict__.pop(_SLOT, None)
    if slot is None:
        return
    if slot.before is None:
        del module.__dict__["forward"]
    else:
        module.__dict__["forward"] = slot.before


def _forward(self: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    """Stands in for the module's forward."""
    slot: _Slot = self.__dict__[_SLOT]
    run = functools.partial(type(self).forward, self) if slot.before is None else slot.before
    places = self.__dict__.pop(PLACES, None)
    pass_ = slot.state.current
    # Embeddings are looked up once before a pass is prepared, for the methods that look at them: frozen ones.
    if pass_ is None or not pass_.ready:
        return run(*args, **kwargs)
    ways = {
        name: soft.modules[slot.path]
        for name, soft in pass_.soft.items()
        if soft.modules is not None and slot.path in soft.modules
    }
    if not ways:
        return run(*args, **kwargs)
    if len(pass_.soft) == 1:
        (way,) = ways.values()
        return way(Frozen(self, run), *args, **kwargs)
    if not slot.by_row:
        raise SoftPromptError(
            f"prompt '{next(iter(ways))}' changes '{slot.path}', which is the same for all rows: it cannot share a "
            "batch with other prompts"
        )
    if places is not None:
        rows, total = places
        (states,) = args
        owners = pass_.owners(total)
        split = Split.of([owners[row] for row in rows.tolist()], states.device)
        return _by_prompt(self, run, ways, split, (states[0],), kwargs)[None]
    given = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
    rows = pass_.rows if len(given) == 1 else len(given)
    if rows not in pass_.splits:
        pass_.splits[rows] = Split.of(pass_.owners(rows), given.device)
    return _by_prompt(self, run, ways, pass_.splits[rows], args, kwargs)


def _by_prompt(
    module: nn.Module,
    run: Callable[..., Tensor],
    ways: Mapping[str | None, PartWay],
    split: Split,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Tensor:
    """Each prompt's rows their own way."""
    flat = [split.sorted(value) for value in (*args, *kwargs.values())]
    named = list(kwargs)

    def call(function: Callable[..., Tensor], values: Sequence[Any]) -> Tensor:
        return function(*values[: len(args)], **dict(zip(named, values[len(args) :], strict=True)))

    made: list[list[Tensor]] = []  # what the frozen module makes of all rows, once someone asks

    def frozen_piece(place: int) -> Tensor:
        if not made:
            made.append(split.apart(call(run, flat)))
        return made[0][place]

    pieces = list(zip(*map(split.apart, flat), strict=True))
    outputs = []
    for place, (name, piece) in enumerate(zip(split.sizes, pieces, strict=True)):
        way = ways.get(name)
        if way is None:
            outputs.append(frozen_piece(place))
            continue

        def of_piece(*given: Any, _place: int = place, _piece: Any = piece, **more: Any) -> Tensor:
            same = len(given) + len(more) == len(_piece) and all(
                a is b for a, b in zip((*given, *more.values()), _piece, strict=True)
            )
            return frozen_piece(_place) if same else run(*given, **more)

        outputs.append(call(functools.partial(way, Frozen(module, of_piece)), piece))
    return split.together(outputs)
