"""Preparation of SuperGLUE's rows, where fields of the form are made of several columns."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from softprompts.tasks.example import Row
from softprompts.tasks.paper_templates import nested


def copa(row: Row) -> Iterable[Row]:
    """Adds ``joiner``, the word that goes from a premise to its cause or effect."""
    question = row["question"]
    if question not in ("cause", "effect"):
        raise ValueError(f"'question' is {question!r:.80}, neither 'cause' nor 'effect'")
    yield {**row, "joiner": "because" if question == "cause" else "so"}


def multirc(row: Row) -> Iterable[Row]:
    """Removes markup, and names the question as group."""
    paragraph, question, answer = (nested(row, "idx", part) for part in ("paragraph", "question", "answer"))
    yield {
        **row,
        **{name: re.sub("</?b>", "", re.sub("<br>", " ", row[name])) for name in ("paragraph", "question", "answer")},
        "id": f"{paragraph}-{question}-{answer}",
        "group": f"{paragraph}-{question}",
    }


# ReCoRD

_PLACEHOLDER = "@placeholder"
_HIGHLIGHT = "@highlight\n"


def _prepared(row: Row, passage: str | None = None, separator: str = ", ") -> dict[str, Any]:
    """The fields of a row. Entities and answers are in the order in which the passage names them, as sources differ."""
    text, query = row["passage"], row["query"]
    if _PLACEHOLDER not in query:
        raise ValueError(f"'query' has no {_PLACEHOLDER}")
    for column in ("entities", "answers"):
        if not isinstance(row.get(column, []), list):
            raise ValueError(f"'{column}' is {row[column]!r:.80}, not a list of texts")
    # What the passage does not name comes last: -1 is the remainder len(text).
    entities = sorted(set(row["entities"]), key=lambda name: (text.find(name) % (len(text) + 1), name))
    prepared = {
        "passage": _sentences(text) if passage is None else passage,
        "query": query,
        "entities": separator.join(entities),
        "choices": [query.replace(_PLACEHOLDER, name) for name in entities],
        "names": entities,
        "id": "{}-{}".format(*(nested(row, "idx", part) for part in ("passage", "query"))),
    }
    if "answers" in row:
        known = {name: place for place, name in enumerate(entities)}
        prepared["answers"] = sorted(set(row["answers"]), key=lambda name: (known.get(name, len(known)), name))
    return prepared


def _sentences(passage: str) -> str:
    passage = re.sub(r"([.?!\"'])\n@highlight\n", r"\1 ", passage)
    return passage.replace(f"\n{_HIGHLIGHT}", ". ")


def record(row: Row) -> Iterable[Row]:
    """Candidates are the query with each entity in its gap; highlights become sentences of the passage, as for T5."""
    yield _prepared(row)


def record_listed(row: Row) -> Iterable[Row]:
    """The same, but highlights become a list: P-tuning v2."""
    yield _prepared(row, row["passage"].replace(_HIGHLIGHT, "- "))


def record_each(row: Row) -> Iterable[Row]:
    """A row for each answer, which a model is taught, while any of them counts as right: T5, ATTEMPT, DePT."""
    prepared = _prepared(row)
    for answer in prepared.get("answers") or [None]:
        first = {} if answer is None else {"answers": sorted(prepared["answers"], key=lambda name: name != answer)}
        yield {**prepared, **first}


def record_joined(row: Row) -> Iterable[Row]:
    """The passage as it is, and all answers in one: Residual Prompt Tuning."""
    prepared = _prepared(row, row["passage"], "; ")
    if "answers" in prepared:
        right = [place for place, name in enumerate(prepared["names"]) if name in prepared["answers"]]
        prepared.update(answers=["; ".join(prepared["answers"])], label=right)
    yield prepared


def wsc(row: Row) -> Iterable[Row]:
    """Adds ``marked``, the text with * around the noun and # around the pronoun, and ``starred``, * at the pronoun."""
    text = row["text"]
    spans = [_located(text, row[f"span{number}_text"], row[f"span{number}_index"]) for number in (1, 2)]
    # From the end to the beginning; of spans within one another ("their", "their mothers") the outer one lies outside.
    (start, end), (first, last) = spans
    inside = start <= first and last <= end
    places = [(start, not inside, "* "), (end, inside, " *"), (first, inside, "# "), (last, not inside, " #")]
    marked = text
    for place, _, mark in sorted(places, reverse=True):
        marked = f"{marked[:place]}{mark}{marked[place:]}"
    words, pronoun = text.split(), len(text[: spans[1][0]].split())
    words[pronoun] = f"*{words[pronoun]}*"
    yield {**row, "marked": marked, "starred": " ".join(words)}


def wsc_referent(row: Row) -> Iterable[Row]:
    """The noun's first word is the answer; rows whose pronoun stands for something else are left out: Residual."""
    if row.get("label", 1) != 1:
        return
    for prepared in wsc(row):
        start, _ = _located(prepared["text"], prepared["span1_text"], prepared["span1_index"])
        yield {**prepared, "answers": [prepared["text"][start:].split(None, 1)[0]], "starts": [start]}


def _located(text: str, span: str, index: int) -> tuple[int, int]:
    """Finds where a span begins and ends, in characters: at the word of this index, else at the nearest one.

    Case and kinds of blanks are ignored ("the lawyer" may begin a sentence), and an index may be one off in the
    official data.

    Raises:
        ValueError: the text has no such span.
    """
    words = r"\s+".join(map(re.escape, span.split()))
    matches = {len(text[: match.start()].split()): match for match in re.finditer(rf"(?i)(?<!\S){words}(?!\w)", text)}
    if not words or not matches:
        raise ValueError(f"{span!r:.60} is not in the text")
    return matches[min(matches, key=lambda number: abs(number - index))].span()
