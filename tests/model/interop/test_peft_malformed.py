"""Adapters that are damaged, hostile or for something else: one clear error each, and nothing attached."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from saved import Cli

import softprompts as sp
from softprompts.errors import SoftPromptError
from tests.model.interop import adapters

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One adapter of each kind for the same small encoder, and a prefix for an encoder-decoder."""
    root = tmp_path_factory.mktemp("adapters")
    for kind in adapters.CONFIGS:
        adapters.trained("bert", kind, root / kind, steps=1)
    adapters.trained("t5", "prefix", root / "t5", steps=1)
    return {folder.name: folder for folder in root.iterdir()}


def set_(**values: Any) -> Damage:
    def change(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**config, **values}))

    return change


def without(key: str) -> Damage:
    def change(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        del config[key]
        (folder / CONFIG).write_text(json.dumps(config))

    return change


def text(content: str | bytes, name: str = CONFIG) -> Damage:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def tensors(make: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Damage:
    def change(folder: Path) -> None:
        save_file(make(load_file(folder / TENSORS)), folder / TENSORS)

    return change


def cut(folder: Path) -> None:
    content = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(content[: len(content) // 2])


def swapped(there: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    one, other = "prompt_embeddings", "base_model.classifier.bias"
    return {**there, one: there[other].clone(), other: there[one].clone()}


class Boom:
    """Says so if anyone unpickles it."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('a pickle was run')",)


def pickled(folder: Path) -> None:
    (folder / TENSORS).write_bytes(pickle.dumps(Boom()))


def only_a_pickle(folder: Path) -> None:
    (folder / TENSORS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Boom()))


def a_folder_for_tensors(folder: Path) -> None:
    (folder / TENSORS).unlink()
    (folder / TENSORS).mkdir()


def renamed(old: str, new: str) -> Damage:
    return tensors(lambda there: {new if key == old else key: value for key, value in there.items()})


def with_value(value: float) -> Damage:
    def make(there: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        there["prompt_embeddings"][0, 0] = value
        return there

    return tensors(make)


DAMAGES: dict[str, tuple[str, Damage, str]] = {
    "a truncated file": ("prompt", cut, "no safetensors file"),
    "an empty file": ("prompt", text(b"", TENSORS), "no safetensors file"),
    "a header that promises too much": (
        "prompt",
        text((2**62).to_bytes(8, "little") + b"{}", TENSORS),
        "no safetensors file",
    ),
    "a pickle in its place": ("prompt", pickled, "no safetensors file"),
    "a pickle beside it": ("prompt", only_a_pickle, "a pickle"),
    "a folder in its place": ("prompt", a_folder_for_tensors, "is missing"),
    "no tensors": ("prompt", lambda folder: (folder / TENSORS).unlink(), "is missing"),
    "tensors swapped": ("prompt", tensors(swapped), "has shape"),
    "a flat tensor": ("prefix", tensors(lambda t: {**t, "prompt_embeddings": torch.zeros(3)}), "has shape"),
    "too few rows": ("prompt", tensors(lambda t: {**t, "prompt_embeddings": torch.zeros(2, 16)}), "has shape"),
    "no prompt": ("prefix", renamed("prompt_embeddings", "base_model.classifier.prompt"), "lacks"),
    "no factors": ("multitask", renamed("prefix_task_rows", "base_model.x"), "lacks"),
    "not a number": ("prompt", with_value(float("nan")), "not finite"),
    "infinity": ("prefix", with_value(float("inf")), "not finite"),
    "whole numbers": (
        "prompt",
        tensors(lambda t: {**t, "prompt_embeddings": torch.ones(3, 16, dtype=torch.int64)}),
        "int64",
    ),
    "complex numbers": (
        "prompt",
        tensors(lambda t: {**t, "prompt_embeddings": torch.ones(3, 16, dtype=torch.complex64)}),
        "complex64",
    ),
    "another width": ("prompt", tensors(lambda t: {**t, "prompt_embeddings": torch.zeros(3, 24)}), "has shape"),
    "another key width": ("prefix", set_(token_dim=32), "another backbone"),
    "other heads": ("prefix", set_(num_attention_heads=2), "another backbone"),
    "more layers": ("prefix", set_(num_layers=4), "another backbone"),
    "another kind of backbone": ("t5", set_(), "another kind of model"),
    "a path in a tensor's name": (
        "prompt",
        renamed("base_model.classifier.bias", "base_model.../../bias"),
        "no part of",
    ),
    "the backbone's own weights": (
        "prompt",
        renamed("base_model.classifier.bias", "base_model.bert.embeddings.word_embeddings.weight"),
        "no part of",
    ),
    "an unknown tensor": ("prompt", renamed("base_model.classifier.bias", "extra"), "unknown tensor"),
    "a head of another shape": (
        "prompt",
        tensors(lambda t: {**t, "base_model.classifier.weight": torch.zeros(3, 5)}),
        "has shape",
    ),
    "a head without outputs": (
        "prompt",
        tensors(lambda t: {**t, "base_model.classifier.weight": torch.zeros(0, 16)}),
        "has shape",
    ),
    "no JSON": ("prompt", text("{peft_type: PROMPT"), "not valid JSON"),
    "no text": ("prompt", text(b"\xff\xfe\x00{"), "not valid JSON"),
    "nested JSON": ("prompt", text("[" * 100_000), "not valid JSON"),
    "a list": ("prompt", text('["PROMPT_TUNING"]'), "JSON list"),
    "no type": ("prompt", without("peft_type"), "no peft_type"),
    "a type that is a list": ("prompt", set_(peft_type=["PROMPT_TUNING"]), "no peft_type"),
    "an unknown type": ("prompt", set_(peft_type="../../PROMPT"), "is not read"),
    "a type that others have": ("prompt", set_(peft_type="IA3"), "is not read"),
    "no task": ("prompt", set_(task_type=None), "task_type"),
    "an unknown task": ("prompt", set_(task_type="SEQ_CLASS"), "did you mean 'SEQ_CLS'"),
    "huge": ("prompt", set_(num_virtual_tokens=10**12), "whole number"),
    "large": ("prompt", set_(num_virtual_tokens=2**30), "has shape"),
    "none": ("prompt", set_(num_virtual_tokens=0), "whole number"),
    "no number": ("prompt", set_(num_virtual_tokens="3"), "whole number"),
    "true": ("prompt", set_(num_virtual_tokens=True), "whole number"),
    "three stacks": ("prompt", set_(num_transformer_submodules=3), "num_transformer_submodules"),
    "a type of other tensors": ("prompt", set_(peft_type="PREFIX_TUNING"), "has shape"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_bad_adapter_is_refused_in_one_line(what: str, good: dict[str, Path], tmp_path: Path) -> None:
    kind, damage, says = DAMAGES[what]
    folder = tmp_path / "adapter"
    shutil.copytree(good[kind], folder)
    damage(folder)
    model = sp.attach(adapters.backbone("bert"))
    with pytest.raises(SoftPromptError, match=says) as caught:
        model.load_prompt(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert not model.prompts
    plain = adapters.backbone("bert")
    with pytest.raises(SoftPromptError, match=says):
        sp.attach(plain, folder)
    assert not hasattr(plain, "prompts")


@pytest.mark.parametrize("name", ["a\0b", "../nowhere/there", "/no/such/folder", "~root/x", "a/b/c"])
def test_names_that_are_no_folder(name: str) -> None:
    with pytest.raises(SoftPromptError, match="no such"):
        sp.attach(adapters.backbone("bert"), name)


@pytest.mark.parametrize(
    "name", ["../../etc", "~/x", "a\0b", 3, ["x"], {"a": 1}, "", None, "no/such-model", "/no/such/folder", "a\nb"]
)
def test_load_refuses_backbones_that_are_none(name: Any, good: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(good["prompt"], tmp_path / "adapter")
    set_(base_model_name_or_path=name)(tmp_path / "adapter")
    with pytest.raises(SoftPromptError, match=r"base_model_name_or_path|backbone") as caught:
        sp.load(tmp_path / "adapter")
    assert "\n" not in str(caught.value)


def test_load_refuses_revisions_that_are_none(good: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(good["prompt"], tmp_path / "adapter")
    set_(base_model_name_or_path="some/model", revision=["main"])(tmp_path / "adapter")
    with pytest.raises(SoftPromptError, match="no name of a model"):
        sp.load(tmp_path / "adapter")


def test_a_saved_prompt_of_ours_goes_first(good: dict[str, Path], tmp_path: Path) -> None:
    model = sp.attach(adapters.backbone("bert"), sp.PromptTuningConfig(num_virtual_tokens=2), "mine", seed=0)
    model.save_prompt("mine", tmp_path / "both")
    for file in (CONFIG, TENSORS):
        shutil.copy(good["prompt"] / file, tmp_path / "both" / file)
    again = sp.attach(adapters.backbone("bert"), tmp_path / "both")
    assert list(again.prompts) == ["mine"]
    with pytest.raises(SoftPromptError, match="task_id"):
        sp.attach(adapters.backbone("bert"), tmp_path / "both", task_id=0)


def test_attach_refuses_what_only_a_new_prompt_has(good: dict[str, Path]) -> None:
    for more in ({"num_labels": 2}, {"labels": ("a", "b")}, {"seed": 1}, {"tokenizer": object()}):
        with pytest.raises(SoftPromptError, match="leave out"):
            sp.attach(adapters.backbone("bert"), good["prompt"], **more)
    with pytest.raises(SoftPromptError, match="task_id"):
        sp.attach(adapters.backbone("bert"), sp.PromptTuningConfig(), task_id=0)


# --- the command line ---------------------------------------------------------------------------------------------


def refused(cli: Cli, *arguments: str) -> str:
    """The one line with which a command refuses."""
    done = cli(*arguments)
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert len(done.err.strip().splitlines()) == 1
    return done.err


def test_inspect_shows_an_adapter(cli: Cli, good: dict[str, Path]) -> None:
    out = cli.fine("inspect", str(good["prefix"])).out
    assert "PREFIX_TUNING of PEFT" in out
    assert "3 x 64" in out
    shown = json.loads(cli.fine("inspect", str(good["prompt"]), "--json").out)
    assert shown["config"]["num_virtual_tokens"] == 3
    assert shown["tensors"]["prompt_embeddings"]["shape"] == [3, 16]


def test_predict_says_what_an_adapter_does_not(cli: Cli, good: dict[str, Path]) -> None:
    assert "PEFT adapter" in refused(cli, "predict", str(good["prompt"]), "a text")


@pytest.mark.parametrize("verb", [["inspect"], ["predict", "a text"]])
@pytest.mark.parametrize("what", ["a pickle in its place", "a list", "no type", "nested JSON", "huge"])
def test_commands_refuse_bad_adapters(
    cli: Cli, verb: list[str], what: str, good: dict[str, Path], tmp_path: Path
) -> None:
    kind, damage, _ = DAMAGES[what]
    shutil.copytree(good[kind], tmp_path / "adapter")
    damage(tmp_path / "adapter")
    refused(cli, verb[0], str(tmp_path / "adapter"), *verb[1:])


# --- whatever else there may be -----------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from([0, 1, 2, 3, -1]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 6, 16, 64]), max_size=4)
TYPES = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.bool])
NAMES = ["prompt_embeddings", "prefix_task_cols", "prefix_task_rows", "base_model.classifier.weight", "base_model.x"]
KEYS = ["peft_type", "task_type", "num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads"]
KEYS += ["num_transformer_submodules", "base_model_name_or_path", "modules_to_save", "num_tasks", "revision"]
KINDS = st.sampled_from(["PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "LORA"])


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    kind=st.sampled_from(list(adapters.CONFIGS)),
    values=st.dictionaries(st.sampled_from(KEYS), JSON | KINDS, max_size=3),
    dropped=st.sets(st.sampled_from([*KEYS, *NAMES]), max_size=2),
    made=st.dictionaries(st.sampled_from(NAMES), st.tuples(SHAPES, TYPES, st.floats()), max_size=2),
    task=st.none() | st.integers(-2, 2),
)
def test_any_change_of_an_adapter_loads_or_is_refused(
    good: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    values: dict[str, Any],
    dropped: set[str],
    made: dict[str, tuple[list[int], torch.dtype, float]],
    task: int | None,
) -> None:
    folder = tmp_path_factory.mktemp("changed")
    config = json.loads((good[kind] / CONFIG).read_text()) | copy.deepcopy(values)
    (folder / CONFIG).write_text(json.dumps({key: value for key, value in config.items() if key not in dropped}))
    stored = load_file(good[kind] / TENSORS)
    for name, (shape, dtype, value) in made.items():
        full = torch.full(shape, value if dtype.is_floating_point else 1.0, dtype=torch.float64)
        stored[name] = full.to(dtype)
    save_file({key: value for key, value in stored.items() if key not in dropped}, folder / TENSORS)
    model = BACKBONE
    refusal = None
    try:
        model.load_prompt(folder, "changed", task_id=task)
    except SoftPromptError as error:
        refusal = str(error)
    finally:
        shutil.rmtree(folder)
    if refusal is None:
        assert len(model(**adapters.batch("bert", labels=False)).logits) == 3
        model.delete_prompt("changed")
    else:
        assert "\n" not in refusal
    assert not model.prompts


BACKBONE = sp.attach(adapters.backbone("bert").float()).eval()
