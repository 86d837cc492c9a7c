import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from source_prompts import PLAIN, saved

from softprompts.errors import SoftPromptError
from softprompts.methods import IntrinsicConfig, PromptTuningConfig, fit_autoencoder, fold, sources
from softprompts.methods.baselines.intrinsic import decode, encode

D = 8


def prompts(count=12, length=3, dims=2):
    """Prompts that lie in a plane, but for a little noise."""
    axes = torch.randn(dims, length * D)
    return (torch.randn(count, dims) @ axes + 0.5 + 0.01 * torch.randn(count, length * D)).view(count, length, D)


@pytest.fixture(params=["linear", "tanh"])
def file(request, tmp_path):
    fit = fit_autoencoder(prompts(), tmp_path / "a.safetensors", 2, kind=request.param, hidden_size=5, steps=30)
    return str(fit.path)


def test_contract(check_contract, file):
    check_contract(IntrinsicConfig(num_virtual_tokens=3, autoencoder=file, init_std=1.0))


def test_decoding(shape, file):
    method = IntrinsicConfig(num_virtual_tokens=3, autoencoder=file, init_std=1.0).build(shape).double()
    layers = {key: value.tolist() for key, value in load_file(file).items()}
    code = method.code.tolist()

    def linear(name, inputs):
        weight, bias = layers[f"{name}.weight"], layers[f"{name}.bias"]
        return [sum(w * x for w, x in zip(line, inputs, strict=True)) + b for line, b in zip(weight, bias, strict=True)]

    flat = linear("decoder.0", code)
    if "decoder.1.weight" in layers:
        flat = linear("decoder.1", [math.tanh(x) for x in flat])
    torch.testing.assert_close(method().tokens, torch.tensor(flat, dtype=torch.float64).view(1, 3, D))
    assert [name for name, _ in method.named_parameters()] == ["code"]


def test_a_linear_one_is_the_best_there_is(tmp_path):
    data = prompts()
    fit = fit_autoencoder(data, tmp_path / "a", 2, kind="linear")
    flat = data.flatten(1).double()
    values = torch.linalg.svdvals(flat - flat.mean(0))
    torch.testing.assert_close(fit.error, float(values[2:].square().sum() / flat.numel()), rtol=1e-3, atol=1e-7)
    assert fit.explained > 0.999


def test_a_tanh_one_learns(tmp_path):
    data = prompts()
    explained = [
        fit_autoencoder(data, tmp_path / "a", 2, hidden_size=32, steps=steps, learning_rate=1e-2).explained
        for steps in (1, 40, 400)
    ]
    assert explained[0] < 0.5 < explained[1] < explained[2] and explained[2] > 0.98
    # Curved ones need it: a line through a circle's points keeps half of their variance.
    angles = torch.linspace(0, 6, 20)
    circle = torch.stack([angles.cos(), angles.sin()], 1) @ torch.randn(2, 3 * D)
    straight = fit_autoencoder(circle.view(20, 3, D), tmp_path / "b", 1, kind="linear").explained
    assert straight < 0.9


def test_codes_have_variance_one(tmp_path):
    for kind in ("linear", "tanh"):
        data = 0.01 * prompts() + 3
        path = fit_autoencoder(data, tmp_path / kind, 2, kind=kind, hidden_size=8, steps=100).path
        layers = load_file(path)
        codes = encode(layers, data.flatten(1))
        torch.testing.assert_close(codes.mean(0), torch.zeros(2), rtol=0, atol=0.02)
        torch.testing.assert_close(codes.std(0), torch.ones(2), rtol=0.01, atol=0)
        rebuilt = decode(layers, codes)
        assert (rebuilt - data.flatten(1)).abs().mean() < 0.1 * 0.01 * 2 + data.std()


def test_fitting_to_saved_prompts(tmp_path):
    folders = [saved(tmp_path / f"s{i}", PLAIN, i) for i in range(3)]
    fit = fit_autoencoder(folders, tmp_path / "a.safetensors", 2, kind="linear")
    data = torch.stack(sources.load_tokens("test", folders, D))
    same = fit_autoencoder(data, tmp_path / "b.safetensors", 2, kind="linear")
    assert fit.path.read_bytes() == same.path.read_bytes()
    # Three prompts span a plane.
    assert fit.explained == pytest.approx(1, abs=1e-5)
    layers = load_file(fit.path)
    torch.testing.assert_close(decode(layers, encode(layers, data.flatten(1))), data.flatten(1), rtol=0, atol=1e-5)


