"""The vitals that methods declare, against plain loops over Python's floats."""

import math

import pytest
import torch
from source_prompts import saved

from softprompts.methods import (
    AdaMixConfig,
    AdaptivePrefixConfig,
    AttemptConfig,
    DePTConfig,
    EPTConfig,
    MPTConfig,
    MultiMaskConfig,
    PromptTuningConfig,
    ResidualConfig,
    SelectivePrefixConfig,
    SMoPConfig,
    SuperPosConfig,
)

D, SITES, WIDTH = 8, 3, 6


def built(config, shape):
    """The method away from its start, in float64."""
    method = config.build(shape).double().eval()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return method


def numbers(method, rows=None):
    with torch.no_grad():
        return {vital.name: float(vital.value) for vital in method.vitals(rows) if vital.value is not None}


def thresholds(method, rows=None):
    return {vital.name for vital in method.vitals(rows) if vital.least is not None and vital.idle}


def mean(xs):
    return sum(xs) / len(xs)


def norm(xs):
    return math.sqrt(sum(x * x for x in xs))


def flat(matrix):
    return [x for row in matrix for x in row]


def minus(one, other):
    return [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(one, other, strict=True)]


def entropy(shares):
    return -sum(p * math.log(p) for p in shares if p)


def of_routes(shares):
    """Spread, entropy and balance of shares ``[row][route]``."""
    columns = list(zip(*shares, strict=True))
    longest = math.log(len(columns))
    return {
        "routes.spread": mean([math.sqrt(mean([(p - mean(column)) ** 2 for p in column])) for column in columns]),
        "routes.entropy": mean([entropy(row) for row in shares]) / longest,
        "routes.balance": entropy([mean(column) for column in columns]) / longest,
    }


def test_multi_mask(shape, rows):
    method = built(MultiMaskConfig(num_virtual_tokens=2, num_masks=3), shape)
    gates = [[1 / (1 + math.exp(-x)) for x in flat(mask)] for mask in method.masks.tolist()]
    pairs = [(a, b) for a in gates for b in gates if a is not b]
    apart = mean([mean([abs(x - y) for x, y in zip(a, b, strict=True)]) for a, b in pairs])
    expected = {**of_routes(method.mixture(rows).tolist()), "masks.apart": apart}
    assert numbers(method, rows) == pytest.approx(expected, rel=1e-9)
    assert thresholds(method, rows) == {"routes.spread", "masks.apart", "gates.spread"}
    assert method.vitals() == []
    assert MultiMaskConfig(num_masks=1).build(shape).vitals(rows) == []


@pytest.mark.parametrize("top_k", [1, 2])
def test_smop(shape, rows, top_k):
    method = built(SMoPConfig(num_virtual_tokens=2, num_prompts=3, top_k=top_k), shape)
    shares = method.route(rows)[0].tolist()
    chosen = [sorted(range(3), key=lambda j, row=row: -row[j])[:top_k] for row in shares]
    taken = math.exp(entropy([mean([(j in row) / top_k for row in chosen]) for j in range(3)]))
    assert numbers(method, rows) == pytest.approx({**of_routes(shares), "routes.taken": taken}, rel=1e-9)
    assert ("routes.taken" in thresholds(method, rows)) == (top_k == 1)
    assert method.vitals() == []


def test_attempt(shape, rows, tmp_path):
    sources = tuple(saved(tmp_path / f"s{n}", PromptTuningConfig(num_virtual_tokens=2), n) for n in (3, 2))
    method = built(AttemptConfig(num_virtual_tokens=2, sources=sources, bottleneck=4, temperature=0.7), shape)
    assert numbers(method, rows) == pytest.approx(of_routes(method.attention(rows).tolist()), rel=1e-9)
    assert thresholds(method, rows) == {"routes.spread"}


def test_adaptive_prefix(shape):
    method = built(AdaptivePrefixConfig(num_virtual_tokens=2), shape)
    projections = [list(zip(*site, strict=True)) for site in method.projection.tolist()]
    expected = mean([norm(column) for site in projections for column in site])
    assert numbers(method) == pytest.approx({"token_gates.norm": expected}, rel=1e-9)
    assert AdaptivePrefixConfig(hidden_state=False).build(shape).vitals() == []
    # At its start, all gates are those of a zero projection.
    (start,) = AdaptivePrefixConfig().build(shape).vitals()
    assert start.value == 0 < start.least


