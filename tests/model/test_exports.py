"""What a prompt can be exported as: what is said of it is what is done, and what methods declare."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from methods_page import known
from source_prompts import sourced

import softprompts as sp
from softprompts.errors import SoftPromptError
from softprompts.methods.about import PLAIN_FORMS
from softprompts.model.exports import export_refusals, exports_line

WRITERS = {"embeddings": "save_embeddings", "model": "materialize", "peft": "save_peft"}
# Where prompts are put as in PEFT, and where not; on an encoder, and on a decoder whose prefixes can be rotated.
PLACES = (("bert", {}), ("bert", {"placement": "front"}), ("bert", {"positions": "shifted"}), ("llama", {}))


@functools.cache
def model(family: str) -> Any:
    return sp.attach(tiny.model(family, torch.float32))


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, sp.MethodConfig]:
    small = {config.method: config for config in tiny.METHODS.values()}
    return {**small, **{each.method: each for each in sourced(tmp_path_factory.mktemp("sources"), "bert").values()}}


@pytest.mark.parametrize("name", sorted(known()))
def test_methods_declare_what_they_can_be_exported_as(name: str, configs: dict[str, sp.MethodConfig]) -> None:
    fitting = {"num_virtual_tokens": 3, "rank": 2} if name == "dpt" else {}
    config = configs.get(name) or known()[name](**{**known()[name].about.settings, **fitting})
    if name in ("multi-mask", "selective-prefix", "adaptive-prefix"):
        config = known()[name]()  # other settings of theirs have a plain form
    fine: set[str] = set()
    for family, place in PLACES:
        if family == "llama" and (config.files() or name == "head-only"):
            continue
        attached = model(family)
        attached.add_prompt(
            "tried", dataclasses.replace(config, **place), seed=0, num_labels=2 if family == "bert" else None
        )
        fine |= {form for form, reason in export_refusals(attached, "tried").items() if reason is None}
        attached.forget_prompt("tried")
    assert fine == set(known()[name].about.exports)


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning", "lora", "multi-mask", "head-only"])
def test_what_is_refused_is_not_written_and_what_is_not_refused_is(method: str, tmp_path: Path) -> None:
    attached = model("bert")
    attached.add_prompt("tried", known()[method](), seed=0, num_labels=2)
    for form, reason in export_refusals(attached, "tried").items():
        write = getattr(attached, WRITERS[form])
        if method == "prompt-tuning" and form == "model":
            continue  # takes a tokenizer
        if reason is None:
            write("tried", tmp_path / form)
            assert any((tmp_path / form).iterdir())
        else:
            with pytest.raises(SoftPromptError) as refused:
                write("tried", tmp_path / form)
            assert str(refused.value) == reason and not (tmp_path / form).exists()
    attached.forget_prompt("tried")


def test_a_composition_is_exported_as_all_of_its_parts_can_be() -> None:
    attached = model("bert")
    attached.add_prompt("tried", sp.compose(sp.PromptTuningConfig(), known()["lora"]()), seed=0, num_labels=2)
    refusals = export_refusals(attached, "tried")
    assert refusals["model"] is None and refusals["embeddings"] is not None
    attached.forget_prompt("tried")
    attached.add_prompt("tried", sp.compose(sp.PromptTuningConfig(), known()["adapter"]()), seed=0, num_labels=2)
    assert "cannot be merged" in str(export_refusals(attached, "tried")["model"])
    attached.forget_prompt("tried")


def test_the_line() -> None:
    none, some = dict.fromkeys(PLAIN_FORMS, "no"), {"embeddings": None, "model": "no", "peft": None}
    assert exports_line("m", none, " (why)") == "m cannot be exported here, it runs with this package only (why)"
    assert exports_line("m", some, " (why)") == "m exports as embeddings, peft, not as model (why)"
    assert exports_line("m", dict.fromkeys(PLAIN_FORMS), " (why)") == "m exports as embeddings, model, peft"
