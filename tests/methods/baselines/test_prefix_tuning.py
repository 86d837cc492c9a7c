import math

import pytest
import torch

from softprompts.errors import SoftPromptError
from softprompts.methods import PrefixTuningConfig, Shape

D, SITES, WIDTH = 8, 3, 6


def naive_split(table):
    """Keys and values ``(S, 1, l, w)``, entry by entry: columns are k0, v0, k1, v1, ..."""
    keys = torch.zeros(SITES, 1, len(table), WIDTH, dtype=table.dtype)
    values = torch.zeros_like(keys)
    for site in range(SITES):
        for token in range(len(table)):
            for i in range(WIDTH):
                keys[site, 0, token, i] = table[token][2 * site * WIDTH + i]
                values[site, 0, token, i] = table[token][(2 * site + 1) * WIDTH + i]
    return keys, values


@pytest.mark.parametrize("fields", [{}, {"reparameterize": True, "mlp_hidden_size": 4}])
def test_contract(check_contract, fields):
    check_contract(PrefixTuningConfig(num_virtual_tokens=2, **fields))


def test_table(shape):
    method = PrefixTuningConfig(num_virtual_tokens=4).build(shape).double()
    keys, values = naive_split(method.prefix.detach())
    assert torch.equal(method().keys, keys)
    assert torch.equal(method().values, values)


def test_network(shape):
    method = PrefixTuningConfig(num_virtual_tokens=2, reparameterize=True, mlp_hidden_size=5).build(shape).double()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.normal_()
    table = []
    w1, b1, w2, b2 = (x.tolist() for x in (*method.inner.parameters(), *method.outer.parameters()))
    for row in method.embedding.tolist():
        hidden = [math.tanh(sum(w1[h][i] * row[i] for i in range(D)) + b1[h]) for h in range(5)]
        table.append([sum(w2[o][h] * hidden[h] for h in range(5)) + b2[o] for o in range(2 * SITES * WIDTH)])
    keys, values = naive_split(torch.tensor(table, dtype=torch.float64))
    torch.testing.assert_close(method().keys, keys)
    torch.testing.assert_close(method().values, values)


def test_start(shape):
    prefix = PrefixTuningConfig(num_virtual_tokens=200).build(shape).prefix
    assert abs(prefix.std().item() - 0.5) < 0.025
    assert abs(prefix.mean().item()) < 0.02
    assert abs(PrefixTuningConfig(num_virtual_tokens=200, init_std=1.0).build(shape).prefix.std().item() - 1) < 0.05
    network = PrefixTuningConfig(num_virtual_tokens=200, reparameterize=True).build(shape)
    for weight in (network.embedding, network.inner.weight, network.outer.weight):
        assert abs(weight.std().item() - 0.02) < 0.002
    assert not network.inner.bias.any()
    assert not network.outer.bias.any()


@pytest.mark.parametrize("reparameterize", [False, True])
def test_needs_sites(shape, reparameterize):
    bare = Shape(D, 0, 0, shape.vocabulary)
    with pytest.raises(SoftPromptError, match="prefix-tuning: this backbone has no attention site that takes a prefix"):
        PrefixTuningConfig(reparameterize=reparameterize).build(bare)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"reparameterize": "yes"}, "reparameterize must be true or false, not 'yes'"),
        ({"mlp_hidden_size": 0}, "mlp_hidden_size must be at least 1"),
        ({"init_std": 0}, "init_std must be more than 0"),
        ({"init_std": float("inf")}, "init_std must be a finite number, not inf"),
        (
            {"sites": ("encoder.slef",)},
            "sites.0 must be one of encoder.self, decoder.self, decoder.cross, not 'encoder.slef'",
        ),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(SoftPromptError, match=message):
        PrefixTuningConfig(**fields)


def test_count(count):
    config = PrefixTuningConfig(num_virtual_tokens=20)
    assert [count(config, stacks) for stacks in (1, 2, 3)] == [368_640, 737_280, 1_105_920]
    assert count(PrefixTuningConfig(num_virtual_tokens=20, reparameterize=True, mlp_hidden_size=512)) == 9_864_704
