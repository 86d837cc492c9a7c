import math

import pytest
import torch

from softprompts.errors import SoftPromptError
from softprompts.methods import AdaMixConfig, Answers, Shape

PATHS = ["layers.0.wo", "layers.1.wo"]


def shaken(method):
    torch.manual_seed(7)
    for parameter in method.parameters():
        parameter.data += torch.randn_like(parameter)
    return method


def gelu(v):
    return 0.5 * v * (1 + math.erf(v / math.sqrt(2)))


def naive(method, path, i, j, h):
    """h + W_up^j f(W_down^i h + b_down^i) + b_up^j, number by number; None for the mean of all experts."""
    name = path.replace(".", "/")

    def chosen(experts, which):
        values = experts[name].tolist()
        if which is not None:
            return values[which]
        flat = [torch.tensor(value, dtype=torch.float64) for value in values]
        return (sum(flat) / len(flat)).tolist()

    down, down_bias = chosen(method.down, i), chosen(method.down_bias, i)
    up, up_bias = chosen(method.up, j), chosen(method.up_bias, j)
    out = torch.empty_like(h)
    for row in range(h.shape[0]):
        for token in range(h.shape[1]):
            x = h[row, token].tolist()
            inner = [
                gelu(sum(w * v for w, v in zip(line, x, strict=True)) + c)
                for line, c in zip(down, down_bias, strict=True)
            ]
            for o, (line, c) in enumerate(zip(up, up_bias, strict=True)):
                out[row, token, o] = x[o] + sum(w * v for w, v in zip(line, inner, strict=True)) + c
    return out


@pytest.mark.parametrize("fields", [{}, {"share_up": False}, {"num_experts": 1}, {"activation": "swish"}])
def test_contract(check_contract, fields):
    check_contract(AdaMixConfig(**{"num_experts": 2, "bottleneck": 3, **fields}))


@pytest.mark.parametrize("share_up", [True, False])
def test_merged_for_inference(shape, modules, inputs, through, share_up):
    method = shaken(AdaMixConfig(num_experts=3, bottleneck=2, share_up=share_up).build(shape).double()).eval()
    made = through(method())
    assert list(made) == PATHS
    for path in PATHS:
        torch.testing.assert_close(made[path], naive(method, path, None, None, modules[path](inputs[path])))


@pytest.mark.parametrize("share_up", [True, False])
def test_one_expert_drawn_for_each_layer_and_projection(shape, modules, inputs, through, share_up):
    method = shaken(AdaMixConfig(num_experts=3, bottleneck=2, share_up=share_up).build(shape).double())
    ups = 1 if share_up else 3
    seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        drawn = [(int(torch.randint(3, ())), int(torch.randint(ups, ()))) for _ in PATHS]
        seen.update(drawn)
        torch.manual_seed(seed)
        made = through(method())
        for path, (i, j) in zip(PATHS, drawn, strict=True):
            torch.testing.assert_close(made[path], naive(method, path, i, j, modules[path](inputs[path])))
    assert len(seen) > ups + 1


def test_start(shape):
    method = AdaMixConfig(bottleneck=300, share_up=False).build(shape)
    for projection in (method.down, method.up):
        for weight in projection.values():
            assert len(weight) == 4
            assert all(torch.equal(expert, weight[0]) for expert in weight)
            assert abs(weight[0].std().item() - 0.02) < 0.002
    assert method.cannot_fold() == "it changes the model's weights"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_experts": 0}, "num_experts must be at least 1"),
        ({"bottleneck": 0}, "bottleneck must be at least 1"),
        ({"share_up": 0}, "share_up must be true or false"),
        ({"activation": "?"}, "activation must be one of"),
        ({"init_std": -1}, "init_std must be more than 0"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(SoftPromptError, match=message):
        AdaMixConfig(**fields)


def test_needs_a_feed_forward_network(shape):
    with pytest.raises(SoftPromptError, match="adamix: this backbone has no linear layer known as ffn.out"):
        AdaMixConfig().build(Shape(8, 3, 6, shape.vocabulary))


@pytest.mark.parametrize("share_up", [True, False])
def test_count(count_on, share_up):
    down, up = 768 * 48 + 48, 48 * 768 + 768
    expected = 12 * (4 * down + (1 if share_up else 4) * up)
    assert count_on(AdaMixConfig(share_up=share_up), "bert-base") == expected


def test_consistency_is_a_choice(shape):
    plain, consistent = AdaMixConfig(), AdaMixConfig(consistency=0.5)
    assert plain.build(shape).compares == () and consistent.build(shape).compares == ("itself",)
    assert "consistency" not in plain.identity() and consistent.identity()["consistency"] == 0.5
    with pytest.raises(SoftPromptError, match="adamix: consistency must be at least 0, not -1"):
        AdaMixConfig(consistency=-1)


def test_consistency_of_each_line(shape):
    method = AdaMixConfig(consistency=0.5).build(shape)
    p, q = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    expected = []
    for one, other in zip(p.tolist(), q.tolist(), strict=True):
        a, b = ([math.exp(v) / sum(map(math.exp, line)) for v in line] for line in (one, other))
        both = [x * math.log(x / y) + y * math.log(y / x) for x, y in zip(a, b, strict=True)]
        expected.append(0.5 * sum(both) / 2)
    found = method.compare(Answers(p), {"itself": Answers(q)})
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert method.compare(Answers(p), {"itself": Answers(p)}).abs().max() < 1e-12
