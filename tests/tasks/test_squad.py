"""SQuAD: what models read, and real rows from a folder and from the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from softprompts.errors import SoftPromptError
from softprompts.tasks import load_task
from tests.tasks.rendering import examples, read, require_as_listed, under, written

NAME = "squad/squad"
ROW = {
    "id": "56be",
    "title": "Rain",
    "context": "It rained in Rome on Monday.",
    "question": "Where?",
    "answers": {"text": ["Rome", "in Rome"], "answer_start": [13, 10]},
}


def test_what_models_read_and_answer() -> None:
    plain = "question: Where? context: It rained in Rome on Monday."
    expected = {None: (plain, "Rome"), "dept": (plain, "Rome"), "attempt": (f"squad {plain}", "Rome")}
    assert {template: written(NAME, ROW, template) for template in expected} == expected
    assert read(NAME, ROW) == [("Where?", "It rained in Rome on Monday.")]
    assert all(under(NAME, template).metrics == ("em", "token_f1") for template in expected)
    [example] = examples(NAME, ROW)
    assert (example.id, example.answers, example.starts) == ("56be", ("Rome", "in Rome"), (13, 10))
    [bare] = examples(NAME, {key: ROW[key] for key in ("question", "context")}, labelled=False)
    assert bare.answers == () and bare.starts == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": {"text": ["Rome"], "answer_start": [12]}}, "the answer 'Rome' is not at character 12"),
        ({"answers": {"text": ["Rome", "in"], "answer_start": [13]}}, "not a row of this task"),
        ({"answers": {"text": ["Rome"]}}, "'answers' is {'text': \\['Rome'\\]}, which has no 'answer_start'"),
        ({"answers": ["Rome"]}, "'answers' is \\['Rome'\\], which has no 'text'"),
        ({"answers": {"text": [], "answer_start": []}}, "'answers' is \\[\\], not a list of texts"),
        ({"answers": {"text": [None], "answer_start": [3]}}, "not a row of this task"),
        ({"question": None}, "'question' is None, not a text"),
    ],
)
def test_bad_rows(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SoftPromptError, match=f"rows.jsonl: line 3: .*{message}") as caught:
        examples(NAME, {**ROW, **changes})
    assert "\n" not in str(caught.value)


def test_real_answers_lie_where_they_should(data_dir: Path) -> None:
    task = load_task(NAME, data_dir)
    require_as_listed(task, data_dir)
    for row in [*task.train, *task.validation]:
        assert len(row.answers) == len(row.starts) >= 1
        for answer, start in zip(row.answers, row.starts, strict=True):
            assert row.fields["context"].startswith(answer, start)
    assert len({row.id for row in task.validation}) == 1500


def test_the_hub_gives_the_same_rows(hub: Any, data_dir: Path) -> None:
    asked = hub(lambda row: dict(reversed(row.items())))
    task, local = load_task(NAME), load_task(NAME, data_dir)
    assert asked == [("rajpurkar/squad", None, split, None) for split in ("train", "validation")]
    assert task.fingerprint == local.fingerprint and task.validation == local.validation
