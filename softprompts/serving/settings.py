"""Limits of a server."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from softprompts.validation import settings


@settings
class ServerSettings:
    """Limits of a server; ``softprompts serve`` has its options from here."""

    owner: ClassVar[str] = "serve"

    # A row with choices, continuations or answers counts once for each, in a pass and in a request.
    max_batch: Annotated[int, Field(ge=1, description="Most rows of a pass.")] = 64
    # Padding included; a single row, or row and answer, may have more.
    max_tokens: Annotated[int, Field(ge=1, description="Most tokens of a pass.")] = 8192
    max_wait: float = 0.004  # seconds that a busy model waits for rows that are being encoded
    queue: Annotated[int, Field(ge=1, description="Most rows that wait; more are refused.")] = 1024
    max_rows: Annotated[int, Field(ge=1, description="Most rows of a request, choices counted.")] = 256
    max_text: Annotated[int, Field(ge=1, description="Most characters of a text.")] = 100_000
    max_choices: int = 100  # or continuations of a row
    max_new_tokens: Annotated[int, Field(ge=1, description="Most tokens written for a row.")] = 512
    max_body: Annotated[int, Field(ge=1, description="Most bytes of a request.")] = 1 << 20
    timeout: Annotated[float, Field(ge=0.001, le=86_400, description="Seconds until a request is given up.")] = 30.0
    api_key: str = ""  # requests must send it; empty for none
    local: bool = False  # whether requests must name this machine (localhost, 127.*, [::1]) as their host