def test_the_seed_decides_and_the_random_state_stays(tmp_path):
    data = prompts()
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    made = [fit_autoencoder(data, tmp_path / str(i), 2, steps=5, seed=seed).path for i, seed in enumerate((0, 0, 1))]
    assert torch.equal(torch.randn(2), expected)
    assert made[0].read_bytes() == made[1].read_bytes() != made[2].read_bytes()


def test_start(shape, tmp_path):
    path = str(fit_autoencoder(prompts(400, dims=4), tmp_path / "a", 300, steps=1, hidden_size=4).path)
    assert abs(IntrinsicConfig(num_virtual_tokens=3, autoencoder=path).build(shape).code.std().item() - 0.02) < 0.003
    zero = IntrinsicConfig(num_virtual_tokens=3, autoencoder=path, init_std=0).build(shape)
    assert not zero.code.any()


def test_it_folds_to_its_tokens(shape, file, same_prompt):
    method = IntrinsicConfig(num_virtual_tokens=3, autoencoder=file).build(shape)
    config, folded = fold(method)
    assert config.source == "intrinsic" and same_prompt(folded(), method())
    assert sum(parameter.numel() for parameter in folded.parameters()) == 3 * D


def test_what_cannot_be_fitted(tmp_path):
    data, path = prompts(), tmp_path / "a"
    short = saved(tmp_path / "short", PromptTuningConfig(num_virtual_tokens=2))
    cases = [
        ((data[:1], path, 1), {}, "at least two prompts"),
        (([short], path, 1), {}, "at least two prompts to fit to, not 1"),
        (([short, saved(tmp_path / "long")], path, 1), {}, "must be of one length"),
        ((data, path, 12), {"kind": "linear"}, "12 prompts span 11 dimensions, dim=12 is more"),
        ((data, path, 0), {}, "dim must be a whole number of at least 1"),
        ((data, path, 2), {"kind": "deep"}, "kind must be one of linear, tanh"),
        ((data, path, 2), {"steps": 0}, "steps must be a whole number"),
        ((data, path, 2), {"learning_rate": 1e30, "steps": 20}, "diverged; set learning_rate lower"),
    ]
    for arguments, fields, message in cases:
        with pytest.raises(SoftPromptError, match=f"fit_autoencoder: .*{message}"):
            fit_autoencoder(*arguments, **fields)
    assert not path.exists()


def test_unusable_files(shape, tmp_path, file):
    (tmp_path / "text").write_text("no tensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    cases = [
        ({"autoencoder": str(tmp_path / "none")}, "none is not there: fit_autoencoder writes one"),
        ({"autoencoder": str(tmp_path / "text")}, "text cannot be read"),
        ({"autoencoder": str(tmp_path / "other.safetensors")}, "holds no auto-encoder of fit_autoencoder"),
        ({"autoencoder": file, "num_virtual_tokens": 4}, "is for prompts of tokens 3, not 4"),
        ({}, "name the file of fit_autoencoder in autoencoder"),
    ]
    for fields, message in cases:
        with pytest.raises(SoftPromptError, match=f"intrinsic: .*{message}"):
            IntrinsicConfig(**{"num_virtual_tokens": 3, **fields}).build(shape)
    with pytest.raises(SoftPromptError, match="none is not there"):
        IntrinsicConfig(autoencoder=str(tmp_path / "none")).identity()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"autoencoder": 3}, "autoencoder must name a file or folder, not 3"),
        ({"init_std": -1}, "init_std must be at least 0"),
        ({"restored": (1, 2, 3)}, "restored must be at most 2 long"),
        ({"restored": (0,)}, "restored.0 must be at least 1"),
        ({"restored": 5}, "restored must be a list, not 5"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(SoftPromptError, match=f"intrinsic: {message}"):
        IntrinsicConfig(**fields)


def test_paths_are_taken_too(shape, file):
    config = IntrinsicConfig(num_virtual_tokens=3, autoencoder=Path(file))
    assert config.autoencoder == file


def test_count(count):
    assert count(IntrinsicConfig(num_virtual_tokens=100, restored=(250, 768))) == 250
    assert count(IntrinsicConfig(num_virtual_tokens=100, restored=(5,))) == 5
