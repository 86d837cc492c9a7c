"""Model cards: the hub can read them, people find what they need, and no text of theirs gets out of its place."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from huggingface_hub import ModelCard

import softprompts as sp
from softprompts.model.card import card, index_card, materialized_card
from softprompts.model.saving import serialize

META: dict[str, Any] = {
    "model": "google-bert/bert-base-uncased",
    "task": "glue/mrpc",
    "method": "prompt-tuning",
    "settings": {"num_virtual_tokens": 3, "init": "vocabulary"},
    "data": {"task": "glue/mrpc", "kind": "classification", "text": "text", "label": "label", "max_train": 300},
    "max_length_asked": 128,
    "files": ["data_dir"],
    "seed": 7,
    "eval_rows": 408,
    "test_rows": 1725,
    "task_form": {"kind": "classification", "reading": ["{sentence1}", "{sentence2}"], "source": "not read"},
    "training": {"max_steps": 40, "epochs": 3, "learning_rate": 0.01, "learning_rates": {"head": 0.001}, "seed": 7},
    "metrics": {"accuracy": 0.8125, "f1": 0.875},
    "test_metrics": {"accuracy": 0.75, "f1": None},
    "versions": {"softprompts": "0.1.0", "torch": "2.13.0"},
    "license": "mit",
    "command": "softprompts train -m google-bert/bert-base-uncased --task glue/mrpc --set rank=3 --seed 7",
    "curve": [1, 2],
}


def made(meta: dict[str, Any] | None = None, labels: list[str] | None = None, **name: str) -> dict[str, Any]:
    model = sp.attach(tiny.model("bert"), tiny.METHODS["prompt-tuning"], "p", labels=labels or ["no", "yes"], seed=0)
    model.config._name_or_path = name.get("base", "google-bert/bert-base-uncased")
    return serialize(model, "p", META if meta is None else meta)[0]


FULL = """---
library_name: softprompts
base_model: google-bert/bert-base-uncased
base_model_relation: adapter
tags:
- soft-prompt
- prompt-tuning
license: mit
language: en
datasets:
- nyu-mll/glue
metrics:
- accuracy
- f1
model-index:
- name: me/mine
  results:
  - task:
      type: text-classification
    dataset:
      name: glue/mrpc
      type: nyu-mll/glue
      split: validation
    metrics:
    - type: accuracy
      value: 0.8125
      name: accuracy
    - type: f1
      value: 0.875
      name: f1
  - task:
      type: text-classification
    dataset:
      name: glue/mrpc
      type: nyu-mll/glue
      split: test
    metrics:
    - type: accuracy
      value: 0.75
      name: accuracy
---

# prompt-tuning for google-bert/bert-base-uncased

A soft prompt of 82 parameters for the frozen `google-bert/bert-base-uncased` (`BertForSequenceClassification`).

**prompt-tuning**: `X' = [P ; E(x)]`. Lester, Al-Rfou and Constant, EMNLP 2021, <https://arxiv.org/abs/2104.08691>.

Task: glue/mrpc.
Template: `{sentence1}`, `{sentence2}`.

## Scores

| split | rows | seed | accuracy | f1 |
|---|---|---|---|---|
| validation | 408 | 7 | 0.8125 | 0.8750 |
| test | 1725 | 7 | 0.7500 |  |

One run with one seed; other seeds differ.

## How to use it

```python
import softprompts as sp

model = sp.load("me/mine")  # the backbone with this prompt on it
```

```bash
softprompts predict me/mine "..."
```

## How it was trained

```bash
softprompts train -m google-bert/bert-base-uncased --task glue/mrpc --set rank=3 --seed 7
```

## Settings

| | |
|---|---|
| method | prompt-tuning |
| num_virtual_tokens | 3 |
| init | vocabulary |
| init_scale | 0.5 |
| labels | no, yes |
| model | google-bert/bert-base-uncased |
| task | glue/mrpc |
| seed | 7 |
| eval_rows | 408 |
| test_rows | 1725 |
| softprompts | 0.1.0 |
| torch | 2.13.0 |

## Licence

