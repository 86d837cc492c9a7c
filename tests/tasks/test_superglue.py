"""SuperGLUE: what models read, and real rows from a folder and from the hub."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from softprompts.errors import SoftPromptError
from softprompts.tasks import load_task
from softprompts.tasks.superglue import SUPERGLUE
from tests.tasks.rendering import examples, read, require_as_listed, under, written

BOOLQ = {"question": "is it so", "passage": "It is.", "idx": 7, "label": 1}
CLAIM = {"premise": "A b.", "hypothesis": "C d", "idx": 7, "label": 1}
COPA = {
    "premise": "It rained.",
    "choice1": "I was wet.",
    "choice2": "I was dry.",
    "question": "effect",
    "idx": 7,
    "label": 0,
}
MULTIRC = {
    "paragraph": "<b>Sent 1: </b>It rained.<br>I was wet.",
    "question": "Who was <b>wet</b>?",
    "answer": "I",
    "idx": {"paragraph": 4, "question": 9, "answer": 31},
    "label": 1,
}
RECORD = {
    "passage": "Ann met Bob in Rome.\n@highlight\nAnn likes Rome\n@highlight\nBob does not",
    "query": "@placeholder wants to live there.",
    "entities": ["Rome", "Bob", "Ann"],
    "answers": ["Bob", "Ann"],
    "idx": {"passage": 3, "query": 5},
}
WIC = {
    "word": "class",
    "sentence1": "A class.",
    "sentence2": "Real class!",
    "start1": 2,
    "start2": 5,
    "end1": 7,
    "end2": 10,
    "idx": 7,
    "label": 0,
}
WSC = {
    "text": "The cup is under the table, so take it out.",
    "span1_index": 0,
    "span2_index": 8,
    "span1_text": "the cup",
    "span2_text": "it",
    "idx": 7,
    "label": 1,
}

# What is read and answered, by template; written from the papers' code.
BOTH, ANSWERED = (
    "premise: A b. hypothesis: C d",
    "question: Who was wet? answer: I paragraph: Sent 1: It rained. I was wet.",
)
CHOICES = "choice1: I was wet. choice2: I was dry. premise: It rained. question: effect"
CHOSEN = "premise: It rained. choice1: I was wet. choice2: I was dry."
STORY = "Ann met Bob in Rome. Ann likes Rome. Bob does not"
GAP = f"record query: @placeholder wants to live there. entities: Ann, Bob, Rome passage: {STORY}"
SENTENCES = "sentence1: A class. sentence2: Real class! word: class"
MARKED = "text: * The cup * is under the table, so take # it # out."
RENDERED: dict[str, tuple[dict[str, Any], dict[str | None, tuple[str, str]]]] = {
    "super_glue/boolq": (
        BOOLQ,
        {
            None: ("boolq passage: It is. question: is it so", "True"),
            "smop": ("boolq passage: It is. question: is it so", "True"),
            "dept": ("question: is it so passage: It is.", "1"),
            "attempt": ("superglue-boolq question: is it so passage: It is.", "1"),
            "residual": ("passage: It is. question: is it so", "true"),
        },
    ),
    "super_glue/cb": (
        CLAIM,
        {
            None: ("cb hypothesis: C d premise: A b.", "contradiction"),
            "smop": ("cb hyopthesis: C d. premise: A b.", "contradiction"),
            "dept": (BOTH, "1"),
            "attempt": (f"superglue-cb {BOTH}", "1"),
            "residual": (BOTH, "contradiction"),
        },
    ),
    "super_glue/copa": (
        COPA,
        {
            None: (f"copa {CHOICES}", "choice1"),
            "smop": (CHOICES, "choice1"),
            "dept": (CHOSEN, "0"),
            "attempt": (f"superglue-copa {CHOSEN}", "0"),
            "residual": (CHOICES, "false"),
        },
    ),
    "super_glue/multirc": (
        MULTIRC,
        {
            None: (f"multirc {ANSWERED}", "True"),
            "smop": ("question: Who was wet? answer: I. paragraph: Sent 1: It rained. I was wet.", "True"),
            "dept": (ANSWERED, "1"),
            "attempt": (f"superglue-multirc {ANSWERED}", "1"),
            "residual": (ANSWERED, "true"),
        },
    ),
    "super_glue/record": (
        RECORD,
        {
            None: (GAP, "Ann"),
            "ptuning": (
                "record query: @placeholder wants to live there. entities: Ann, Bob, Rome "
                "passage: Ann met Bob in Rome.\n- Ann likes Rome\n- Bob does not",
                "Ann",
            ),
            "dept": (GAP, "Ann"),
            "attempt": (f"superglue-record {GAP}", "Ann"),
            "residual": (
                f"passage : {RECORD['passage']} query: @placeholder wants to live there. entities: Ann; Bob; Rome",
                "Ann; Bob",
            ),
        },
    ),
    "super_glue/rte": (
        CLAIM,
        {
            None: ("rte sentence1: A b. sentence2: C d", "not_entailment"),
            "smop": ("rte sentence1: A b. sentence2: C d", "not_entailment"),
            "dept": (BOTH, "1"),
            "attempt": (f"superglue-rte {BOTH}", "1"),
            "residual": (BOTH, "not_entailment"),
        },
    ),
    "super_glue/wic": (
        WIC,
        {
            None: (f"wic {SENTENCES}", "False"),
            "ptuning-0": (f"wic {SENTENCES}", "False"),
            "ptuning-1": (f"wic {SENTENCES}", "False"),
            "smop": (f"wic {SENTENCES}", "False"),
            "dept": (SENTENCES, "0"),
            "attempt": (f"superglue-wic {SENTENCES}", "0"),
            "residual": (
                "start1: 2 end1: 7 sentence1: A class. start2: 5 end2: 10 sentence2: Real class! word: class",
                "false",
            ),
        },
    ),
    "super_glue/wsc": (
        WSC,
        {
            None: (f"wsc {MARKED}", "True"),
            "ptuning-0": (f"wsc {MARKED}", "True"),
            "ptuning-1": (f"wsc {MARKED}", "True"),
            "dept": (MARKED, "1"),
            "attempt": (f"superglue-wsc.fixed {MARKED}", "1"),
            "residual": (
                "span1_text: the cup span1_index: 0 span2_text: it span2_index: 8 "
                "text: The cup is under the table, so take it out.",
                "true",
            ),
            "residual-referent": ("The cup is under the table, so take *it* out.", "The"),
        },
    ),
}
# What an encoder reads, where that is not a row's two texts.
PARAGRAPH = "Sent 1: It rained. I was wet."
READ: list[tuple[str, dict[str, Any], str | None, list[tuple[str, ...]]]] = [
    ("boolq", BOOLQ, None, [("is it so", "It is.")]),
    ("rte", CLAIM, None, [("A b.", "C d")]),
    ("cb", CLAIM, None, [("A b.", "C d")]),
    ("copa", COPA, None, [("It rained. so", "I was wet."), ("It rained. so", "I was dry.")]),
    (
        "copa",
        {**COPA, "question": "cause"},
        None,
        [("It rained. because", COPA[name]) for name in ("choice1", "choice2")],
    ),
    ("multirc", MULTIRC, None, [(PARAGRAPH, "Who was wet? I")]),
    ("multirc", {**MULTIRC, "answer": ""}, None, [(PARAGRAPH, "Who was wet? ")]),
    ("record", RECORD, None, [(STORY, f"{name} wants to live there.") for name in ("Ann", "Bob", "Rome")]),
    (
        "record",
        RECORD,
        "ptuning",
        [
            ("Ann met Bob in Rome.\n- Ann likes Rome\n- Bob does not", f"{name} wants to live there.")
            for name in ("Ann", "Bob", "Rome")
        ],
    ),
    ("wic", WIC, None, [("class: A class.", "class: Real class!")]),
    ("wic", WIC, "ptuning-1", [("class: A class.", "class: Real class!")]),
    ("wic", WIC, "ptuning-0", [("A class. Real class! Does class have the same meaning in both sentences?",)]),
    ("wsc", WSC, None, [("it: The cup is under the table, so take it out.", "the cup")]),
    ("wsc", WSC, "ptuning-0", [("it: The cup is under the table, so take it out.", "the cup")]),
    ("wsc", WSC, "ptuning-1", [("The cup is under the table, so take *it* out.", "the cup")]),
]
# By template; None: of the task itself.
METRICS: dict[str, dict[str | None, tuple[str, ...]]] = {
    "cb": {
        None: ("accuracy", "macro_f1"),
        "smop": ("accuracy",),
        "dept": ("macro_f1", "accuracy"),
        "residual": ("accuracy+macro_f1",),
    },
    "multirc": {
        None: ("f1a", "question_em"),
        "smop": ("string_macro_f1",),
        "dept": ("f1",),
        "attempt": ("f1",),
        "residual": ("question_em+accuracy",),
    },
    "record": {None: ("em", "token_f1"), "dept": ("em", "token_f1"), "residual": ("em",)},
    "wsc": {None: ("accuracy",), "residual": ("accuracy",), "residual-referent": ("em",)},
    "copa": {None: ("accuracy",), "smop": ("accuracy",), "residual": ("accuracy",)},
}


@pytest.mark.parametrize("name", SUPERGLUE)
def test_what_models_read_and_answer(name: str) -> None:
    row, expected = RENDERED[name]
    assert {template: written(name, row, template) for template in expected} == expected
    assert set(expected) - {None} == set(SUPERGLUE[name].templates)
    for template, metrics in METRICS.get(name.split("/")[1], {None: ("accuracy",)}).items():
        assert under(name, template).metrics == metrics


@pytest.mark.parametrize(("name", "row", "template", "expected"), READ)
def test_what_an_encoder_reads(name: str, row: Any, template: str | None, expected: list[tuple[str, ...]]) -> None:
    assert read(f"super_glue/{name}", row, template) == expected


def test_rows_of_record() -> None:
    [whole] = examples("super_glue/record", RECORD)
    assert (whole.names, whole.answers, whole.label, whole.id) == (
        ("Ann", "Bob", "Rome"),
        ("Ann", "Bob"),
        (0, 1),
        "3-5",
    )
    # Each answer is taught; any of them counts as right.
    each = examples("super_glue/record", RECORD, "dept")
    assert [row.answers for row in each] == [("Ann", "Bob"), ("Bob", "Ann")] and each[1].label == (0, 1)
    [joined] = examples("super_glue/record", RECORD, "residual")
    assert (joined.answers, joined.label) == (("Ann; Bob",), (0, 1))
    [bare] = examples("super_glue/record", {**RECORD, "answers": []}, labelled=False)
    assert bare.answers == () and bare.label is None and len(bare.choices) == 3


def test_an_entity_the_passage_does_not_name_comes_last() -> None:
    [row] = examples("super_glue/record", {**RECORD, "entities": ["Zoe", "Bob", "Ann"]})
    assert row.names == ("Ann", "Bob", "Zoe")


def test_rows_of_multirc() -> None:
    [row] = examples("super_glue/multirc", MULTIRC)
    assert (row.id, row.group, row.label) == ("4-9-31", "4-9", 1)


def test_spans_of_wsc() -> None:
    def marked(**changes: Any) -> str:
        return examples("super_glue/wsc", {**WSC, **changes})[0].fields["marked"]

    # The pronoun first; a mark beside a comma; the same word twice, of which the index says which one.
    text = "Since it broke, the cup leaks, and it drips."
    assert marked(text=text, span1_index=3, span2_index=1) == "Since # it # broke, * the cup * leaks, and it drips."
    assert marked(text=text, span1_index=3, span2_index=7).endswith("leaks, and # it # drips.")
    # An index that is off by one, and no part of a word.
    assert (
        marked(text="Its cup, the cup, use it , or", span1_index=2, span2_index=4)
        == "Its cup, * the cup *, use # it # , or"
    )
    assert marked(text="The  cup\nleaks; use it", span1_index=0, span2_index=3) == "* The  cup *\nleaks; use # it #"
    assert (
        marked(text="I ( I ) the cup it", span1_text="I", span1_index=2, span2_index=6) == "I ( * I * ) the cup # it #"
    )
    # One within the other, and with the same beginning or end.
    assert marked(text="Their cup", span1_text="their cup", span2_text="their", span2_index=0) == "* # Their # cup *"
    assert marked(text="I saw it", span1_text="I saw it", span2_index=2) == "* I saw # it # *"


def test_only_pronouns_that_stand_for_the_noun_have_a_referent() -> None:
    [row] = examples("super_glue/wsc", WSC, "residual-referent")
    assert (row.answers, row.starts, row.label) == (("The",), (0,), None)
    with pytest.raises(SoftPromptError, match="no row has a label"):
        examples("super_glue/wsc", {**WSC, "label": 0}, "residual-referent")


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("copa", {**COPA, "question": "why"}, "'question' is 'why', neither 'cause' nor 'effect'"),
        ("copa", {**COPA, "label": 2}, "label 2 is not 0 to 1"),
        ("copa", {key: COPA[key] for key in COPA if key != "choice2"}, "no column 'choice2'"),
        ("multirc", {**MULTIRC, "idx": 3}, "'idx' is 3, which has no 'paragraph'"),
        ("multirc", {**MULTIRC, "idx": {"paragraph": 1}}, "'idx' is {'paragraph': 1}, which has no 'question'"),
        ("multirc", {**MULTIRC, "answer": None}, "not a row of this task"),
        ("record", {**RECORD, "query": "no gap"}, "'query' has no @placeholder"),
        ("record", {**RECORD, "entities": "Ann"}, "'entities' is 'Ann', not a list of texts"),
        ("record", {**RECORD, "entities": []}, "'choices' is \\[\\], not a list of texts"),
        ("record", {**RECORD, "answers": []}, "'answers' is \\[\\], not a list of texts"),
        ("record", {key: RECORD[key] for key in RECORD if key != "passage"}, "no column 'passage'"),
        ("wsc", {**WSC, "span1_text": "the mug"}, "'the mug' is not in the text"),
        ("wsc", {**WSC, "span2_text": ""}, "'' is not in the text"),
        ("wsc", {**WSC, "text": None}, "not a row of this task"),
    ],
)
def test_bad_rows(name: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(SoftPromptError, match=f"rows.jsonl: line 3: .*{message}") as caught:
        examples(f"super_glue/{name}", row)
    assert "\n" not in str(caught.value)


# Real rows


@pytest.mark.parametrize("name", SUPERGLUE)
def test_sizes_and_labels_are_those_of_the_manifest(name: str, data_dir: Path) -> None:
    require_as_listed(load_task(name, data_dir), data_dir)


def test_questions_of_multirc(data_dir: Path) -> None:
    task = load_task("super_glue/multirc", data_dir)
    groups = Counter(row.group for row in task.validation)
    assert len(groups) == 953 and sum(groups.values()) == 4848 and min(groups.values()) >= 2
    asked = {(row.group, row.fields["question"]) for row in task.validation}
    assert len(asked) == len(groups)  # one question a group
    assert sum(not row.fields["answer"].strip() for row in task.train) == 3
    assert not any("<br>" in row.fields["paragraph"] for row in task.train)


def test_answers_of_record_are_among_the_candidates(data_dir: Path) -> None:
    task = load_task("super_glue/record", data_dir)
    each = load_task("super_glue/record", data_dir, template="dept")
    for rows, more in ((task.train, each.train), (task.validation, each.validation)):
        assert all(row.label and {row.names[index] for index in row.label} == set(row.answers) for row in rows)
        assert all(name in choice for row in rows for name, choice in zip(row.names, row.choices, strict=True))
        assert len(more) == sum(len(row.answers) for row in rows) > len(rows)
        assert not any("@highlight" in row.fields["passage"] for row in rows)
    lists = load_task("super_glue/record", data_dir, template="ptuning")
    assert all("\n- " in row.fields["passage"] for row in lists.train)


def test_marks_of_wsc_lie_at_the_spans(data_dir: Path) -> None:
    task = load_task("super_glue/wsc", data_dir)
    lines = [
        json.loads(line)
        for split in ("train", "validation")
        for line in (data_dir / "super_glue" / "wsc" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    off = 0
    for row, line in zip([*task.train, *task.validation], lines, strict=True):
        marked = row.fields["marked"]
        [noun], [pronoun] = re.findall(r"\* (.*?) \*", marked, re.DOTALL), re.findall("# (.*?) #", marked)
        assert [word for word in noun.lower().split() if word != "#"] == line["span1_text"].lower().split()
        assert pronoun.lower() == line["span2_text"].lower()
        plain = marked.replace("* ", "", 1).replace(" *", "", 1).replace("# ", "", 1).replace(" #", "", 1)
        assert plain == line["text"]
        for mark, index in (("*", line["span1_index"]), ("#", line["span2_index"])):
            before = re.sub("[*#] | [*#]", "", marked[: marked.index(f"{mark} ")])
            off += len(before.split()) != index
    assert off == 1  # the pronoun of one validation row lies a word behind its index


def test_referents_of_wsc_lie_where_they_should(data_dir: Path) -> None:
    task = load_task("super_glue/wsc", data_dir, template="residual-referent")
    assert (len(task.train), len(task.validation)) == (259, 38)
    for row in [*task.train, *task.validation]:
        assert row.fields["text"].startswith(row.answers[0], row.starts[0])


# The hub


def shaped(name: str, row: dict[str, Any]) -> dict[str, Any]:
    """As it is there: more columns, and names in no order."""
    if name != "super_glue/record":
        return dict(reversed(row.items()))
    chance = random.Random(str(row["idx"]))
    return {
        **row,
        "entities": chance.sample(row["entities"], len(row["entities"])),
        "answers": chance.sample(row["answers"], len(row["answers"])),
        "entity_spans": {"text": [], "start": [], "end": []},
    }


@pytest.mark.parametrize("name", SUPERGLUE)
def test_the_hub_gives_the_same_rows(name: str, hub: Any, data_dir: Path) -> None:
    asked = hub(lambda row: shaped(name, row), scripts=("aps/super_glue",) if name.endswith("/cb") else ())
    task, local = load_task(name), load_task(name, data_dir)
    assert task.fingerprint == local.fingerprint and task.train == local.train
    assert task.source == f"aps/super_glue ({name.split('/')[1]})"
    # A data set that comes as a script is had as the hub's own copy.
    revisions = [None, "refs/convert/parquet"] if name.endswith("/cb") else [None]
    config = name.split("/")[1]
    assert asked == [
        ("aps/super_glue", config, split, revision) for split in ("train", "validation") for revision in revisions
    ]
