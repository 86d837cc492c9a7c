import math

import pytest
import torch

from softprompts.errors import SoftPromptError
from softprompts.methods import LoraConfig, Shape
from softprompts.soft_prompt import Frozen

TARGETS = ("query", "key", "value", "attention.output", "ffn.in", "ffn.out")


def shaken(method):
    torch.manual_seed(7)
    for parameter in method.parameters():
        parameter.data += torch.randn_like(parameter)
    return method


def naive(method, path, module, x, scale, kept=None):
    """y = W x + b + s B A x, number by number; ``kept`` ``(rows, in)`` are the factors of dropout."""
    name = path.replace(".", "/")
    a, b = method.a[name].tolist(), method.b[name].tolist()
    conv = type(module).__name__ == "Conv1D"
    weight = (module.weight.t() if conv else module.weight).tolist()
    bias = [0.0] * len(weight) if module.bias is None else module.bias.tolist()
    out = torch.empty(*x.shape[:2], len(weight), dtype=torch.float64)
    for row in range(x.shape[0]):
        for token in range(x.shape[1]):
            values = x[row, token].tolist()
            dropped = [v * (1.0 if kept is None else float(kept[row, i])) for i, v in enumerate(values)]
            low = [sum(a[r][i] * v for i, v in enumerate(dropped)) for r in range(len(a))]
            for o, line in enumerate(weight):
                y = bias[o] + sum(w * v for w, v in zip(line, values, strict=True))
                out[row, token, o] = y + scale * sum(b[o][r] * low[r] for r in range(len(low)))
    return out


@pytest.mark.parametrize("fields", [{}, {"targets": TARGETS}, {"rank": 1, "alpha": 16}, {"targets": "ffn.in"}])
def test_contract(check_contract, fields):
    check_contract(LoraConfig(**{"rank": 2, **fields}))


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (6, 2.0), (0.75, 0.25)])
def test_products_beside_the_frozen_ones(shape, modules, inputs, through, alpha, scale):
    targets = [t for t in TARGETS if t != "key"]
    method = shaken(LoraConfig(rank=3, alpha=alpha, targets=targets).build(shape).double()).eval()
    made = through(method())
    assert len(made) == 2 * (2 * 3 + 2)
    for path, out in made.items():
        torch.testing.assert_close(out, naive(method, path, modules[path], inputs[path], scale))


def test_starts_as_the_frozen_model(shape, modules, inputs, through):
    method = LoraConfig().build(shape).double().eval()
    for path, out in through(method()).items():
        torch.testing.assert_close(out, modules[path](inputs[path]), rtol=0, atol=0)
    a = next(iter(LoraConfig(rank=4000).build(shape).a.values()))
    bound = 1 / math.sqrt(a.shape[1])
    assert 0.99 * bound < a.abs().max() <= bound
    assert abs(a.std().item() - bound / math.sqrt(3)) < 0.01 * bound


def test_dropout_of_each_rows_features(shape, modules, inputs, through):
    method = shaken(LoraConfig(rank=2, dropout=0.5).build(shape).double())
    torch.manual_seed(11)
    seed = int(torch.randint(2**62, ()))
    torch.manual_seed(11)
    prompt = method()
    made, again = through(prompt), through(prompt)
    for i, (path, out) in enumerate(made.items()):
        assert torch.equal(out, again[path])  # a recomputed layer draws the same
        drawn = torch.rand(3, 8, generator=torch.Generator().manual_seed(seed + i))
        kept = (drawn >= 0.5).double() * 2
        assert {0.0, 2.0} == set(kept.flatten().tolist())
        torch.testing.assert_close(out, naive(method, path, modules[path], inputs[path], 1.0, kept))
    other = through(method())
    assert not any(torch.equal(out, other[path]) for path, out in made.items())
    path, out = next(iter(through(method.eval()()).items()))
    torch.testing.assert_close(out, naive(method, path, modules[path], inputs[path], 1.0))


def test_equals_peft(shape, modules, inputs, through):
    peft = pytest.importorskip("peft")
    method = shaken(LoraConfig(rank=3, alpha=6, targets=("query", "value")).build(shape).double()).eval()
    made = through(method())
    for path, out in made.items():
        holder = torch.nn.Sequential(modules[path])
        settings = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["0"])
        theirs = peft.get_peft_model(holder, settings).double()
        layer = theirs.base_model.model[0]
        layer.lora_A["default"].weight.data = method.a[path.replace(".", "/")].detach().clone()
        layer.lora_B["default"].weight.data = method.b[path.replace(".", "/")].detach().clone()
        torch.testing.assert_close(out, theirs(inputs[path]), rtol=1e-12, atol=1e-12)


def test_cannot_be_folded(shape):
    assert LoraConfig().build(shape).cannot_fold() == "it changes the model's weights"


def test_numbers_for_rows_follow_from_the_seed():
    frozen = Frozen(torch.nn.Linear(2, 2), lambda x: x)
    one = frozen.uniform(5, (3, 2), torch.device("cpu"))
    torch.manual_seed(1)
    assert torch.equal(one, frozen.uniform(5, (3, 2), torch.device("cpu")))
    assert not torch.equal(one, frozen.uniform(6, (3, 2), torch.device("cpu")))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, "rank must be at least 1"),
        ({"alpha": 0}, "alpha must be more than 0"),
        ({"dropout": 1.0}, "dropout must be less than 1"),
        ({"targets": ()}, "targets must be at least 1 long"),
        ({"targets": ("querry",)}, "targets.0 must be one of query, key, .* not 'querry'"),
        ({"num_virtual_tokens": 3}, "num_virtual_tokens must be 0"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(SoftPromptError, match=message):
        LoraConfig(**fields)


def test_needs_its_targets(shape):
    with pytest.raises(SoftPromptError, match="lora: this backbone has no linear layer known as query or value"):
        LoraConfig().build(Shape(8, 3, 6, shape.vocabulary))


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [("t5-base", {}, 884_736), ("bert-base", {}, 294_912), ("bert-base", {"rank": 1, "targets": "ffn.in"}, 46_080)],
)
def test_count(count_on, name, fields, expected):
    assert count_on(LoraConfig(**fields), name) == expected
