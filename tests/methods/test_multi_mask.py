import math

import pytest
import torch

from softprompts.errors import SoftPromptError
from softprompts.methods import MultiMaskConfig, Rows, Shape, Vocabulary

D, SITES, WIDTH = 8, 3, 6


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softmax(xs):
    total = sum(math.exp(x) for x in xs)
    return [math.exp(x) / total for x in xs]


def naive(method, logits):
    """Keys and values by Eq. 5-6, row by row, from each row's router logits."""
    masks, prefix, length = method.masks.tolist(), method.prefix.tolist(), method.masks.shape[1]
    keys = torch.zeros(SITES, len(logits), length, WIDTH, dtype=torch.float64)
    values = torch.zeros_like(keys)
    for r, row_logits in enumerate(logits):
        chosen = softmax([float(x) for x in row_logits])
        for site in range(SITES):
            for token in range(length):
                gate = sigmoid(sum(p * masks[j][token][site] for j, p in enumerate(chosen)))
                for i in range(WIDTH):
                    keys[site, r, token, i] = gate * prefix[token][2 * site * WIDTH + i]
                    values[site, r, token, i] = gate * prefix[token][(2 * site + 1) * WIDTH + i]
    return keys, values


def effective(prompt):
    """The keys and values that a site gets to see: those of the prefix times the gates."""
    gates = prompt.gates.unsqueeze(-1)
    return gates * prompt.keys, gates * prompt.values


def naive_logits(method, rows, table=None):
    """Eq. 4 before the softmax: the router on the mean of each row's visible tokens.

    With a table of embeddings it is standardised by the mean and deviation of each of its columns, times 4.
    """
    logits = []
    columns = [[0.0, 1.0]] * D if table is None else [moments(column) for column in table.double().T.tolist()]
    for embeddings, mask in zip(rows.embeddings, rows.mask, strict=True):
        seen = [embedding for embedding, visible in zip(embeddings, mask, strict=True) if visible]
        mean = sum(seen) / len(seen) if seen else torch.zeros(D, dtype=torch.float64)
        factor = 1 if table is None else 4
        given = [factor * (float(mean[i]) - columns[i][0]) / columns[i][1] if seen else 0.0 for i in range(D)]
        logits.append([sum(w[i] * given[i] for i in range(D)) for w in method.router.weight.tolist()])
    return torch.tensor(logits, dtype=torch.float64)


def moments(column):
    """Mean and standard deviation."""
    mean = sum(column) / len(column)
    return mean, math.sqrt(sum((x - mean) ** 2 for x in column) / len(column))


RAW = {"router_input": "raw", "mask_mean": 2.5, "mask_std": 0.5}


@pytest.mark.parametrize("fields", [{}, {"num_masks": 1}, {"l1_lambda": 0.5}])
def test_contract(check_contract, fields):
    check_contract(MultiMaskConfig(**{"num_virtual_tokens": 2, "num_masks": 2, "init_std": 1.0, **fields}))


@pytest.mark.parametrize("fields", [{}, {"router_noise": True}, RAW])
def test_gated_prefix(shape, rows, table, fields):
    method = MultiMaskConfig(num_virtual_tokens=2, num_masks=3, **fields).build(shape).double().eval()
    logits = naive_logits(method, rows, None if fields == RAW else table)
    keys, values = naive(method, logits)
    prompt = method(rows)
    torch.testing.assert_close(effective(prompt), (keys, values), atol=1e-5, rtol=1e-5)  # the statistics are float32
    assert prompt.penalty is None
    assert prompt.keys.shape == prompt.values.shape == (SITES, 1, 2, WIDTH)
    assert not torch.allclose(prompt.gates[:, 0], prompt.gates[:, 1])


@pytest.mark.parametrize("fields", [{}, RAW])
def test_a_row_without_visible_tokens_gets_the_even_mixture(shape, rows, fields):
    method = MultiMaskConfig(num_virtual_tokens=2, num_masks=3, **fields).build(shape).double().eval()
    keys, _ = naive(method, [[0.0, 0.0, 0.0]])
    torch.testing.assert_close(effective(method(rows))[0][:, 2:], keys)


