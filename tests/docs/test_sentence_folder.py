"""What the page says of folders that sentence-transformers wrote: why they cannot be read, and what to do."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import transformers as tf

PAGE = (Path(__file__).parents[2] / "docs" / "trainers.md").read_text(encoding="utf-8")


def test_a_prompt_of_a_sentence_model_is_put_on_the_frozen_model(tmp_path: Path) -> None:
    model = tiny.attached("bert", "prefix-tuning", dtype=torch.float32).eval()
    tiny.shake(model)
    model.save_pretrained(tmp_path)  # as SentenceTransformer.save does
    with pytest.raises(ValueError, match="Unrecognized model"):
        tf.AutoConfig.from_pretrained(tmp_path)
    scope: dict[str, Any] = {}
    code = re.search(r"```python\n(def reload.*?)```", PAGE, re.DOTALL)
    assert code is not None
    exec(code[1], scope)
    again = tiny.model("bert", torch.float32)
    scope["reload"]([SimpleNamespace(auto_model=again)], tmp_path)
    inputs = {key: value for key, value in tiny.batch("bert").items() if key != "labels"}
    torch.testing.assert_close(again.eval()(**inputs).logits, model(**inputs).logits)