@pytest.mark.parametrize("mode", ["values_ab", "literal", "axis_p"])
def test_ept(shape, mode):
    sizes = {"source_tokens": 4, "rank": 2, "max_length": 5, "num_spaces": 2, "space_hidden_size": 3}
    method = built(EPTConfig(num_virtual_tokens=2, fusion_mode=mode, **sizes), shape)
    with torch.no_grad():
        method.a[3:] *= 1e-3  # two rows that say nothing
    prompt, a, b = method.prompt.tolist(), method.a.tolist(), method.b.tolist()
    update = [[sum(a[i][k] * b[k][x] for k in range(2)) for x in range(D)] for i in range(5)]
    scores = [[math.exp(sum(p[x] * u[x] for x in range(D)) / math.sqrt(D)) for u in update] for p in prompt]
    columns = [sum(column) for column in zip(*scores, strict=True)]
    weights = [
        [score / (columns[i] if mode == "axis_p" else sum(row)) for i, score in enumerate(row)] for row in scores
    ]
    added = [
        [sum(w * (u[x] if mode == "values_ab" else p[x]) for w, u in zip(row, update, strict=True)) for x in range(D)]
        for row, p in zip(weights, prompt, strict=True)
    ]
    short = [norm(u) < max(map(norm, update)) / 10 for u in update]
    assert short == [False, False, False, True, True]
    empty = sum(w for row in weights for w, is_short in zip(row, short, strict=True) if is_short) / sum(flat(weights))
    spaces = [[0.0] * D for _ in prompt]
    for place, p in enumerate(prompt):
        logits = linear(method.gate, p)
        gates = [math.exp(x) / sum(map(math.exp, logits)) for x in logits]
        for gate, space in zip(gates, method.spaces, strict=True):
            out = linear(space[2], [max(0.0, x) for x in linear(space[0], p)])
            spaces[place] = [x + gate * y for x, y in zip(spaces[place], out, strict=True)]
    size = norm(flat(prompt))
    expected = {
        "fusion.norm": norm(flat(added)) / size,
        "fusion.spread": mean([math.sqrt(mean([(w - mean(row)) ** 2 for w in row])) / mean(row) for row in weights]),
        "fusion.empty": empty,
        "spaces.norm": norm(flat(spaces)) / size,
    }
    assert numbers(method) == pytest.approx(expected, rel=1e-9)
    assert thresholds(method) == {"update.norm", "fusion.norm", "fusion.spread", "spaces.norm"}


def linear(layer, x):
    lines = zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
    return [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in lines]


@pytest.mark.parametrize("off", ["decomposition", "fusion", "multi_space"])
def test_ept_says_nothing_of_parts_that_are_off(shape, off):
    fields = {"decomposition": False, "fusion": False} if off == "decomposition" else {off: False}
    method = EPTConfig(num_virtual_tokens=2, source_tokens=4, rank=2, max_length=5, **fields).build(shape)
    parts = {vital.name.partition(".")[0] for vital in method.vitals()}
    left = {"decomposition": {"spaces"}, "fusion": {"update", "spaces"}, "multi_space": {"update", "fusion"}}
    assert parts == left[off]


@pytest.mark.parametrize("softmax", [False, True])
def test_superpos(shape, softmax):
    method = built(SuperPosConfig(num_virtual_tokens=3, num_sampled_tokens=4, softmax=softmax), shape)
    counts = []
    for weights in method.weights.tolist():
        sizes = [math.exp(w) if softmax else abs(w) for w in weights]
        counts.append(sum(sizes) ** 2 / sum(s * s for s in sizes))
    assert numbers(method) == pytest.approx({"superposition.tokens": mean(counts)}, rel=1e-9)
    assert 1 <= mean(counts) <= 4
    assert thresholds(method) == {"superposition.tokens", "moved.weights"}


def test_selective_prefix(shape):
    method = built(SelectivePrefixConfig(num_virtual_tokens=3), shape)
    cosines = []
    for start in range(0, 2 * SITES * WIDTH, WIDTH):
        rows = [row[start : start + WIDTH] for row in method.prefix.tolist()]
        pairs = [(rows[i], rows[j]) for i in range(3) for j in range(i)]
        cosines += [abs(sum(a * b for a, b in zip(x, y, strict=True))) / norm(x) / norm(y) for x, y in pairs]
    assert numbers(method) == pytest.approx({"cosine": mean(cosines)}, rel=1e-9)
    assert thresholds(method) == {"penalty"}
    assert thresholds(SelectivePrefixConfig(selective_loss=0).build(shape)) == set()
    assert [vital.name for vital in SelectivePrefixConfig().build_modifier(shape).vitals()] == ["penalty"]


def test_residual(shape):
    method = built(ResidualConfig(num_virtual_tokens=3, bottleneck=4), shape)
    prompt = method.prompt.tolist()
    expected = norm(flat(minus(method().tokens[0].tolist(), prompt))) / norm(flat(prompt))
    assert numbers(method) == pytest.approx({"network.norm": expected}, rel=1e-9)


def test_mpt(shape):
    method = built(MPTConfig(num_virtual_tokens=2, rank=2), shape)
    left, right = method.left.tolist(), method.right.tolist()
    factors = [sum(left[i][r] * right[r][x] for r in range(2)) for i in range(2) for x in range(D)]
    assert numbers(method) == pytest.approx({"task.apart": mean([abs(f - 1) for f in factors])}, rel=1e-9)
    assert numbers(MPTConfig(num_virtual_tokens=2).build(shape)) == {"task.apart": pytest.approx(0, abs=1e-6)}


def test_adamix(shape):
    method = built(AdaMixConfig(bottleneck=3), shape)
    apart = []
    for experts in method.down.values():
        whole = [flat(weight) for weight in experts.tolist()]
        middle = [mean(column) for column in zip(*whole, strict=True)]
        apart.append(norm(flat(minus(whole, [middle] * len(whole)))) / norm(flat(whole)))
    assert numbers(method) == pytest.approx({"experts.apart": mean(apart)}, rel=1e-9)
    assert numbers(AdaMixConfig(bottleneck=3).build(shape)) == {"experts.apart": pytest.approx(0, abs=1e-6)}


def test_dept_counts_on_the_change_of_the_embeddings(shape):
    (vital,) = DePTConfig(num_virtual_tokens=2, rank=2, max_length=4).build(shape).vitals()
    assert (vital.name, vital.value) == ("update.norm", None)
