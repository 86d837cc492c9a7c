"""Small random models with a word tokenizer of the packaged reviews, so that these examples run without a model hub.

They learn little; name a real one with --model.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from softprompts.tasks import load_task

SIZES: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    },
}


def reviews(split: str, rows: int) -> list[tuple[str, str]]:
    """Some of the packaged film reviews with the names of their labels."""
    task = load_task("reviews")
    examples = getattr(task, split)  # sorted by label
    chosen = random.Random(0).sample(examples, min(rows, len(examples)))
    return [(row.fields["sentence"], task.label_names[row.label]) for row in chosen]


def small_model(kind: str, folder: str | Path) -> str:
    """Writes a random "t5" or "llama" and its tokenizer; returns the folder."""
    counts = Counter(word for text, _ in reviews("train", 2000) for word in pre_tokenizer().pre_tokenize_str(text))
    common = [word for (word, _), _ in counts.most_common(1000)]
    names = ["<pad>", "</s>", "<unk>", "<s>", "negative", "positive", "review", "answer", ":", "\n"]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([*names, *common]))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizer()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", bos_token="<s>"
    )
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=len(vocabulary), pad_token_id=0, eos_token_id=1, bos_token_id=3, **SIZES[kind]
    )
    auto = transformers.AutoModelForSeq2SeqLM if kind == "t5" else transformers.AutoModelForCausalLM
    auto.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def pre_tokenizer() -> Any:
    """Splits texts into words and punctuation."""
    return pre_tokenizers.BertPreTokenizer()
