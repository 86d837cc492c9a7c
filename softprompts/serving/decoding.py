"""Turns generated tokens into text piece by piece, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

_INCOMPLETE = "\ufffd"  # a decoder's result for the first bytes of a character


class TokenDecoder:
    """Decodes a text token by token, holding back incomplete characters.

    New tokens are decoded together with those before them, as a blank between two tokens depends on both.

    Args:
        tokenizer: used by no other thread.
        before: tokens that the text continues.
    """

    def __init__(self, tokenizer: Any, before: Sequence[int] = ()):
        self._decode = partial(tokenizer.decode, skip_special_tokens=True)
        self._last = list(before)  # the tokens of the last piece of text
        self._new: list[int] = []

    def add(self, *tokens: int, final: bool = False) -> str:
        """The text that tokens add; an incomplete character at its end is held back, unless it is ``final``."""
        self._new += tokens
        before, text = self._decode(self._last), self._decode(self._last + self._new)
        if len(text) <= len(before) or (text.endswith(_INCOMPLETE) and not final):
            return ""
        self._last, self._new = self._new, []
        return str(text[len(before) :])


class StoppedText:
    """The text of a decoder up to the first stop string; what may be the beginning of one is held back.

    Attributes:
        stopped: whether a stop string has come; further tokens add nothing.
        starts: for each token, where its text begins.
        length: characters that were given out.
    """

    def __init__(self, decoder: TokenDecoder, stops: Sequence[str]):
        self.stopped, self.length = False, 0
        self.starts: list[int] = []
        self._decoder, self._stops = decoder, stops
        self._longest = max(map(len, stops), default=0)
        self._text = ""

    def add(self, token: int) -> str:
        """The text that a token adds, or releases."""
        if self.stopped:
            return ""
        self.starts.append(len(self._text))
        return self._release(self._decoder.add(token))

    def end(self) -> str:
        """What was held back, once there are no more tokens."""
        return "" if self.stopped else self._release(self._decoder.add(final=True), final=True)

    def _release(self, added: str, final: bool = False) -> str:
        searched_from = max(0, len(self._text) - self._longest + 1)
        self._text += added
        found = [at for stop in self._stops if (at := self._text.find(stop, searched_from)) >= 0]
        if found:
            self.stopped, self._text = True, self._text[: min(found)]
        whole = found or final
        begun, self.length = self.length, len(self._text) - (0 if whole else self._held())
        return self._text[begun : self.length]

    def _held(self) -> int:
        """Characters at the end of the text that begin a stop string."""
        for count in range(min(self._longest - 1, len(self._text) - self.length), 0, -1):
            if any(stop.startswith(self._text[-count:]) for stop in self._stops if len(stop) > count):
                return count
        return 0
