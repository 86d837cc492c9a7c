"""What rows become for an encoder, and how its scores are read back: against loops over every possibility."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from softprompts.errors import SoftPromptError
from softprompts.tasks import Example, Form, Task, encode_examples, marker
from softprompts.tasks.encode import answer_reader
from softprompts.training.prediction import Prediction

SPAN = Form(kind="span", fields=("question", "context"))
TAGS = Form(kind="tagging", labels=("O", "B-X", "I-X"))
RANKING = Form(kind="ranking", fields=("text",), reading=("{text}", "{choice}"))
CHOICE = Form(kind="choice", fields=("text",), words=("1", "2"))


def task_of(form: Form, metrics: tuple[str, ...] = ("accuracy",)) -> Task:
    return Task("toy", form, [], [], metrics=metrics)


def span_row(context: str, answer: str, question: str = "good film") -> Example:
    return Example(
        {"question": question, "context": context}, answers=(answer,), starts=(context.index(answer),), id=answer
    )


def test_a_span_in_one_window(encoder_tokenizer: Any) -> None:
    task, row = task_of(SPAN), span_row("a plot the same two three", "the same")
    encoded = encode_examples([row], task, encoder_tokenizer, "encoder", 32)
    (feature,) = encoded.features
    assert encoded.owners == [0] and encoded.truncated == 0
    assert encoder_tokenizer.convert_ids_to_tokens(feature["input_ids"])[4:10] == [
        "a",
        "plot",
        "the",
        "same",
        "two",
        "three",
    ]
    assert feature["places"] == [4, 5, 6, 7, 8, 9] and feature["span"] == [6, 7]
    bare = encode_examples([row], task, encoder_tokenizer, "encoder", 32, with_answer=False).features[0]
    assert bare == {name: value for name, value in feature.items() if name != "span"}


def test_windows_overlap_and_know_whether_they_have_the_answer(encoder_tokenizer: Any) -> None:
    context = "one two three four five one two three four five good bad film plot a the"
    task, row = task_of(SPAN), span_row(context, "good bad")
    encoded = encode_examples([row], task, encoder_tokenizer, "encoder", 13)
    words, seen = context.split(), set()
    assert len(encoded.features) > 1 and set(encoded.owners or ()) == {0}
    for feature in encoded.features:
        tokens = encoder_tokenizer.convert_ids_to_tokens(feature["input_ids"])
        assert len(tokens) <= 13
        texts = [context[b:e] for b, e in zip(feature["begins"], feature["ends"], strict=True)]
        assert [tokens[place] for place in feature["places"]] == texts
        seen.update(feature["begins"])
        first, last = feature["span"]
        whole = "good" in texts and "bad" in texts
        assert tokens[first : last + 1] == (["good", "bad"] if whole else ["[CLS]"])
    assert len(seen) == len(words)


def test_a_question_that_fills_the_window_is_cut(encoder_tokenizer: Any) -> None:
    row = span_row("a plot the same", "plot", question=" ".join(["good"] * 40))
    encoded = encode_examples([row], task_of(SPAN), encoder_tokenizer, "encoder", 16)
    assert encoded.truncated == 1 and all(len(feature["input_ids"]) <= 16 for feature in encoded.features)
    assert sum(len(feature["places"]) for feature in encoded.features) >= 4


def test_the_best_span_of_all_windows(encoder_tokenizer: Any) -> None:
    context = "one two three four five one two three four five good bad film plot a the"
    task = task_of(SPAN, ("em", "token_f1"))
    rows = [span_row(context, "good bad"), span_row("a plot", "plot")]
    encoded = encode_examples(rows, task, encoder_tokenizer, "encoder", 13)
    torch.manual_seed(0)
    for _ in range(20):
        scores = [torch.randn(len(feature["places"]), 2, dtype=torch.float64) for feature in encoded.features]
        found, valid = answer_reader(task, rows, encoded, encoder_tokenizer, "encoder")(Prediction([], None, scores))
        for index, row in enumerate(rows):
            best, text = -1e9, ""
            for feature, logits, owner in zip(encoded.features, scores, encoded.owners or (), strict=True):
                for i in range(len(logits)):
                    for j in range(i, min(i + 30, len(logits))):
                        if owner == index and logits[i, 0] + logits[j, 1] > best:
                            best = float(logits[i, 0] + logits[j, 1])
                            text = row.fields["context"][feature["begins"][i] : feature["ends"][j]]
            assert found[index] == text
        assert valid
    right = [torch.zeros(len(feature["places"]), 2, dtype=torch.float64) for feature in encoded.features]
    for feature, scores_ in zip(encoded.features, right, strict=True):
        if feature["span"] != [0, 0]:
            scores_[feature["places"].index(feature["span"][0]), 0] = 9.0
            scores_[feature["places"].index(feature["span"][1]), 1] = 9.0
    mark = marker(task, rows, encoded, encoder_tokenizer, "encoder")
    assert mark(Prediction([], None, right)) == {"em": 1.0, "token_f1": 1.0}


def test_tags_sit_at_the_first_token_of_each_word(encoder_tokenizer: Any) -> None:
    task = task_of(TAGS, ("seqeval_f1",))
    # "two:three" is three tokens to the tokenizer, and one word.
    rows = [Example({}, (1, 2, 0), words=("good", "two:three", "film")), Example({}, (0,), words=("plot",))]
    encoded = encode_examples(rows, task, encoder_tokenizer, "encoder", 16)
    first = encoded.features[0]
    assert encoder_tokenizer.convert_ids_to_tokens(first["input_ids"]) == [
        "[CLS]",
        "good",
        "two",
        ":",
        "three",
        "film",
        "[SEP]",
    ]
    assert first["places"] == [1, 2, 5] and first["words"] == [0, 1, 2]
    assert first["labels"] == [-100, 1, 2, -100, -100, 0, -100]
    mark = marker(task, rows, encoded, encoder_tokenizer, "encoder")
    assert mark(Prediction([[1, 2, 0], [0]], None)) == {"seqeval_f1": 1.0}
    assert mark(Prediction([[1, 0, 0], [0]], None)) == {"seqeval_f1": 0.0}


def test_words_that_are_cut_or_have_no_token_are_outside(encoder_tokenizer: Any) -> None:
    task = task_of(TAGS, ("seqeval_f1",))
    rows = [
        Example({}, (0, 0, 1, 2), words=("good", "\u200b", "film", "plot")),
        Example({}, (1,) * 9, words=("a",) * 9),
    ]
    encoded = encode_examples(rows, task, encoder_tokenizer, "encoder", 6)
    assert encoded.truncated == 1
    assert [len(feature["places"]) for feature in encoded.features] == [4, 4]
    found, _ = answer_reader(task, rows, encoded, encoder_tokenizer, "encoder")(Prediction([[1] * 4, [1] * 4], None))
    assert found == [["B-X"] * 4, ["B-X"] * 4 + ["O"] * 5]


def test_real_words_and_sub_words() -> None:
    """Places agree with the tokenizer's own way of splitting words."""
    from transformers import AutoTokenizer

    from softprompts.backbones.packaged import DEFAULT_MODEL, resolve_model

    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve_model(DEFAULT_MODEL))
    except SoftPromptError as error:
        pytest.skip(str(error))
    chance = random.Random(0)
    pieces = ["Zürich", "U.N.", "don't", "x", "unbelievability", "(", "1,000", "東京", "-DOCSTART-", "co-operate", "é"]
    for _ in range(50):
        words = tuple(chance.choices(pieces, k=chance.randint(1, 12)))
        row = Example({}, tuple(range(len(words))), words=words)
        form = Form(kind="tagging", labels=tuple(map(str, range(len(words)))))
        feature = encode_examples([row], task_of(form), tokenizer, "encoder", 128).features[0]
        own = tokenizer(list(words), is_split_into_words=True)
        assert feature["input_ids"] == own["input_ids"]
        firsts = [own.word_ids().index(number) for number in range(len(words))]
        assert feature["places"] == firsts and feature["words"] == list(range(len(words)))


