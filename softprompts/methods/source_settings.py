"""Base configs of the methods that are built from files, most of them from saved prompts (see `sources`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Self, TypeVar

import torch
from pydantic import Field

from softprompts.methods import sources
from softprompts.methods.contract import Method, MethodConfig, Shape
from softprompts.validation import PATH, PATHS, settings

MethodT = TypeVar("MethodT", bound=Method)


@settings
class FilesConfig(MethodConfig):
    """What all configs have that name files; ``paths`` lists the fields that do."""

    paths: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def settable(cls) -> list[str]:
        """All settings but the one that saving sets."""
        return [name for name in super().settable() if name != "restored"]

    def files(self) -> tuple[str, ...]:
        """The files and folders that these fields name."""
        return tuple(path for name in self.paths for path in _listed(getattr(self, name)))

    def fingerprint(self, path: str) -> str:
        """The hash that stands for a file in `identity`."""
        return sources.fingerprint(path)

    def identity(self) -> dict[str, Any]:
        """The settings with a hash in place of each file's name."""
        values = super().identity()
        for name in self.paths:
            if values.get(name) is not None:
                hashes = [self.fingerprint(path) for path in _listed(getattr(self, name))]
                values[name] = hashes[0] if isinstance(values[name], str) else hashes
        return values

    def without_files(self, **changes: Any) -> Self:
        """The config without the files, whose effect is in the saved tensors, and with other changes."""
        return replace(self, **{name: getattr(type(self), name) for name in self.paths}, **changes)


def _listed(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The files that one field names."""
    return (value,) if isinstance(value, str) else value or ()


@settings
class SourcedConfig(FilesConfig):
    """What the configs have of methods that are built from several saved prompts.

    Attributes:
        sources: folders of saved prompts, or run folders, or hub ids.
        restored: number of sources of a saved prompt that is about to be loaded; `without_files` sets it.
    """

    sources: Annotated[tuple[str, ...], PATHS] = ()
    restored: Annotated[int, Field(ge=0)] = 0

    paths: ClassVar[tuple[str, ...]] = ("sources",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(not (self.sources and self.restored), "restored is set by saving; leave it out")

    def without_files(self, **changes: Any) -> Self:
        """The config that says how many sources there were instead of which."""
        return super().without_files(restored=self.restored or len(self.sources), **changes)


@settings
class StartedConfig(FilesConfig):
    """What the configs have of methods that can start from a saved prompt of the same method.

    Attributes:
        source: folder of a saved prompt of this method with the same sizes, or run folder, or hub id; its tensors are
            the start, its head is not. None: a fresh start.
    """

    source: Annotated[str, PATH] | None = None

    paths: ClassVar[tuple[str, ...]] = ("source",)
    ignored_without: ClassVar[Mapping[str, tuple[str, ...]]] = {"source": ("source",)}
    decisive: ClassVar[tuple[str, ...]] = ()  # settings that change the meaning of tensors without changing their sizes

    def started(self, method: MethodT, shape: Shape, fresh: Collection[str] = ()) -> MethodT:
        """A new module with the tensors of the source, where there is one; those named in ``fresh`` stay as they are.

        Raises:
            SoftPromptError: the source is of another method, backbone or shape.
        """
        if self.source is None:
            return method
        (source,) = sources.load_methods(self.method, [self.source], shape.hidden_size, shape.identity, type(self))
        for name in self.decisive:
            ours, theirs = getattr(self, name), getattr(source.config, name)
            self.require(ours == theirs, f"the source {self.source} has {name}={theirs}, not {ours}: set both alike")
        tensors, start = method.state_dict(), source.state_dict()
        for name in tensors | start:
            sizes = [f"of shape {tuple(some[name].shape)}" if name in some else "absent" for some in (start, tensors)]
            self.require(
                sizes[0] == sizes[1],
                f"in the source {self.source}, '{name}' is {sizes[0]}, here it is {sizes[1]}: "
                "set num_virtual_tokens and all other sizes as in the source",
            )
        with torch.no_grad():
            for name in tensors.keys() - set(fresh):
                tensors[name].copy_(start[name])
        return method
