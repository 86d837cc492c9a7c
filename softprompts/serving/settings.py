"""Limits of a server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerSettings:
    """Limits of a server; ``softprompts serve`` takes its defaults from here.

    Attributes:
        max_batch: most rows of a forward pass; a row of several choices or answers counts once for each.
        max_tokens: most tokens of a forward pass, padding included; a single row, or row and answer, may have more.
        max_wait: seconds that a busy model waits for rows that are being encoded.
        queue: most rows that wait or run; further requests are refused.
        max_rows: most rows of a request; a row with choices or continuations counts once for each.
        max_text: most characters of a text.
        max_choices: most choices or continuations of a row.
        max_new_tokens: most tokens generated for a row.
        max_body: most bytes of a request's body.
        timeout: seconds until a request is given up.
        api_key: the key that requests must send; empty for none.
        local: whether requests must name this machine (localhost, 127.*, [::1]) as their host.
    """

    max_batch: int = 64
    max_tokens: int = 8192
    max_wait: float = 0.004
    queue: int = 1024
    max_rows: int = 256
    max_text: int = 100_000
    max_choices: int = 100
    max_new_tokens: int = 512
    max_body: int = 1 << 20
    timeout: float = 30.0
    api_key: str = ""
    local: bool = False
