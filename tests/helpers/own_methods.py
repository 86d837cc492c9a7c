"""Methods in files of their own, and a process that has never heard of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest

from softprompts.methods import imports, methods, registry


@pytest.fixture
def forget() -> Iterator[Callable[[], None]]:
    """Called, and at the test's end: forgets what was imported since its start, as a new process would not know it."""
    before, modules, path = methods(), set(sys.modules), list(sys.path)

    def clean() -> None:
        own = {str(source.file) for source in imports._SOURCES.values()}
        registry.restore(before)
        imports._SOURCES.clear()
        imports._GIVEN.clear()
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if str(getattr(sys.modules[name], "__file__", None)) in own:
                del sys.modules[name]

    yield clean
    clean()
