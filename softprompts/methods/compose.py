"""Composition: several methods in one prompt.

    tokens    [t_1 ; t_2 ; ...] in the order of the parts        update    sum of the parts' updates
    prefix    of one part; gates and selectivity of the others   loss      plus the sum of the parts' penalties

The prefix is that of a part that is nothing but a prefix (prefix-tuning), else that of the first part with one. All
other parts with a prefix do to it what they do to their own, which is not made: multi-mask and selective-prefix
together are one prefix, masked by the router and by its scores.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, SkipValidation
from torch import Tensor, nn

from softprompts.errors import SoftPromptError, nearest
from softprompts.methods.about import View, Vital
from softprompts.methods.contract import Answers, Component, Method, MethodConfig, Rows, Shape
from softprompts.methods.imports import require_imported
from softprompts.methods.registry import config_of, listed, methods
from softprompts.soft_prompt import Part, SoftPrompt
from softprompts.storage.names import JOINT
from softprompts.validation import settings


def compose(*parts: MethodConfig) -> ComposedConfig:
    """One prompt made of several methods, trained, saved and folded as one.

    Args:
        *parts: their configs. Those that work on one prefix need the same ``num_virtual_tokens`` and ``sites``.

    Returns:
        A config; its ``method`` is the parts' names with "+" between them, which `make_config` understands too.

    Raises:
        SoftPromptError: the parts do not go together.
    """
    return ComposedConfig(parts=parts)


def _configs(parts: Any) -> Any:
    """The configs of some parts, those of a composition in place of the composition."""
    if not isinstance(parts, list | tuple):
        return parts  # to be refused
    configs: list[MethodConfig] = []
    for part in parts:
        config = part
        if isinstance(part, Mapping):
            if not isinstance(part.get("method"), str):
                raise SoftPromptError("composed: a part without the name of its method")
            config = config_of(part["method"], {k: v for k, v in part.items() if k != "method"}, saved=True)
        if not isinstance(config, MethodConfig):
            raise SoftPromptError(f"compose takes configs of methods, not {part!r}")
        configs += config.parts if isinstance(config, ComposedConfig) else [config]
    return tuple(configs)


@settings
class ComposedConfig(MethodConfig):
    """The config that `compose` returns.

    Attributes:
        num_virtual_tokens: always 0; the parts have their own.
        sites: those of the parts' prefix.
        parts: the configs of the parts, or the dictionaries that they were saved as.
    """

    num_virtual_tokens: int = 0
    parts: Annotated[tuple[SkipValidation[MethodConfig], ...], BeforeValidator(_configs)] = ()

    method: ClassVar[str] = "composed"  # each has a name of its own, such as "superpos+multi-mask"

    def __post_init__(self) -> None:
        names = [part.method for part in self.parts]
        object.__setattr__(self, "method", JOINT.join(names) or "composed")
        self.require(self.num_virtual_tokens == 0, "num_virtual_tokens is a setting of its parts, not of the whole")
        self.require(len(names) > 1, "a composition needs two parts or more")
        for name in names:
            self.require(names.count(name) == 1, f"{name} is there twice")
        for flag in ("uses_tokens", "uses_prefix", "uses_parts"):
            object.__setattr__(self, flag, any(getattr(part, flag, False) for part in self.parts))
        teachers = {part.taught_by() for part in self.parts} - {None}
        self.require(len(teachers) < 2, "its parts learn from different teachers; name one")
        prefixes = [part.method for part in self.parts if part.uses_prefix and not part.modifies_prefix]
        both = " and ".join(prefixes)
        self.require(len(prefixes) < 2, f"{both} both are a prefix, and a prompt has one; leave one out")
        owner = self.prefix_owner
        for part in self.modifiers:
            assert owner is not None
            for name in ("num_virtual_tokens", "sites", "positions"):
                ours, theirs = getattr(part, name), getattr(owner, name)
                self.require(
                    ours == theirs,
                    f"{part.method} works on the prefix of {owner.method}: give both the same {name} "
                    f"({owner.method} has {theirs}, {part.method} {ours})",
                )
        sites = None if owner is None else owner.sites
        self.require(self.sites in (None, sites), "sites is a setting of its parts, not of the whole")
        object.__setattr__(self, "sites", sites)
        object.__setattr__(self, "positions", "kept" if owner is None else owner.positions)
        placements = {part.placement for part in self.parts if part.uses_tokens}
        self.require(
            len(placements) < 2, "its parts want their tokens in different places; give all the same placement"
        )
        object.__setattr__(self, "placement", next(iter(placements), self.placement))
        object.__setattr__(self, "head_learning_rate", self.parts[0].head_learning_rate)
        object.__setattr__(self, "revision", sum(part.revision for part in self.parts))

    @property
    def changes_scores(self) -> bool:
        """See `MethodConfig`."""
        return any(part.changes_scores for part in self.parts)

    @property
    def prefix_owner(self) -> MethodConfig | None:
        """The part whose prefix the prompt has: one that is nothing but a prefix, else the first with a prefix."""
        able = [part for part in self.parts if part.uses_prefix]
        return min(able, key=lambda part: part.modifies_prefix, default=None)

    @property
    def modifiers(self) -> tuple[MethodConfig, ...]:
        """The parts that change the prefix of another part."""
        return tuple(part for part in self.parts if part.uses_prefix and part is not self.prefix_owner)

    @classmethod
    def settable(cls) -> list[str]:
        """No setting of its own; those of its parts are called "multi-mask.num_masks"."""
        return []

    def setting(self, name: str) -> Any:
        """A setting of a part, by its name as `make_config` takes it."""
        first, dot, rest = name.partition(".")
        for part in self.parts:
            if part.method == first if dot else name in part.settable():
                return part.setting(rest if dot else name)
        return super().setting(name)

    @property
    def input_tokens(self) -> int:
        """Number of tokens by which all parts make an input longer."""
        return sum(part.input_tokens for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """The parts as plain JSON values, each with its method's name."""
        return {"parts": [{"method": part.method, **part.to_dict()} for part in self.parts]}

    def identity(self) -> dict[str, Any]:
        """The identities of the parts, each with its method's name."""
        return {"parts": [{"method": part.method, **part.identity()} for part in self.parts]}

    def files(self) -> tuple[str, ...]:
        """The files of all parts."""
        return tuple(file for part in self.parts for file in part.files())

    def taught_by(self) -> str | None:
        """The teacher of the part that has one."""
        return next((part.taught_by() for part in self.parts if part.taught_by() is not None), None)


