"""Lists that a table holds as text, as pandas' ``to_csv`` writes them: of Python, of JSON and of numpy."""

from __future__ import annotations

import ast
import io
import itertools
import json
import re
import tokenize
from typing import Any

_BETWEEN = (tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER, tokenize.INDENT, tokenize.DEDENT)
_VALUES = (tokenize.STRING, tokenize.NUMBER)
_QUOTED = re.compile(r"""\s*(array\()?\s*[\[({]\s*(['"].*|.*['"]\s*,?\s*)[\])}][^\])}]*""", re.DOTALL)


def looks_like_list(text: str) -> bool:
    """Whether a text is in brackets, with a quote next to the first or the last of them."""
    return _QUOTED.fullmatch(text) is not None


def written_value(text: str) -> Any:
    """The list, tuple or mapping that a text writes out; None: it is not one, or not one that can be read for sure.

    numpy has no commas between values (``['EU' 'rejects']``), which Python would read as one text.
    """
    if not text.lstrip().startswith(("[", "(", "{")):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = _python(text.strip())
        except (ValueError, SyntaxError, TypeError, tokenize.TokenError, RecursionError, MemoryError):
            return None
    return list(value) if isinstance(value, tuple) else value if isinstance(value, list | dict) else None


def _python(text: str) -> Any:
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in _BETWEEN]
    values = [token.type in _VALUES for token in tokens]
    if not any(one and other for one, other in itertools.pairwise(values)):
        return ast.literal_eval(text)
    if [token.string for token in (tokens[0], tokens[-1])] != ["[", "]"] or not all(values[1:-1]):
        raise ValueError("values with nothing between, and others with commas")
    return [ast.literal_eval(token.string) for token in tokens[1:-1]]
