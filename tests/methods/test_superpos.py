import dataclasses
import math

import pytest
import torch

from softprompts.errors import SoftPromptError
from softprompts.methods import SuperPosConfig, Vocabulary

D = 8


@pytest.mark.parametrize(
    "fields",
    [{}, {"weights_init": "uniform"}, {"softmax": True}, {"softmax": True, "weights_init": "normal"}],
)
def test_contract(check_contract, fields):
    check_contract(SuperPosConfig(num_virtual_tokens=2, num_sampled_tokens=3, **fields))


@pytest.mark.parametrize("softmax", [False, True])
def test_superposition(shape, softmax):
    config = SuperPosConfig(num_virtual_tokens=3, num_sampled_tokens=4, softmax=softmax, weights_init="normal")
    method = config.build(shape).double()
    with torch.no_grad():
        method.embeddings.normal_()
    expected = torch.zeros(1, 3, D, dtype=torch.float64)
    for i in range(3):
        weights = method.weights[i].tolist()
        if softmax:
            total = sum(math.exp(w) for w in weights)
            weights = [math.exp(w) / total for w in weights]
        for j in range(4):
            for x in range(D):
                expected[0, i, x] += weights[j] * method.embeddings[i, j, x].item()
    torch.testing.assert_close(method().tokens, expected)


def test_all_tokens_start_from_the_same_rows(shape, table):
    embeddings = SuperPosConfig(num_virtual_tokens=3, num_sampled_tokens=20).build(shape).embeddings
    assert torch.equal(embeddings[0], embeddings[1])
    assert torch.equal(embeddings[0], embeddings[2])
    ids = [next(i for i in range(50) if torch.equal(row, table[i])) for row in embeddings[0]]
    assert len(set(ids)) == 20
    assert not {0, 1} & set(ids)
    limited = SuperPosConfig(num_sampled_tokens=8, vocabulary_limit=10).build(shape).embeddings[0]
    torch.testing.assert_close(limited.sum(0).data, table[2:10].sum(0))


def test_tokens_are_trained_separately(shape):
    method = SuperPosConfig(num_virtual_tokens=2, num_sampled_tokens=3).build(shape)
    method().tokens[0, 0].sum().backward()
    assert method.embeddings.grad[0].any()
    assert not method.embeddings.grad[1].any()


def test_weights_start(shape):
    sizes = {"num_virtual_tokens": 300, "num_sampled_tokens": 25}
    normal = SuperPosConfig(**sizes).build(shape).weights
    assert abs(normal.std().item() - 1 / 5) < 0.01
    uniform = SuperPosConfig(**sizes, weights_init="uniform").build(shape).weights
    assert 0.19 < uniform.max().item() <= 0.2
    assert abs(uniform.std().item() - 0.2 / 3**0.5) < 0.01
    softmax = SuperPosConfig(num_virtual_tokens=2, num_sampled_tokens=25, softmax=True).build(shape)
    assert not softmax.weights.any()
    torch.testing.assert_close(softmax().tokens[0], softmax.embeddings.mean(1))


def test_embeddings_and_weights_are_trained_at_one_rate(shape):
    assert len({part.learning_rate for part in SuperPosConfig().build(shape).components().values()}) == 1


def test_tokens_start_as_long_as_embeddings(shape, table):
    # On backbones with embeddings of any size.
    for times in (0.05, 6.0):
        vocabulary = Vocabulary(lambda ids, times=times: times * table[ids], 50, (0, 1))
        config = SuperPosConfig(num_virtual_tokens=400, num_sampled_tokens=40)
        tokens = config.build(dataclasses.replace(shape, vocabulary=vocabulary))().tokens[0].tolist()
        size = math.sqrt(sum(x * x for row in tokens for x in row) / len(tokens))
        rows = (times * table).tolist()
        assert size == pytest.approx(math.sqrt(sum(x * x for row in rows for x in row) / len(rows)), rel=0.15)


def test_only_the_weights_decay(shape):
    parts = SuperPosConfig().build(shape).components()
    assert {name: part.weight_decay for name, part in parts.items()} == {"embeddings": 0, "weights": 1e-5}
    assert SuperPosConfig(weight_decay=0.1).build(shape).components()["weights"].weight_decay == 0.1
    assert {name: part.decay(0.3) for name, part in parts.items()} == {"embeddings": 0, "weights": 1e-5}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_sampled_tokens": 0}, "num_sampled_tokens must be at least 1"),
        ({"weights_init": "zeros"}, "weights_init='zeros' needs softmax=True"),
        ({"weights_init": "ones"}, "weights_init must be one of normal, uniform, zeros"),
        ({"softmax": 1}, "softmax must be true or false"),
        ({"weight_decay": -1}, "weight_decay must be at least 0"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(SoftPromptError, match=message):
        SuperPosConfig(**fields)


def test_count(count):
    assert count(SuperPosConfig(num_virtual_tokens=10, num_sampled_tokens=128)) == 984_320
