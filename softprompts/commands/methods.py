"""``softprompts methods``."""

from __future__ import annotations

import dataclasses
import sys
from typing import Annotated, Any

import typer
from rich.table import Table

from softprompts.commands.terminal import out


def methods(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="The page docs/methods.md: equations, parameters, papers.")
    ] = False,
) -> None:
    """List the methods and their settings."""
    from softprompts.methods import methods as known

    if markdown:
        from softprompts.commands.methods_page import table as page

        print(page(), end="")
        return
    table = Table("method", "what it is", "settings (default)", show_lines=True)
    for name, config in sorted(known().items()):
        if not config.listed:
            continue
        module = sys.modules[config.__module__]
        about = (module.__doc__ or "").strip().splitlines()[0]
        fields = [
            f"{f.name} ({_default(f.default)})" for f in dataclasses.fields(config) if f.name in config.settable()
        ]
        table.add_row(name, about, ", ".join(fields))
    out.print(table)


def _default(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
