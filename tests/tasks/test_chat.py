"""Conversations as token ids: token by token, what has a loss and what has none, and what is cut."""

from __future__ import annotations

from typing import Any

import pytest
from chatting import SYSTEM, TALK, chat_tokenizer, marked, words

from softprompts.errors import SoftPromptError
from softprompts.tasks import Example, Form, Task, encode_examples
from softprompts.tasks.conversations import MESSAGES, packed
from softprompts.tasks.encode import answer_reader, end_ids, neg_losses
from softprompts.training import Prediction


def encode(
    messages: Any, template: str = "chatml", kind: str = "decoder", length: int = 100, answered: bool = True
) -> Any:
    tokenizer = chat_tokenizer(template)
    example = Example({MESSAGES: packed(messages)}, id=7, answers=(messages[-1]["content"],))
    task = Task("talk", Form(kind="chat", fields=(MESSAGES,)), [example], [example])
    return tokenizer, encode_examples([example], task, tokenizer, kind, length, with_answer=answered)


_FIRST = "<|im_start|> user \\n what is two plus two ? <|im_end|> \\n <|im_start|> assistant \\n "
_SECOND = " \\n <|im_start|> user \\n and plus three ? <|im_end|> \\n <|im_start|> assistant \\n "
EXPECTED = {
    "chatml": [f"{_FIRST}FOUR <|IM_END|>{_SECOND}SO FIVE \\N \\N BYE <|IM_END|>"],
    "inst": [
        "<s> [INST] what is two plus two ? [/INST] FOUR </S> [INST] and plus three ? [/INST] SO FIVE \\N \\N BYE </S>"
    ],
    # An answer is written in another way once the talk goes on: a row for each, as it is while it is the last.
    "thinking": [
        f"{_FIRST}<THINK> </THINK> FOUR <|IM_END|>",
        f"{_FIRST}four <|im_end|>{_SECOND}<THINK> </THINK> SO FIVE \\N \\N BYE <|IM_END|>",
    ],
    # It ends no turn: the last answer is ended by the end of the text.
    "endless": [
        "user \\n what is two plus two ? \\n assistant \\n FOUR \\N user \\n and plus three ? \\n assistant \\n "
        "SO FIVE \\N \\N BYE \\N </S>"
    ],
}


@pytest.mark.parametrize("template", EXPECTED)
def test_the_loss_is_on_answers_alone(template: str) -> None:
    tokenizer, encoded = encode(TALK, template)
    assert [marked(tokenizer, row) for row in encoded.features] == EXPECTED[template]
    for row in encoded.features:
        assert all(label in (-100, token) for token, label in zip(row["input_ids"], row["labels"], strict=True))
    last = encoded.features[-1]["input_ids"]
    ids = tokenizer.apply_chat_template(TALK, return_dict=True)["input_ids"]
    assert last[: len(ids)] == ids[: len(last)]  # the template's own tokens, but for what stands behind the end


@pytest.mark.parametrize("template", EXPECTED)
def test_what_is_answered_is_the_same_with_and_without_the_answer(template: str) -> None:
    for talk in (TALK, TALK[:2], [*TALK, TALK[0], TALK[1]]):
        for length in (100, 14):
            _, whole = encode(talk, template, length=length)
            _, bare = encode(talk, template, length=length, answered=False)
            _, asked = encode(talk[:-1], template, length=length, answered=False)
            row = whole.features[-1]
            question = max(at for at, label in enumerate(row["labels"]) if label == -100) + 1
            assert bare.features == asked.features == [{"input_ids": row["input_ids"][:question]}]


def test_encoder_decoders_read_the_talk_and_write_the_last_answer() -> None:
    tokenizer, encoded = encode(TALK, kind="encoder-decoder")
    (row,) = encoded.features
    assert words(tokenizer, row["input_ids"]).endswith("and plus three ? <|im_end|> \\n <|im_start|> assistant \\n")
    assert words(tokenizer, row["labels"]) == "so five \\n \\n bye </s>"


def test_the_oldest_messages_go_first_and_answers_are_never_cut() -> None:
    talk = [SYSTEM, *TALK]
    whole = encode(talk)[1].features[0]
    question = max(at for at, label in enumerate(whole["labels"]) if label == -100) + 1
    tokenizer, encoded = encode(talk, length=question)
    assert encoded.truncated == 0 and encoded.features == [whole]
    tokenizer, encoded = encode(talk, length=question - 1)
    assert encoded.truncated == 1 and encoded.cut == {"the oldest messages": 1}
    assert marked(tokenizer, encoded.features[0]) == (
        "<|im_start|> system \\n be short <|im_end|> \\n <|im_start|> user \\n and plus three ? <|im_end|> \\n "
        "<|im_start|> assistant \\n SO FIVE \\N \\N BYE <|IM_END|>"
    )
    tokenizer, encoded = encode(talk, length=17)
    assert encoded.cut == {"the oldest messages": 1, MESSAGES: 1}
    text = marked(tokenizer, encoded.features[0])
    assert "three" not in text and text.endswith("SO FIVE \\N \\N BYE <|IM_END|>")
    with pytest.raises(SoftPromptError, match="max_length is 8: too short"):
        encode(talk, length=8)


def test_what_ends_an_answer() -> None:
    task = Task("talk", Form(kind="chat", fields=(MESSAGES,)), [], [])
    for template, ends in (("chatml", ["</s>", "<|im_end|>"]), ("inst", ["</s>"]), ("endless", ["</s>"])):
        tokenizer = chat_tokenizer(template)
        assert tokenizer.convert_ids_to_tokens(end_ids(task, tokenizer, "decoder")) == ends


def test_templates_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(SoftPromptError, match="no chat template: choose a model that has one"):
        encode(TALK, None)
    with pytest.raises(SoftPromptError, match="row 7: the tokenizer's chat template does not take .*only user and"):
        encode([SYSTEM, *TALK], "inst")
    with pytest.raises(SoftPromptError, match="row 7: the chat template does not write an answer behind the beginning"):
        encode(TALK, "backwards")


def test_of_several_rows_of_a_talk_the_last_is_the_answer() -> None:
    tokenizer, encoded = encode(TALK, "thinking")
    assert encoded.owners == [0, 0]
    example = Example({MESSAGES: packed(TALK)}, id=7, answers=(TALK[-1]["content"],))
    task = Task("talk", Form(kind="chat", fields=(MESSAGES,)), [], [example], metrics=("exact_match",))
    ids = tokenizer("so five\n\nbye <|im_end|> four", add_special_tokens=False)["input_ids"]
    first = tokenizer("four", add_special_tokens=False)["input_ids"]
    read = answer_reader(task, [example], encoded, tokenizer, "decoder")(Prediction([], None, tokens=[first, ids]))[0]
    assert len(read) == 1 and read[0].split() == TALK[-1]["content"].split()
    assert neg_losses(encoded, [(2.0, 1), (4.0, 3)]) == [-1.5]
