import pytest
import torch

from softprompts.errors import SoftPromptError
from softprompts.methods import PromptTuningConfig, Shape, Vocabulary


def row_ids(prompt, table):
    """Which vocabulary row each prompt row is."""
    return [next(i for i in range(len(table)) if torch.equal(row, table[i])) for row in prompt]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"init": "random"},
        {"init": "normal"},
        {"init": "text", "init_text": "ab cd"},
        {"init": "labels", "label_words": ("ab", "c")},
        {"vocabulary_limit": 10},
    ],
)
def test_contract(check_contract, fields):
    check_contract(PromptTuningConfig(num_virtual_tokens=3, **fields))


def test_prompt_is_handed_over_as_it_is(shape):
    method = PromptTuningConfig(num_virtual_tokens=3).build(shape)
    assert torch.equal(method().tokens, method.prompt[None])


def test_vocabulary_rows_are_different_and_not_special(shape, table):
    method = PromptTuningConfig(num_virtual_tokens=48).build(shape)
    assert sorted(row_ids(method.prompt, table)) == list(range(2, 50))


def test_vocabulary_limit(shape, table):
    method = PromptTuningConfig(num_virtual_tokens=8, vocabulary_limit=10).build(shape)
    assert sorted(row_ids(method.prompt, table)) == list(range(2, 10))


def test_rows_repeat_only_once_all_are_used(shape, table):
    ids = row_ids(PromptTuningConfig(num_virtual_tokens=12, vocabulary_limit=10).build(shape).prompt, table)
    assert set(ids[:8]) == set(range(2, 10))
    assert ids[8:] == ids[:4]


@pytest.mark.parametrize(("length", "ids"), [(2, [2, 3]), (3, [2, 3, 4]), (7, [2, 3, 4, 2, 3, 4, 2])])
def test_text_is_cut_or_repeated(shape, table, length, ids):
    method = PromptTuningConfig(num_virtual_tokens=length, init="text", init_text="a bc").build(shape)
    assert row_ids(method.prompt, table) == ids


def test_label_pieces_are_averaged_and_the_rest_sampled(shape, table):
    method = PromptTuningConfig(num_virtual_tokens=4, init="labels", label_words=["abc", "d"]).build(shape)
    torch.testing.assert_close(method.prompt[0].data, (table[2] + table[3] + table[4]) / 3)
    assert torch.equal(method.prompt[1], table[5])
    assert len(set(row_ids(method.prompt[2:], table))) == 2


def test_labels_may_fill_the_prompt(shape, table):
    method = PromptTuningConfig(num_virtual_tokens=1, init="labels", label_words="d").build(shape)
    assert torch.equal(method.prompt, table[5:6])


def test_random_range(shape):
    prompt = PromptTuningConfig(num_virtual_tokens=500, init="random").build(shape).prompt
    assert -0.5 <= prompt.min() < -0.49
    assert 0.49 < prompt.max() <= 0.5
    assert abs(prompt.std().item() - 12**-0.5) < 0.01
    assert PromptTuningConfig(init="random", init_scale=2.0).build(shape).prompt.abs().max() > 1


def test_normal_start(shape):
    prompt = PromptTuningConfig(num_virtual_tokens=2000, init="normal").build(shape).prompt
    assert abs(prompt.mean().item()) < 0.02 and abs(prompt.std().item() - 1) < 0.02 and prompt.max() > 2.5


def test_training_leaves_the_vocabulary_alone(shape, table):
    before = table.clone()
    for fields in ({}, {"init": "text", "init_text": "a"}, {"init": "labels", "label_words": ("a",)}):
        method = PromptTuningConfig(num_virtual_tokens=2, **fields).build(shape)
        with torch.no_grad():
            method.prompt.add_(1.0)
    assert torch.equal(table, before)


def test_text_needs_a_tokenizer(table):
    bare = Shape(8, 0, 0, Vocabulary(lambda ids: table[ids], 50))
    with pytest.raises(SoftPromptError, match="needs the tokenizer"):
        PromptTuningConfig(init="text", init_text="a").build(bare)
    PromptTuningConfig().build(bare)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"init": "vocab"}, "init must be one of vocabulary, text, labels, random, normal, not 'vocab'"),
        ({"init": "text"}, "init='text' needs init_text"),
        ({"init": "labels"}, "init='labels' needs label_words"),
        ({"init_text": "a"}, "init_text needs init='text', not 'vocabulary'"),
        ({"label_words": ("a",)}, "label_words needs init='labels'"),
        ({"init": "labels", "label_words": ("a", "b"), "num_virtual_tokens": 1}, "2 label_words do not fit"),
        ({"vocabulary_limit": 0}, "vocabulary_limit must be at least 1"),
        ({"init_scale": 0}, "init_scale must be more than 0"),
        ({"num_virtual_tokens": 0}, "num_virtual_tokens must be at least 1"),
        ({"num_virtual_tokens": 2.0}, "num_virtual_tokens must be a whole number"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(SoftPromptError, match=message):
        PromptTuningConfig(**fields)


def test_count(count):
    assert count(PromptTuningConfig(num_virtual_tokens=100)) == 76_800
    assert count(PromptTuningConfig(num_virtual_tokens=10, init="random")) == 7_680
