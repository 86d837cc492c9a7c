from __future__ import annotations

import random

import pytest
import torch

from softprompts.errors import SoftPromptError
from softprompts.tasks import collate, length_bucketed_batches
from softprompts.tasks.batches import shuffled_batches


def test_classes() -> None:
    rows = [
        {"input_ids": [5, 6, 7], "token_type_ids": [0, 0, 1], "label": 1},
        {"input_ids": [8], "token_type_ids": [0], "label": 0},
    ]
    batch = collate(rows, pad_id=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 1], [0, 0, 0]]
    assert batch["labels"].tolist() == [1, 0] and batch["labels"].dtype == torch.long


def test_scores() -> None:
    batch = collate([{"input_ids": [1], "label": 2.5}], 0)
    assert batch["labels"].dtype == torch.float32 and "token_type_ids" not in batch


def test_decoder_left() -> None:
    rows = [
        {"input_ids": [5, 6, 7], "labels": [-100, -100, 7], "label": 0},
        {"input_ids": [8, 4], "labels": [-100, 4], "label": 1},
    ]
    batch = collate(rows, 0, "left")
    assert batch["input_ids"].tolist() == [[5, 6, 7], [0, 8, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 1, 1]]
    assert batch["labels"].tolist() == [[-100, -100, 7], [-100, -100, 4]]


def test_encoder_decoder_answers_stay_on_the_right() -> None:
    rows = [{"input_ids": [5, 6], "labels": [3, 1], "label": 0}, {"input_ids": [8], "labels": [1], "label": 1}]
    batch = collate(rows, 0, "left")
    assert batch["input_ids"].tolist() == [[5, 6], [0, 8]]
    assert batch["labels"].tolist() == [[3, 1], [1, -100]]


def test_bad_arguments() -> None:
    with pytest.raises(SoftPromptError, match="no rows"):
        collate([], 0)
    with pytest.raises(SoftPromptError, match="padding_side is 'top'"):
        collate([{"input_ids": [1]}], 0, "top")
    with pytest.raises(SoftPromptError, match="at least 1"):
        length_bucketed_batches([1], 0, 0, 0)


LENGTHS = random.Random(0).choices(range(1, 201), k=1003)


def test_every_row_once() -> None:
    batches = length_bucketed_batches(LENGTHS, 8, seed=0, epoch=0)
    assert sorted(index for batch in batches for index in batch) == list(range(1003))
    assert sorted(len(batch) for batch in batches) == [3] + [8] * 125
    assert length_bucketed_batches([], 8, 0, 0) == []


def test_determined_by_seed_and_epoch() -> None:
    first = length_bucketed_batches(LENGTHS, 8, seed=1, epoch=2)
    assert first == length_bucketed_batches(LENGTHS, 8, seed=1, epoch=2)
    assert first != length_bucketed_batches(LENGTHS, 8, seed=2, epoch=1)
    assert first != length_bucketed_batches(LENGTHS, 8, seed=1, epoch=3)


def test_little_padding_and_no_order_by_length() -> None:
    batches = length_bucketed_batches(LENGTHS, 8, seed=0, epoch=0)
    padded = sum(len(batch) * max(LENGTHS[index] for index in batch) for batch in batches)
    assert padded < 1.1 * sum(LENGTHS)
    longest = [max(LENGTHS[index] for index in batch) for batch in batches]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)
    half = len(longest) // 2
    assert abs(sum(longest[:half]) / half - sum(longest[half:]) / (len(longest) - half)) < 40


def test_shuffled_batches_have_rows_of_all_lengths() -> None:
    batches = shuffled_batches(1003, 8, seed=0, epoch=0)
    assert sorted(index for batch in batches for index in batch) == list(range(1003))
    assert [len(batch) for batch in batches] == [8] * 125 + [3]
    padded = sum(len(batch) * max(LENGTHS[index] for index in batch) for batch in batches)
    assert padded > 1.5 * sum(LENGTHS)
    assert batches == shuffled_batches(1003, 8, seed=0, epoch=0)
    assert batches != shuffled_batches(1003, 8, seed=1, epoch=0) != shuffled_batches(1003, 8, seed=1, epoch=1)
    assert shuffled_batches(0, 8, 0, 0) == []
    with pytest.raises(SoftPromptError, match="at least 1"):
        shuffled_batches(1, 0, 0, 0)
