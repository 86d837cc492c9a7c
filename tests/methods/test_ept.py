import dataclasses
import math

import pytest
import torch

from softprompts.errors import SoftPromptError
from softprompts.methods import EPTConfig, Shape, Vocabulary

D = 8
SMALL = {
    "num_virtual_tokens": 2,
    "source_tokens": 4,
    "rank": 2,
    "max_length": 5,
    "num_spaces": 2,
    "space_hidden_size": 3,
}
VARIANTS = [
    {"decomposition": d, "fusion": f, "multi_space": m}
    for d, f, m in [(0, 0, 0), (1, 0, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (1, 1, 1)]
]
VARIANTS = [{name: bool(value) for name, value in variant.items()} for variant in VARIANTS]
MODES = ["values_ab", "literal", "axis_p"]


def softmax(xs):
    total = sum(math.exp(x) for x in xs)
    return [math.exp(x) / total for x in xs]


def linear(layer, x):
    return [
        sum(w * v for w, v in zip(row, x, strict=True)) + b
        for row, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
    ]


def naive(method, config):
    """The update (Eq. 2) and P_new (Eq. 3-8), number by number, and both in the backbone's units."""
    prompt = method.prompt.tolist()
    tokens = [list(row) for row in prompt]
    update = None
    if config.decomposition:
        a, b = method.a.tolist(), method.b.tolist()
        ranks = range(config.rank)
        update = [[sum(a[i][k] * b[k][x] for k in ranks) for x in range(D)] for i in range(config.max_length)]
    if config.fusion:
        scores = [[sum(p[x] * u[x] for x in range(D)) / math.sqrt(D) for u in update] for p in prompt]
        if config.fusion_mode == "axis_p":
            columns = [softmax([row[i] for row in scores]) for i in range(config.max_length)]
            weights = [[column[p] for column in columns] for p in range(len(prompt))]
        else:
            weights = [softmax(row) for row in scores]
        for p, row in enumerate(weights):
            for i, weight in enumerate(row):
                for x in range(D):
                    tokens[p][x] += weight * (update[i][x] if config.fusion_mode == "values_ab" else prompt[p][x])
    if config.multi_space:
        for p, row in enumerate(prompt):
            gates = softmax(linear(method.gate, row))
            for gate, (inner, _, outer) in zip(gates, method.spaces, strict=True):
                amended = linear(outer, [max(0.0, h) for h in linear(inner, row)])
                for x in range(D):
                    tokens[p][x] += gate * amended[x]
    unit, center = (method.unit.item(), method.center.tolist()) if config.units == "embeddings" else (1, [0] * D)
    tokens = [[c + unit * x for x, c in zip(row, center, strict=True)] for row in tokens]
    return tokens, update and [[config.update_scale * unit * x for x in row] for row in update]


@pytest.mark.parametrize("variant", VARIANTS)
def test_contract(check_contract, variant):
    check_contract(EPTConfig(**SMALL, **variant))


@pytest.mark.parametrize("fields", [{"fusion_mode": mode} for mode in MODES] + [{"align": "tile"}, {"align": "sample"}])
def test_contract_of_readings(check_contract, fields):
    check_contract(EPTConfig(**SMALL, **fields))


@pytest.mark.parametrize(("units", "scale"), [("raw", 1.0), ("embeddings", 0.3)])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_formula(shape, variant, mode, units, scale):
    config = EPTConfig(**SMALL, **variant, fusion_mode=mode, units=units, update_scale=scale)
    method = config.build(shape).double()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.normal_()
    tokens, update = naive(method, config)
    prompt = method()
    torch.testing.assert_close(prompt.tokens[0], torch.tensor(tokens, dtype=torch.float64))
    if update is None:
        assert prompt.update is None
    else:
        torch.testing.assert_close(prompt.update[0], torch.tensor(update, dtype=torch.float64))


@pytest.mark.parametrize("align", ["zero", "tile", "sample"])
@pytest.mark.parametrize("scale", ["none", "sqrt"])
def test_units_make_the_prompt_grow_with_the_embeddings(shape, table, align, scale):
    # What fusion and spaces do, and what a gradient does to the parameters, is the same on embeddings of any size.
    larger = dataclasses.replace(shape, vocabulary=Vocabulary(lambda ids: 256 * table[ids], 50, (0, 1)))
    config, made = EPTConfig(**SMALL, align=align, svd_scale=scale, spaces_init="linear"), []
    for each in (shape, larger):
        torch.manual_seed(3)
        method = config.build(each).double()
        prompt = method()
        (prompt.tokens.square().sum() + prompt.update.square().sum()).backward()
        made.append((prompt, method))
    (small, one), (large, other) = made
    torch.testing.assert_close(256 * small.tokens, large.tokens)  # a power of two: no rounding in between
    torch.testing.assert_close(256 * small.update, large.update)
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(256**2 * parameter.grad, other.get_parameter(name).grad)


def test_units_are_those_of_the_embeddings(shape, table):
    method = EPTConfig(**SMALL, multi_space=False).build(shape)
    rows = table.tolist()
    center = [sum(row[x] for row in rows) / 50 for x in range(D)]
    unit = math.sqrt(sum((row[x] - center[x]) ** 2 for row in rows for x in range(D)) / (50 * D))
    torch.testing.assert_close(method.center, torch.tensor(center))
    assert method.unit.item() == pytest.approx(unit, rel=1e-6)
    source = method.center + method.unit * method.prompt
    assert all(any(torch.allclose(row, other) for other in table[2:]) for row in source)
    assert {"unit", "center"} <= set(method.state_dict())
    assert not {"unit", "center"} & set(EPTConfig(**SMALL, units="raw").build(shape).state_dict())


@pytest.mark.parametrize("mode", MODES)
def test_vitals_of_fusion(shape, mode):
    method = EPTConfig(**SMALL, fusion_mode=mode, spaces_init="linear").build(shape).double()
    with torch.no_grad():
        method.a[3:] = 0  # two of five rows are empty
    a, b, prompt = method.a.tolist(), method.b.tolist(), method.prompt.tolist()
    update = [[sum(a[i][k] * b[k][x] for k in range(2)) for x in range(D)] for i in range(5)]
    scores = [[sum(p[x] * u[x] for x in range(D)) / math.sqrt(D) for u in update] for p in prompt]
    weights = [softmax(row) for row in scores]
    if mode == "axis_p":
        weights = [list(row) for row in zip(*(softmax(column) for column in zip(*scores, strict=True)), strict=True)]
    spread = 0
    for row in weights:
        mean = sum(row) / 5
        spread += math.sqrt(sum((weight - mean) ** 2 for weight in row) / 5) / mean / len(weights)
    empty = sum(row[3] + row[4] for row in weights) / sum(map(sum, weights))
    vitals = {vital.name: vital.value for vital in method.vitals()}
    assert vitals["fusion.spread"].item() == pytest.approx(spread, rel=1e-9)
    assert vitals["fusion.empty"].item() == pytest.approx(empty, rel=1e-9)
    assert vitals["spaces.norm"] > 0


def test_fusion_of_the_default_is_neither_uniform_nor_empty(shape, table):
    # Even where embeddings are as small as BERT's or as large as T5's, where the paper's reading is one or the other.
    def vitals(times, offset=0.0, **fields):
        rows = torch.randn(2000, 64, generator=torch.Generator().manual_seed(1)) + offset
        sized = Shape(64, 0, 0, Vocabulary(lambda ids: times * rows[ids], 2000))
        method = EPTConfig(rank=12, max_length=64, source_tokens=25, num_virtual_tokens=20, **fields).build(sized)
        return {vital.name: vital.value for vital in method.vitals()}

    paper = {"units": "raw", "align": "zero", "svd_scale": "none"}
    for found in (vitals(0.05), vitals(6.0), vitals(0.1, offset=1.0)):
        assert 0.2 < found["fusion.spread"] < 5
        assert found["fusion.norm"] > 0.1
        assert found["fusion.empty"] < 0.01
    assert vitals(0.05, **paper)["fusion.spread"] < 0.05
    assert vitals(0.05, **paper)["fusion.empty"] > 0.5
    assert vitals(6.0, **paper)["fusion.norm"] < 0.05


def test_spaces_that_start_at_zero_say_nothing_and_learn(shape):
    method = EPTConfig(**SMALL, spaces_init="zeros", fusion=False).build(shape)
    torch.testing.assert_close(method().tokens[0], method.center + method.unit * method.prompt)
    method().tokens.square().sum().backward()
    assert all(space[2].bias.grad.any() for space in method.spaces)


def test_literal_fusion_doubles_the_prompt(shape):
    method = EPTConfig(**SMALL, fusion_mode="literal", multi_space=False).build(shape).double()
    torch.testing.assert_close(method().tokens[0], method.center + 2 * method.unit * method.prompt, rtol=1e-13, atol=0)
    method().tokens.square().sum().backward()
    assert method.a.grad.abs().max() < 1e-12
    assert method.b.grad.abs().max() < 1e-12


def test_values_ab_brings_gradient_to_the_factors(shape):
    method = EPTConfig(**SMALL, multi_space=False).build(shape).double()
    method().tokens.square().sum().backward()
    assert method.a.grad.any()
    assert method.b.grad.any()


def test_prompt_starts_from_different_vocabulary_rows(shape, table):
    sizes = {**SMALL, "source_tokens": 48, "num_virtual_tokens": 48}
    prompt = EPTConfig(**sizes, units="raw").build(shape).prompt
    ids = [next(i for i in range(50) if torch.equal(row, table[i])) for row in prompt]
    assert sorted(ids) == list(range(2, 50))


@pytest.mark.parametrize("align", ["zero", "tile", "sample"])
@pytest.mark.parametrize("max_length", [3, 7])
def test_factors_start_from_the_singular_vectors(shape, align, max_length):
    # All four source rows are kept as the prompt, so that the test can see P.
    sizes = {**SMALL, "num_virtual_tokens": 4, "max_length": max_length, "align": align}
    torch.manual_seed(3)
    plain = EPTConfig(**sizes, svd_scale="none").build(shape)
    torch.manual_seed(3)
    scaled = EPTConfig(**sizes, svd_scale="sqrt").build(shape)
    assert plain.a.shape == (max_length, 2)
    assert plain.b.shape == (2, D)
    torch.testing.assert_close(plain.a.T @ plain.a, torch.eye(2))
    torch.testing.assert_close(plain.b @ plain.b.T, torch.eye(2))
    assert (plain.a @ plain.b).norm(dim=1).max() <= 1 + 1e-6
    if align == "sample":
        return
    aligned = torch.zeros(max_length, D)
    for i in range(max_length):
        if align == "tile" or i < 4:
            aligned[i] = plain.prompt[i % 4].detach()
    left, values, right = torch.linalg.svd(aligned)
    best = sum(values[k] * torch.outer(left[:, k], right[k]) for k in range(2))
    torch.testing.assert_close(scaled.a @ scaled.b, best, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(plain.a @ torch.diag(values[:2]) @ plain.b, best, atol=1e-5, rtol=1e-5)
    if align == "zero" and max_length == 7:
        assert not plain.a[4:].any()
        assert plain.a[:4].any(1).all()


def test_positions_that_start_at_zero_still_learn(shape):
    method = EPTConfig(**SMALL, align="zero").build(shape)
    method().update[0, 4].sum().backward()
    assert not method.a[4].any()
    assert method.a.grad[4].any()


def test_rank_zero_is_a_plain_prompt(shape):
    method = EPTConfig(**{**SMALL, "rank": 0}, multi_space=False).build(shape)
    assert set(method.components()) == {"prompt"}
    assert method().update is None
    assert torch.equal(method().tokens[0], method.center + method.unit * method.prompt)
    with_spaces = EPTConfig(**{**SMALL, "rank": 0}).build(shape)
    assert set(with_spaces.components()) == {"prompt", "spaces"}
    assert with_spaces().update is None


def test_no_prompt_leaves_the_update(shape):
    config = EPTConfig(**{**SMALL, "num_virtual_tokens": 0})
    assert not config.uses_tokens
    assert EPTConfig.uses_tokens
    method = config.build(shape)
    assert set(method.components()) == {"low_rank"}
    assert method().tokens is None
    torch.testing.assert_close(method().update[0], config.update_scale * method.unit * (method.a @ method.b))


def test_contract_without_prompt(check_contract):
    check_contract(EPTConfig(**{**SMALL, "num_virtual_tokens": 0}))


def test_parts_are_trained_at_their_own_rates(shape):
    rates = {name: part.learning_rate for name, part in EPTConfig(**SMALL).build(shape).components().items()}
    assert list(rates) == ["prompt", "low_rank", "spaces"]
    assert rates["prompt"] > rates["low_rank"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decomposition": False}, "fusion needs decomposition=True"),
        ({"decomposition": False, "fusion": False, "num_virtual_tokens": 0}, "num_virtual_tokens must be at least 1"),
        ({"rank": 0, "num_virtual_tokens": 0}, "num_virtual_tokens must be at least 1"),
        ({"num_virtual_tokens": 101}, "num_virtual_tokens is more than source_tokens"),
        ({"rank": 101, "align": "zero"}, "rank=101 is more than the 100 rows"),
        ({"rank": 30, "max_length": 20}, "rank=30 is more than the 20 rows"),
        ({"rank": -1}, "rank must be at least 0"),
        ({"fusion_mode": "ab"}, "fusion_mode must be one of"),
        ({"align": "pad"}, "align must be one of zero, tile, sample"),
        ({"svd_scale": "full"}, "svd_scale must be one of none, sqrt"),
        ({"units": "model"}, "units must be one of embeddings, raw"),
        ({"update_scale": 0}, "update_scale must be more than 0"),
        ({"spaces_init": "normal"}, "spaces_init must be one of zeros, linear"),
        ({"space_hidden_size": 0}, "space_hidden_size must be at least 1"),
        ({"multi_space": 1}, "multi_space must be true or false"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(SoftPromptError, match=message):
        EPTConfig(**fields)


def test_rank_beyond_the_width(shape):
    with pytest.raises(SoftPromptError, match="rank=9 is more than the embedding width 8"):
        EPTConfig(rank=9).build(shape)
    EPTConfig(rank=9, decomposition=False, fusion=False).build(shape)


def test_count(count):
    assert count(EPTConfig()) == 1_656_836
    assert count(EPTConfig(multi_space=False)) == 76_800
    assert count(EPTConfig(num_virtual_tokens=40, rank=45, multi_space=False)) == 76_800
