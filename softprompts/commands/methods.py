"""``softprompts methods``."""

from __future__ import annotations

import dataclasses
import gc
import sys
from typing import Any

from rich.table import Table

from softprompts.commands.terminal import out


def methods() -> None:
    """List the methods and their settings."""
    gc.disable()  # looking for garbage while torch is imported takes an eighth of its time
    from softprompts.methods import methods as known

    gc.enable()
    table = Table("method", "what it is", "settings (default)", show_lines=True)
    for name, config in sorted(known().items()):
        if not config.listed:
            continue
        about = (sys.modules[config.__module__].__doc__ or "").strip().splitlines()[0]
        settable = config.settable()
        fields = [
            f"{field.name} ({_text(field.default)})" for field in dataclasses.fields(config) if field.name in settable
        ]
        table.add_row(name, about, ", ".join(fields))
    out.print(table)


def _text(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
