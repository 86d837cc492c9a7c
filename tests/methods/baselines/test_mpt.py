import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from source_prompts import PLAIN, saved

from softprompts.errors import SoftPromptError
from softprompts.methods import Answers, MPTConfig, PromptTuningConfig, compose, fold

D = 8


@pytest.mark.parametrize("fields", [{}, {"rank": 2}, {"rank": 3, "factors_init": "normal"}])
def test_contract(check_contract, fields):
    check_contract(MPTConfig(num_virtual_tokens=2, **fields))


@pytest.mark.parametrize("rank", [1, 3])
def test_product(shape, rank):
    method = MPTConfig(num_virtual_tokens=4, rank=rank).build(shape).double()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.normal_()
    shared, left, right = method.shared.tolist(), method.left.tolist(), method.right.tolist()
    expected = torch.zeros(1, 4, D, dtype=torch.float64)
    for token in range(4):
        for i in range(D):
            factor = sum(left[token][r] * right[r][i] for r in range(rank))
            expected[0, token, i] = shared[token][i] * factor
    torch.testing.assert_close(method().tokens, expected)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_a_fresh_prompt_is_a_sample_of_the_vocabulary(shape, table, rank):
    method = MPTConfig(num_virtual_tokens=3, rank=rank, vocabulary_limit=5).build(shape)
    tokens = method().tokens[0]
    assert sorted(row.tolist() for row in tokens) == sorted(row.tolist() for row in table[2:5])
    # All ranks learn: after a step the factor has that rank.
    tokens.pow(3).sum().backward()
    assert (method.right.grad.abs().sum(1) > 0).all()
    assert (method.left.grad[:, 0] != 0).all()


def test_start_near_zero(shape):
    method = MPTConfig(num_virtual_tokens=400, rank=4, factors_init="normal").build(shape)
    assert abs(method.left.std().item() - 0.02) < 0.002
    assert abs(method.right.std().item() - 0.02) < 0.008
    assert method().tokens.abs().max() < 0.1


@pytest.fixture
def sources(tmp_path):
    """Three prompts of one shared part, the factors of each its own."""
    config = MPTConfig(num_virtual_tokens=3, rank=2)
    return [saved(tmp_path / f"s{i}", config, i) for i in range(3)]


def share(folders):
    """Gives the sources one shared part, as training together does."""
    first = load_file(Path(folders[0]) / "softprompt.safetensors")["method.shared"]
    found = []
    for folder in map(Path, folders):
        tensors = load_file(folder / "softprompt.safetensors")
        tensors["method.shared"] = first
        content = save(tensors)
        (folder / "softprompt.safetensors").write_bytes(content)
        config = json.loads((folder / "softprompt_config.json").read_text())
        config["sha256"] = hashlib.sha256(content).hexdigest()
        (folder / "softprompt_config.json").write_text(json.dumps(config))
        found.append(tensors)
    return found


def test_a_target_starts_from_the_shared_part_and_average_factors(shape, sources):
    tensors = share(sources)
    method = MPTConfig(num_virtual_tokens=3, rank=2, sources=tuple(sources)).build(shape)
    assert torch.equal(method.shared, tensors[0]["method.shared"])
    for name in ("left", "right"):
        total = sum(source[f"method.{name}"].double() for source in tensors) / 3
        torch.testing.assert_close(getattr(method, name).double(), total, rtol=0, atol=1e-6)
    alone = MPTConfig(num_virtual_tokens=3, rank=2, sources=sources[2]).build(shape)
    assert all(torch.equal(value, tensors[2][f"method.{name}"]) for name, value in alone.state_dict().items())


def test_sources_that_do_not_go_together(shape, tmp_path, sources):
    with pytest.raises(SoftPromptError, match="have no shared prompt in common: they were trained apart"):
        MPTConfig(num_virtual_tokens=3, rank=2, sources=tuple(sources)).build(shape)
    with pytest.raises(SoftPromptError, match="has num_virtual_tokens=3 and rank=2, not 4 and 2"):
        MPTConfig(num_virtual_tokens=4, rank=2, sources=sources[0]).build(shape)
    plain = saved(tmp_path / "plain", PLAIN)
    with pytest.raises(SoftPromptError, match="is a prompt-tuning prompt: name one of mpt"):
        MPTConfig(num_virtual_tokens=3, sources=plain).build(shape)


def test_it_folds_to_its_tokens(shape, same_prompt):
    method = MPTConfig(num_virtual_tokens=2, factors_init="normal").build(shape)
    config, folded = fold(method)
    assert config.source == "mpt" and same_prompt(folded(), method())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, "rank must be at least 1"),
        ({"factors_init": "zeros"}, "factors_init must be one of ones, normal"),
        ({"vocabulary_limit": -1}, "vocabulary_limit must be at least 1"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(SoftPromptError, match=f"mpt: {message}"):
        MPTConfig(**fields)


def test_count(count):
    assert count(MPTConfig(num_virtual_tokens=100)) == 77_668
    assert count(MPTConfig(num_virtual_tokens=100, rank=3)) == 76_800 + 3 * 868
    assert count(MPTConfig(num_virtual_tokens=100, restored=6)) == 77_668


def test_what_is_learned_from_a_teacher(shape):
    method = MPTConfig(num_virtual_tokens=2, teacher="t", distillation=0.5, temperature=3.0).build(shape)
    assert method.compares == ("teacher",) and method.compares_states
    logits, states = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 5, D, dtype=torch.float64)
    real = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
    own, teacher = (Answers(logits[i], states[i], real) for i in (0, 1))
    expected = []
    for line in range(3):
        p, q = ((logits[i, line] / 3).exp() / (logits[i, line] / 3).exp().sum() for i in (1, 0))
        divergence = sum(9 * a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True))
        tokens = [t for t in range(5) if real[line, t]]
        errors = [(states[0, line, t, x] - states[1, line, t, x]).item() ** 2 / D for t in tokens for x in range(D)]
        expected.append(0.5 * (divergence + sum(errors) / len(tokens)))
    found = method.compare(own, {"teacher": teacher})
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert method.compare(own, {"teacher": own}).abs().max() < 1e-12


def test_without_anything_to_learn_there_is_no_teacher(shape):
    for fields in ({}, {"teacher": "t", "distillation": 0}):
        config = MPTConfig(num_virtual_tokens=2, **fields)
        assert config.taught_by() is None and config.build(shape).compares == ()
    alone = MPTConfig(num_virtual_tokens=2, teacher="t", match_states=False).build(shape)
    assert alone.compares and not alone.compares_states and alone.stored().teacher is None
    assert MPTConfig(teacher="t", distillation=0).files() == ("t",)
    assert MPTConfig(distillation=0.1, temperature=2.0).identity() == MPTConfig().identity()


def test_a_composition_learns_from_the_teacher_of_its_part():
    both = compose(MPTConfig(teacher="t"), PromptTuningConfig())
    assert both.taught_by() == "t" and both.files() == ("t",)
    assert compose(MPTConfig(), PromptTuningConfig()).taught_by() is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teacher": 3}, "teacher must name a file or folder, not 3"),
        ({"teacher": ""}, "teacher must name a file or folder, not ''"),
        ({"distillation": -1}, "distillation must be at least 0"),
        ({"temperature": 0}, "temperature must be more than 0"),
        ({"match_states": 1}, "match_states must be true or false"),
    ],
)
def test_bad_settings_of_a_teacher(fields, message):
    with pytest.raises(SoftPromptError, match=f"mpt: {message}"):
        MPTConfig(**fields)
