import math

import pytest
import torch

from softprompts.errors import SoftPromptError
from softprompts.methods import AdapterConfig, AdapterDropConfig, Shape

NORMS = {"layers.0.norm", "layers.1.norm"}
BEHIND = {f"layers.{i}.{name}" for i in range(2) for name in ("self.o", "wo")}


def shaken(method):
    torch.manual_seed(7)
    for parameter in method.parameters():
        parameter.data += torch.randn_like(parameter)
    return method


F = {
    "swish": lambda v: v / (1 + math.exp(-v)),
    "relu": lambda v: max(v, 0.0),
    "gelu": lambda v: 0.5 * v * (1 + math.erf(v / math.sqrt(2))),
    "gelu_new": lambda v: 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
}


def naive(down, down_bias, up, up_bias, f, h):
    """h + W_up f(W_down h + b_down) + b_up, number by number."""
    out = torch.empty_like(h)
    for row in range(h.shape[0]):
        for token in range(h.shape[1]):
            values = h[row, token].tolist()
            inner = [
                f(sum(w * v for w, v in zip(line, values, strict=True)) + c)
                for line, c in zip(down.tolist(), down_bias.tolist(), strict=True)
            ]
            for o, (line, c) in enumerate(zip(up.tolist(), up_bias.tolist(), strict=True)):
                out[row, token, o] = values[o] + sum(w * v for w, v in zip(line, inner, strict=True)) + c
    return out


@pytest.mark.parametrize("fields", [{}, {"layer_norms": False}, {"cross": True, "activation": "gelu"}])
def test_contract(check_contract, fields):
    check_contract(AdapterConfig(reduction=4, **fields))


@pytest.mark.parametrize("fields", [{}, {"robust": True, "dropped_layers": 0}])
def test_contract_of_adapterdrop(check_contract, fields):
    check_contract(AdapterDropConfig(reduction=4, **fields))


@pytest.mark.parametrize("activation", sorted(F))
def test_bottlenecks_and_norms(shape, modules, inputs, through, activation):
    method = shaken(AdapterConfig(reduction=4, activation=activation).build(shape).double())
    made = through(method())
    assert set(made) == BEHIND | NORMS
    for path in BEHIND:
        name, h = path.replace(".", "/"), modules[path](inputs[path])
        assert method.down[name].shape == (2, 8)
        parts = (method.down[name], method.down_bias[name], method.up[name], method.up_bias[name])
        torch.testing.assert_close(made[path], naive(*parts, F[activation], h))
    for path in NORMS:
        for key in ("weight", "bias"):
            getattr(modules[path], key).data = method.norms[f"{path}.{key}".replace(".", "/")].data
        torch.testing.assert_close(made[path], modules[path](inputs[path]))


def test_where_they_are(shape, through):
    bare = through(AdapterConfig(layer_norms=False, cross=True).build(shape).double()())
    assert set(bare) == BEHIND | {"layers.0.cross.o", "layers.1.cross.o"}
    fixed = through(AdapterDropConfig(dropped_layers=1).build(shape).double()())
    assert set(fixed) == {"layers.1.self.o", "layers.1.wo"} | NORMS


def test_a_robust_one_leaves_out_others_in_each_pass(shape):
    method = AdapterDropConfig(robust=True, dropped_layers=1, layer_norms=False).build(shape)
    assert set(method.changes) == BEHIND
    assert set(method.eval()().modules) == {"layers.1.self.o", "layers.1.wo"}
    method.train()
    torch.manual_seed(2)
    counts = [len(method().modules) for _ in range(400)]
    assert set(counts) == {2, 4}
    assert abs(counts.count(4) / 400 - 0.5) < 0.1


def test_start(shape, modules, inputs, through):
    method = AdapterConfig(reduction=1, init_std=0.02).build(shape)
    weights = torch.cat([p.flatten() for p in (*method.down.values(), *method.up.values())])
    assert abs(weights.std().item() - 0.02) < 0.002
    assert all(not p.any() for p in (*method.down_bias.values(), *method.up_bias.values()))
    method = AdapterConfig(reduction=1, init_std=1e-9).build(shape).double()
    for path, out in through(method()).items():
        torch.testing.assert_close(out, modules[path](inputs[path]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (AdapterConfig, {"reduction": 0}, "reduction must be at least 1"),
        (AdapterConfig, {"activation": "tanh"}, "activation must be one of gelu, gelu_new, relu, swish, not 'tanh'"),
        (AdapterConfig, {"layer_norms": 1}, "layer_norms must be true or false"),
        (AdapterConfig, {"cross": "yes"}, "cross must be true or false"),
        (AdapterConfig, {"init_std": 0}, "init_std must be more than 0"),
        (AdapterDropConfig, {"dropped_layers": -1}, "dropped_layers must be at least 0"),
        (AdapterDropConfig, {"robust": None}, "robust must be true or false"),
    ],
)
def test_bad_settings(config, fields, message):
    with pytest.raises(SoftPromptError, match=message):
        config(**fields)


def test_what_a_backbone_must_have(shape):
    with pytest.raises(SoftPromptError, match="adapterdrop: dropped_layers must be less than 2, not 2"):
        AdapterDropConfig(dropped_layers=2).build(shape)
    with pytest.raises(SoftPromptError, match="adapter: this backbone has no linear layer known as"):
        AdapterConfig().build(Shape(8, 3, 6, shape.vocabulary))


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("t5-base", AdapterConfig(reduction=32), 1_855_104),
        ("t5-base", AdapterConfig(reduction=32, layer_norms=False), 1_807_488),
        ("t5-base", AdapterDropConfig(reduction=32, dropped_layers=5), 1_101_984),
        ("bert-base", AdapterConfig(layer_norms=False), 24 * (2 * 768 * 48 + 48 + 768)),
    ],
)
def test_count(count_on, name, config, expected):
    assert count_on(config, name) == expected
