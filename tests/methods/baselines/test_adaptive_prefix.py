import math

import pytest
import torch

from softprompts.errors import SoftPromptError
from softprompts.methods import AdaptivePrefixConfig, Shape, fold

D, SITES, WIDTH, LENGTH = 8, 3, 6, 2


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def built(shape, **fields):
    method = AdaptivePrefixConfig(num_virtual_tokens=LENGTH, **fields).build(shape).double()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return method


def naive(method, states, mask, mean):
    """``lambda_i sigmoid(h W_i)`` of each site, row by row, from the same states at all of them: ``(S, R, l)``."""
    gates = torch.zeros(SITES, len(states), LENGTH, dtype=torch.float64)
    projection, scales = method.projection.tolist(), method.scales.tolist()
    for r in range(len(states)):
        seen = [states[r, i].tolist() for i in range(states.shape[1]) if mask[r, i]]
        if mean:
            h = [sum(token[j] for token in seen) / max(len(seen), 1) for j in range(D)]
        else:
            h = seen[0] if seen else states[r, 0].tolist()
        for site in range(SITES):
            for token in range(LENGTH):
                score = sum(h[j] * projection[site][j][token] for j in range(D))
                gates[site, r, token] = scales[site] * sigmoid(score)
    return gates


@pytest.mark.parametrize(
    "fields",
    [
        {"hidden_state": False},
        {"hidden_state": False, "layer_scale": False},
        {"token_gate": False},
    ],
)
def test_contract(check_contract, fields):
    check_contract(AdaptivePrefixConfig(num_virtual_tokens=2, **fields))


@pytest.mark.parametrize("mean", [False, True])
def test_gates_from_states(shape, rows, mean):
    method = built(shape, summary="mean" if mean else "first")
    prompt = method()
    assert method.reads_states
    assert not method.per_row
    assert prompt.keys.shape == prompt.values.shape == (SITES, 1, LENGTH, WIDTH)
    made = torch.stack([prompt.gates[i] * prompt.gate_of(i, rows.embeddings, rows.mask) for i in range(SITES)])
    torch.testing.assert_close(made, naive(method, rows.embeddings, rows.mask, mean))
    everything = torch.ones_like(rows.mask)
    made = torch.stack([prompt.gates[i] * prompt.gate_of(i, rows.embeddings, None) for i in range(SITES)])
    torch.testing.assert_close(made, naive(method, rows.embeddings, everything, mean))


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("layer_scale", [False, True])
def test_gradients(shape, rows, mean, layer_scale):
    method = built(shape, summary="mean" if mean else "first", layer_scale=layer_scale)
    names = [name for name, _ in method.named_parameters()]
    assert names == ["prefix", "projection", *(["scales"] if layer_scale else [])]

    def run(states, *values):
        prompt = torch.func.functional_call(method, dict(zip(names, values, strict=True)), ())
        gates = torch.stack([prompt.gate_of(i, states, rows.mask) for i in range(SITES)])
        gates = gates if prompt.gates is None else gates * prompt.gates
        return gates.unsqueeze(-1) * prompt.keys, gates.unsqueeze(-1) * prompt.values

    leaves = [tensor.detach().clone().requires_grad_() for tensor in (rows.embeddings, *method.parameters())]
    assert torch.autograd.gradcheck(run, leaves)
    listed = [id(parameter) for part in method.components().values() for parameter in part.parameters]
    assert listed == [id(parameter) for parameter in method.parameters()]


def test_without_hidden_states(shape):
    method = built(shape, hidden_state=False)
    prompt = method()
    assert not method.reads_states
    assert prompt.gate_of is None
    for site in range(SITES):
        for token in range(LENGTH):
            expected = method.scales.tolist()[site] * sigmoid(method.free.tolist()[site][token])
            assert prompt.gates[site, 0, token].item() == pytest.approx(expected, abs=1e-12)
    only_layers = built(shape, token_gate=False)
    assert torch.equal(only_layers().gates, only_layers.scales[:, None, None].expand(SITES, 1, LENGTH))


def test_it_starts_as_a_plain_prefix(shape, rows):
    for fields in ({}, {"hidden_state": False}, {"token_gate": False}):
        prompt = AdaptivePrefixConfig(num_virtual_tokens=LENGTH, **fields).build(shape).double()()
        gates = prompt.gates
        if prompt.gate_of is not None:
            gates = gates * prompt.gate_of(0, rows.embeddings, rows.mask)
        assert torch.equal(gates, torch.ones_like(gates))


def test_folding(shape):
    for fields in ({"hidden_state": False}, {"token_gate": False}, {"hidden_state": False, "layer_scale": False}):
        method = built(shape, **fields)
        prompt, (_, folded) = method(), fold(method)
        assert torch.equal(folded().keys, prompt.gates.unsqueeze(-1) * prompt.keys)
        assert torch.equal(folded().values, prompt.gates.unsqueeze(-1) * prompt.values)
    with pytest.raises(SoftPromptError, match="its gates depend on what each layer gets"):
        fold(built(shape))


def test_what_it_looks_at_by_default(shape):
    causal = Shape(D, SITES, WIDTH, shape.vocabulary, causal=True)
    assert not AdaptivePrefixConfig().build(shape).mean
    assert AdaptivePrefixConfig().build(causal).mean
    assert not AdaptivePrefixConfig(summary="first").build(causal).mean


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"token_gate": 1}, "token_gate must be true or false"),
        ({"token_gate": False, "layer_scale": False}, "without both gates this is prefix-tuning"),
        ({"summary": "last"}, "summary must be one of first, mean"),
        ({"summary": "mean", "hidden_state": False}, "summary needs token_gate=True and hidden_state=True"),
        ({"init_std": 0}, "init_std must be more than 0"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(SoftPromptError, match=message):
        AdaptivePrefixConfig(**fields)


def test_needs_sites_of_one_width(shape):
    with pytest.raises(SoftPromptError, match="no attention site that takes a prefix"):
        AdaptivePrefixConfig().build(Shape(D, 0, 0, shape.vocabulary))
    odd = Shape(D, SITES, WIDTH, shape.vocabulary, site_width=0)
    with pytest.raises(SoftPromptError, match="differ in width; set hidden_state=False"):
        AdaptivePrefixConfig().build(odd)
    AdaptivePrefixConfig(hidden_state=False).build(odd)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, 552_972), ({"hidden_state": False}, 368_892), ({"token_gate": False}, 368_652)],
)
def test_count(count, fields, expected):
    assert count(AdaptivePrefixConfig(num_virtual_tokens=20, **fields)) == expected