def test_dropout_of_logits_in_training(shape, rows):
    method = MultiMaskConfig(num_virtual_tokens=2, num_masks=3, router_dropout=0.5, **RAW).build(shape).double()
    logits = naive_logits(method, rows)
    torch.manual_seed(7)
    dropped = torch.nn.functional.dropout(torch.ones(3, 3, dtype=torch.float64), 0.5)
    assert set(dropped.flatten().tolist()) == {0.0, 2.0}
    torch.manual_seed(7)
    torch.testing.assert_close(effective(method(rows))[0], naive(method, logits * dropped)[0])


def test_noise_instead_of_dropout(shape, rows):
    method = MultiMaskConfig(num_virtual_tokens=2, num_masks=3, router_noise=True, **RAW).build(shape).double()
    logits = naive_logits(method, rows)
    torch.manual_seed(7)
    noise = torch.randn(3, 3, dtype=torch.float64)
    torch.manual_seed(7)
    torch.testing.assert_close(effective(method(rows))[0], naive(method, logits * (1 + noise))[0])


def test_noise_carries_no_gradient(shape, rows):
    """The released code multiplies the noise with detached logits."""
    method = MultiMaskConfig(num_virtual_tokens=2, num_masks=3, router_noise=True, **RAW).build(shape).double()
    weight = method.router.weight
    torch.manual_seed(7)
    noise = torch.randn(3, 3, dtype=torch.float64)
    torch.manual_seed(7)
    effective(method(rows))[0].square().sum().backward()

    scale = (rows.mean() @ weight.detach().T) * noise
    chosen = (rows.mean() @ weight.T + scale).softmax(-1)
    gates = (chosen[:, :, None, None] * method.masks.detach()).sum(1).sigmoid()
    keys = method.prefix.detach().view(2, SITES, 2, WIDTH)[:, :, 0]
    (expected,) = torch.autograd.grad((gates[..., None] * keys).square().sum(), weight)
    torch.testing.assert_close(weight.grad, expected)


def test_one_mask_needs_no_input(shape):
    for training in (True, False):
        method = MultiMaskConfig(num_virtual_tokens=2, num_masks=1).build(shape).double().train(training)
        assert not method.per_row
        assert method.cannot_fold() is None
        keys, values = naive(method, [[0.0]])
        torch.testing.assert_close(effective(method()), (keys, values))


def test_several_masks_need_the_input(shape):
    method = MultiMaskConfig(num_virtual_tokens=2).build(shape)
    assert method.per_row
    assert method.cannot_fold() == "it depends on the input"
    with pytest.raises(ValueError, match="needs the rows"):
        method(None)


def test_sparsity_term(shape, rows):
    method = MultiMaskConfig(num_virtual_tokens=2, num_masks=2, l1_lambda=0.25).build(shape).double()
    gates = [sigmoid(x) for x in method.masks.flatten().tolist()]
    torch.testing.assert_close(method(rows).penalty.item(), 0.25 * sum(gates) / len(gates))


@pytest.mark.parametrize("fields", [{}, RAW])
def test_start(shape, fields):
    config = MultiMaskConfig(num_virtual_tokens=200, **fields)
    method = config.build(shape)
    assert abs(method.masks.mean().item() - config.mask_mean) < 0.1 * config.mask_std
    assert abs(method.masks.std().item() - config.mask_std) < 0.06 * config.mask_std
    torch.testing.assert_close(method.router.weight @ method.router.weight.T, torch.eye(4))
    assert method.router.bias is None
    assert abs(method.prefix.std().item() - 0.5) < 0.025


