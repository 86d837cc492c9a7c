"""Real data where it is at hand, and a tokenizer small enough to read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from softprompts.errors import SoftPromptError
from softprompts.tasks import Example, Form, Task
from softprompts.tasks.reviews_archive import reviews_archive

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    if not (SHARED / "glue").is_dir():
        pytest.skip(f"no GLUE and SuperGLUE data in {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def t5_tokenizer() -> PreTrainedTokenizerFast:
    if not (SHARED / "t5-tokenizer").is_dir():
        pytest.skip(f"no T5 tokenizer in {SHARED}")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(SHARED / "t5-tokenizer")


@pytest.fixture(scope="session")
def archive_dir(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """The cache that has the archive of reviews; None: the default one."""
    try:
        reviews_archive()
    except SoftPromptError as error:
        pytest.skip(str(error))
    return None


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "</s>", "good", "bad", "film", "plot", "a", "the", "same", "one"]
WORDS += ["two", "three", "four", "five", ":", "answer", "toy", "first", "second", "sentence", "yes", "no"]


def _word_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    if "cls_token" in special:
        core.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", WORDS.index("[CLS]")), ("[SEP]", WORDS.index("[SEP]"))],
        )
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", **special)


@pytest.fixture(scope="session")
def encoder_tokenizer() -> PreTrainedTokenizerFast:
    """[CLS] a [SEP] b [SEP], with token types."""
    return _word_tokenizer(
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@pytest.fixture(scope="session")
def decoder_tokenizer() -> PreTrainedTokenizerFast:
    """No special tokens around a text, and no padding token."""
    return _word_tokenizer(eos_token="</s>")


@pytest.fixture
def toy_task() -> Task:
    rows = [Example({"sentence": "good film"}, 1, "a"), Example({"sentence": "a bad bad plot"}, 0, "b")]
    form = Form(labels=("bad", "good"), fields=("sentence",), source="toy sentence: {sentence}")
    return Task("toy", form, train=rows, validation=rows[:1])


@pytest.fixture
def pair_task() -> Task:
    long = "one two three four five one two three four five"
    rows = [
        Example({"first": "good film", "second": "the same"}, 1, 0),
        Example({"first": "good film", "second": long}, 0, 1),
    ]
    return Task("pairs", Form(labels=("no", "yes"), fields=("first", "second")), train=rows, validation=rows)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> Callable[[Callable[[dict[str, Any]], Any]], list[Any]]:
    """Makes the hub's client give the local rows, each changed into the shape they have there; returns what was asked
    for: place, configuration, split and revision.
    """
    import datasets

    from softprompts.tasks.file_readers import read_rows
    from softprompts.tasks.hub_rows import HUB, local_file

    def serve(shape: Callable[[dict[str, Any]], Any], scripts: tuple[str, ...] = ()) -> list[Any]:
        asked: list[Any] = []

        def load_dataset(place: str, config: str | None, split: str, revision: str | None = None) -> list[Any]:
            asked.append((place, config, split, revision))
            if place in scripts and revision is None:
                raise RuntimeError("Dataset scripts are no longer supported, but found it.py")
            [name] = [key for key, (known, _) in HUB.items() if known == place]
            path = local_file(data_dir / (name if config is None else f"{name}/{config}"), split)
            return [shape(row) for _, row in read_rows(path)]

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    return serve
