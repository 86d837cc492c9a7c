"""What the methods have in common that are built from saved prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from softprompts import sources
from softprompts.methods.base import MethodConfig
from softprompts.methods.common import whole_number


@dataclass(frozen=True, kw_only=True)
class SourcedConfig(MethodConfig):
    """What the methods have that are built from saved prompts (see `softprompts.sources`).

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
