"""Requests to the model hub without its client's messages, and without long waits where the hub is out of reach."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit
from urllib.request import getproxies


def reachable() -> bool:
    """Whether the hub's address can be found; its client would retry for half a minute before it gives up."""
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
def quiet_hub(name: str | os.PathLike[str]) -> Iterator[bool]:
    """Silences the messages of the hub's client about its retries.

    Args:
        name: a local folder or file, or a hub id.

    Yields:
        The value of ``local_files_only`` to load it with: True for a hub id if the hub is out of reach.
    """
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield not os.path.exists(name) and not reachable()
    finally:
        logger.setLevel(level)
