import math

import pytest
import torch

from softprompts.errors import SoftPromptError
from softprompts.methods import ResidualConfig, fold

D = 8
SMALL = {"num_virtual_tokens": 3, "bottleneck": 4}


def naive(method, kept=None):
    """P + phi(P), number by number; ``kept[i][x]`` multiplies what LayerNorm gets (dropout)."""
    prompt, shared = method.prompt.tolist(), len(method.down) == 1
    out = []
    for i, x in enumerate(prompt):
        n = 0 if shared else i
        down, up = method.down[n].tolist(), method.up[n].tolist()
        inner_bias, outer_bias = method.down_bias[n, 0].tolist(), method.up_bias[n, 0].tolist()
        inside = [max(0.0, sum(x[j] * down[j][b] for j in range(D)) + inner_bias[b]) for b in range(len(inner_bias))]
        change = [sum(v * up[b][j] for b, v in enumerate(inside)) + outer_bias[j] for j in range(D)]
        if kept is not None:
            change = [v * float(k) for v, k in zip(change, kept[i], strict=True)]
        if method.scale is not None:
            mean = sum(change) / D
            deviation = math.sqrt(sum((v - mean) ** 2 for v in change) / D + 1e-5)
            scale, shift = method.scale[n, 0].tolist(), method.shift[n, 0].tolist()
            change = [(v - mean) / deviation * scale[j] + shift[j] for j, v in enumerate(change)]
        out.append([a + b for a, b in zip(x, change, strict=True)])
    return torch.tensor(out, dtype=torch.float64)


def shaken(config, shape):
    """LayerNorm starts as the identity; moved, so that it shows."""
    method = config.build(shape).double()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return method


FIELDS = [{"shared_mlp": s, "layer_norm": n} for s in (True, False) for n in (True, False)]


@pytest.mark.parametrize("fields", FIELDS)
def test_contract(check_contract, fields):
    check_contract(ResidualConfig(**SMALL, **fields))


@pytest.mark.parametrize("fields", FIELDS)
def test_prompt_and_what_the_network_adds(shape, fields):
    method = shaken(ResidualConfig(**SMALL, **fields, dropout=0.5), shape).eval()
    torch.testing.assert_close(method().tokens[0], naive(method))


@pytest.mark.parametrize("fields", FIELDS)
def test_dropout_in_training(shape, fields):
    method = shaken(ResidualConfig(**SMALL, **fields, dropout=0.5), shape)
    torch.manual_seed(7)
    kept = torch.nn.functional.dropout(torch.ones(3, D, dtype=torch.float64), 0.5)
    assert set(kept.flatten().tolist()) == {0.0, 2.0}
    torch.manual_seed(7)
    torch.testing.assert_close(method().tokens[0], naive(method, kept))
    torch.testing.assert_close(fold(method)[1]().tokens[0], naive(method))


def test_start(shape, table):
    config = ResidualConfig(num_virtual_tokens=5, bottleneck=400, shared_mlp=False)
    method = config.build(shape)
    chosen = [[bool((row == token).all()) for token in table].index(True) for row in method.prompt]
    assert len(set(chosen)) == 5
    for weight, bias, inputs in ((method.down, method.down_bias, D), (method.up, method.up_bias, 400)):
        linear = torch.nn.Linear(inputs, 5000 if inputs == D else 100)
        for ours, torchs in ((weight, linear.weight), (bias, linear.bias)):
            assert ours.abs().max().item() == pytest.approx(1 / math.sqrt(inputs), rel=0.1)
            assert ours.std().item() == pytest.approx(torchs.std().item(), rel=0.15)
    assert not torch.equal(method.down[0], method.down[1])
    assert (method.scale == 1).all()
    assert (method.shift == 0).all()


def test_only_first_tokens(shape, table):
    method = ResidualConfig(num_virtual_tokens=3, vocabulary_limit=5).build(shape)
    assert all((row == table[2:5]).all(1).any() for row in method.prompt)


def test_parts(shape):
    parts = ResidualConfig(**SMALL).build(shape).components()
    assert {name: len(part.parameters) for name, part in parts.items()} == {"prompt": 1, "mlp": 6}
    parts = ResidualConfig(**SMALL, layer_norm=False).build(shape).components()
    assert len(parts["mlp"].parameters) == 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bottleneck": 0}, "bottleneck must be at least 1"),
        ({"shared_mlp": 1}, "shared_mlp must be true or false"),
        ({"layer_norm": "no"}, "layer_norm must be true or false"),
        ({"dropout": 1}, "dropout must be less than 1"),
        ({"vocabulary_limit": 0}, "vocabulary_limit must be at least 1"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(SoftPromptError, match=message):
        ResidualConfig(**fields)


def test_count(count):
    assert count(ResidualConfig()) == 1_239_584
    assert count(ResidualConfig(bottleneck=400)) == 624_784
    assert count(ResidualConfig(bottleneck=128)) == 206_720
    assert count(ResidualConfig(bottleneck=128, layer_norm=False)) == 206_720 - 2 * 768
    assert count(ResidualConfig(bottleneck=128, shared_mlp=False)) == 7_680 + 10 * (206_720 - 7_680)
