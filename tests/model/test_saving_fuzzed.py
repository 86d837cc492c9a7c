"""Saved prompts with anything at all in them: one line of what is wrong, or a prompt that works."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import saved
import tiny
import torch
import transformers as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

import softprompts as sp
from softprompts.storage import saved_prompt

METHODS = ("prompt-tuning", "prefix-mlp", "multi-mask", "superpos", "ept", "lora", "dept")
FUZZ = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
DTYPES = [torch.int64, torch.bool, torch.float16, torch.uint8, torch.float8_e5m2, torch.complex64]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([0, 1, 2, 3, 5, 10**4, 10**6, 10**7, 10**9])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["../../../etc/passwd", "/etc/passwd", "p\0q", "~root", "..", "lora", "ept+lora", "float64"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inside:
        yield (*path, key)
        yield from places(part, (*path, key))


def put(config: Any, path: tuple[Any, ...], change: str, value: Any) -> None:
    for key in path[:-1]:
        config = config[key]
    if change == "delete":
        del config[path[-1]]
    elif change == "add" and isinstance(config, dict):
        config[value if isinstance(value, str) else "more"] = value
    else:
        config[path[-1]] = value


class Opened:
    """The files that are opened while it is on."""

    def __init__(self) -> None:
        self.on, self.names = False, list[str]()
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and event == "open" and isinstance(arguments[0], str | bytes):
            self.names.append(str(arguments[0]))


OPENED = Opened()


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved prompt of each method, for a classifier with a folder of its own."""
    made, root = {}, tmp_path_factory.mktemp("prompts")
    for method in METHODS:
        model = tf.AutoModelForSequenceClassification.from_pretrained(saved.model_folder("bert"))
        sp.attach(model, tiny.METHODS[method], "p", labels=["no", "yes"], seed=0)
        model.save_prompt("p", root / method)
        made[method] = root / method
    return made


@pytest.fixture(scope="module")
def model() -> Any:
    return sp.attach(tf.AutoModelForSequenceClassification.from_pretrained(saved.model_folder("bert"))).eval()


def tried(model: Any, folder: Path) -> str | None:
    """Loads a prompt and uses it. What is said if it cannot be loaded."""
    OPENED.names.clear()
    OPENED.on = True
    try:
        model.load_prompt(folder, name="tried")
    except sp.SoftPromptError as error:
        assert not set(model.prompts)
        said = str(error)
        assert said and "\n" not in said and len(said) < 2000, said
        return said
    finally:
        OPENED.on = False
        mine = (str(folder), sys.prefix, sys.base_prefix, str(Path(sp.__file__).parents[1]))
        strange = [name for name in OPENED.names if not name.startswith(mine)]
        assert not strange
    try:
        ids = torch.tensor([[1, 5, 6, 2]])
        assert model(input_ids=ids, prompt_names="tried").logits.isfinite().all()
    finally:
        model.delete_prompt("tried")
    return None


@pytest.mark.parametrize("method", METHODS)
@FUZZ
@given(data=st.data())
def test_a_config_with_anything_in_it(
    method: str, prompts: dict[str, Path], model: Any, tmp_path: Path, data: st.DataObject
) -> None:
    folder = tmp_path / "p"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(prompts[method], folder)
    config = json.loads((folder / saved_prompt.CONFIG_FILE).read_text())
    path = data.draw(st.sampled_from(list(places(config))))
    put(config, path, data.draw(st.sampled_from(["replace", "delete", "add"])), data.draw(VALUES))
    (folder / saved_prompt.CONFIG_FILE).write_text(json.dumps(config))
    tried(model, folder)


@pytest.mark.parametrize("method", METHODS)
@FUZZ
@given(data=st.data())
def test_tensors_that_are_others(
    method: str, prompts: dict[str, Path], model: Any, tmp_path: Path, data: st.DataObject
) -> None:
    """With a hash and a list that fit, as somebody would who means it."""
    folder = tmp_path / "p"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(prompts[method], folder)
    tensors = load_file(folder / saved_prompt.TENSOR_FILE)
    before = {key: (value.dtype, value.shape) for key, value in tensors.items()}
    name = data.draw(st.sampled_from(sorted(tensors)))
    kind = data.draw(st.sampled_from(["dtype", "shape", "nan", "inf", "delete", "rename", "swap", "scalar", "empty"]))
    value = tensors[name]
    if kind == "dtype":
        tensors[name] = value.to(data.draw(st.sampled_from(DTYPES)))
    elif kind == "shape":
        tensors[name] = torch.zeros(data.draw(st.lists(st.integers(0, 40), max_size=4)))
    elif kind in ("nan", "inf"):
        value.view(-1)[data.draw(st.integers(0, value.numel() - 1))] = float(kind)
    elif kind == "delete":
        del tensors[name]
    elif kind == "rename":
        tensors[data.draw(st.sampled_from(["", "method", "method.prompt.0", "../x", "a\0b"]))] = tensors.pop(name)
    elif kind == "swap":
        other = data.draw(st.sampled_from(sorted(tensors)))
        tensors[name], tensors[other] = tensors[other].clone(), value.clone()
    elif kind == "scalar":
        tensors[name] = torch.tensor(1.0)
    else:
        tensors[name] = torch.empty(0)
    content = save({key: tensor.contiguous() for key, tensor in tensors.items()})
    (folder / saved_prompt.TENSOR_FILE).write_bytes(content)
    config = json.loads((folder / saved_prompt.CONFIG_FILE).read_text())
    config["sha256"] = hashlib.sha256(content).hexdigest()
    config["tensors"] = {k: [str(v.dtype).removeprefix("torch."), list(v.shape)] for k, v in tensors.items()}
    (folder / saved_prompt.CONFIG_FILE).write_text(json.dumps(config))
    said = tried(model, folder)
    after = {key: (value.dtype, value.shape) for key, value in tensors.items()}
    floats = {torch.float16, torch.float32}
    if kind in ("nan", "inf") or {k: s for k, (_, s) in before.items()} != {k: s for k, (_, s) in after.items()}:
        assert said is not None
    if any(dtype not in floats for dtype, _ in after.values()):
        assert said is not None


@FUZZ
@given(content=st.binary(max_size=300), where=st.sampled_from([saved_prompt.CONFIG_FILE, saved_prompt.TENSOR_FILE]))
def test_bytes_of_any_kind(content: bytes, where: str, prompts: dict[str, Path], model: Any, tmp_path: Path) -> None:
    folder = tmp_path / "p"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(prompts["prefix-mlp"], folder)
    (folder / where).write_bytes(content)
    if where == saved_prompt.TENSOR_FILE:
        config = json.loads((folder / saved_prompt.CONFIG_FILE).read_text())
        config["sha256"] = hashlib.sha256(content).hexdigest()
        (folder / saved_prompt.CONFIG_FILE).write_text(json.dumps(config))
    assert tried(model, folder) is not None


@FUZZ
@given(value=VALUES, key=st.sampled_from(["name", "class", "revision", "model_type", "sites", "hidden_size"]))
def test_a_backbone_of_any_name(value: Any, key: str, prompts: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "p"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(prompts["prompt-tuning"], folder)
    config = json.loads((folder / saved_prompt.CONFIG_FILE).read_text())
    before = copy.deepcopy(config)
    config["backbone"][key] = value
    (folder / saved_prompt.CONFIG_FILE).write_text(json.dumps(config))
    try:
        sp.load(folder, local_files_only=True)
    except sp.SoftPromptError as error:
        said = str(error)
    else:
        said = ""
        assert config == before or key in ("revision", "sites")
    assert "\n" not in said
