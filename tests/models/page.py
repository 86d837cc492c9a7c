"""The documentation's page of models."""

from __future__ import annotations

from typing import Any


def page(known: Any) -> str:
    """The page as Markdown."""
    return ""