class Composed(Method, config=ComposedConfig):
    """The modules of the parts, by the names of their methods."""

    def __init__(self, config: ComposedConfig, shape: Shape):
        super().__init__(config)
        modifiers = config.modifiers
        modules: dict[str, Method] = {}
        for part in config.parts:
            modules[part.method] = (part.build_modifier if part in modifiers else part.build)(shape)
            empty = part not in modifiers and next(modules[part.method].parameters(), None) is None
            config.require(not empty, f"{part.method} has nothing to add; leave it out")
        self.parts = nn.ModuleDict(modules)
        self.modifiers = [part.method for part in modifiers]
        self.per_row = any(part.per_row for part in modules.values())
        self.reads_states = any(part.reads_states for part in modules.values())
        self.changes = tuple(path for part in modules.values() for path in part.changes)
        self.compares = tuple(dict.fromkeys(kind for part in modules.values() for kind in part.compares))
        self.compares_states = any(part.compares_states for part in modules.values())

    def forward(self, rows: Rows | None = None) -> SoftPrompt:
        """The prompts of all parts merged, and their prefix changed by the modifiers."""
        prompt, parts = SoftPrompt(), dict(self._parts())
        for name, part in parts.items():
            if name not in self.modifiers:
                prompt = merge_prompts(prompt, part(rows if part.per_row else None), name)
        for name in self.modifiers:
            before = prompt.selectivity
            prompt = parts[name].modify(prompt, rows if parts[name].per_row else None)
            if before is not None and prompt.selectivity != before:
                raise SoftPromptError(f"{self.config.method}: only one part can bring selectivity, not {name} too")
        return prompt

    def _parts(self) -> list[tuple[str, Method]]:
        return [(name, part) for name, part in self.parts.items() if isinstance(part, Method)]

    def components(self) -> dict[str, Component]:
        """The components of the parts, named "part.component"."""
        return {f"{name}.{key}": value for name, part in self._parts() for key, value in part.components().items()}

    def compare(self, own: Answers, others: Mapping[str, Answers]) -> Tensor:
        """The sum of the parts' terms."""
        return torch.stack([part.compare(own, others) for _, part in self._parts() if part.compares]).sum(0)

    def views(self, rows: Rows | None = None) -> list[View]:
        """The views of all parts."""
        return [dataclasses.replace(view, part=name) for name, part in self._parts() for view in part.views(rows)]

    def vitals(self, rows: Rows | None = None) -> list[Vital]:
        """The vitals of all parts."""
        return [_vital_of(vital, name) for name, part in self._parts() for vital in part.vitals(rows)]

    def stored(self) -> ComposedConfig:
        """The parts as each is saved."""
        return ComposedConfig(parts=tuple(part.stored() for _, part in self._parts()))

    def merged(self, parts: Sequence[Part]) -> dict[str, dict[str, Tensor]]:
        """The new values of all parts, which change different modules."""
        return {path: values for _, part in self._parts() for path, values in part.merged(parts).items()}

    def cannot_merge(self) -> str | None:
        """The reason of the first part that cannot be merged."""
        return next((reason for _, part in self._parts() if (reason := part.cannot_merge()) is not None), None)

    def cannot_fold(self) -> str | None:
        """The reason of the first part that cannot be folded."""
        reasons = ((name, part.cannot_fold()) for name, part in self._parts())
        return next((f"of its part {name}, {reason}" for name, reason in reasons if reason is not None), None)


