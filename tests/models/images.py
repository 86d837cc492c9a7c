"""Rows with an image."""

from __future__ import annotations

from typing import Any

from tests.models.rows import Row


def with_image(subject: Any) -> Row:
    """The first row with an image in it."""
    from tests.models.oracles import Unable

    raise Unable("no image tried")
