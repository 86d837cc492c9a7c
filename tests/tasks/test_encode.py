from __future__ import annotations

from dataclasses import replace

import pytest

from softprompts.errors import SoftPromptError
from softprompts.tasks import Example, Form, Task, encode_examples, label_ids, padding_id


def words(tokenizer, ids: list[int]) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(ids))


def test_encoder(encoder_tokenizer, toy_task: Task) -> None:
    encoded = encode_examples(toy_task.train, toy_task, encoder_tokenizer, "encoder", 16)
    assert encoded.truncated == 0
    assert [set(row) for row in encoded.features] == [{"input_ids", "token_type_ids", "label"}] * 2
    assert words(encoder_tokenizer, encoded.features[0]["input_ids"]) == "[CLS] good film [SEP]"
    assert [row["label"] for row in encoded.features] == [1, 0]


def test_encoder_cuts_the_longer_text(encoder_tokenizer, pair_task: Task) -> None:
    encoded = encode_examples(pair_task.train, pair_task, encoder_tokenizer, "encoder", 8)
    assert encoded.truncated == 1
    first, second = encoded.features
    assert words(encoder_tokenizer, first["input_ids"]) == "[CLS] good film [SEP] the same [SEP]"
    assert words(encoder_tokenizer, second["input_ids"]) == "[CLS] good film [SEP] one two three [SEP]"
    assert second["token_type_ids"] == [0] * 4 + [1] * 4


def test_decoder(decoder_tokenizer, toy_task: Task) -> None:
    encoded = encode_examples(toy_task.train, toy_task, decoder_tokenizer, "decoder", 16)
    row = encoded.features[0]
    assert words(decoder_tokenizer, row["input_ids"]) == "toy sentence : good film answer : good </s>"
    assert row["labels"] == [-100] * 7 + row["input_ids"][7:]
    bare = encode_examples(toy_task.train, toy_task, decoder_tokenizer, "decoder", 16, with_answer=False).features[0]
    assert bare == {"input_ids": row["input_ids"][:7]}


def test_decoder_cut_keeps_the_frame(decoder_tokenizer, pair_task: Task) -> None:
    encoded = encode_examples(pair_task.train, pair_task, decoder_tokenizer, "decoder", 14)
    assert encoded.truncated == 1
    text = words(decoder_tokenizer, encoded.features[1]["input_ids"])
    assert text.startswith("first : good film second : one two")
    assert text.endswith("answer : no </s>") and len(text.split()) <= 14


def test_a_cut_row_is_the_same_with_and_without_its_answer(decoder_tokenizer, pair_task: Task) -> None:
    for length in (12, 13, 14, 15):
        rows = (
            encode_examples(pair_task.train, pair_task, decoder_tokenizer, "decoder", length, with_answer)
            for with_answer in (True, False)
        )
        for whole, bare in zip(*(encoded.features for encoded in rows), strict=True):
            asked = [token for token, label in zip(whole["input_ids"], whole["labels"], strict=True) if label == -100]
            assert bare["input_ids"] == asked


@pytest.mark.parametrize("kind", ["encoder", "encoder-decoder", "decoder"])
def test_too_short(encoder_tokenizer, pair_task: Task, kind: str) -> None:
    with pytest.raises(SoftPromptError, match="max_length is 4: too short"):
        encode_examples(pair_task.train, pair_task, encoder_tokenizer, kind, 4)


@pytest.mark.parametrize("kind", ["encoder", "encoder-decoder", "decoder"])
def test_no_rows(encoder_tokenizer, pair_task: Task, kind: str) -> None:
    assert encode_examples([], pair_task, encoder_tokenizer, kind, 16).features == []


def test_label_words(decoder_tokenizer, toy_task: Task) -> None:
    good, bad, end = decoder_tokenizer.convert_tokens_to_ids(["good", "bad", "</s>"])
    for kind in ("encoder-decoder", "decoder"):
        assert label_ids(toy_task, decoder_tokenizer, kind) == [[bad, end], [good, end]]
    unknown = toy_task.with_form(words=("awful", "great"))
    with pytest.raises(SoftPromptError, match="cannot tell the label words 'awful' and 'great' apart"):
        encode_examples(toy_task.train, unknown, decoder_tokenizer, "decoder", 16)
    assert label_ids(toy_task, decoder_tokenizer, "encoder") is None
    with pytest.raises(SoftPromptError, match="did you mean 'decoder'"):
        label_ids(toy_task, decoder_tokenizer, "decodr")


def test_padding_id(encoder_tokenizer, decoder_tokenizer) -> None:
    assert padding_id(encoder_tokenizer) == encoder_tokenizer.pad_token_id
    assert padding_id(decoder_tokenizer) == decoder_tokenizer.eos_token_id


