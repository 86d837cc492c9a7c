"""Hundreds of saved prompts on one backbone: loaded, mixed row by row in one batch, unloaded."""

from __future__ import annotations

import gc
import itertools
import weakref
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import softprompts as sp
from softprompts.storage.saved_prompt import TENSOR_FILE

COUNT = 200


def saved(folder: Path, family: str, count: int) -> list[Path]:
    """Prompts of all methods in turn, each with numbers of its own, on disk."""
    model = sp.attach(tiny.model(family))
    places = []
    for number, method in zip(range(count), itertools.cycle(tiny.METHODS.values()), strict=False):
        model.add_prompt("x", method, num_labels=2 + number % 2 if family == "bert" else None, seed=number)
        tiny.shake(model)
        model.prompts.double()
        places.append(Path(folder / f"p{number}"))
        model.save_prompt("x", places[-1])
        model.delete_prompt("x")
    return places


def attached(family: str, places: list[Path]) -> Any:
    model = sp.attach(tiny.model(family))
    for place in places:
        model.load_prompt(place, name=place.name)
    model.prompts.double()
    return model.eval()


@pytest.mark.parametrize(("family", "count"), [("bert", COUNT), ("llama", 21), ("t5", 21)])
def test_one_batch_of_many_prompts_equals_small_ones(tmp_path: Path, family: str, count: int) -> None:
    model = attached(family, saved(tmp_path, family, count))
    names = list(model.prompts)
    assert len(names) == count
    few = tiny.batch(family, rows=7)  # of 7 tokens to 1
    inputs = {key: few[key].repeat(1 + count // 7, 1)[:count] for key in few if key != "labels"}
    if family == "t5":
        inputs["decoder_input_ids"] = torch.randint(5, 60, (count, 3))
    with torch.no_grad():
        together = model(**inputs, prompt_names=names).logits
        for row, name in enumerate(names):
            alone = model(**{key: value[row : row + 1] for key, value in inputs.items()}, prompt_names=name).logits
            mine = together[row : row + 1, ..., : alone.shape[-1]]
            if family == "llama":  # what is predicted after padding is of no meaning
                real = int(inputs["attention_mask"][row].sum())
                mine, alone = mine[:, :real], alone[:, :real]
            torch.testing.assert_close(mine, alone, rtol=0, atol=1e-10)


def test_prompts_come_and_go_without_touching_the_backbone(tmp_path: Path) -> None:
    model = sp.attach(tiny.model("bert"))

    def backbone() -> dict[str, tuple[int, torch.Tensor]]:
        own = {name: value for name, value in model.named_parameters() if not name.startswith("prompts.")}
        return {name: (value.data_ptr(), value.detach().clone()) for name, value in own.items()}

    def hooks() -> int:
        found = 0
        for name, module in model.named_modules():
            if not name.startswith("prompts."):
                found += len(module._forward_pre_hooks) + len(module._forward_hooks)
        return found

    before, hooked = backbone(), hooks()
    gone = []
    for place in saved(tmp_path, "bert", 14):
        model.load_prompt(place, name=place.name)
        prompt = model.prompts[place.name]
        gone.append(weakref.ref(prompt))
        # Idle, it holds what is in its file (which has a header besides) and no more.
        held = [*prompt.parameters(), *prompt.buffers()]
        size = sum(tensor.untyped_storage().nbytes() for tensor in held)
        content = (place / TENSOR_FILE).read_bytes()
        assert len(content) == size + 8 + int.from_bytes(content[:8], "little"), prompt.config
        assert all(parameter.grad is None for parameter in prompt.parameters())
    del prompt, held
    assert hooks() == hooked + 2  # one prompt, however many there are of its kind, whose gates depend on states
    model(**tiny.batch("bert"), prompt_names=["p0", "p3", "p5"])
    for name in list(model.prompts)[::-1]:
        model.delete_prompt(name)
    assert hooks() == hooked
    model(**tiny.batch("bert"))
    gc.collect()
    assert [ref for ref in gone if ref() is not None] == []
    after = backbone()
    assert before.keys() == after.keys()
    for name, (place, value) in after.items():
        assert place == before[name][0] and torch.equal(value, before[name][1])
