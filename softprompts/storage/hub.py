"""Asking the model hub without its libraries' noise, and without long waits where there is no way to it."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit
from urllib.request import getproxies


def reachable() -> bool:
    """Whether it makes sense to ask the hub: its libraries would retry for half a minute before they give up."""
    from huggingface_hub import constants, is_offline_mode

    if is_offline_mode():
        return False
    if getproxies():
        return True  # a proxy finds the host's address, we cannot
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def asking(name: str | os.PathLike[str]) -> Iterator[bool]:
    """Silences the hub's messages about its retries.

    Args:
        name: a local folder or a hub id.

    Yields:
        What to pass as ``local_files_only``: True for a hub id when the hub is out of reach.
    """
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield not os.path.isdir(name) and not reachable()
    finally:
        logger.setLevel(level)
