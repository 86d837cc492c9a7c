"""What is said of a task: its splits, lengths and examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from softprompts.errors import SoftPromptError
from softprompts.tasks import Example, Form, Task
from softprompts.tasks.describe import describe, percentile


def texts(lengths: list[int]) -> Task:
    rows = [Example({"text": " ".join(["good"] * count)}, count % 2, count) for count in lengths]
    form = Form(labels=("odd", "even"), words=("one", "two"))
    return Task("texts", form, rows, rows[:2], metrics=("accuracy",), source="here")


def test_percentiles_are_values_that_so_many_rows_do_not_exceed() -> None:
    hundred = list(range(1, 101))
    assert [percentile(hundred, part) for part in (50, 90, 99)] == [50, 90, 99]
    assert [percentile([1, 2, 3], part) for part in (50, 90, 99)] == [2, 3, 3]
    assert percentile([7], 50) == 7


def test_lengths_count_all_tokens_and_what_would_be_cut(encoder_tokenizer: Any) -> None:
    found = describe(texts([1, 2, 3, 4, 20]), encoder_tokenizer, "encoder", context=10, max_length=5)
    train = found["splits"]["train"]
    assert train["rows"] == 5 and train["labels"] == {"odd": 3, "even": 2}
    assert train["tokens"] == {"50%": 5, "90%": 22, "99%": 22, "longest": 22}  # two are special
    assert train["over_max_length"] == 2 and train["over_context"] == 1
    assert found["splits"]["validation"]["rows"] == 2 and "test" not in found["splits"]
    example = found["examples"][0]
    assert example["encoder"] == [["good"]] and example["language_model"] == "text: good"
    assert example["answer"] == "even" and example["written"] == "two"


def test_a_decoders_answer_needs_room_too(decoder_tokenizer: Any) -> None:
    task = texts([1, 2, 3])
    alone = describe(task, decoder_tokenizer, "encoder-decoder")["splits"]["train"]["tokens"]["longest"]
    # A line break and "answer:" (two tokens here), the label word, and the end of the text.
    assert describe(task, decoder_tokenizer, "decoder")["splits"]["train"]["tokens"]["longest"] == alone + 2 + 2


def test_every_kind_is_shown(encoder_tokenizer: Any, decoder_tokenizer: Any) -> None:
    tagged = Example({"words": "good film"}, (0, 1), 1, words=("good", "film"))
    form = Form("tagging", ("O", "B-X"), ("words",))
    found = describe(Task("tags", form, [tagged], [tagged]), encoder_tokenizer, "encoder")
    assert found["splits"]["train"]["labels"] == {"O": 1, "B-X": 1}
    assert found["examples"][0]["answer"] == ["O", "B-X"] and found["examples"][0]["language_model"] is None
    with pytest.raises(SoftPromptError, match="labels every word, which takes an encoder"):
        describe(Task("tags", form, [tagged], [tagged]), decoder_tokenizer, "decoder")

    span = Example({"question": "one", "context": "two three " * 200}, None, 1, answers=("three",), starts=(4,))
    form = Form("span", (), ("question", "context"))
    found = describe(Task("spans", form, [span], [span]), encoder_tokenizer, "encoder")
    assert found["splits"]["train"]["tokens"]["longest"] == 404 and found["examples"][0]["answer"] == ["three"]

    chosen = Example({"text": "good"}, 1, 1, choices=("film", "a bad plot"))
    found = describe(Task("choices", Form("choice"), [chosen], [chosen]), encoder_tokenizer, "encoder")
    assert found["splits"]["train"]["tokens"]["longest"] == 7  # the longest choice: good, a bad plot, and three more
    assert found["examples"][0]["encoder"] == [["good", "film"], ["good", "a bad plot"]]
    assert found["examples"][0]["answer"] == "a bad plot" and found["splits"]["train"]["labels"] == {"0": 0, "1": 1}

    scored = [Example({"text": "good"}, score, 1) for score in (1.0, 2.0, 6.0)]
    found = describe(Task("scores", Form("regression", words=("1", "6")), scored, scored), encoder_tokenizer, "encoder")
    assert found["splits"]["train"]["labels"] == {"least": 1.0, "mean": 3.0, "largest": 6.0}
    assert found["examples"][2]["written"] == "6"


def test_every_task_with_data_can_be_shown(data_dir: Path, encoder_tokenizer: Any) -> None:
    from softprompts.tasks import load_task

    for name in ("super_glue/boolq", "glue/stsb"):
        task = load_task(name, data_dir, max_train=20, max_validation=20)
        assert describe(task, encoder_tokenizer, "encoder")["splits"]["train"]["rows"] == 20