def _vital_of(vital: Vital, part: str) -> Vital:
    """A part's vital as one of the composition. What training measures of the whole prompt keeps its name."""
    what, _, component = vital.name.partition(".")
    if vital.value is not None:
        name = f"{part}.{vital.name}"
    else:
        name = f"{what}.{part}.{component}" if what in ("moved", "gradient") else vital.name
    return dataclasses.replace(vital, name=name, idle=f"{part}'s {vital.idle}" if vital.idle else "")


def _concatenated(one: Tensor, other: Tensor) -> Tensor:
    rows = max(len(one), len(other))
    return torch.cat([one.expand(rows, -1, -1), other.expand(rows, -1, -1)], 1)


def _summed(one: Tensor, other: Tensor) -> Tensor:
    length = max(one.shape[1], other.shape[1])
    one, other = (F.pad(update, (0, 0, 0, length - update.shape[1])) for update in (one, other))
    return one + other


_MERGED: dict[str, Callable[[Any, Any], Any]] = {"tokens": _concatenated, "update": _summed, "penalty": operator.add}


def merge_prompts(one: SoftPrompt, other: SoftPrompt, name: str) -> SoftPrompt:
    """One prompt with the fields of two, that of the parts before and that of the next part, the method ``name``.

    Raises:
        SoftPromptError: both have a field of which a prompt can have one.
    """
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(SoftPrompt):
        first, second = getattr(one, field.name), getattr(other, field.name)
        if first is None or second is None:
            fields[field.name] = second if first is None else first
        elif field.name in _MERGED:
            fields[field.name] = _MERGED[field.name](first, second)
        elif isinstance(first, Mapping):
            for key in first.keys() & second.keys():
                raise SoftPromptError(f"compose: {name} and a part before it both change {key}; leave one out")
            fields[field.name] = {**first, **second}
        else:
            raise SoftPromptError(f"compose: {name} and a part before it both bring {field.name}; leave one out")
    return SoftPrompt(**fields)


def restored_config(saved: Mapping[str, Any], where: str) -> MethodConfig:
    """The config of a saved prompt, whose settings that it lacks are as they were before they existed.

    Args:
        saved: what its config file says.
        where: the prompt; begins errors about files that have to be imported.

    Raises:
        SoftPromptError: see `make_config`; or a method is in a file that was not imported.
    """
    method, fields = saved["method"], saved["config"]
    require_imported(method, saved.get("code"), where)
    return make_config(method, **fields) if JOINT in method else config_of(method, fields, saved=True)


def make_config(method: str, **fields: Any) -> MethodConfig:
    """The config of a method by its name; of several with "+" between their names, see `compose`.

    Args:
        method: the name or names.
        **fields: settings. In a composition, "multi-mask.num_masks" is one of a part, "num_masks" one of every part
            that has it.

    Raises:
        SoftPromptError: unknown method or field (with the nearest known one), or a value out of range.
    """
    if JOINT not in method:
        return config_of(method, fields)
    names, known = method.split(JOINT), methods()
    for name in names:
        if name not in known:
            raise SoftPromptError(f"unknown method '{name}' in '{method}'; {nearest(name, listed(known))}")
    if set(fields) == {"parts"}:  # as it was saved
        config = ComposedConfig(parts=fields["parts"])
        if config.method != method:
            raise SoftPromptError(f"{method} does not go with the parts {config.method}")
        return config
    settings_of: dict[str, dict[str, Any]] = {name: {} for name in names}
    # Settings with a part's name in front come last, and win.
    for key, value in sorted(fields.items(), key=lambda item: "." in item[0]):
        first, dot, rest = key.partition(".")
        if dot and first not in settings_of:
            raise SoftPromptError(f"{method} has no part '{first}' to set {rest} of; {nearest(first, settings_of)}")
        owners = [first] if dot else [name for name in names if key in known[name].settable()]
        if not owners:
            raise SoftPromptError(f"{method}: none of its parts has a setting '{key}'")
        for name in owners:
            settings_of[name][rest if dot else key] = value
    return compose(*(config_of(name, settings_of[name]) for name in names))
