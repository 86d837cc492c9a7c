"""The task of SQuAD."""

from __future__ import annotations

from collections.abc import Iterable

from softprompts.tasks.example import Row
from softprompts.tasks.form import Form
from softprompts.tasks.paper_templates import dept, keyed, nested
from softprompts.tasks.spec import Spec


def _squad(row: Row) -> Iterable[Row]:
    if "answers" not in row:
        yield row
        return
    answers, starts = (nested(row, "answers", key) for key in ("text", "answer_start"))
    for answer, start in zip(answers, starts, strict=True):
        if row["context"][start : start + len(answer)] != answer:
            raise ValueError(f"the answer '{answer:.40}' is not at character {start} of the context")
    yield {**row, "answers": answers, "starts": starts}


SQUAD: dict[str, Spec] = {
    "squad/squad": Spec(
        "which words of a text answer a question",
        Form(kind="span", fields=("question", "context"), source=keyed("question", "context"), cut=("context",)),
        metrics=("em", "token_f1"),
        prepare=_squad,
        templates=dept("squad", "question", "context", classes=0),
    ),
}