def test_choices(encoder_tokenizer: Any) -> None:
    task = task_of(CHOICE)
    rows = [Example({"text": "good"}, 1, choices=("film", "bad plot")), Example({"text": "bad"}, 0, choices=("a", "b"))]
    encoded = encode_examples(rows, task, encoder_tokenizer, "encoder", 16)
    texts = [encoder_tokenizer.convert_ids_to_tokens(row["input_ids"]) for row in encoded.features[0]["choices"]]
    assert texts == [["[CLS]", "good", "[SEP]", "film", "[SEP]"], ["[CLS]", "good", "[SEP]", "bad", "plot", "[SEP]"]]
    assert [feature["label"] for feature in encoded.features] == [1, 0]
    mark = marker(task, rows, encoded, encoder_tokenizer, "encoder")
    assert mark(Prediction([1, 1], None)) == {"accuracy": 0.5}


def test_ranking(encoder_tokenizer: Any) -> None:
    task = task_of(RANKING, ("em",))
    rows = [
        Example({"text": "good"}, (1,), choices=("film", "plot", "one"), answers=("Plot",), names=("F", "Plot", "O")),
        Example({"text": "bad"}, (0, 1), choices=("two", "three"), answers=("two", "three")),
    ]
    encoded = encode_examples(rows, task, encoder_tokenizer, "encoder", 16)
    assert encoded.owners == [0, 0, 0, 1, 1]
    assert [feature["label"] for feature in encoded.features] == [0, 1, 0, 1, 1]
    margins = [0.1, 0.3, 0.2, -2.0, -3.0]
    scores = [torch.tensor([[1.0, 1.0 + margin]]) for margin in margins]
    found, _ = answer_reader(task, rows, encoded, encoder_tokenizer, "encoder")(Prediction([], None, scores))
    assert found == ["Plot", "two"]
    assert marker(task, rows, encoded, encoder_tokenizer, "encoder")(Prediction([], None, scores)) == {"em": 1.0}


