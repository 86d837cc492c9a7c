from __future__ import annotations

from pathlib import Path

import pytest

from softprompts.errors import SoftPromptError
from softprompts.tasks import load_task
from softprompts.tasks.reviews import REVIEWS, load_reviews

SIZES = {
    "reviews": (8468, 1020, 1078),
    "reviews/products": (3070, 258, 272),
    "reviews/editorials": (3932, 495, 457),
    "reviews/tweets": (3295, 439, 402),
}


@pytest.mark.parametrize("name", sorted(REVIEWS))
def test_splits(name: str, archive_dir: Path | None) -> None:
    task = load_reviews(name, archive_dir)
    splits = (task.train, task.validation, task.test)
    assert tuple(map(len, splits)) == SIZES[name]
    texts = [" ".join(row.text.lower().split()) for split in splits for row in split]
    assert len(set(texts)) == len(texts) and all(texts)
    reviews = [{str(row.id).split("_")[0] for row in split} for split in splits]
    assert not (reviews[0] & reviews[1] or reviews[0] & reviews[2] or reviews[1] & reviews[2])


def test_labels(archive_dir: Path | None) -> None:
    task = load_task("reviews", cache_dir=archive_dir)
    label = {row.id: task.label_names[int(row.label)] for row in task.train + task.validation + task.test}
    assert (label["1"], label["3"]) == ("positive", "negative")
    assert 0.49 < task.balance()["positive"] / len(task.train) < 0.51


def test_limits_leave_the_split_alone(archive_dir: Path | None) -> None:
    whole, part = (load_reviews("reviews", archive_dir), load_task("reviews", cache_dir=archive_dir, max_train=50))
    assert len(part.train) == 50 and set(part.train) < set(whole.train)
    assert part.validation == whole.validation and part.test == whole.test


def test_unknown_domain() -> None:
    with pytest.raises(SoftPromptError, match="did you mean 'reviews/tweets'"):
        load_task("reviews/tweet")
