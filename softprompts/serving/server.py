"""A server process: it starts, says where it listens, and ends without breaking off what is under way."""

from __future__ import annotations

import logging
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from softprompts.errors import SoftPromptError
from softprompts.serving.app import create_app
from softprompts.serving.service import Service

_SWITCH = 0.0005  # seconds a thread may keep the others from Python; the model's must not wait for it at each operation


class Server(uvicorn.Server):
    """Refuses requests once it is told to end, and ends when the last one is answered; told again, at once."""

    def __init__(self, service: Service, config: uvicorn.Config, tell: Callable[[int], None], port: int):
        super().__init__(config)
        self.service, self.tell, self.port = service, tell, port
        self._until = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to listen, and says so."""
        await super().startup(sockets)
        if self.started:
            self.tell(self.port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM or SIGINT has come."""
        if self.service.draining:
            self.should_exit = self.force_exit = True
        self.service.draining = True
        self._until = time.monotonic() + self.service.settings.timeout

    async def on_tick(self, counter: int) -> bool:
        """Whether to end now; asked ten times a second."""
        if self.service.draining and (not self.service.requests or time.monotonic() > self._until):
            self.should_exit = True
        return await super().on_tick(counter)


def run(service: Service, host: str, port: int, tell: Callable[[int], None]) -> None:
    """Serves until the process is told to end.

    Args:
        service: with its prompts loaded.
        host: the address to listen at.
        port: 0 for a free one.
        tell: told the port, once requests are taken.

    Raises:
        SoftPromptError: that address cannot be had.
    """
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    sys.setswitchinterval(_SWITCH)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, or asyncio would leave Nagle's algorithm on: 40 ms between the head of an answer and it.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError, UnicodeError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise SoftPromptError(f"cannot listen at {host}:{port} ({reason}): choose another --host or --port") from error
    config = uvicorn.Config(
        create_app(service),
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=int(service.settings.timeout) + 1,
        http="h11",  # the other parser has no limit for headers
        h11_max_incomplete_event_size=64 * 1024,
    )
    Server(service, config, tell, listener.getsockname()[1]).run(sockets=[listener])
