"""What OpenAI's interface says of generated texts, as a whole and piece by piece; the pieces make up the whole."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from softprompts.serving.jobs import GenerationRow, TokenScore


@dataclass(frozen=True)
class ScoredToken:
    """A token's text, where in the choice it begins, its log-probability, and the likeliest tokens in its place."""

    text: str
    offset: int
    logprob: float
    top: Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Piece:
    """A part of a choice: text, the tokens that begin in it where scores are wanted, and why the choice ended."""

    text: str
    tokens: Sequence[ScoredToken] | None
    finish: Literal["stop", "length"] | None = None

    def __bool__(self) -> bool:
        return bool(self.text or self.tokens or self.finish)


class ChoiceWriter:
    """Writes a choice piece by piece from the tokens of its row.

    Args:
        tokenizer: used by no other thread.
        row: whose tokens the model's thread adds to.
    """

    def __init__(self, tokenizer: Any, row: GenerationRow):
        self._tokenizer, self._row, self._text = tokenizer, row, row.text(tokenizer)
        self._scored = 0  # tokens that were given out with their scores

    def add(self, token: int) -> Piece:
        """The piece that a token adds, which may be an empty one."""
        text = self._text.add(token)
        return Piece(text, self._tokens(self._begun()))

    def end(self) -> Piece:
        """What was held back, once the row has no more tokens, and why it ended."""
        text = self._text.end()
        shown = self._begun() if self._text.stopped else len(self._text.starts)
        return Piece(text, self._tokens(shown), "stop" if self._row.ended or self._text.stopped else "length")

    def whole(self) -> Piece:
        """All of a finished row."""
        pieces = [*map(self.add, self._row.tokens), self.end()]
        tokens = None if self._row.top_logprobs is None else [token for piece in pieces for token in piece.tokens or ()]
        return Piece("".join(piece.text for piece in pieces), tokens, pieces[-1].finish)

    def _begun(self) -> int:
        """How many tokens begin in the text that was given out."""
        return bisect.bisect_left(self._text.starts, self._text.length)

    def _tokens(self, shown: int) -> list[ScoredToken] | None:
        """The tokens up to a number of them that were not given out yet."""
        if self._row.top_logprobs is None:
            return None
        begun, self._scored = self._scored, max(shown, self._scored)
        return [self._token(number, self._row.scores[number]) for number in range(begun, shown)]

    def _token(self, number: int, score: TokenScore) -> ScoredToken:
        top = [(token_text(self._tokenizer, token), logprob) for token, logprob in score.top]
        text = token_text(self._tokenizer, self._row.tokens[number])
        return ScoredToken(text, self._text.starts[number], score.logprob, top)


def token_text(tokenizer: Any, token: int) -> str:
    """The text of a token, with the blank before it."""
    text = str(tokenizer.decode([token]))
    written = tokenizer.convert_ids_to_tokens(token) or ""
    return f" {text}" if written.startswith("▁") and not text.startswith(" ") else text


class CompletionFormat:
    """Choices of ``/v1/completions``."""

    prefix, whole, part = "cmpl", "text_completion", "text_completion"

    def opening(self, index: int) -> dict[str, Any] | None:
        """What a stream says of a choice before its first piece."""
        return None

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """A whole choice."""
        return {"index": index, "text": piece.text, "logprobs": self._logprobs(piece), "finish_reason": piece.finish}

    delta = choice

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        if piece.tokens is None:
            return None
        return {
            "tokens": [token.text for token in piece.tokens],
            "token_logprobs": [token.logprob for token in piece.tokens],
            # Of tokens with the same text, the likelier.
            "top_logprobs": [dict(reversed(token.top)) for token in piece.tokens],
            "text_offset": [token.offset for token in piece.tokens],
        }


class ChatFormat:
    """Choices of ``/v1/chat/completions``."""

    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def opening(self, index: int) -> dict[str, Any] | None:
        """What a stream says of a choice before its first piece."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        """A whole choice."""
        message = {"role": "assistant", "content": piece.text, "refusal": None}
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(piece),
            "finish_reason": piece.finish,
        }

    def delta(self, index: int, piece: Piece) -> dict[str, Any]:
        """A piece of a choice."""
        delta = {"content": piece.text} if piece.text else {}
        return {"index": index, "delta": delta, "logprobs": self._logprobs(piece), "finish_reason": piece.finish}

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        if piece.tokens is None:
            return None
        content = [
            {**_logprob(token.text, token.logprob), "top_logprobs": [_logprob(*top) for top in token.top]}
            for token in piece.tokens
        ]
        return {"content": content, "refusal": None}


def _logprob(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}
