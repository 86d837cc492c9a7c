"""The server process: starts to listen, and on a signal finishes the requests under way before it ends."""

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

_SWITCH_INTERVAL = 0.0005  # seconds a thread may hold the interpreter; the model's thread needs it at every operation


class Server(uvicorn.Server):
    """Refuses requests after a first signal and ends when the last one is answered; ends at once after a second.

    ``listening`` is called when requests are accepted.
    """

    def __init__(self, service: Service, config: uvicorn.Config, listening: Callable[[], None]):
        super().__init__(config)
        self.service, self.listening = service, listening
        self._deadline = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts to listen, and reports it."""
        await super().startup(sockets)
        if self.started:
            self.listening()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handles SIGTERM and SIGINT."""
        if self.service.draining:
            self.should_exit = self.force_exit = True
        self.service.draining = True
        self._deadline = time.monotonic() + self.service.settings.timeout

    async def on_tick(self, counter: int) -> bool:
        """Returns whether to end; called ten times a second."""
        if self.service.draining and (not self.service.requests or time.monotonic() > self._deadline):
            self.should_exit = True
        return await super().on_tick(counter)


def run(service: Service, host: str, port: int, listening: Callable[[int], None]) -> None:
    """Serves until the process gets a signal to end.

    ``listening`` is called with the port, which is a free one for 0, when requests are accepted.

    Raises:
        SoftPromptError: the address cannot be used.
    """
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    sys.setswitchinterval(_SWITCH_INTERVAL)
    listener = listen(host, port)
    config = uvicorn.Config(
        create_app(service),
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=int(service.settings.timeout) + 1,
        http="h11",  # httptools has no limit for headers
        h11_max_incomplete_event_size=64 * 1024,
    )
    Server(service, config, lambda: listening(listener.getsockname()[1])).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address; 0 takes a free port.

    Raises:
        SoftPromptError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named so that asyncio turns Nagle's algorithm off, which delays the body of a response by 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError, UnicodeError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise SoftPromptError(f"cannot listen at {host}:{port} ({reason}): choose another --host or --port") from error
    return listener
