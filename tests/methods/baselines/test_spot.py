import math

import pytest
import torch
from source_prompts import PLAIN, saved

from softprompts.errors import SoftPromptError
from softprompts.methods import PromptTuningConfig, SPoTConfig, fold, sources

D = 8


@pytest.fixture
def folders(tmp_path):
    """Three sources of 3, 3 and 2 tokens."""
    lengths = [3, 3, 2]
    return [saved(tmp_path / f"s{i}", PromptTuningConfig(num_virtual_tokens=n), i) for i, n in enumerate(lengths)]


def values(folder):
    return [row.tolist() for row in sources.load_tokens("test", [folder], D)[0]]


def cosine(one, other):
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / math.sqrt(sum(a * a for a in one) * sum(b * b for b in other))


def pooled(prompt):
    return [sum(row[i] for row in prompt) / len(prompt) for i in range(D)]


def mixture(prompts, weights, length):
    return torch.tensor(
        [
            [sum(w * p[row % len(p)][i] for w, p in zip(weights, prompts, strict=True)) for i in range(D)]
            for row in range(length)
        ]
    )


def test_contract(check_contract, folders):
    check_contract(SPoTConfig(num_virtual_tokens=2, sources=tuple(folders)))
    check_contract(SPoTConfig(num_virtual_tokens=2, sources=folders[0], combine="weighted", target=folders[0]))


@pytest.mark.parametrize("length", [2, 3, 5])
def test_average(shape, folders, length):
    """Tokens are repeated from the first on, or cut."""
    prompt = SPoTConfig(num_virtual_tokens=length, sources=tuple(folders)).build(shape)().tokens[0]
    torch.testing.assert_close(prompt, mixture([values(f) for f in folders], [1 / 3] * 3, length))


def test_a_single_source_is_copied_bit_for_bit(shape, folders):
    prompt = SPoTConfig(num_virtual_tokens=3, sources=folders[1]).build(shape).prompt
    assert prompt.tolist() == values(folders[1])


def test_similarity(shape, tmp_path, folders):
    prompts, found = [values(f) for f in folders], set()
    for seed in range(20, 30):
        target = saved(tmp_path / f"target{seed}", PLAIN, seed)
        similar = [cosine(pooled(p), pooled(values(target))) for p in prompts]
        config = {"num_virtual_tokens": 3, "sources": tuple(folders), "target": target}
        if max(similar) <= 0:
            with pytest.raises(SoftPromptError, match="no source is similar to the target"):
                SPoTConfig(combine="weighted", **config).build(shape)
        else:
            weights = [max(s, 0) for s in similar]
            weights = [w / sum(weights) for w in weights]
            prompt = SPoTConfig(combine="weighted", **config).build(shape).prompt.detach()
            torch.testing.assert_close(prompt, mixture(prompts, weights, 3))
        best = similar.index(max(similar))
        prompt = SPoTConfig(combine="most-similar", **config).build(shape).prompt.detach()
        torch.testing.assert_close(prompt, mixture([prompts[best]], [1], 3))
        found.add((best, min(similar) < 0))
    assert len({best for best, _ in found}) > 1 and {negative for _, negative in found} == {True, False}


def test_the_most_similar_is_the_target_itself(shape, folders):
    config = SPoTConfig(num_virtual_tokens=2, sources=tuple(folders), combine="most-similar", target=folders[2])
    assert config.build(shape).prompt.tolist() == values(folders[2])


def test_it_folds_to_its_tokens(shape, folders, same_prompt):
    method = SPoTConfig(num_virtual_tokens=2, sources=tuple(folders)).build(shape)
    config, folded = fold(method)
    assert config.source == "spot" and config.has_tokens and same_prompt(folded(), method())


def test_building_leaves_the_source_alone(shape, folders):
    method = SPoTConfig(num_virtual_tokens=3, sources=folders[0]).build(shape)
    before = values(folders[0])
    method.prompt.data += 1
    assert values(folders[0]) == before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"combine": "sum"}, "combine must be one of average, weighted, most-similar"),
        ({"combine": "weighted"}, "combine='weighted' needs target"),
        ({"target": "x"}, "combine='average' has no use for a target"),
        ({"restored": 2, "sources": "x"}, "restored is set by saving"),
        ({"restored": -1}, "restored must be at least 0"),
        ({"sources": 3}, "sources must name a file or folder, not 3"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(SoftPromptError, match=f"spot: {message}"):
        SPoTConfig(**fields)


def test_needs_a_source(shape):
    with pytest.raises(SoftPromptError, match="spot: it starts from source prompts: name at least one in sources"):
        SPoTConfig().build(shape)


def test_count(count):
    assert count(SPoTConfig(num_virtual_tokens=100, restored=1)) == 76_800
