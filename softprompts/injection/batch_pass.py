"""One pass of a batch: which row uses which prompt, the soft prompts of all rows as one, and where their tokens go."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softprompts.attention.prefix import Prefix
from softprompts.attention.read_column import Reading
from softprompts.errors import SoftPromptError
from softprompts.injection.layout import Layout, Tokens
from softprompts.injection.rows import in_batch_order, repeat_rows
from softprompts.methods.contract import Rows
from softprompts.soft_prompt import SoftPrompt

if TYPE_CHECKING:
    from softprompts.injection.prompt import Prompt
    from softprompts.injection.rows import Split


# By prompt, the context in which its modules draw random numbers.
RandomContexts = Mapping[str, contextlib.AbstractContextManager[Any]]


class Pass:
    """The prompts of one batch, computed once and handed to whoever asks: embeddings, attention sites, heads, the loss.

    Args:
        prompts: all prompts of the model.
        names: one name per row, or one for all rows; None is a row without a prompt.
        context_mask: ``(B, n)``, tokens that prompts may depend on; None for all real ones.
        randomness: see `drawing`.
    """

    def __init__(
        self,
        prompts: Mapping[str, Prompt],
        names: str | Sequence[str | None] | None,
        context_mask: Tensor | None = None,
        randomness: RandomContexts | None = None,
    ):
        self.prompts = prompts
        self.randomness = randomness
        self.given = names if names is None or isinstance(names, str) else list(names)
        self.context_mask = context_mask
        self.rows = 0
        self.groups: dict[str | None, Tensor | None] = {}
        self.soft: dict[str | None, SoftPrompt] = {}
        self.keys: tuple[Tensor, ...] = ()
        self.values: tuple[Tensor, ...] = ()
        self.prefix_rows: Tensor | None = None
        self.gates: tuple[Tensor, ...] | None = None
        self.where: dict[int, int] = {}
        self.prefix_masks: list[Tensor] | None = None
        self.selectivity: float | Tensor | None = None
        self.visible: Tensor | None = None  # (rows, n), of the first step
        self.view, self.decoder_view = View(), View()
        self.watched: set[int] = set()  # sites at which gates depend on what the site is called with
        self.tokens: Tokens | None = None
        self.update: Tensor | None = None
        self.shift: int | Tensor = 0  # by how many positions the prefix moves a row's tokens, one for all or (R,)
        self.seen: Any = 0  # columns in the cache of an encoder-decoder's decoder
        self.layout: Layout | None = None
        self.logits_only = False  # whether the caller gets to see logits and no hidden states
        self.reading: Reading | None = None
        self.ready = False
        self.splits: dict[int, Split] = {}
        self._prefixes: dict[tuple[int, int], Prefix] = {}
        self._widened: dict[Any, Any] = {}
        self._masks: dict[tuple[int, int], Tensor] = {}
        self._fresh: dict[int, Tensor] = {}
        self._kept: dict[int, Tensor] = {}

    @property
    def names(self) -> list[str | None]:
        """The different prompts in use."""
        if isinstance(self.given, list):
            return list(dict.fromkeys(self.given))
        return [self.given]

    @property
    def needs_input(self) -> bool:
        """Whether any prompt looks at the input."""
        return any(name is not None and self.prompts[name].method.per_row for name in self.names)

    @property
    def has_input_part(self) -> bool:
        """Whether any prompt changes the input embeddings."""
        return any(name is not None and self.prompts[name].config.uses_tokens for name in self.names)

    @property
    def changes_modules(self) -> bool:
        """Whether any prompt changes modules of the backbone."""
        return any(name is not None and self.prompts[name].method.changes for name in self.names)

    def owners(self, rows: int) -> list[str | None]:
        """The prompt of each of ``rows`` rows; see `groups_of`."""
        given = self.given if isinstance(self.given, list) else [self.given]
        if rows % len(given):
            raise SoftPromptError(f"prompt_names has {len(given)} names for a batch of {rows} rows")
        factor = rows // len(given)
        return [name for name in given for _ in range(factor)]

    def groups_of(self, rows: int, device: torch.device) -> dict[str | None, Tensor | None]:
        """Which of ``rows`` rows belong to which prompt; None for all of them.

        More rows than names happen where a model repeats its rows (beams, answer choices): each name then stands for
        the same number of neighbouring rows.
        """
        if not isinstance(self.given, list):
            return {self.given: None}
        if len(self.names) == 1:
            return {self.names[0]: None}
        members: dict[str | None, list[int]] = {}
        for row, name in enumerate(self.owners(rows)):
            members.setdefault(name, []).append(row)
        return {name: torch.tensor(index, device=device) for name, index in members.items()}

    def prepare(self, rows: int, device: torch.device, embeddings: Tensor | None, mask: Tensor | None) -> None:
        """Runs every method in use once and joins what they hand over.

        Args:
            rows: number of rows the model runs.
            device: where the row indices live.
            embeddings: ``(rows, n, d)`` input embeddings; needed only by methods that look at them.
            mask: ``(rows, n)`` bool, what they may look at.
        """
        if self.ready:
            return
        self.rows = rows
        self.groups = self.groups_of(rows, device)
        for name, index in self.groups.items():
            if name is None:
                self.soft[name] = SoftPrompt()
                continue
            method = self.prompts[name].method
            seen = None
            if method.per_row:
                if embeddings is None or mask is None:
                    raise SoftPromptError(
                        f"prompt '{name}' ({method.config.method}) is computed from the input: pass input_ids, "
                        "or generate with model.generate"
                    )
                seen = (
                    Rows(embeddings.detach(), mask) if index is None else Rows(embeddings[index].detach(), mask[index])
                )
            with self.drawing(name, method):
                self.soft[name] = method(seen)
        self._join_prefixes()
        self._join_tokens()
        self._join_updates()
        self.ready = True

    def drawing(self, name: str, module: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """The context in which a part of a prompt runs: where the prompt has random numbers of its own, they are drawn.

        A module in evaluation mode draws none.
        """
        if self.randomness is None or not module.training:
            return contextlib.nullcontext()
        return self.randomness.get(name) or contextlib.nullcontext()

    @property
    def penalties(self) -> dict[str, Tensor]:
        """The auxiliary losses of the prompts in use that have one."""
        found = {}
        for name, soft in self.soft.items():
            if name is not None and soft.penalty is not None:
                found[name] = soft.penalty
        return found

    # --- joining the groups ---------------------------------------------------------------------------------------

    def _members(self, name: str | None) -> int:
        index = self.groups[name]
        return self.rows if index is None else len(index)

    def _to_rows(self, parts: list[Tensor], dim: int) -> Tensor:
        return in_batch_order(parts, self.groups, dim)

    def _per_group(self, values: list[Any]) -> Any:
        """One value where all groups have the same, otherwise ``(R,)``, each row with that of its group."""
        if len(set(values)) == 1:
            return values[0]
        device = next(index.device for index in self.groups.values() if index is not None)
        counts = [self._members(name) for name in self.soft]
        return self._to_rows([torch.tensor([v] * n, device=device) for v, n in zip(values, counts, strict=True)], 0)

    def _join_prefixes(self) -> None:
        with_prefix = {name: soft for name, soft in self.soft.items() if soft.keys is not None}
        if not with_prefix:
            return
        shifts = []
        for name, soft in self.soft.items():
            shifted = soft.keys is not None and self.prompts[str(name)].config.positions == "shifted"
            shifts.append(soft.keys.shape[2] if shifted and soft.keys is not None else 0)
        self.shift = self._per_group(shifts)
        sites = sorted({site for name in with_prefix for site in self.prompts[str(name)].sites})
        self.where = {site: place for place, site in enumerate(sites)}
        reading = [str(name) for name, soft in with_prefix.items() if soft.gate_of is not None]
        self.watched = {site for name in reading for site in self.prompts[name].sites}
        first = next(iter(with_prefix.values()))
        assert first.keys is not None
        assert first.values is not None
        if len(self.soft) == 1:
            self.keys, self.values = first.keys.unbind(0), first.values.unbind(0)
            self.gates = None if first.gates is None else first.gates.unbind(0)
            self.selectivity = first.selectivity
            return

        length = max(soft.keys.shape[2] for soft in with_prefix.values() if soft.keys is not None)
        width, device = first.keys.shape[3], first.keys.device
        keys, values, places, gates, masks, alphas = [], [], [], [], [], []
        gated = any(soft.gates is not None for soft in with_prefix.values())
        stacked = 0
        for name, soft in self.soft.items():
            count = self._members(name)
            mask = torch.zeros(len(sites), count, length, dtype=torch.bool, device=device)
            gate = first.keys.new_ones(len(sites), count, length) if gated else None
            if soft.keys is None or soft.values is None:
                empty = first.keys.new_zeros(len(sites), 1, length, width)
                keys.append(empty)
                values.append(empty)
            else:
                own = [self.where[site] for site in self.prompts[str(name)].sites]
                if soft.keys.shape[3] != width:
                    raise SoftPromptError("the prompts of one batch differ in the width of their prefixes")
                keys.append(_place(soft.keys, own, len(sites), length))
                values.append(_place(soft.values, own, len(sites), length))
                mask[own, :, : soft.keys.shape[2]] = True
                if soft.gates is not None:
                    gate = _place(soft.gates.expand(-1, count, -1).unsqueeze(-1), own, len(sites), length).squeeze(-1)
            masks.append(mask)
            if gate is not None:
                gates.append(gate)
            alpha = float("nan") if soft.selectivity is None else soft.selectivity
            alphas.append(torch.full((count,), alpha, device=device))
            # Rows that share a prefix share its place among all; what is copied is copied site by site.
            own_rows = keys[-1].shape[1]
            own_places = torch.arange(count, device=device) if own_rows > 1 else torch.zeros_like(alphas[-1]).long()
            places.append(stacked + own_places)
            stacked += own_rows
        self.keys, self.values = torch.cat(keys, 1).unbind(0), torch.cat(values, 1).unbind(0)
        self.prefix_rows = self._to_rows(places, 0)
        self.gates = self._to_rows(gates, 1).unbind(0) if gated else None
        lengths = {0 if soft.keys is None else soft.keys.shape[2] for soft in self.soft.values()}
        covered = all(set(self.prompts[name].sites) == set(sites) if name else False for name in self.soft)
        if len(lengths) > 1 or not covered:
            mask = self._to_rows(masks, 1)
            # One object for all sites where they agree: attention widens each mask it meets once.
            self.prefix_masks = list(mask.unbind(0)) if not covered else [mask[0]] * len(sites)
        if any(soft.selectivity is not None for soft in self.soft.values()):
            self.selectivity = self._to_rows(alphas, 0)

    def _join_tokens(self) -> None:
        lengths = {n: 0 if soft.tokens is None else soft.tokens.shape[1] for n, soft in self.soft.items()}
        longest = max(lengths.values())
        if not longest:
            return
        front = self._per_group(
            [bool(lengths[n]) and self.prompts[str(n)].config.placement == "front" for n in self.soft]
        )
        if len(self.soft) == 1:
            tokens = next(iter(self.soft.values())).tokens
            assert tokens is not None
            self.tokens = Tokens(tokens, None, longest, front)
            return
        like = next(soft.tokens for soft in self.soft.values() if soft.tokens is not None)
        parts, counts = [], []
        for name, soft in self.soft.items():
            count, own = self._members(name), lengths[name]
            filled = like.new_zeros(count, longest, like.shape[2])
            if soft.tokens is not None:
                pad = like.new_zeros(count, longest - own, like.shape[2])
                filled = torch.cat([soft.tokens.expand(count, -1, -1), pad], 1)
            parts.append(filled)
            counts.append(torch.full((count,), own, device=like.device))
        per_row = None if len(set(lengths.values())) == 1 else self._to_rows(counts, 0)
        self.tokens = Tokens(self._to_rows(parts, 0), per_row, longest, front)

    def _join_updates(self) -> None:
        updates = {name: soft.update for name, soft in self.soft.items() if soft.update is not None}
        if not updates:
            return
        if len(self.soft) == 1:
            self.update = next(iter(updates.values()))
            return
        like = next(iter(updates.values()))
        longest = max(update.shape[1] for update in updates.values())
        parts = []
        for name in self.soft:
            count = self._members(name)
            if name in updates:
                update = updates[name].expand(count, -1, -1)
                pad = like.new_zeros(count, longest - update.shape[1], like.shape[2])
                parts.append(torch.cat([update, pad], 1))
            else:
                parts.append(like.new_zeros(count, longest, like.shape[2]))
        self.update = self._to_rows(parts, 0)

    # --- what the model asks for ----------------------------------------------------------------------------------

    def prefix(self, site: int, rows: int) -> Prefix | None:
        """The prefix of an attention site for ``rows`` rows (a multiple of the batch under beam search)."""
        if not self.ready:
            self.prepare(rows, torch.device("cpu"), None, None)
        place = self.where.get(site)
        if place is None:
            return None
        if (site, rows) not in self._prefixes:
            mask = None if self.prefix_masks is None else self._repeated(self.prefix_masks[place], rows)
            alpha, keys, values = self.selectivity, self.keys[place], self.values[place]
            shared = self.prefix_rows is not None
            self._prefixes[site, rows] = Prefix(
                keys if shared else repeat_rows(keys, rows),
                values if shared else repeat_rows(values, rows),
                mask,
                repeat_rows(alpha, rows) if isinstance(alpha, Tensor) else alpha,
                self._widened,
                None if self.prefix_rows is None else repeat_rows(self.prefix_rows, rows),
                None if self.gates is None else repeat_rows(self.gates[place], rows),
                repeat_rows(self.shift, rows) if isinstance(self.shift, Tensor) else self.shift,
            )
        prefix = self._prefixes[site, rows]
        if self.seen is not prefix.seen:
            prefix = self._prefixes[site, rows] = dataclasses.replace(prefix, seen=self.seen)
        fresh = self._fresh.pop(site, None)
        if fresh is None:
            return prefix
        return dataclasses.replace(prefix, gates=fresh if prefix.gates is None else prefix.gates * fresh)

    def look(self, site: int, states: Tensor, view: View) -> None:
        """Computes the gates that depend on what a site is called with, for the `prefix` that it then asks for.

        Later steps of a generation keep the gates of its first, as its cache keeps the prefix's effect on the input.

        Args:
            site: which one.
            states: ``(M, n, d_site)``.
            view: which of their columns prompts may look at.
        """
        rows = states.shape[0]
        if not self.ready:
            self.prepare(rows, states.device, None, None)
        if site not in self.watched:
            return
        if view.later and site in self._kept:
            self._fresh[site] = repeat_rows(self._kept[site], rows)
            return
        mask = None if view.mask is None else repeat_rows(view.mask.to(states.device), rows)
        groups = self.groups if rows == self.rows else self.groups_of(rows, states.device)
        groups = {name: None if index is None else index.to(states.device) for name, index in groups.items()}
        length, parts = self.keys[0].shape[1], []
        for name, index in groups.items():
            gate_of, sites = self.soft[name].gate_of, [] if name is None else self.prompts[name].sites
            if gate_of is None or site not in sites:
                parts.append(torch.ones(rows if index is None else len(index), length, device=states.device))
                continue
            if index is None:
                gates = gate_of(sites.index(site), states, mask)
            else:
                gates = gate_of(sites.index(site), states[index], None if mask is None else mask[index])
            parts.append(F.pad(gates, (0, length - gates.shape[1]), value=1.0))
        self._fresh[site] = in_batch_order(parts, groups)
        # Not in the graph, which would live on with the pass.
        self._kept[site] = self._fresh[site].detach()

    def _repeated(self, mask: Tensor, rows: int) -> Tensor:
        if (id(mask), rows) not in self._masks:
            self._masks[id(mask), rows] = repeat_rows(mask, rows)
        return self._masks[id(mask), rows]


def _place(prefix: Tensor, own: list[int], sites: int, length: int) -> Tensor:
    """``(S, R|1, l, w)`` of a prompt's own sites into ``(sites, R|1, length, w)``, zeros elsewhere."""
    if prefix.shape[2] < length:
        pad = prefix.new_zeros(*prefix.shape[:2], length - prefix.shape[2], prefix.shape[3])
        prefix = torch.cat([prefix, pad], 2)
    if len(own) == sites:
        return prefix
    whole = prefix.new_zeros(sites, *prefix.shape[1:])
    return whole.index_copy(0, torch.tensor(own, device=prefix.device), prefix)


@dataclass(frozen=True)
class View:
    """What prompts may look at of the states that attention sites are called with.

    Attributes:
        mask: ``(M, n)`` bool, the columns; None for all.
        later: whether a cache holds an earlier step of the same generation.
    """

    mask: Tensor | None = None
    later: bool = False


def context_of(labels: Tensor) -> Tensor:
    """Tokens of a causal model's training batch that a prompt may look at: those that are not targets.

    A row whose tokens all are targets shows its first token only, lest the prompt should see what is to be predicted.
    """
    context = labels == -100
    context[:, 0] |= ~context.any(1)
    return context
