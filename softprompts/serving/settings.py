"""What a server allows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Limits of a server.

    Attributes:
        max_batch: most rows of a pass; a row of several choices or answers counts once for each.
        max_tokens: most tokens of a pass, padding included; a single row, or row and answer, may have more.
        max_wait: seconds that a busy model waits for rows that are on their way.
        queue: most rows that wait or run; requests beyond are refused.
        max_rows: most rows of a request; one with choices or continuations counts once for each.
        max_text: most characters of a text.
        max_choices: most choices or continuations of a row.
        max_new_tokens: most tokens generated for a row.
        max_body: most bytes of a request.
        timeout: seconds until a request is given up.
        api_key: what requests must bring; empty: nothing.
        local: whether requests must name this machine (localhost, 127.0.0.1, [::1]) as their host.
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
