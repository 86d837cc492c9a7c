"""Compiled layers give what the plain ones give, are compiled once for all sizes, and are gone afterwards."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from saved import Cli, model_folder, rows, write_csv
from torch import Tensor
from torch._dynamo.utils import counters

import softprompts as sp
from softprompts.errors import SoftPromptError
from softprompts.experiments.workbench import Workbench
from softprompts.injection.speedups.compiling import compiled, layers_of
from softprompts.tasks.data import Data
from softprompts.training import Lane, TrainConfig, load_result, run_id, train

NAMES = ("prompt-tuning", "prefix-tuning", "multi-mask", "selective-prefix")
MIXED: list[str | None] = [*NAMES, None, "prefix-tuning", "multi-mask", None, "prompt-tuning"]

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="there is no C++ compiler"
)


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def measured(model: Any, inputs: dict[str, Tensor], names: Any) -> tuple[Tensor, list[Tensor | None]]:
    model.zero_grad()
    loss = tiny.loss_of(model, inputs, prompt_names=names)
    loss.backward()
    return loss.detach(), [None if p.grad is None else p.grad.clone() for p in model.prompts.parameters()]


def assert_same(one: tuple[Tensor, list[Tensor | None]], two: tuple[Tensor, list[Tensor | None]]) -> None:
    torch.testing.assert_close(one[0], two[0], rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(one[1], two[1], strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.fixture
def eager_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces and guards as ever, and runs the graphs as they are: what is compiled when costs seconds, not minutes."""
    import softprompts.injection.speedups.compiling as module

    monkeypatch.setattr(module, "_run", torch.compile(module._forward, dynamic=True, backend="eager"))


@pytest.mark.usefixtures("eager_backend")
@pytest.mark.parametrize(("family", "chosen"), [("bert", [*NAMES, "mixed"]), ("t5", ["multi-mask"])])
def test_any_prompt_and_size_is_compiled_once(family: str, chosen: list[str]) -> None:
    model = tiny.attached(family, *NAMES, dtype=torch.float32).train()
    for names in chosen:
        seen = []
        for count, columns in ((4, 7), (7, 11), (9, 6)):
            inputs = tiny.batch(family, rows=count, columns=columns + count)
            given = MIXED[:count] if names == "mixed" and count > 4 else [*NAMES][:count] if names == "mixed" else names
            plain = measured(model, inputs, given)
            with compiled(model):
                assert_same(measured(model, inputs, given), plain)
            seen.append(graphs())
        # A mixture without a bare row and one with such rows need different masks.
        assert seen[-1] == seen[1 if names == "mixed" else 0], (names, seen)
    assert not counters["graph_break"]


@pytest.mark.usefixtures("eager_backend")
def test_gates_from_states_are_made_within_their_layers() -> None:
    """Which run as they are while such a prompt is in use."""
    model = tiny.attached("bert", *NAMES, "adaptive-prefix", dtype=torch.float32).train()
    inputs = tiny.batch("bert", rows=4)
    for names in ("adaptive-prefix", ["adaptive-prefix", "multi-mask", "prefix-tuning", "adaptive-prefix"]):
        plain = measured(model, inputs, names)
        with compiled(model):
            assert_same(measured(model, inputs, names), plain)
        assert not graphs()
    with compiled(model):
        measured(model, inputs, "multi-mask")
    assert graphs()


