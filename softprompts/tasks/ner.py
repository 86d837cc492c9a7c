"""Named-entity recognition, as tags of words."""

from __future__ import annotations

from collections.abc import Iterable

from softprompts.tasks.example import Row
from softprompts.tasks.form import Form
from softprompts.tasks.spec import Spec


def _tagged(row: Row) -> Iterable[Row]:
    yield {"words": row["tokens"], **({"label": row["ner_tags"]} if "ner_tags" in row else {}), "id": row["id"]}


def _ner(about: str, labels: tuple[str, ...]) -> Spec:
    return Spec(
        about,
        Form(kind="tagging", labels=labels, fields=("words",)),
        metrics=("seqeval_f1", "seqeval_precision", "seqeval_recall"),
        prepare=_tagged,
    )


NER: dict[str, Spec] = {
    "ner/conll2003": _ner(
        "persons, organisations, places and others in news",
        ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC"),
    ),
    "ner/conll2004": _ner(
        "people, organisations, places and others in news, of CoNLL-2004",
        ("O", "B-Loc", "B-Peop", "B-Org", "B-Other", "I-Loc", "I-Peop", "I-Org", "I-Other"),
    ),
}