mit. Whoever uses it also needs `google-bert/bert-base-uncased`, which has a licence of its own.
"""


def test_the_whole_card() -> None:
    assert card(made(), "me/mine") == FULL


def test_the_hub_reads_it() -> None:
    data = ModelCard(card(made(), "me/mine")).data
    assert (data.library_name, data.base_model, data.license) == ("softprompts", "google-bert/bert-base-uncased", "mit")
    assert (data.language, data.datasets, data.metrics) == ("en", ["nyu-mll/glue"], ["accuracy", "f1"])
    assert data.tags == ["soft-prompt", "prompt-tuning"] and data.model_name == "me/mine"
    scores = {(one.dataset_split, one.metric_type): one.metric_value for one in data.eval_results}
    assert scores == {("validation", "accuracy"): 0.8125, ("validation", "f1"): 0.875, ("test", "accuracy"): 0.75}


def test_a_prompt_that_nothing_is_known_of(tmp_path: Path) -> None:
    model = sp.attach(tiny.model("bert"), tiny.METHODS["prefix-tuning"], "p", labels=["no", "yes"])
    model.config._name_or_path = str(tmp_path / "my-bert")
    model.save_prompt("p", tmp_path / "p", metadata={"accuracy": 0.93, "curve": [1, 2]})
    text = (tmp_path / "p" / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front == {"library_name": "softprompts", "tags": ["soft-prompt", "prefix-tuning"]}
    assert str(tmp_path) not in text and "for the frozen `my-bert`" in text  # no path of this machine
    for line in ("| method | prefix-tuning |", "| accuracy | 0.93 |", 'model = sp.load("this folder")'):
        assert line in text or f"{line}  # the backbone with this prompt on it" in text
    assert "curve" not in text and "## Scores" not in text and "softprompts train" not in text
    assert "None was stated for this prompt." in text
    assert json.loads((tmp_path / "p" / "softprompt_config.json").read_text())["metadata"]["curve"] == [1, 2]
    assert ModelCard(text).data.library_name == "softprompts"


def test_the_packaged_encoder_is_known_to_the_hub() -> None:
    front = yaml.safe_load(card(made(base="all-minilm-l6-v2")).split("---\n")[1])
    assert front["base_model"] == "sentence-transformers/all-MiniLM-L6-v2"


NASTY = (
    "a|b\n---\nlicense: evil\n# big <script>alert(1)</script> `code` [x](javascript:y) ![i](z) **bold** _it_ \\ & $x$"
)

LINE = " ".join(NASTY.split())


def test_texts_stay_texts() -> None:
    config = made({**META, "task": NASTY, "note": NASTY, "license": NASTY, "model": NASTY}, [NASTY, "yes: [no"])
    config |= {"name": NASTY, "softprompts_version": NASTY}
    config["metadata"]["metrics"] = {NASTY: 0.5}
    config["metadata"]["command"] = f"softprompts train --task {shlex.quote(LINE)}"
    config["metadata"]["task_form"] = {"kind": NASTY, "reading": [NASTY + "`"]}
    config["metadata"]["versions"] = {NASTY: NASTY}
    config["backbone"] = {**config["backbone"], "name": NASTY, "class": NASTY}
    for text in (card(config), materialized_card(config)):
        _, front, body = text.split("---\n", 2)
        told = yaml.safe_load(front)
        assert told["license"] == LINE and set(told) <= {
            "library_name", "tags", "license", "metrics", "model-index",
        }  # fmt: skip
        assert ModelCard(text).data.license == LINE
        lines = body.splitlines()
        assert not any(line.startswith(("license", "---", "# big")) for line in lines)
        shown = [re.sub(r"\\.", "", line) for line in lines if not line.startswith("softprompts train")]
        outside = "\n".join(part for line in shown for part in line.split("`")[::2])
        assert not [mark for mark in ("script>", "](", "_it_", "$x", "![", "**bold") if mark in outside], outside
        tables = [line for line in lines if line.startswith("|")]
        for line in tables:
            assert line.replace("\\\\", "").replace("\\|", "").count("|") in (3, 6), line
        commands = [line for line in lines if line.startswith("softprompts train")]
        assert [shlex.split(line)[-1] for line in commands] == ([LINE] if text == card(config) else [])


@pytest.mark.parametrize("command", [None, 5, "", "softprompts train\n```\n# big", "```", "rm -rf ~", "softprompts\rx"])
def test_what_is_no_command_is_not_shown(command: Any) -> None:
    text = card(made({**META, "command": command}))
    assert "How it was trained" not in text and "```\n\n## Settings" in text and "# big" not in text
    assert "| command" not in text


def test_several_in_one_repository() -> None:
    text = index_card({"a": made(), "b": made({"task": "x|y"})}, "me/two")
    assert "| a | prompt-tuning | glue/mrpc |  | 82 |" in text and "| b | prompt-tuning | x\\|y |  | 82 |" in text
    assert ModelCard(text).data.base_model == "google-bert/bert-base-uncased"
    assert 'subfolder="b"' in card(made(), "me/two", "b") and 'sp.load("me/two", subfolder="a")' in text


def test_a_model_with_a_prompt_in_it() -> None:
    text = materialized_card(made())
    data = ModelCard(text).data
    assert data.library_name == "transformers" and data.to_dict()["base_model_relation"] == "finetune"
    assert "0.8125" in text and "add_special_tokens=False" in text and "sp.load" not in text


def test_a_folded_prompt_says_what_it_was() -> None:
    model = tiny.attached("bert", "superpos")
    model.fold("superpos")
    text = card(serialize(model, "superpos")[0])
    assert "It was trained with superpos, and folded" in text and "**superpos**: " in text


def test_settings_of_a_composition_stand_behind_the_names_of_its_parts() -> None:
    model = sp.attach(tiny.model("bert"), sp.compose(tiny.METHODS["prompt-tuning"], tiny.METHODS["lora"]), "both")
    text = card(serialize(model, "both")[0])
    assert "| prompt-tuning.num_virtual_tokens | 3 |" in text.replace("\\_", "_")
    assert "| lora.rank | 2 |" in text
    assert "| lora.targets | query, value, ffn.in |" in text
    assert "parts" not in text