def test_what_the_router_sees_does_not_depend_on_the_scale_of_the_embeddings(rows, table):
    def shape_at(scale, shift):
        return Shape(D, SITES, WIDTH, Vocabulary(lambda ids: scale * table[ids] + shift, 50))

    def gates(scale, shift, **fields):
        torch.manual_seed(0)
        method = MultiMaskConfig(num_virtual_tokens=2, num_masks=3, **fields).build(shape_at(scale, shift)).double()
        return method.eval()(Rows(scale * rows.embeddings + shift, rows.mask)).gates[:, :2]

    torch.testing.assert_close(gates(30.0, 5.0), gates(1.0, 0.0), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(gates(30.0, 5.0, **RAW), gates(1.0, 0.0, **RAW), atol=1e-2)


def test_rows_get_gates_of_their_own():
    """On embeddings as small as those of a sentence encoder, and rows of 16 tokens."""
    table = 0.05 * torch.randn(500, 64)
    shape = Shape(64, 4, 8, Vocabulary(lambda ids: table[ids], 500))
    rows = Rows(table[torch.randint(500, (200, 16))], torch.ones(200, 16).bool())

    def spread(**fields):
        torch.manual_seed(0)
        method = MultiMaskConfig(num_virtual_tokens=10, **fields).build(shape).eval()
        with torch.no_grad():
            logits = method.router(method.router.seen(rows))
            return logits.std(0).mean().item(), method(rows).gates.std(1).mean().item()

    logits, gates = spread()
    assert 0.8 < logits < 1.2
    assert gates > 0.02
    logits, gates = spread(**RAW)
    assert logits < 0.05
    assert gates < 0.001


def test_a_dimension_that_is_the_same_in_all_embeddings_is_no_input(table):
    table[:, 2] = 3.0
    method = MultiMaskConfig(num_virtual_tokens=2).build(Shape(D, SITES, WIDTH, Vocabulary(lambda ids: table[ids], 50)))
    seen = method.router.seen(Rows(table[None, :4], torch.ones(1, 4).bool()))
    assert seen[0, 2].abs() < 1e-5


def test_the_statistics_are_saved_and_not_trained(shape):
    method = MultiMaskConfig(num_virtual_tokens=2).build(shape)
    assert {"router.center", "router.spread"} <= method.state_dict().keys()
    assert not {"router.center", "router.spread"} & dict(method.named_parameters()).keys()
    for fields in (RAW, {"num_masks": 1}):  # one mask looks at nothing
        without = MultiMaskConfig(**{"num_virtual_tokens": 2, **fields}).build(shape)
        assert set(without.state_dict()) == {"prefix", "masks", "router.weight"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_masks": 0}, "num_masks must be at least 1"),
        ({"router_dropout": 1.0}, "router_dropout must be less than 1"),
        ({"router_noise": 2}, "router_noise must be true or false"),
        ({"l1_lambda": -0.1}, "l1_lambda must be at least 0"),
        ({"routes": "frozen"}, "routes must be"),
        ({"init_std": "big"}, "init_std must be a number, not 'big'"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(SoftPromptError, match=message):
        MultiMaskConfig(**fields)


def test_needs_sites(shape):
    with pytest.raises(SoftPromptError, match="no attention site that takes a prefix"):
        MultiMaskConfig().build(Shape(D, 0, 0, shape.vocabulary))


@pytest.mark.parametrize(("length", "masks", "expected"), [(10, 4, 187_872), (20, 1, 369_648), (5, 4, 95_472)])
def test_count(count, length, masks, expected):
    assert count(MultiMaskConfig(num_virtual_tokens=length, num_masks=masks)) == expected


def test_uniform_routes(shape, rows):
    """Every row the same share of all masks, whatever the router: a plain gated prefix, which folds."""
    method = MultiMaskConfig(num_virtual_tokens=2, num_masks=3, routes="uniform").build(shape).double()
    assert not method.per_row
    assert method.cannot_fold() is None
    torch.testing.assert_close(effective(method()), naive(method, [[0.0, 0.0, 0.0]]))
    effective(method())[0].sum().backward()
    assert not method.router.weight.grad.any()


def test_shuffled_routes(shape, rows, table):
    """Each row the shares of the row before it."""
    method = MultiMaskConfig(num_virtual_tokens=2, num_masks=3, routes="shuffled").build(shape).double().eval()
    logits = naive_logits(method, rows, table)
    torch.testing.assert_close(effective(method(rows)), naive(method, logits[[2, 0, 1]]), atol=1e-5, rtol=1e-5)


def test_learned_routes_are_not_written():
    assert "routes" not in MultiMaskConfig().to_dict()
    assert MultiMaskConfig(routes="uniform").to_dict()["routes"] == "uniform"
