"""Schemes that tag the words of entities: BIO, BIOES (also IOBES) and BILOU."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

OUTSIDE = "O"
_TAG = re.compile(r"([BIESLU])(?:-(.+))?", re.DOTALL)
# The letters of each scheme: a word that begins an entity, is within, ends it, or is one by itself.
_SCHEMES = (frozenset("BI"), frozenset("BIES"), frozenset("BILU"))
_AS_BIOES = {"L": "E", "U": "S"}


def tags_entities(tags: Iterable[str]) -> bool:
    """Whether all of these tags belong to one scheme: "O", or a letter alone or before "-" and a type."""
    matches = [_TAG.fullmatch(tag) for tag in tags if tag != OUTSIDE]
    if not all(matches):
        return False
    letters = {match[1] for match in matches if match}
    bare = any(match[2] is None for match in matches if match)
    # Letters alone may be classes of another kind: "S" and "E" are words of a scheme only beside a "B".
    return any(letters <= scheme for scheme in _SCHEMES) and not (bare and letters - {"B", "I"} and "B" not in letters)


def entities(tags: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """The entities of a row's tags as (first word, word after the last, type).

    Read as conlleval and seqeval do: what continues no entity of its type begins one, whatever its letter.
    """
    start, letter, kind = 0, OUTSIDE, ""
    for place, tag in enumerate((*tags, OUTSIDE)):
        before, kind_before = letter, kind
        letter, kind = _AS_BIOES.get(tag[0], tag[0]), tag[2:]
        if before in ("B", "I") and letter in ("I", "E") and kind == kind_before:
            continue
        if before != OUTSIDE:
            yield start, place, kind_before
        start = place
