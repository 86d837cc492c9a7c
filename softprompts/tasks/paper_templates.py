"""Templates of the papers by family, which the declarations of tasks share.

Families of templates for language models, by the code that was released:

- "smop": SMoP and Multi-mask; six tasks of SuperGLUE.
- "dept", "attempt": "key: value" with digits as label words; ATTEMPT writes the task's name in front.
- "residual": Residual Prompt Tuning; "key: value" in other orders, with other words.

Families for encoders are P-tuning v2's: "ptuning", or "ptuning-0" and "ptuning-1" where it has two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TENTHS = tuple(f"{step / 10:.1f}" for step in range(51))  # 0.0, 0.1, ..., 5.0
FIFTHS = TENTHS[::2]  # 0.0, 0.2, ..., 5.0
_F1 = frozenset({"f1", "f1a"})
Template = dict[str, Any]


def keyed(*fields: str, word: str = "") -> str:
    """The template "key: {key} key: {key}" of some fields, behind a word."""
    return " ".join([*([word] if word else []), *(f"{name}: {{{name}}}" for name in fields)])


def dept(name: str, *fields: str, classes: int, **more: Any) -> dict[str, Template]:
    """The templates of DePT and of ATTEMPT, which put the task's name in front and are alike else.

    Args:
        name: of the task in their code, such as "superglue-cb".
        fields: in their order.
        classes: how many; their digits are the label words. 0: answers are something else.
        more: what else they change; ``source`` in place of the fields'.
    """
    source = more.pop("source", keyed(*fields))
    words = {"words": tuple(str(digit) for digit in range(classes))} if classes else {}
    # An answer that is no label counts as the opposite of the truth for F1, and only there.
    rule = {"invalid": "opposite"} if _F1 & set(more.get("metrics", ())) else {}
    return {
        "dept": {"source": source, **words, **rule, **more},
        "attempt": {"source": f"{name} {source}", **words, **rule, **more},
    }


def residual(*fields: str, **changes: Any) -> dict[str, Template]:
    """The template of Residual Prompt Tuning, where a single text stands bare, and what else it changes."""
    source = keyed(*fields) if len(fields) > 1 else f"{{{fields[0]}}}"
    return {"residual": {"source": source, "metrics": ("accuracy",), **changes}}


def nested(row: Mapping[str, Any], column: str, key: str) -> Any:
    """What a column of a row has under a key.

    Raises:
        KeyError: there is no such column.
        ValueError: the column has nothing under that key.
    """
    value = row[column]
    if not isinstance(value, Mapping) or key not in value:
        raise ValueError(f"'{column}' is {value!r:.80}, which has no '{key}'")
    return value[key]
