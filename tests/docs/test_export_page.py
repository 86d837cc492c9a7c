"""docs/export.md: its table is what the code does, and its examples run."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io
import json
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import saved
import tiny
import tokenizers_of as own
import torch
import transformers as tf
from methods_page import example, known

import softprompts as sp
from softprompts.model.interop.embeddings import decode_embeds, prompt_embeds

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
FAMILIES = ("llama", "gpt2", "t5")


def attached(name: str, family: str) -> Any:
    config = example(name)
    # The defaults of some methods ask for more than a tiny model has.
    small = {"num_virtual_tokens": 3, "max_length": 12, "rank": 2, "num_sampled_tokens": 5, "length": 3}
    fields = {key: value for key, value in config.to_dict().items() if key not in small}
    fields |= {key: value for key, value in small.items() if config.to_dict().get(key)}
    made = sp.attach(tiny.model(family, torch.float32), sp.make_config(name, **fields), "p", seed=0)
    return made.eval()


def works(action: Callable[[], Any]) -> bool:
    try:
        action()
    except sp.SoftPromptError as error:
        if "\n" in str(error):
            raise
        return False
    return True


@functools.cache
def cell(name: str, form: str, root: Path) -> str:
    """ "yes" where it works on all of some families, "some models" on some of them, "no" on none."""
    found = []
    for family in ("bert",) if name == "head-only" else FAMILIES:
        model, folder = attached(name, family), root / f"{name}-{form}-{family}"
        ids = torch.arange(5, 12)
        actions: dict[str, Callable[[], Any]] = {
            "embeddings": lambda model=model, folder=folder: model.save_embeddings("p", folder),
            "one text": lambda model=model, ids=ids: prompt_embeds(model, "p", ids),
            "model": lambda m=model, f=folder, x=family: m.materialize("p", f, own.tokenizer_for(x)),
            "peft": lambda model=model, folder=folder: peft(model, folder),
        }
        found.append(works(actions[form]))
        assert folder.is_dir() == (found[-1] and form != "one text")
    return "yes" if all(found) else "some models" if any(found) else "no"


def peft(model: Any, folder: Path) -> None:
    importlib.import_module("softprompts.model.interop.peft_writing").write_peft(model, "p", folder)


def shown() -> dict[str, list[str]]:
    """The page's table: cells by method."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    cells = [[part.strip() for part in line.strip("|").split("|")] for line in lines]
    return {first: rest for first, *rest in cells}


def test_the_table_names_every_method() -> None:
    assert list(shown()) == list(known())


@pytest.mark.parametrize("name", sorted(known()))
def test_the_table_is_true(name: str, tmp_path: Path) -> None:
    one_text = {"yes": "one text at a time"}.get(cell(name, "one text", tmp_path), "no")
    embeddings = cell(name, "embeddings", tmp_path)
    made = ["yes" if embeddings == "yes" else one_text, cell(name, "model", tmp_path)]
    if importlib.util.find_spec("softprompts.model.interop.peft_writing") is not None:
        made.append(cell(name, "peft", tmp_path))
    assert shown()[name][: len(made)] == made


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for the model, the run and vLLM, which needs a GPU: plain transformers reads what it is given."""
    monkeypatch.chdir(tmp_path)
    model = tf.AutoModelForCausalLM.from_pretrained(saved.model_folder("llama"))
    sp.attach(model, sp.PromptTuningConfig(num_virtual_tokens=3), "reviews", seed=0).save_prompt("reviews", "prompt")
    tokenizer = tf.AutoTokenizer.from_pretrained(saved.model_folder("llama"))
    page = PAGE.read_text().replace("Qwen/Qwen3-0.6B", saved.model_folder("llama"))
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 4
    made, loading, vllm, served = blocks
    space: dict[str, Any] = {}
    exec(made, space)
    exec(loading, space)
    with torch.no_grad():
        text = space["tokenizer"]("the film was good")
        ours = sp.load("prompt")(torch.tensor([tokenizer("the film was good")["input_ids"]])).logits
        theirs = space["plain"](torch.tensor([text["input_ids"]])).logits
    torch.testing.assert_close(theirs[:, 3:, : len(tokenizer)], ours[..., : len(tokenizer)], rtol=0, atol=1e-5)

    seen: list[Any] = []
    monkeypatch.setitem(sys.modules, "vllm", stand_in(seen))
    exec(vllm, space)
    ids = tokenizer("the film was good")["input_ids"]
    assert torch.equal(seen[0]["prompt_embeds"], prompt_embeds(space["model"], "reviews", ids))
    monkeypatch.setattr("urllib.request.urlopen", lambda request: seen.append(request) or io.BytesIO(b"{}"))
    exec(served, space)
    assert torch.equal(decode_embeds(json.loads(seen[1].data)["prompt_embeds"]), seen[0]["prompt_embeds"])


def stand_in(seen: list[Any]) -> Any:
    """A module in the place of vLLM that notes what it is given."""

    class Llm:
        def __init__(self, model: str, enable_prompt_embeds: bool):
            assert Path(model).is_dir() and enable_prompt_embeds

        def generate(self, prompt: dict[str, Any], sampling: Any) -> list[Any]:
            seen.append(prompt)
            return [types.SimpleNamespace(outputs=[types.SimpleNamespace(text="good")])]

    return types.SimpleNamespace(LLM=Llm, SamplingParams=lambda **_: None)
