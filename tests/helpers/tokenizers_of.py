"""Small tokenizers for the models of `tiny`, with the post-processors that are out there."""

from __future__ import annotations

from typing import Any

import tiny
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

_WORDS = ["good", "bad", "the", "a", "film", "plot", "was", "text", "very", "nice", ".", ",", "to", "try", "it", "out"]
_WORDS += ["this", "is", "short"]
_ENDS = [("<s>", 1), ("</s>", 2)]
TEXTS = ["the film was very good .", "a bad plot"]
PAIRS = [("the film", "was very good ."), ("a bad plot", "it is")]

POST: dict[str, Any] = {
    "none": lambda: None,
    "byte-level": lambda: processors.ByteLevel(trim_offsets=True),
    "bert": lambda: processors.BertProcessing(("</s>", 2), ("<s>", 1)),
    "roberta": lambda: processors.RobertaProcessing(("</s>", 2), ("<s>", 1)),
    "ends": lambda: processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=_ENDS
    ),
    "start": lambda: processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=_ENDS),
    "end": lambda: processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=_ENDS),
    "both": lambda: processors.Sequence([processors.ByteLevel(), POST["start"]()]),
}


def tokenizer(post: str, **more: Any) -> Any:
    """A tokenizer with the named post-processor."""
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *_WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    processor = POST[post]()
    if processor is not None:
        made.post_processor = processor
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return tf.PreTrainedTokenizerFast(tokenizer_object=made, **named, **more)


def tokenizer_for(family: str) -> Any:
    """The usual kind of tokenizer of a family."""
    kind = tiny.FAMILIES[family][0]
    usual = {"encoder": "ends", "encoder-decoder": "end", "decoder": "start"}[kind]
    return tokenizer({"gpt2": "byte-level", "bart": "roberta"}.get(family, usual))


def encoded(made: Any, texts: Any = TEXTS, side: str = "right") -> dict[str, Any]:
    """A padded batch."""
    rows = [one if isinstance(one, tuple) else (one,) for one in texts]
    given = [list(part) for part in zip(*rows, strict=True)]
    types = isinstance(texts[0], tuple)
    batch = made(*given, padding=True, padding_side=side, return_tensors="pt", return_token_type_ids=types)
    return dict(batch)
