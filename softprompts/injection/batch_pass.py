"""One pass of a batch: which row has which prompt, and what all prompts together hand to the model.

Every method in use runs once a pass (`Pass.prepare`). What the prompts of the rows hand over is joined then, each row
with its own: prefixes padded to one length, tokens, and updates of the input embeddings.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softprompts.attention.prefix import Prefix
from softprompts.errors import SoftPromptError
from softprompts.injection.layout import Layout, Tokens
from softprompts.injection.prompt import Prompt, require
from softprompts.injection.rows import RowGroups, repeat_rows
from softprompts.methods.contract import Rows
from softprompts.soft_prompt import SoftPrompt

# By prompt, the context in which its modules draw random numbers, where a prompt has a sequence of its own.
RandomContexts = Mapping[str, contextlib.AbstractContextManager[Any]]


class Pass:
    """The prompts of one batch, computed once and given to embeddings, attention sites, heads and the loss.

    Args:
        prompts: all prompts of the model.
        names: one name per row, or one for all rows; None is a row without a prompt.
        context_mask: ``(B, n)``, tokens that prompts may depend on; None for all real ones.
        random_contexts: see `drawing`.

    Attributes:
        prompts: those that rows have.

    Raises:
        SoftPromptError: unknown name.
    """

    def __init__(
        self,
        prompts: Mapping[str, Prompt],
        names: str | Sequence[str | None],
        context_mask: Tensor | None = None,
        random_contexts: RandomContexts | None = None,
    ):
        self.given = names if isinstance(names, str) else list(names)
        distinct = [names] if isinstance(names, str) else dict.fromkeys(names)
        self.prompts = {name: require(prompts, name) for name in distinct if name is not None}
        self.needs_input = any(prompt.method.per_row for prompt in self.prompts.values())
        self.reads_states = any(prompt.method.reads_states for prompt in self.prompts.values())
        self.has_tokens = any(prompt.config.uses_tokens for prompt in self.prompts.values())
        self.looks = self.needs_input or self.reads_states  # whether any prompt depends on the input
        self.of_whole_rows = self.looks or self.has_tokens  # whether a row of several sequences is more than these
        self.changes_modules = any(prompt.method.changes for prompt in self.prompts.values())
        self.context_mask, self.random_contexts = context_mask, random_contexts or {}
        # Filled by `prepare`.
        self.ready = False
        self.rows = 0  # that the prompts were computed for
        self.soft: dict[str | None, SoftPrompt] = {}  # what the prompt of each group hands over
        self.tokens: Tokens | None = None
        self.update: Tensor | None = None  # (R|1, m, d), added to the input embeddings
        self.shift: int | Tensor = 0  # by how many positions prefixes move a row's tokens, one for all or (R,)
        self.gated_sites: set[int] = set()  # where gates depend on the states that the site is called with
        # Of the step under way, set by the hooks.
        self.layout: Layout | None = None  # None: no column was moved
        self.visible: Tensor | None = None  # (R, n), what prompts may see of the first step's input
        self.later = False  # whether a cache holds an earlier step of the same generation
        # (M, n) bool, what gates may depend on of the states that attention sites are called with; None: all.
        self.view: Tensor | None = None
        self.decoder_view: Tensor | None = None
        self.seen: Any = 0  # columns in the cache of an encoder-decoder's decoder
        self.mask_around: Tensor | None = None  # what the model around the base model sees as attention mask
        self.choices = 0  # that each row of the input has, one below the other; 0: rows have no such axis
        self.columns = 0  # of a causal model's steps so far, prompt tokens included
        self.padded_behind = False  # whether rows of a causal model got their padding behind them
        self.without_cache = False  # whether the call is not to make a cache of its own
        self.logits_only = False  # whether the caller gets to see logits and no hidden states
        self.penalties_taken = False  # whether somebody adds the penalties to a loss
        self.read_column: Any = None  # the only column that is read of the last layer; None: all are
        self._groups: dict[int, RowGroups] = {}
        self._prefixes: dict[tuple[int, int], Prefix] = {}  # by site and number of rows
        self._repeated: dict[tuple[int, int], Tensor] = {}  # masks, by id and number of rows
        self._gates: dict[int, Tensor] = {}  # by site: those that depend on the states of the call under way
        self._gates_of_first_step: dict[int, Tensor] = {}

    def fork(self) -> Pass:
        """The same prompts for another call that goes on from here, which may run beside this one."""
        fork = copy.copy(self)
        for name, value in self.__dict__.items():
            if isinstance(value, dict):
                fork.__dict__[name] = dict(value)
        return fork

    def __deepcopy__(self, memo: dict[int, Any]) -> Pass:
        # Of a cache that is copied: its copy goes on under the same prompts.
        return self.fork()

    # --- what is in it ------------------------------------------------------------------------------------------

    @property
    def penalties(self) -> dict[str, Tensor]:
        """The auxiliary losses of the prompts in use that have one."""
        return {str(name): soft.penalty for name, soft in self.soft.items() if soft.penalty is not None}

    def taken_penalty(self, share: Any = 1.0) -> Any:
        """The sum of the penalties times a share, for a loss that takes them up."""
        self.penalties_taken = True
        return sum(self.penalties.values()) * share

    def takes_chunks(self, mask: Tensor | None) -> bool:
        """Whether the input may come in pieces, of which the first has this ``mask``; what came already does not count.

        Not where gates are made from the states of the whole input, and not where prompt tokens belong right in front
        of a first token that is in a later piece.
        """
        if self.reads_states:
            return False
        return not self.has_tokens or mask is None or bool(mask.any(1).all())

    def owners(self, rows: int) -> list[str | None]:
        """The prompt of each of ``rows`` rows.

        More rows than names happen where a model repeats its rows (beams, answer choices): each name then stands for
        the same number of neighbouring rows.

        Raises:
            SoftPromptError: the numbers do not go together.
        """
        given = self.given if isinstance(self.given, list) else [self.given]
        if not given or rows % len(given):
            raise SoftPromptError(f"prompt_names has {len(given)} names for a batch of {rows} rows")
        return [name for name in given for _ in range(rows // len(given))]

    def groups(self, rows: int, device: torch.device) -> RowGroups:
        """``rows`` rows grouped by prompt; made once a pass."""
        if rows not in self._groups:
            self._groups[rows] = RowGroups(self.owners(rows), device)
        return self._groups[rows]

    def drawing(self, name: str, module: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """The context in which a part of a prompt runs and draws random numbers: the prompt's own sequence, if any.

        A ``module`` in evaluation mode draws none.
        """
        own = self.random_contexts.get(name) if module.training else None
        return own or contextlib.nullcontext()

    # --- computing and joining the prompts ----------------------------------------------------------------------

    def prepare(
        self, rows: int, device: torch.device, embeddings: Tensor | None = None, mask: Tensor | None = None
    ) -> None:
        """Runs every method in use once and joins what they hand over; does nothing the second time.

        Methods that look at the input need its ``embeddings`` ``(rows, n, d)``, and in ``mask`` ``(rows, n)`` what they
        may look at. Row indices live on ``device``.
        """
        if self.ready:
            return
        self.rows = rows
        groups = self.groups(rows, device)
        inputs: list[Rows | None] = [None] * len(groups.names)
        if embeddings is not None and mask is not None:
            pieces = zip(groups.split(embeddings), groups.split(mask), strict=True)
            inputs = [Rows(piece.detach(), visible) for piece, visible in pieces]
        for name, size, seen in zip(groups.names, groups.sizes, inputs, strict=True):
            if name is None:
                self.soft[name] = SoftPrompt()
                continue
            method = self.prompts[name].method
            if method.per_row and seen is None:
                raise SoftPromptError(
                    f"prompt '{name}' ({method.config.method}) is computed from the input: pass input_ids, "
                    "or generate with model.generate"
                )
            with self.drawing(name, method):
                self.soft[name] = self.prompts[name].run(seen, size)
        self._join_prefixes(groups)
        self._join_tokens(groups)
        self.update = _join_padded([soft.update for soft in self.soft.values()], groups)
        self.ready = True

    def _join_prefixes(self, groups: RowGroups) -> None:
        with_prefix = {str(name): soft for name, soft in self.soft.items() if soft.keys is not None}
        if not with_prefix:
            return
        first = next(iter(with_prefix.values()))
        assert first.keys is not None and first.values is not None
        device, width = first.keys.device, first.keys.shape[3]
        sites = sorted({site for name in with_prefix for site in self.prompts[name].sites})
        for owner, soft in with_prefix.items():
            self.gated_sites |= set() if soft.gate_of is None else set(self.prompts[owner].sites)
        softs = list(self.soft.values())
        lengths = [0 if soft.keys is None else soft.keys.shape[2] for soft in softs]
        shifted = [name in with_prefix and self.prompts[str(name)].config.positions == "shifted" for name in self.soft]
        self.shift = groups.per_row([length * moves for length, moves in zip(lengths, shifted, strict=True)], device)
        keys, values, gates = first.keys, first.values, first.gates
        alpha: float | Tensor | None = first.selectivity
        prefix_of_row: Tensor | None = None
        masks: Sequence[Tensor] | None = None
        if len(self.soft) > 1:
            if any(soft.keys is not None and soft.keys.shape[3] != width for soft in with_prefix.values()):
                raise SoftPromptError("the prompts of one batch differ in the width of their prefixes")
            everywhere = all(name is not None and set(self.prompts[name].sites) == set(sites) for name in self.soft)
            places = {name: [sites.index(site) for site in self.prompts[name].sites] for name in with_prefix}
            places_of_groups = [places.get(str(name), []) for name in self.soft]
            whole = (len(sites), max(lengths))
            empty = first.keys.new_zeros(whole[0], 1, whole[1], width)
            keys_of_groups = _spread([soft.keys for soft in softs], places_of_groups, empty)
            keys = torch.cat(keys_of_groups, 1)
            values = torch.cat(_spread([soft.values for soft in softs], places_of_groups, empty), 1)
            # Rows of a prompt that is the same for all of them share its prefix, which is copied site by site only.
            counts = [part.shape[1] for part in keys_of_groups]
            prefix_of_row = groups.join(torch.arange(keys.shape[1], device=device).split(counts))
            if any(soft.gates is not None for soft in softs):
                gates_of_groups = [None if soft.gates is None else soft.gates[..., None] for soft in softs]
                ones = torch.ones_like(empty[..., :1])
                gates = groups.join(_spread(gates_of_groups, places_of_groups, ones, 1), 1)[..., 0]
            if len(set(lengths)) > 1 or not everywhere:
                owned = torch.zeros(len(lengths), *whole, dtype=torch.bool, device=device)
                for owned_by_group, in_sites, length in zip(owned, places_of_groups, lengths, strict=True):
                    owned_by_group[in_sites, :length] = True
                mask = groups.join([part[:, None] for part in owned], 1)
                # One object for all sites where they agree: attention widens each mask it meets once.
                masks = [mask[0]] * len(sites) if everywhere else mask.unbind(0)
            if any(soft.selectivity is not None for soft in softs):
                alphas = [float("nan") if soft.selectivity is None else soft.selectivity for soft in softs]
                alpha = groups.join([torch.full((1,), value, device=device) for value in alphas])
        widened: dict[Any, Any] = {}
        for place, site in enumerate(sites):
            gate, mask_ = None if gates is None else gates[place], None if masks is None else masks[place]
            self._prefixes[site, self.rows] = Prefix(
                keys[place], values[place], mask_, alpha, widened, prefix_of_row, gate, self.shift
            )

    def _join_tokens(self, groups: RowGroups) -> None:
        lengths = [0 if soft.tokens is None else soft.tokens.shape[1] for soft in self.soft.values()]
        joined = _join_padded([soft.tokens for soft in self.soft.values()], groups)
        if joined is None or not max(lengths):
            return
        fronts = [
            bool(length) and self.prompts[str(name)].config.placement == "front"
            for name, length in zip(self.soft, lengths, strict=True)
        ]
        counts = groups.per_row(lengths, joined.device)
        front = groups.per_row(fronts, joined.device)
        self.tokens = Tokens(joined, counts if isinstance(counts, Tensor) else None, max(lengths), front)

    # --- what attention sites ask for ---------------------------------------------------------------------------

    def prefix(self, site: int, rows: int) -> Prefix | None:
        """The prefix of an attention site for ``rows`` rows (a multiple of the batch under beam search)."""
        if not self.ready:
            self.prepare(rows, torch.device("cpu"))
        if (site, self.rows) not in self._prefixes:
            return None
        if (site, rows) not in self._prefixes:
            self._prefixes[site, rows] = self._repeat(self._prefixes[site, self.rows], rows)
        prefix = self._prefixes[site, rows]
        if self.seen is not prefix.seen:
            prefix = self._prefixes[site, rows] = dataclasses.replace(prefix, seen=self.seen)
        gates = self._gates.pop(site, None)
        if gates is None:
            return prefix
        return dataclasses.replace(prefix, gates=gates if prefix.gates is None else prefix.gates * gates)

    def _repeat(self, prefix: Prefix, rows: int) -> Prefix:
        changes: dict[str, Any] = {
            name: repeat_rows(getattr(prefix, name), rows)
            for name in ("selectivity", "rows", "gates", "ahead")
            if isinstance(getattr(prefix, name), Tensor)
        }
        if prefix.rows is None:
            changes |= {"keys": repeat_rows(prefix.keys, rows), "values": repeat_rows(prefix.values, rows)}
        if prefix.mask is not None:  # sites that share a mask go on sharing it
            key = id(prefix.mask), rows
            changes["mask"] = self._repeated.setdefault(key, repeat_rows(prefix.mask, rows))
        return dataclasses.replace(prefix, **changes)

    def compute_gates(self, site: int, states: Tensor, view: Tensor | None) -> None:
        """Computes the gates that depend on a site's states ``(M, n, d_site)``, for the `prefix` it asks for next.

        Later steps of a generation keep the gates of its first, as its cache keeps the prefix's effect on the input.
        """
        rows = states.shape[0]
        if not self.ready:
            self.prepare(rows, states.device)
        if site not in self.gated_sites:
            return
        if self.later and site in self._gates_of_first_step:
            self._gates[site] = repeat_rows(self._gates_of_first_step[site], rows)
            return
        groups, length = self.groups(rows, states.device), self._prefixes[site, self.rows].keys.shape[1]
        masks: Sequence[Tensor | None] = [None] * len(groups.names)
        if view is not None:
            masks = groups.split(repeat_rows(view.to(states.device), rows))
        gates_of_groups = []
        for name, piece, mask in zip(groups.names, groups.split(states), masks, strict=True):
            gate_of, sites = self.soft[name].gate_of, [] if name is None else self.prompts[name].sites
            if gate_of is None or site not in sites:
                gates_of_groups.append(torch.ones(len(piece), length, device=states.device))
            else:
                gates = gate_of(sites.index(site), piece, mask)
                gates_of_groups.append(F.pad(gates, (0, length - gates.shape[1]), value=1.0))
        self._gates[site] = groups.join(gates_of_groups)
        self._gates_of_first_step[site] = self._gates[site].detach()  # outside of the graph, which would live on


def _spread(
    parts: Sequence[Tensor | None], places: Sequence[list[int]], empty: Tensor, fill: float = 0
) -> list[Tensor]:
    """Parts ``(S', R|1, l', w)`` at their places among all sites, filled up to ``(S, R|1, l, w)``; None: ``empty``."""
    spread = []
    for part, own_places in zip(parts, places, strict=True):
        if part is None:
            spread.append(empty)
            continue
        part = F.pad(part, (0, 0, 0, empty.shape[2] - part.shape[2]), value=fill)
        if len(own_places) < len(empty):
            index = torch.tensor(own_places, device=part.device)
            part = part.new_full((len(empty), *part.shape[1:]), fill).index_copy(0, index, part)
        spread.append(part)
    return spread


def _join_padded(parts: Sequence[Tensor | None], groups: RowGroups) -> Tensor | None:
    """Tensors ``(R|1, k, d)`` of groups as one, padded with zeros to the greatest ``k``; None where all are None."""
    present = [part for part in parts if part is not None]
    if not present or len(parts) == 1:
        return present[0] if present else None
    longest = max(part.shape[1] for part in present)
    empty = present[0].new_zeros(1, longest, present[0].shape[2])
    return groups.join([empty if part is None else F.pad(part, (0, 0, 0, longest - part.shape[1])) for part in parts])


def context_of(labels: Tensor) -> Tensor:
    """Tokens of a causal model's training batch that a prompt may look at: those that are not targets.

    A row whose tokens all are targets shows its first token only, lest the prompt should see what is to be predicted.
    """
    context = labels == -100
    context[:, 0] |= ~context.any(1)
    return context
