"""Masks, gates and superpositions against the tensors in the file, and against the start of training."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tiny
import torch
from saved import model_folder, rows, write_csv
from torch import nn

import softprompts as sp
from softprompts.analysis import figures, gates_of, masks_of, open_prompts, superposition_of
from softprompts.errors import SoftPromptError
from softprompts.experiments.workbench import Workbench
from softprompts.methods import about, contract, registry
from softprompts.tasks.data import Data
from tests.analysis.reading import Train, numbers, raw, softmax

MASKS = sp.MultiMaskConfig(num_virtual_tokens=3, num_masks=2)
EPT = sp.EPTConfig(num_virtual_tokens=4, source_tokens=6, rank=2, max_length=12, num_spaces=3, space_hidden_size=5)
SUPERPOS = sp.SuperPosConfig(num_virtual_tokens=3, num_sampled_tokens=5)


def fresh(config: sp.MethodConfig, tmp_path: Path, seed: int = 0) -> Any:
    """The module of a prompt that was never trained, from a workbench of its own."""
    data = write_csv(tmp_path / "data.csv", rows())
    bench = Workbench(model_folder("bert"), Data(train=str(data)), max_length=12)
    bench.backbone.add("fresh", config, bench.task, seed)
    return bench.model.prompts["fresh"].method


def test_masks_are_the_sigmoid_of_the_saved_ones(train: Train, tmp_path: Path) -> None:
    folder = train(MASKS)
    (saved,) = open_prompts([folder])
    found = masks_of(saved)
    wanted = 1 / (1 + np.exp(-raw(folder)["method.masks"]))
    np.testing.assert_allclose(found.values, wanted, atol=1e-6)
    assert found.sites == ("encoder.self 0", "encoder.self 1") and found.values.shape == (2, 3, 2)
    start = torch.sigmoid(fresh(MASKS, tmp_path).masks).detach().numpy()
    np.testing.assert_array_equal(found.start, start)
    assert found.moved == pytest.approx(np.abs(wanted - start).mean(), abs=1e-6) and found.moved > 1e-3
    assert found.likeness == pytest.approx(np.corrcoef(wanted[0].ravel(), wanted[1].ravel())[0, 1], abs=1e-5)
    assert found.closed == (wanted < 0.5).mean()


def test_the_picture_of_masks_has_a_panel_for_each(train: Train) -> None:
    (picture,) = figures("masks", [train(MASKS)], names=["films"])
    (saved,) = open_prompts([train(MASKS)])
    values = masks_of(saved).values
    drawn = [axes.images[0].get_array() for axes in picture.figure.axes if axes.images]
    assert len(drawn) == 2 and picture.name == "masks-films"
    for array, value in zip(drawn, values, strict=True):
        np.testing.assert_array_equal(array, value)
    assert {axes.images[0].get_clim() for axes in picture.figure.axes if axes.images} == {(0.0, 1.0)}
    lines = numbers(picture.csv)
    assert len(lines) == values.size and lines[-1][:3] == ["1", "2", "encoder.self 1"]
    assert float(lines[-1][3]) == pytest.approx(values[1, 2, 1], rel=1e-6)


def test_sites_of_an_encoder_decoder_are_named_by_kind(train: Train) -> None:
    (saved,) = open_prompts([train(MASKS, "t5")])
    sites = masks_of(saved).sites
    assert len(sites) == 6 and sites[:2] == ("encoder.self 0", "encoder.self 1")
    assert sorted(sites[2:]) == ["decoder.cross 0", "decoder.cross 1", "decoder.self 0", "decoder.self 1"]
    (picture,) = figures("masks", [saved])  # each kind of site together
    order = sorted(
        range(6), key=lambda place: [*dict.fromkeys(s.split()[0] for s in sites)].index(sites[place].split()[0])
    )
    axes = picture.figure.axes[0]
    assert axes.get_xlabel().startswith("0-1 encoder.self, 2-3 decoder.")
    np.testing.assert_array_equal(axes.images[0].get_array(), masks_of(saved).values[0][:, order])
    (some,) = open_prompts([train(sp.MultiMaskConfig(num_virtual_tokens=2, sites=("decoder.self",)), "t5")])
    assert masks_of(some).sites == ("decoder.self 0", "decoder.self 1")


def test_gates_of_ept_and_their_start(train: Train, tmp_path: Path) -> None:
    folder = train(EPT)
    (saved,) = open_prompts([folder])
    found, tensors = gates_of(saved), raw(folder)

    def shares(prompt: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        return np.stack([softmax(weight @ token + bias) for token in prompt])

    wanted = shares(*(tensors[f"method.{name}"] for name in ("prompt", "gate.weight", "gate.bias")))
    np.testing.assert_allclose(found.trained, wanted, atol=1e-6)
    first = fresh(EPT, tmp_path)
    parts = (first.prompt, first.gate.weight, first.gate.bias)
    np.testing.assert_allclose(found.start, shares(*(x.detach().double().numpy() for x in parts)), atol=1e-6)
    assert np.abs(found.trained - found.start).max() > 1e-3
    (picture,) = figures("gates", [saved])
    drawn = [axes.images[0].get_array() for axes in picture.figure.axes if axes.images]
    for array, value in zip(drawn, (found.start, found.trained, found.trained - found.start), strict=True):
        np.testing.assert_array_equal(array, value.T)


def test_a_start_from_another_prompt_is_not_made_up(train: Train) -> None:
    import dataclasses

    source = str(train(EPT))
    (saved,) = open_prompts([train(dataclasses.replace(EPT, source=source), seed=3)])
    found = gates_of(saved)
    assert found.start is None and "started from other saved prompts" in found.why
    (picture,) = figures("gates", [saved])
    assert "The start is not shown" in picture.caption
    assert sum(bool(axes.images) for axes in picture.figure.axes) == 1


def test_superposition_is_the_cosine_of_weights(train: Train, tmp_path: Path) -> None:
    folder = train(SUPERPOS)
    (saved,) = open_prompts([folder])
    found, tensors = superposition_of(saved), raw(folder)

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt((a * a).sum() * (b * b).sum())

    for i in range(3):
        for j in range(3):
            weights, mixed = tensors["method.weights"], tensors["method.embeddings"]
            assert found.weights[i, j] == pytest.approx(cosine(weights[i], weights[j]), abs=1e-6)
            assert found.embeddings[i, j] == pytest.approx(cosine(mixed[i].ravel(), mixed[j].ravel()), abs=1e-6)
    first = fresh(SUPERPOS, tmp_path).weights.detach().double().numpy()
    assert found.start is not None
    assert found.start[0, 2] == pytest.approx(cosine(first[0], first[2]), abs=1e-6)
    assert found.moved > 0
    other = train(SUPERPOS, seed=1)
    (picture,) = figures("superposition", [folder, other, train(MASKS)], names=["a", "b", "c"])
    drawn = [axes.images[0].get_array() for axes in picture.figure.axes if axes.images]
    assert len(drawn) == 2  # the third has none
    np.testing.assert_array_equal(drawn[0], found.weights)
    assert {line[0] for line in numbers(picture.csv)} == {"a", "b"}


def test_views_name_every_axis_of_every_method() -> None:
    seen = set()
    for name, config in tiny.METHODS.items():
        model = sp.attach(tiny.model("bert", torch.float32), config, "it", seed=0)
        made = model.prompts["it"].method.eval()
        some = contract.Rows(torch.randn(3, 5, 16), torch.ones(3, 5, dtype=torch.bool))
        for rows_given in (None, some):
            for view in made.views(rows_given):
                seen.add(view.what)
                assert view.values.ndim == len(view.axes), name
                for axis, entries in view.entries.items():
                    assert len(entries) == view.values.shape[view.axes.index(axis)], name
                assert ("row" in view.axes) <= (rows_given is not None), name
    assert {"masks", "gates", "superposition", "selective", "routes", "chosen"} <= seen


def test_a_method_from_elsewhere_shows_what_it_wants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @registry.register("half-open")
    @dataclass(frozen=True, kw_only=True)
    class HalfOpenConfig(sp.MethodConfig):
        uses_tokens: ClassVar[bool] = True

        def build(self, shape: contract.Shape) -> contract.Method:
            return HalfOpen(self, shape)

    class HalfOpen(contract.Method):
        def __init__(self, config: HalfOpenConfig, shape: contract.Shape):
            super().__init__(config)
            self.tokens = nn.Parameter(torch.ones(config.num_virtual_tokens, shape.hidden_size))

        def forward(self, rows: contract.Rows | None = None) -> Any:
            from softprompts.soft_prompt import SoftPrompt

            return SoftPrompt(tokens=self.tokens.unsqueeze(0))

        def components(self) -> dict[str, contract.Component]:
            return {"prompt": contract.Component([self.tokens], learning_rate=0.1)}

        def views(self, rows: contract.Rows | None = None) -> list[about.View]:
            return [about.View("masks", torch.full((2, 2), 0.5), ("token", "site"))]

    model = sp.attach(tiny.model("bert", torch.float32), HalfOpenConfig(num_virtual_tokens=2), "mine")
    model.save_prompt("mine", tmp_path / "mine")
    (picture,) = figures("masks", [tmp_path / "mine"])
    assert float(numbers(picture.csv)[0][3]) == 0.5 and "Training moved" not in picture.caption


def test_what_does_not_apply_says_so(train: Train, tmp_path: Path) -> None:
    plain = train(sp.PromptTuningConfig(num_virtual_tokens=2))
    full = train(sp.BitFitConfig())
    for what, message in (
        ("masks", "prompt-tuning has no masks"),
        ("gates", "no gate over spaces"),
        ("superposition", "are no superpositions"),
        ("selective", "no mask on attention scores"),
        ("router", "no router"),
    ):
        with pytest.raises(SoftPromptError, match=message):
            figures(what, [plain])
        with pytest.raises(SoftPromptError, match="changes the model's own modules"):
            figures(what, [full])
    with pytest.raises(SoftPromptError, match=r"no router \(2 prompts\)"):
        figures("router", [plain, plain])
    with pytest.raises(SoftPromptError, match="did you mean 'masks'"):
        figures("mask", [plain])
    with pytest.raises(SoftPromptError, match="1 names for 2 prompts"):
        open_prompts([plain, plain], ["one"])
    with pytest.raises(SoftPromptError, match="no such folder"):
        figures("masks", [tmp_path / "none" / "there"])


def test_without_matplotlib_one_line(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(SoftPromptError, match="pip install matplotlib"):
        figures("masks", [train(MASKS)])


def test_no_seed_no_start(train: Train, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(train(EPT) / "prompt", tmp_path / "bare")
    path = tmp_path / "bare/softprompt_config.json"
    config = json.loads(path.read_text())
    del config["metadata"]["seed"]
    path.write_text(json.dumps(config))
    (saved,) = open_prompts([tmp_path / "bare"])
    assert gates_of(saved).start is None and "no seed was kept" in gates_of(saved).why
