"""Sentiment tasks on review sentences rated by twenty people each, from a package on PyPI.

The texts are those of C.J. Hutto and Eric Gilbert, VADER: A Parsimonious Rule-based Model for Sentiment Analysis of
Social Media Text (ICWSM 2014). A sentence is positive if its mean rating, on a scale from -4 to 4, is above 0, and
negative if it is below; sentences at exactly 0 and repeats of a sentence are left out.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from os import PathLike
from pathlib import Path

from softprompts.errors import SoftPromptError, nearest
from softprompts.tasks.example import Example
from softprompts.tasks.form import Form
from softprompts.tasks.reviews_archive import reviews_archive
from softprompts.tasks.spec import Spec
from softprompts.tasks.task import Task

_FORM = Form(labels=("negative", "positive"), fields=("sentence",), source="sentiment sentence: {sentence}")
# The file of each domain, and its texts in words.
_DOMAINS = {
    "reviews": ("movieReviewSnippets_GroundTruth.txt", "film-review sentences"),
    "reviews/products": ("amazonReviewSnippets_GroundTruth.txt", "product-review sentences"),
    "reviews/editorials": ("nytEditorialSnippets_GroundTruth.txt", "newspaper-editorial sentences"),
    "reviews/tweets": ("tweets_GroundTruth.txt", "tweet-like texts"),
}
REVIEWS: dict[str, Spec] = {
    name: Spec(f"sentiment of {texts} (needs no hub)", _FORM, metrics=("accuracy", "macro_f1"))
    for name, (_, texts) in _DOMAINS.items()
}
_INNER = "additional_resources/hutto_ICWSM_2014.tar.gz"


def load_reviews(name: str = "reviews", cache_dir: str | PathLike[str] | None = None) -> Task:
    """Loads the film reviews, or the texts of another domain.

    About a tenth of the rows each goes to validation and test. A hash of the review's id decides, so that the split
    is always the same and the sentences of one review stay together; where ids name no review (films, tweets), each
    sentence is on its own.

    Args:
        name: a key of `REVIEWS`.
        cache_dir: see `reviews_archive`.

    Raises:
        SoftPromptError: unknown domain, or the archive cannot be had.
    """
    if name not in REVIEWS:
        raise SoftPromptError(f"unknown task '{name}': {nearest(name, REVIEWS)}")
    splits: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    file, _ = _DOMAINS[name]
    for example in _examples(_member(reviews_archive(cache_dir), file)):
        splits[_split(name, str(example.id))].append(example)
    source = f"vaderSentiment 3.3.2, {file} (Hutto and Gilbert 2014)"
    metrics = REVIEWS[name].metrics
    return Task(name, _FORM, splits["train"], splits["validation"], splits["test"], metrics, source)


def _member(archive: Path, name: str) -> str:
    try:
        with tarfile.open(archive) as outer:
            inner_name = next(entry for entry in outer.getnames() if entry.endswith(_INNER))
            data = outer.extractfile(inner_name)
            assert data is not None
            with tarfile.open(fileobj=io.BytesIO(data.read())) as inner:
                file = inner.extractfile(f"hutto_ICWSM_2014/{name}")
                assert file is not None
                return file.read().decode("utf-8")
    except (tarfile.TarError, StopIteration, KeyError, EOFError, OSError) as error:
        raise SoftPromptError(f"{archive}: cannot read {name} in it ({error or type(error).__name__})") from error


def _examples(text: str) -> list[Example]:
    examples = []
    seen = set()
    for line in text.strip().split("\r\n"):
        row_id, rating, sentence = line.split("\t")
        sentence = sentence.strip()
        key = " ".join(sentence.lower().split())
        if float(rating) == 0 or key in seen:
            continue
        seen.add(key)
        examples.append(Example({"sentence": sentence}, label=int(float(rating) > 0), id=row_id))
    return examples


def _split(name: str, row_id: str) -> str:
    review = row_id.split("_")[0]  # "12_3" is the third sentence of review 12
    bucket = int.from_bytes(hashlib.sha256(f"{name} {review}".encode()).digest()[:8], "big") % 10
    return {0: "test", 1: "validation"}.get(bucket, "train")