def test_t5(t5_tokenizer, pair_task: Task) -> None:
    source = "rte first: {first} second: {second}"
    task = pair_task.with_form(source=source, words=("not_entailment", "entailment"))
    encoded = encode_examples(task.train, task, t5_tokenizer, "encoder-decoder", 32)
    row = encoded.features[0]
    assert t5_tokenizer.decode(row["input_ids"]) == "rte first: good film second: the same</s>"
    assert t5_tokenizer.decode(row["labels"]) == "entailment</s>"
    assert len({tuple(ids) for ids in label_ids(task, t5_tokenizer, "encoder-decoder")}) == 2


def test_t5_cut_spares_the_shorter_text(t5_tokenizer) -> None:
    form = Form(labels=("False", "True"), fields=("question", "passage"), source="{passage} question: {question}")
    task = Task("boolq", form, [], [])
    rows = [Example({"question": "is it so", "passage": "word " * size}, 1, size) for size in (5, 50, 500)]
    encoded = encode_examples(rows, task, t5_tokenizer, "encoder-decoder", 40)
    assert encoded.truncated == 2
    for row in encoded.features[1:]:
        assert 30 < len(row["input_ids"]) <= 40
        assert t5_tokenizer.decode(row["input_ids"]).endswith("question: is it so</s>")


@pytest.mark.parametrize("kind", ["encoder", "encoder-decoder", "decoder"])
def test_only_fields_that_are_read_are_cut(encoder_tokenizer, kind: str) -> None:
    form = Form(labels=("no", "yes"), fields=("first", "unused", "second"), reading=("{first}", "{second}"))
    form = replace(form, source="{first} {second}")
    rows = [Example({"first": "good film", "unused": "one two " * 40, "second": "one two three four " * 4}, 0, 0)]
    task = Task("t", form, rows, [])
    found = encode_examples(rows, task, encoder_tokenizer, kind, 16)
    alone = replace(form, fields=("first", "second"))
    bare = [Example({name: rows[0].fields[name] for name in ("first", "second")}, 0, 0)]
    assert found == encode_examples(bare, replace(task, form=alone), encoder_tokenizer, kind, 16)
    assert found.truncated == 1 and len(found.features[0]["input_ids"]) >= 14


def test_scores(t5_tokenizer) -> None:
    rows = [Example({"x": "a", "y": "b"}, 3.79, 0)]
    task = Task("sts", Form(kind="regression", words=("3.6", "3.8"), fields=("x", "y")), rows, rows)
    row = encode_examples(rows, task, t5_tokenizer, "encoder-decoder", 32).features[0]
    assert row["label"] == 3.79 and t5_tokenizer.decode(row["labels"]) == "3.8</s>"
    with pytest.raises(SoftPromptError, match="no label words"):
        encode_examples(rows, task.with_form(words=()), t5_tokenizer, "encoder-decoder", 32)


def test_packaged_tokenizer_on_real_rows(data_dir) -> None:
    from transformers import AutoTokenizer

    from softprompts.backbones.packaged import DEFAULT_MODEL, resolve_model
    from softprompts.tasks import load_task

    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve_model(DEFAULT_MODEL))
    except SoftPromptError as error:
        pytest.skip(str(error))
    task = load_task("super_glue/cb", data_dir)
    encoded = encode_examples(task.validation, task, tokenizer, "encoder", 64)
    lengths = [len(row["input_ids"]) for row in encoded.features]
    assert 0 < encoded.truncated < len(lengths) and max(lengths) == 64


def test_rows_are_tokenised_once(tmp_path, encoder_tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    from softprompts.tasks import encode

    form = Form(labels=("bad", "good"), fields=("sentence",))
    rows = [Example({"sentence": f"good film {'plot ' * (index % 9)}"}, index % 2, index) for index in range(600)]
    task = Task("toy", form, rows, rows[:20])
    first = encode.encode_cached("train", task, encoder_tokenizer, "encoder", 8, tmp_path)
    assert first == encode_examples(rows, task, encoder_tokenizer, "encoder", 8)
    monkeypatch.setattr(encode, "encode_examples", None)
    assert encode.encode_cached("train", task, encoder_tokenizer, "encoder", 8, tmp_path) == first
    for other in (9, 7):
        with pytest.raises(TypeError):
            encode.encode_cached("train", task, encoder_tokenizer, "encoder", other, tmp_path)
    with pytest.raises(TypeError):
        encode.encode_cached(
            "train", task.with_form(reading=("a {sentence}",)), encoder_tokenizer, "encoder", 8, tmp_path
        )