@needs_compiler
def test_real_code_of_the_compiler(tmp_path: Path) -> None:
    """Training in batches of several sizes, through the compiler and back."""
    features = [{"input_ids": [5 + (i + j) % 40 for j in range(3 + i % 5)], "label": i % 3} for i in range(14)]
    found = []
    for compile in (False, True):
        model = sp.attach(tiny.model("bert", torch.float32))
        lanes = []
        for i, name in enumerate(("prefix-tuning", "multi-mask")):
            model.add_prompt(name, tiny.METHODS[name], seed=i)
            config = TrainConfig(batch_size=4, epochs=1, compile=compile)
            lanes.append(Lane(name, config, features, folder=tmp_path / f"{name}-{compile}"))
        before = graphs()
        results = train(model, lanes, pad_id=0)
        found.append((results, dict(model.prompts.state_dict())))
        assert (graphs() > before) == compile
    # The first layer's input needs no gradient, the second's does; some batches are padded, others have no mask.
    assert graphs() <= 4
    for one, two in zip(found[0][0], found[1][0], strict=True):
        assert [line["loss"] for line in one.history] == pytest.approx([line["loss"] for line in two.history], abs=1e-5)
    for key, value in found[0][1].items():
        torch.testing.assert_close(found[1][1][key], value, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.usefixtures("eager_backend")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_model_is_what_it_was(checkpointing: bool) -> None:
    model = tiny.attached("bert", "prefix-tuning", "multi-mask", dtype=torch.float32).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    inputs = tiny.batch("bert")
    before = {name: set(module.__dict__) for name, module in model.named_modules()}
    plain = measured(model, inputs, "multi-mask")
    limit = torch._dynamo.config.recompile_limit
    with compiled(model):
        assert_same(measured(model, inputs, "multi-mask"), plain)
        inside = graphs()
        assert inside
    with pytest.raises(ZeroDivisionError), compiled(model):
        raise ZeroDivisionError
    assert {name: set(module.__dict__) for name, module in model.named_modules()} == before
    assert torch._dynamo.config.recompile_limit == limit
    assert_same(measured(copy.deepcopy(model), inputs, "prefix-tuning"), measured(model, inputs, "prefix-tuning"))
    assert graphs() == inside
    sp.detach(model)


def test_a_failing_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import softprompts.injection.speedups.compiling as module

    def broken(*_: Any) -> Any:
        raise RuntimeError("no room\nat all")

    monkeypatch.setattr(module, "_run", torch.compile(module._forward, backend=broken))
    model = tiny.attached("bert", "prefix-tuning", dtype=torch.float32)
    with pytest.raises(SoftPromptError, match="^compiling BertLayer failed: [^\n]*no room[^\n]*$"), compiled(model):
        model(**tiny.batch("bert"))


def test_layers_are_those_with_attention() -> None:
    for family, count in (("bert", 2), ("distilbert", 2), ("t5", 4), ("bart", 4), ("gpt2", 2)):
        assert len(layers_of(tiny.attached(family, "prefix-tuning"))) == count


# --- what the user compiles -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["multi-mask"])
def test_a_users_own_compile_is_one_graph(name: str) -> None:
    model = tiny.attached("bert", name, dtype=torch.float32)
    whole = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    for columns in (7, 9):
        inputs = tiny.batch("bert", columns=columns)
        with torch.no_grad():
            wanted = model(**inputs).logits
            torch.testing.assert_close(whole(**inputs).logits, wanted, rtol=1e-5, atol=1e-5)
    plain = measured(model, tiny.batch("bert"), name)
    model.zero_grad()
    whole(**tiny.batch("bert"), prompt_names=name).loss.backward()
    got = [None if p.grad is None else p.grad.clone() for p in model.prompts.parameters()]
    assert_same((plain[0], got), plain)


# --- settings ---------------------------------------------------------------------------------------------------------


def test_a_compiled_run_is_the_same_run() -> None:
    plain, other = TrainConfig(), TrainConfig(compile=True)
    assert "compile" not in plain.to_dict() and other.to_dict()["compile"] is True
    assert plain.identity() == other.identity() == plain.to_dict()
    assert TrainConfig.from_dict(other.to_dict()) == other
    with pytest.raises(SoftPromptError, match="compile must be true or false"):
        TrainConfig(compile="yes")  # type: ignore[arg-type]


@pytest.mark.usefixtures("eager_backend")
def test_the_command_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    data = str(write_csv(tmp_path / "data.csv", rows()))
    command = ["train", "-m", model_folder("bert"), "--data", data, "--steps", "2", "--max-train", "20"]
    cli = Cli(monkeypatch, capsys)
    cli.fine(*command, "--out", tmp_path / "plain")
    assert not graphs()
    cli.fine(*command, "--out", tmp_path / "compiled", "--compile")
    assert graphs()
    (one,), (two,) = (list((tmp_path / name).iterdir()) for name in ("plain", "compiled"))
    assert one.name == two.name
    bench = Workbench(model_folder("bert"), Data(train=data, max_train=20))
    training = TrainConfig(max_steps=2, epochs=3, batch_size=32, backbone_dropout=False)
    assert run_id(bench.resolved(sp.PrefixTuningConfig(), training)) == one.name
    first, second = load_result(one), load_result(two)
    assert not first["compiled"] and second["compiled"]
    assert first["metrics"] == second["metrics"]


def test_without_a_compiler_nothing_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    data = str(write_csv(tmp_path / "data.csv", rows()))
    command = ["train", "-m", model_folder("bert"), "--data", data, "--steps", "2", "--out", tmp_path / "runs"]
    done = Cli(monkeypatch, capsys)(*command, "--compile")
    assert done.code == 2 and done.err.count("\n") == 1
    assert "needs a C++ compiler (no-such-compiler)" in done.err
    assert not (tmp_path / "runs").exists()
