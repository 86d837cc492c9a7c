"""What the methods have in common that are built from saved prompts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, ClassVar, Self, TypeVar

import torch

from softprompts.methods import sources
from softprompts.methods.common import whole_number
from softprompts.methods.contract import Method, MethodConfig, Shape

MethodT = TypeVar("MethodT", bound=Method)


@dataclass(frozen=True, kw_only=True)
class SourcedConfig(MethodConfig):
    """What the methods have that are built from saved prompts (see `softprompts.methods.sources`).

    Attributes:
        sources: folders of saved prompts, or run folders, or hub ids.
        restored: number of sources of a saved prompt that is about to be loaded; `detached` sets it.
    """

    sources: tuple[str, ...] = ()
    restored: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "sources", sources.checked_paths(self.method, "sources", self.sources))
        whole_number(self, "restored", 0)
        self.require(not (self.sources and self.restored), "restored is set by saving; leave it out")

    @classmethod
    def settable(cls) -> list[str]:
        """All but what saving sets."""
        return [name for name in super().settable() if name != "restored"]

    def files(self) -> tuple[str, ...]:
        """The sources."""
        return self.sources

    def identity(self) -> dict[str, Any]:
        """The settings with a hash in place of each source's name."""
        return {**self.to_dict(), "sources": [sources.fingerprint(path) for path in self.sources]}

    def detached(self) -> Self:
        """The config that says how many sources there were instead of which."""
        return replace(self, sources=(), restored=self.restored or len(self.sources))


@dataclass(frozen=True, kw_only=True)
class StartedConfig(MethodConfig):
    """What the methods have whose prompt can start from a saved one of the same kind: that of a source task.

    Attributes:
        source: folder of a saved prompt of this method with the same sizes, or run folder, or hub id; its tensors are
            the start, its head is not. None: a fresh start.
    """

    source: str | None = None

    decisive: ClassVar[tuple[str, ...]] = ()  # settings that decide what tensors of the same shapes come to

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source is not None:
            fine = isinstance(self.source, str | PathLike) and bool(str(self.source))
            self.require(fine, f"source must name the folder of a saved {self.method} prompt, not {self.source!r}")
            object.__setattr__(self, "source", str(self.source))

    def files(self) -> tuple[str, ...]:
        """The source."""
        return () if self.source is None else (self.source,)

    def identity(self) -> dict[str, Any]:
        """The settings with a hash in place of the source's name; without a source nothing is said of it."""
        settings = super().identity()
        if self.source is None:
            del settings["source"]
            return settings
        return {**settings, "source": sources.fingerprint(self.source)}

    def started(self, method: MethodT, shape: Shape, fresh: Collection[str] = ()) -> MethodT:
        """A new module with the tensors of the source, where there is one.

        Args:
            method: the module.
            shape: what it was built for.
            fresh: names of tensors that stay as they are.

        Raises:
            SoftPromptError: the source is of another method, backbone or shape.
        """
        if self.source is None:
            return method
        (found,) = sources.load_methods(self.method, [self.source], shape.hidden_size, shape.identity, type(self))
        for name in self.decisive:
            own, theirs = getattr(self, name), getattr(found.config, name)
            self.require(own == theirs, f"the source {self.source} has {name}={theirs}, not {own}: set both alike")
        own_tensors, their_tensors = dict(method.named_parameters()), dict(found.named_parameters())
        for name in own_tensors | their_tensors:
            shapes = [
                f"of shape {tuple(tensors[name].shape)}" if name in tensors else "absent"
                for tensors in (their_tensors, own_tensors)
            ]
            self.require(
                shapes[0] == shapes[1],
                f"in the source {self.source}, '{name}' is {shapes[0]}, here it is {shapes[1]}: "
                "set num_virtual_tokens and all other sizes as in the source",
            )
        with torch.no_grad():
            for name, tensor in own_tensors.items():
                if name not in fresh:
                    tensor.copy_(their_tensors[name])
        return method
