import math

import pytest
import torch

from softprompts.errors import SoftPromptError
from softprompts.methods import PTuningConfig, fold

D = 8


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def affine(weight, bias, x):
    return [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)]


def linear(layer, x):
    return affine(layer.weight.tolist(), layer.bias.tolist(), x)


def relu(xs):
    return [max(x, 0.0) for x in xs]


def lstm_direction(lstm, suffix, xs):
    """Hidden states of one direction of one layer, by the gates' formulas, from the first of ``xs`` to the last."""
    size = lstm.hidden_size
    h, c, states = [0.0] * size, [0.0] * size, []
    given = [getattr(lstm, f"{name}_{suffix}").tolist() for name in ("weight_ih", "bias_ih", "weight_hh", "bias_hh")]
    for x in xs:
        both = zip(affine(given[0], given[1], x), affine(given[2], given[3], h), strict=True)
        total = [a + b for a, b in both]
        for unit in range(size):
            enter, forget = sigmoid(total[unit]), sigmoid(total[size + unit])
            new, leave = math.tanh(total[2 * size + unit]), sigmoid(total[3 * size + unit])
            c[unit] = forget * c[unit] + enter * new
            h = [*h[:unit], leave * math.tanh(c[unit]), *h[unit + 1 :]]
        states.append(h)
    return states


def naive(method):
    xs = method.embeddings.tolist()
    if method.lstm is None:
        inner, middle, outer = (method.mlp[i] for i in (0, 2, 4))
        return [linear(outer, relu(linear(middle, relu(linear(inner, x))))) for x in xs]
    for layer in range(method.lstm.num_layers):
        ahead = lstm_direction(method.lstm, f"l{layer}", xs)
        back = lstm_direction(method.lstm, f"l{layer}_reverse", xs[::-1])[::-1]
        xs = [a + b for a, b in zip(ahead, back, strict=True)]
    return [linear(method.mlp[2], relu(linear(method.mlp[0], x))) for x in xs]


FIELDS = [{}, {"encoder": "lstm"}, {"encoder": "lstm", "lstm_layers": 1}]


@pytest.mark.parametrize("fields", FIELDS)
def test_contract(check_contract, fields):
    check_contract(PTuningConfig(**{"num_virtual_tokens": 3, "hidden_size": 4, **fields}))


@pytest.mark.parametrize("fields", [*FIELDS, {"encoder": "lstm", "lstm_dropout": 0.5}])
def test_network(shape, fields):
    method = PTuningConfig(num_virtual_tokens=3, hidden_size=5, **fields).build(shape).double().eval()
    torch.testing.assert_close(method().tokens[0], torch.tensor(naive(method), dtype=torch.float64))


def test_dropout_is_for_training_alone(shape):
    method = PTuningConfig(num_virtual_tokens=3, encoder="lstm", hidden_size=5, lstm_dropout=0.5).build(shape).double()
    plain = torch.tensor(naive(method), dtype=torch.float64)
    torch.manual_seed(3)
    first, second = method().tokens[0], method().tokens[0]
    torch.manual_seed(3)
    assert torch.equal(method().tokens[0], first)
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, plain)
    torch.testing.assert_close(fold(method)[1]().tokens[0], plain)


def test_start(shape):
    method = PTuningConfig(num_virtual_tokens=500).build(shape)
    assert abs(method.embeddings.mean().item()) < 0.05
    assert abs(method.embeddings.std().item() - 1) < 0.05


def test_parts(shape):
    for encoder, most in (("mlp", 6), ("lstm", 4 * 4 + 4)):
        parts = PTuningConfig(encoder=encoder).build(shape).components()
        assert {name: len(part.parameters) for name, part in parts.items()} == {"embeddings": 1, "encoder": most}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder": "gru"}, "encoder must be one of mlp, lstm"),
        ({"hidden_size": 0}, "hidden_size must be at least 1"),
        ({"encoder": "lstm", "lstm_layers": 0}, "lstm_layers must be at least 1"),
        ({"encoder": "lstm", "lstm_dropout": 1.0}, "lstm_dropout must be less than 1"),
        ({"lstm_dropout": 0.1}, "lstm_dropout needs encoder='lstm' and lstm_layers of 2 or more"),
        ({"encoder": "lstm", "lstm_layers": 1, "lstm_dropout": 0.1}, "lstm_dropout needs encoder='lstm' and"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(SoftPromptError, match=message):
        PTuningConfig(**fields)


def test_count(count):
    assert count(PTuningConfig(num_virtual_tokens=20)) == 229_376
    # Per layer and direction 4h gates with weights for input and state and two biases; then two linear layers.
    d, h, length = 768, 128, 20
    lstm = sum(2 * 4 * h * (inputs + h + 2) for inputs in (d, 2 * h))
    head = 2 * h * (2 * h + 1) + d * (2 * h + 1)
    assert count(PTuningConfig(num_virtual_tokens=length, encoder="lstm")) == length * d + lstm + head
