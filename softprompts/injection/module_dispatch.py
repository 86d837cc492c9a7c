"""Rows of a batch through modules of the backbone that their prompts change: LoRA, adapters, trained biases or copies.

A method hands over, by the path of a module, how its rows go through it (`SoftPrompt.modules`). While an attached
prompt names a module in `Method.changes`, a function stands in for that module's forward:

- a batch with one prompt goes its way as a whole;
- a batch with several is sorted by prompt. Each prompt's rows go their way, and the outputs are joined in the order of
  the batch. The frozen module runs once for all rows, when the first of the prompts asks for its output;
- rows without such a way, and calls without a prompt, get the output of the frozen module.

A module that all rows share (an embedding of positions ``(1, n)``) runs once per prompt, and makes an output for every
row.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from softprompts.errors import SoftPromptError
from softprompts.injection.rows import ROW_OF_POSITION, RowGroups
from softprompts.injection.state import State
from softprompts.soft_prompt import Frozen, PartWay

_SLOT = "_softprompt_changed"


@dataclass
class _Slot:
    """What a module remembers whose forward is replaced."""

    state: State
    path: str
    by_row: bool  # whether it sees the rows of the batch one by one
    before: Callable[..., Tensor] | None  # the forward that stood in for the module's own already


def install(state: State) -> None:
    """Replaces the forward of the modules that some prompt of the model changes, and of no others."""
    changed = {path for prompt in state.prompts.values() for path in prompt.method.changes}
    for part, module in state.backbone.parts:
        if part.path not in changed:
            _remove(module)
        elif _SLOT not in module.__dict__:
            module.__dict__[_SLOT] = _Slot(state, part.path, part.by_row, module.__dict__.get("forward"))
            module.__dict__["forward"] = types.MethodType(_forward, module)


def uninstall(state: State) -> None:
    """Undoes `install`."""
    for _, module in state.backbone.parts:
        _remove(module)


def _remove(module: nn.Module) -> None:
    slot: _Slot | None = module.__dict__.pop(_SLOT, None)
    if slot is not None and slot.before is None:
        del module.__dict__["forward"]
    elif slot is not None:
        module.__dict__["forward"] = slot.before


def _forward(self: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    """Stands in for the module's forward."""
    slot: _Slot = self.__dict__[_SLOT]
    run = functools.partial(type(self).forward, self) if slot.before is None else slot.before
    row_of_position = self.__dict__.pop(ROW_OF_POSITION, None)
    pass_ = slot.state.current
    # Embeddings are looked up once before a pass is prepared, for the methods that look at them: frozen ones.
    if pass_ is None or not pass_.ready:
        return run(*args, **kwargs)
    ways = {name: way for name, soft in pass_.soft.items() if (way := (soft.modules or {}).get(slot.path))}
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
    if row_of_position is not None:  # positions of all rows take the place of rows
        row, rows = row_of_position
        owners, (states,) = pass_.owners(rows), args
        groups = RowGroups([owners[number] for number in row.tolist()], states.device)
        return _by_group(self, run, ways, groups, (states[0],), kwargs)[None]
    given = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
    groups = pass_.groups(pass_.rows if len(given) == 1 else len(given), given.device)
    return _by_group(self, run, ways, groups, args, kwargs)


def _by_group(
    module: nn.Module,
    run: Callable[..., Tensor],
    ways: Mapping[str | None, PartWay],
    groups: RowGroups,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Tensor:
    """Each group's rows their own way."""
    rows, keywords = sum(groups.sizes), list(kwargs)

    def has_rows(value: Any) -> bool:
        # The axis of a tensor with one axis counts tokens, also where it is as long as the batch.
        return isinstance(value, Tensor) and value.ndim > 1 and len(value) == rows

    def call(function: Callable[..., Tensor], values: Sequence[Any]) -> Tensor:
        return function(*values[: len(args)], **dict(zip(keywords, values[len(args) :], strict=True)))

    # Sorted once, so that the frozen module sees the very tensors of which the groups get their pieces.
    inputs = [groups.sort(value) if has_rows(value) else value for value in (*args, *kwargs.values())]

    def split(value: Any) -> Sequence[Any]:
        return value.split(groups.sizes) if has_rows(value) else [value] * len(groups.sizes)

    @functools.cache
    def frozen_outputs() -> Sequence[Tensor]:
        return split(call(run, inputs))

    outputs = []
    for number, (name, piece) in enumerate(zip(groups.names, zip(*map(split, inputs), strict=True), strict=True)):
        if name not in ways:
            outputs.append(frozen_outputs()[number])
            continue

        def run_piece(*given: Any, _number: int = number, _piece: Any = piece, **named: Any) -> Tensor:
            values = (*given, *named.values())
            unchanged = len(values) == len(_piece) and all(a is b for a, b in zip(values, _piece, strict=True))
            return frozen_outputs()[_number] if unchanged else run(*given, **named)

        outputs.append(call(functools.partial(ways[name], Frozen(module, run_piece)), piece))
    return groups.join(outputs)
