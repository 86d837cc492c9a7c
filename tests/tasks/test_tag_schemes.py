"""BIO, BIOES and BILOU: entities by definition, and as seqeval reads them."""

from __future__ import annotations

import random

import pytest

from softprompts.tasks import Form, compute
from softprompts.tasks.tag_schemes import entities, tags_entities
from softprompts.tasks.task_reader import marked
from softprompts.tasks.usual_metrics import default_metrics

# seqeval 1.2.2, default mode: (precision, recall, F1).
SCORED = {
    "the same": (["B-X", "I-X", "E-X", "O", "S-Y"], ["B-X", "I-X", "E-X", "O", "S-Y"], (1, 1, 1)),
    "cut short": (["B-X", "E-X", "O", "O", "S-Y"], ["B-X", "I-X", "E-X", "O", "S-Y"], (0.5, 0.5, 0.5)),
    "a single one beside another": (["S-X", "S-X"], ["B-X", "E-X"], (0, 0, 0)),
    "an end alone is an entity": (["O", "E-X"], ["O", "S-X"], (1, 1, 1)),
    "nothing goes on behind an end": (["B-X", "E-X", "I-X"], ["B-X", "E-X", "S-X"], (1, 1, 1)),
    "another type begins": (["B-X", "E-Y"], ["S-X", "S-Y"], (1, 1, 1)),
}


@pytest.mark.parametrize("case", SCORED)
def test_entity_scores(case: str) -> None:
    given, true, scores = SCORED[case]
    names = ["seqeval_precision", "seqeval_recall", "seqeval_f1"]
    assert tuple(compute(names, [given], [true]).values()) == pytest.approx(scores)
    bilou = [[tag.replace("E-", "L-").replace("S-", "U-") for tag in tags] for tags in (given, true)]
    assert tuple(compute(names, [bilou[0]], [bilou[1]]).values()) == pytest.approx(scores)


def test_whole_entities_are_found_in_every_scheme() -> None:
    rng = random.Random(0)
    for _ in range(200):
        spans, place = [], 0
        while place < 12:
            length = rng.randint(1, 4)
            if rng.random() < 0.6:
                spans.append((place, place + length, rng.choice(["X", "Y-Z", ""])))
            place += length
        for begin, inside, end, single in ("BIIB", "BIES", "BILU"):
            tags = ["O"] * 16
            for first, last, kind in spans:
                letters = [single] if last == first + 1 else [begin, *[inside] * (last - first - 2), end]
                tags[first:last] = [f"{letter}-{kind}" if kind else letter for letter in letters]
            assert list(entities(tags)) == spans


def test_which_tags_are_of_a_scheme() -> None:
    for names in ("O B-X I-X", "B-X", "O B I", "O B-X I-X E-X S-X", "O B-X L-X U-Y", "B I E S O", "U-X O"):
        assert tags_entities(names.split())
        form = Form(kind="tagging", labels=(*names.split(), "O"), fields=("words",))
        assert default_metrics(form)[0] == "seqeval_f1"
    for names in ("O E S", "NN VB", "O B-X E-X L-X", "S V O", "B-X I-X M-X E-X S-X", "O B-X W-X"):
        assert not tags_entities(names.split())
        form = Form(kind="tagging", labels=tuple(names.split()), fields=("words",))
        assert default_metrics(form) == ("tag_accuracy",)


def test_entities_in_brackets() -> None:
    words = ["Ann", "of", "New", "York", "slept"]
    for tags in (["S-PER", "O", "B-LOC", "E-LOC", "O"], ["U-PER", "O", "B-LOC", "L-LOC", "O"]):
        assert marked(words, tags) == "[Ann PER] of [New York LOC] slept"
    assert marked(words[:2], ["NN", "IN"]) == "Ann/NN of/IN"
