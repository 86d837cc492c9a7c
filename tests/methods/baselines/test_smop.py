import math

import pytest
import tiny
import torch

import softprompts as sp
from softprompts.errors import SoftPromptError
from softprompts.methods import Rows, SMoPConfig

D = 8
SMALL = {"num_virtual_tokens": 2, "num_prompts": 3}


def naive_logits(method, rows):
    """The router on the mean of each row's visible tokens."""
    logits = []
    for embeddings, mask in zip(rows.embeddings, rows.mask, strict=True):
        seen = [embedding.tolist() for embedding, visible in zip(embeddings, mask, strict=True) if visible]
        mean = [sum(x[i] for x in seen) / max(len(seen), 1) for i in range(D)]
        logits.append([sum(w[i] * mean[i] for i in range(D)) for w in method.router.weight.tolist()])
    return torch.tensor(logits, dtype=torch.float64)


def naive(method, logits):
    """Each row's tokens from its own logits alone: the sum of p_c P_c over the most likely c, the first of equals."""
    prompts, out = method.prompts.tolist(), []
    for row in logits.tolist():
        total = sum(math.exp(x) for x in row)
        p = [math.exp(x) / total for x in row]
        chosen = sorted(range(len(p)), key=lambda j: -p[j])[: method.config.top_k]
        out.append([[sum(p[c] * prompts[c][i][x] for c in chosen) for x in range(D)] for i in range(len(prompts[0]))])
    return torch.tensor(out, dtype=torch.float64)


def built(shape, **fields):
    return SMoPConfig(**{**SMALL, **fields}).build(shape).double()


FIELDS = [{}, {"top_k": 2}, {"top_k": 3}, {"init": "random"}]


@pytest.mark.parametrize("fields", FIELDS)
def test_contract(check_contract, fields):
    check_contract(SMoPConfig(**SMALL, **fields))


@pytest.mark.parametrize("fields", FIELDS)
def test_every_row_takes_its_own_prompt(shape, fields):
    many = Rows(torch.randn(12, 4, D, dtype=torch.float64), torch.rand(12, 4) < 0.6)
    method = built(shape, **fields).eval()
    torch.testing.assert_close(method(many).tokens, naive(method, naive_logits(method, many)))
    if method.config.top_k == 1:
        assert len(set(naive_logits(method, many).argmax(1).tolist())) == 3


def test_a_row_without_visible_tokens_takes_the_first_prompt(shape, rows):
    method = built(shape).eval()
    torch.testing.assert_close(method(rows).tokens[2], method.prompts[0] / 3)


