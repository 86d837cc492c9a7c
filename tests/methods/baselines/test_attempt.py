import math

import pytest
import torch
from source_prompts import saved

from softprompts.errors import SoftPromptError
from softprompts.methods import AttemptConfig, PromptTuningConfig, Rows, sources

D = 8


@pytest.fixture
def config(tmp_path):
    """Two sources, the second one token too short."""
    folders = [saved(tmp_path / f"s{n}", PromptTuningConfig(num_virtual_tokens=n), n) for n in (3, 2)]
    return {"num_virtual_tokens": 3, "sources": tuple(folders), "bottleneck": 4, "temperature": 0.7}


def naive(method, rows, temperature):
    """The prompt of each row from the formulas, with plain numbers."""
    found = []
    down, up = method.down.weight.tolist(), method.up.weight.tolist()
    scale = [1.0] * D if method.norm.weight is None else method.norm.weight.tolist()
    shift = [0.0] * D if method.norm.bias is None else method.norm.bias.tolist()
    target = method.prompt.tolist()
    prompts = [*method.sources.tolist(), target]
    for embeddings, mask in zip(rows.embeddings.tolist(), rows.mask.tolist(), strict=True):
        seen = [embedding for embedding, visible in zip(embeddings, mask, strict=True) if visible]
        pooled = [max(token[i] for token in seen) if seen else 0.0 for i in range(D)]
        narrow = [sum(w * x for w, x in zip(line, pooled, strict=True)) for line in down]
        narrow = [x / (1 + math.exp(-x)) for x in narrow]
        wide = [sum(w * x for w, x in zip(line, narrow, strict=True)) for line in up]
        mean = sum(wide) / D
        deviation = math.sqrt(sum((x - mean) ** 2 for x in wide) / D + 1e-5)
        hidden = [(x - mean) / deviation * g + b for x, g, b in zip(wide, scale, shift, strict=True)]
        scores = []
        for prompt in prompts:
            largest = [max(token[i] for token in prompt) for i in range(D)]
            scores.append(sum(p * h for p, h in zip(largest, hidden, strict=True)) / temperature)
        total = sum(math.exp(score) for score in scores)
        weights = [math.exp(score) / total for score in scores]
        found.append(
            [
                [sum(w * p[t][i] for w, p in zip(weights, prompts, strict=True)) + target[t][i] for i in range(D)]
                for t in range(len(target))
            ]
        )
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("fields", [{}, {"train_norm": False}, {"target_init": "vocabulary"}, {"temperature": None}])
def test_contract(check_contract, config, fields):
    check_contract(AttemptConfig(**{**config, **fields}))


@pytest.mark.parametrize("fields", [{}, {"train_norm": False}, {"temperature": None}, {"target_init": "vocabulary"}])
def test_mixture(shape, rows, config, fields):
    made = AttemptConfig(**{**config, **fields})
    method = made.build(shape).double()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.normal_()
    prompt = method(rows).tokens
    torch.testing.assert_close(prompt, naive(method, rows, made.temperature or math.e * D))
    assert prompt.shape == (3, 3, D) and not torch.allclose(prompt[0], prompt[1])
    weights = method.attention(rows)
    torch.testing.assert_close(weights.sum(1), torch.ones(3, dtype=torch.float64))


def test_padding_and_other_rows_change_nothing(shape, config):
    """Padding on either side, with whatever embeddings it has; the released code pools over it."""
    method = AttemptConfig(**config).build(shape).double()
    alone = Rows(torch.randn(1, 3, D, dtype=torch.float64), torch.ones(1, 3).bool())
    expected = method(alone).tokens[0]
    for left in (0, 2, 5):
        padded = torch.randn(2, 8, D, dtype=torch.float64) * 100
        mask = torch.zeros(2, 8).bool()
        padded[1, left : left + 3] = alone.embeddings[0]
        mask[1, left : left + 3] = True
        # Other sizes of a product may round in another order.
        torch.testing.assert_close(method(Rows(padded, mask)).tokens[1], expected, rtol=0, atol=1e-14)


def test_a_row_without_tokens_is_finite(shape, rows, config):
    assert AttemptConfig(**config).build(shape).double()(rows).tokens[2].isfinite().all()


def test_start(shape, table, config):
    """Sources are repeated to the length; the target starts from the first, or from the vocabulary."""
    method = AttemptConfig(**config).build(shape)
    first, second = (sources.load_tokens("test", [path], D)[0] for path in config["sources"])
    assert torch.equal(method.sources[0], first)
    assert torch.equal(method.sources[1], second[[0, 1, 0]])
    assert torch.equal(method.prompt, first)
    method.prompt.data += 1
    assert torch.equal(method.sources[0], first)
    method = AttemptConfig(**config | {"target_init": "vocabulary", "vocabulary_limit": 5}).build(shape)
    assert sorted(row.tolist() for row in method.prompt) == sorted(row.tolist() for row in table[2:5])


def test_sources_are_not_trained(shape, rows, config):
    method = AttemptConfig(**config).build(shape).double()
    method(rows).tokens.square().sum().backward()
    assert not method.sources.requires_grad
    assert "sources" in method.state_dict()
    names = {name for name, _ in method.named_parameters()}
    assert names == {"prompt", "down.weight", "up.weight", "norm.weight", "norm.bias"}


def test_it_does_not_fold(shape, config):
    method = AttemptConfig(**config).build(shape)
    assert method.per_row and method.cannot_fold() == "it depends on the input"
    with pytest.raises(ValueError, match="needs the rows"):
        method(None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_init": "random"}, "target_init must be one of source, vocabulary"),
        ({"bottleneck": 0}, "bottleneck must be at least 1"),
        ({"temperature": 0}, "temperature must be more than 0"),
        ({"train_norm": 1}, "train_norm must be true or false"),
        ({"vocabulary_limit": 0}, "vocabulary_limit must be at least 1"),
        ({"restored": 2.5}, "restored must be a whole number, not 2.5"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(SoftPromptError, match=f"attempt: {message}"):
        AttemptConfig(**fields)


def test_needs_a_source(shape):
    with pytest.raises(SoftPromptError, match="attempt: it mixes source prompts: name at least one in sources"):
        AttemptConfig().build(shape)


def test_count(count):
    """As the paper counts, and as the released code trains."""
    assert count(AttemptConfig(num_virtual_tokens=100, restored=6)) == 231_936
    assert count(AttemptConfig(num_virtual_tokens=100, restored=6, train_norm=False)) == 230_400