def test_generated_answers(decoder_tokenizer: Any, toy_task: Task) -> None:
    ids = decoder_tokenizer.convert_tokens_to_ids
    written = Prediction([], None, tokens=[ids(["good"]), ids(["good", "film"])])
    for rule, wanted in (("mismatch", [1, -1]), ("opposite", [1, 1]), ("zero", [1, -1])):
        task = toy_task.with_form(answering="generate", invalid=rule)
        encoded = encode_examples(task.train, task, decoder_tokenizer, "decoder", 16)
        found, valid = answer_reader(task, task.train, encoded, decoder_tokenizer, "decoder")(written)
        assert found == wanted and not valid
        score = marker(task, task.train, encoded, decoder_tokenizer, "decoder")(written)
        assert score == {"accuracy": 0.0 if rule == "zero" else 0.5}


@pytest.mark.parametrize("rule", ["mismatch", "opposite", "zero"])
def test_generated_answers_for_rows_without_labels(decoder_tokenizer: Any, toy_task: Task, rule: str) -> None:
    ids = decoder_tokenizer.convert_tokens_to_ids
    task = toy_task.with_form(answering="generate", invalid=rule)
    rows = [replace(row, label=None) for row in task.train]
    encoded = encode_examples(rows, task, decoder_tokenizer, "decoder", 16, with_answer=False)
    read = answer_reader(task, rows, encoded, decoder_tokenizer, "decoder")
    assert read(Prediction([], None, tokens=[ids(["good"]), ids(["film"])])) == ([1, -1], False)


def test_free_answers(decoder_tokenizer: Any) -> None:
    task = task_of(SPAN, ("em", "token_f1"))
    rows = [span_row("a plot the same two", "the same")]
    row = encode_examples(rows, task, decoder_tokenizer, "decoder", 64).features[0]
    text = decoder_tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert text[-4:] == [":", "the", "same", "</s>"] and row["labels"][-3:] == row["input_ids"][-3:]
    encoded = encode_examples(rows, task, decoder_tokenizer, "decoder", 64)
    mark = marker(task, rows, encoded, decoder_tokenizer, "decoder")
    assert mark(Prediction([], None, tokens=[row["labels"][-3:]])) == {"em": 1.0, "token_f1": 1.0}


def test_what_an_encoder_alone_can_do(decoder_tokenizer: Any) -> None:
    with pytest.raises(SoftPromptError, match="'toy' labels every word, which takes an encoder"):
        encode_examples([], task_of(TAGS), decoder_tokenizer, "decoder", 16)