@pytest.mark.parametrize("top_k", [1, 2])
def test_other_rows_change_nothing(shape, top_k):
    many = Rows(torch.randn(7, 4, D, dtype=torch.float64), torch.rand(7, 4) < 0.6)
    method = built(shape, top_k=top_k).eval()
    tokens = method(many).tokens
    for order in (torch.randperm(7), torch.tensor([5, 2]), torch.tensor([3]), torch.tensor([4, 4, 1])):
        some = method(Rows(many.embeddings[order], many.mask[order])).tokens
        torch.testing.assert_close(some, tokens[order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_other_rows_change_nothing_in_a_model(family, top_k):
    model = sp.attach(tiny.model(family))
    model.add_prompt("p", SMoPConfig(num_virtual_tokens=3, num_prompts=4, top_k=top_k, init="random"), seed=0)
    model.prompts.to(torch.float64)
    model.eval()
    inputs = tiny.batch(family, rows=6, columns=8)
    if family not in tiny.SEQ2SEQ:
        inputs.pop("labels")

    def logits(order):
        some = {key: value[order] for key, value in inputs.items()}
        return tiny.real_logits(family, model(**some).logits, some["attention_mask"])

    router = model.prompts["p"].method.router
    rows = Rows(model.get_input_embeddings()(inputs["input_ids"]), inputs["attention_mask"].bool())
    assert len(set(router(rows.mean()).argmax(1).tolist())) > 1
    together = logits(list(range(6)))
    for order in ([3, 1, 5, 0, 4, 2], [4, 2], [0], [5, 5, 1]):
        for place, index in enumerate(order):
            torch.testing.assert_close(logits(order)[place], together[index], rtol=1e-9, atol=1e-9)


def test_noise_in_training(shape):
    rows = Rows(torch.randn(12, 4, D, dtype=torch.float64), torch.rand(12, 4) < 0.6)
    method = built(shape)
    logits = naive_logits(method, rows)
    torch.manual_seed(7)
    noise = torch.randn(12, 3, dtype=torch.float64)
    assert (logits * (1 + noise)).argmax(1).tolist() != logits.argmax(1).tolist()
    torch.manual_seed(7)
    torch.testing.assert_close(method(rows).tokens, naive(method, logits * (1 + noise)))
    torch.testing.assert_close(method.eval()(rows).tokens, naive(method, logits))


def test_dropout_instead_of_noise(shape, rows):
    method = built(shape, router_noise=False, router_dropout=0.5)
    logits = naive_logits(method, rows)
    torch.manual_seed(7)
    dropped = torch.nn.functional.dropout(torch.ones(3, 3, dtype=torch.float64), 0.5)
    assert set(dropped.flatten().tolist()) == {0.0, 2.0}
    torch.manual_seed(7)
    torch.testing.assert_close(method(rows).tokens, naive(method, logits * dropped))
    torch.testing.assert_close(method.eval()(rows).tokens, naive(method, logits))


def test_noise_carries_no_gradient(shape, rows):
    """The released code multiplies the noise with detached logits."""
    method = built(shape, top_k=2)
    weight = method.router.weight
    torch.manual_seed(7)
    noise = torch.randn(3, 3, dtype=torch.float64)
    torch.manual_seed(7)
    method(rows).tokens.square().sum().backward()

    loss = torch.zeros((), dtype=torch.float64)
    for r in range(3):
        clean = weight @ rows.mean()[r]
        p = (clean + clean.detach() * noise[r]).softmax(0)
        chosen = sorted(range(3), key=lambda j: -p[j].item())[:2]
        loss = loss + sum(p[c] * method.prompts[c].detach() for c in chosen).square().sum()
    (expected,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(weight.grad, expected)


def test_it_needs_the_input(shape):
    method = built(shape)
    assert method.per_row
    assert method.cannot_fold() == "it depends on the input"
    with pytest.raises(ValueError, match="needs the rows"):
        method(None)


def test_start(shape, table):
    method = SMoPConfig(num_virtual_tokens=5, num_prompts=4).build(shape)
    chosen = [[bool((row == token).all()) for token in table].index(True) for row in method.prompts.flatten(0, 1)]
    assert len(set(chosen)) == 20
    torch.testing.assert_close(method.router.weight @ method.router.weight.T, torch.eye(4))
    assert method.router.bias is None
    random = SMoPConfig(num_virtual_tokens=200, init="random").build(shape)
    assert abs(random.prompts.std().item() - 1) < 0.05
    limited = SMoPConfig(num_virtual_tokens=1, num_prompts=3, vocabulary_limit=5).build(shape)
    assert all((row == table[2:5]).all(1).any() for row in limited.prompts[:, 0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_prompts": 1}, "num_prompts must be at least 2"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_k": 5}, "top_k=5 is more than num_prompts=4"),
        ({"router_dropout": 1.0}, "router_dropout must be less than 1"),
        ({"router_noise": "yes"}, "router_noise must be true or false"),
        ({"init": "text"}, "init must be one of vocabulary, random"),
        ({"vocabulary_limit": 0}, "vocabulary_limit must be at least 1"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(SoftPromptError, match=message):
        SMoPConfig(**fields)


def test_count(count):
    assert count(SMoPConfig()) == 18_432


def test_the_standardised_input_of_the_router(shape, rows, table):
    method = SMoPConfig(num_virtual_tokens=2, num_prompts=3, router_input="standardised").build(shape).double().eval()
    center, spread = table.double().mean(0), table.double().std(0, correction=0)
    for row in (0, 1):
        mean = rows.embeddings[row][rows.mask[row]].mean(0)
        expected = 4 * (mean - center) / spread @ method.router.weight.T
        torch.testing.assert_close(method.route(rows)[0][row], expected.softmax(-1), atol=1e-5, rtol=1e-5)
