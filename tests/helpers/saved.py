"""Tiny random models in folders with a tokenizer beside them, labelled texts in files, and the command line."""

from __future__ import annotations

import atexit
import csv
import functools
import json
import random
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from softprompts import __main__ as cli

GOOD, BAD = ("good", "nice", "fine"), ("bad", "awful", "poor")
_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
_WORDS = [*GOOD, *BAD, "the", "a", "film", "plot", "was", "text", "answer", ":", "positive", "negative"]
_WORDS += ["0", "1", "2", "sentence", "first", "second", "very", "."]
LENGTH = 40  # positions of the models that count them


def _tokenizer(kind: str) -> Any:
    vocabulary = {word: index for index, word in enumerate([*_SPECIAL, *_WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("<s>", 1), ("</s>", 2)]
    if kind == "encoder":
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=ends
        )
    elif kind == "encoder-decoder":
        made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=ends[1:])
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@functools.cache
def model_folder(family: str) -> str:
    """A folder with a random model: a family of `tiny`, "base" (no head) or "deberta" (takes no prefix)."""
    folder = Path(tempfile.mkdtemp(prefix=f"softprompts-{family}-")) / family
    atexit.register(shutil.rmtree, folder.parent, ignore_errors=True)
    if family == "deberta":
        config = tf.DebertaV2Config(
            vocab_size=60,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=24,
            max_position_embeddings=LENGTH,
            pad_token_id=0,
        )
        kind, made = "encoder", tf.DebertaV2ForSequenceClassification(config)
    else:
        name = "bert" if family == "base" else family
        kind = tiny.FAMILIES[name][0]
        made = tiny.model(name, torch.float32)
        made = made.bert if family == "base" else made
    made.save_pretrained(folder)
    _tokenizer(kind).save_pretrained(folder)
    return str(folder)


def rows(count: int = 40, seed: int = 0) -> list[dict[str, str]]:
    """Texts whose label a word gives away."""
    draw = random.Random(seed)
    made = []
    for index in range(count):
        label = ("negative", "positive")[index % 2]
        word = draw.choice(GOOD if label == "positive" else BAD)
        made.append({"text": f"the {draw.choice(['film', 'plot'])} was {word}", "label": label})
    return made


def write_csv(path: Path, lines: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    return path


def write_jsonl(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


class Cli:
    """Runs commands in this process, as the `softprompts` script would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
        self._patch, self._capsys = monkeypatch, capsys
        monkeypatch.setenv("COLUMNS", "80")

    def __call__(self, *arguments: str | Path) -> Done:
        self._patch.setattr(sys, "argv", ["softprompts", *map(str, arguments)])
        self._capsys.readouterr()
        try:
            cli.main()
            code: Any = 0
        except SystemExit as stop:
            code = stop.code
        seen = self._capsys.readouterr()
        return Done(int(code or 0), seen.out, seen.err)

    def fine(self, *arguments: str | Path) -> Done:
        """A command that must succeed."""
        done = self(*arguments)
        assert done.code == 0, done.err
        return done


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
