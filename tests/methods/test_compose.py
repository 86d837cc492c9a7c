import dataclasses
import json
import math
from typing import ClassVar

import pytest
import torch

import softprompts as sp
from softprompts.errors import SoftPromptError
from softprompts.methods import (
    AdaptivePrefixConfig,
    ComposedConfig,
    EPTConfig,
    FoldedConfig,
    HeadOnlyConfig,
    Method,
    MethodConfig,
    MultiMaskConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    SelectivePrefixConfig,
    SuperPosConfig,
    Vital,
    compose,
    fold,
    make_config,
)
from softprompts.methods.compose import merge_prompts
from softprompts.methods.selective_prefix import mean_cosine
from softprompts.soft_prompt import SoftPrompt

D, SITES, WIDTH = 8, 3, 6
SUPERPOS = SuperPosConfig(num_virtual_tokens=2, num_sampled_tokens=4)
EPT = EPTConfig(num_virtual_tokens=3, source_tokens=4, rank=2, max_length=5, num_spaces=2, space_hidden_size=3)
PREFIX = PrefixTuningConfig(num_virtual_tokens=3, init_std=1.0)
MASKS = MultiMaskConfig(num_virtual_tokens=3, num_masks=2, router_dropout=0.0, init_std=1.0, l1_lambda=0.5)
SELECTIVE = SelectivePrefixConfig(num_virtual_tokens=3, selective_loss=0.3)
ADAPTIVE = AdaptivePrefixConfig(num_virtual_tokens=3)
PAIRS = [
    (SUPERPOS, MASKS),
    (EPT, SELECTIVE),
    (MASKS, SELECTIVE),
    (PREFIX, MASKS),
    (MASKS, PREFIX, SELECTIVE, EPT),
    (PREFIX, AdaptivePrefixConfig(num_virtual_tokens=3, hidden_state=False), SUPERPOS),
    (PromptTuningConfig(num_virtual_tokens=1), SUPERPOS, EPT),
]


def name_of(parts):
    return "+".join(part.method for part in parts)


@pytest.mark.parametrize("parts", PAIRS, ids=name_of)
def test_contract(shape, rows, parts):
    config = compose(*parts)
    assert config.method == name_of(parts)
    again = make_config(config.method, **json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.parts == parts
    method = config.build(shape).double().eval()
    seen = rows if method.per_row else None
    assert method.per_row == (MASKS in parts)

    def tensors(prompt):
        return [value for value in vars(prompt).values() if isinstance(value, torch.Tensor)]

    sum(value.square().sum() for value in tensors(method(seen))).backward()
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name
    listed = [id(parameter) for part in method.components().values() for parameter in part.parameters]
    assert sorted(listed) == sorted(id(parameter) for parameter in method.parameters())

    names = [name for name, _ in method.named_parameters()]
    leaves = [parameter.detach().clone().requires_grad_() for parameter in method.parameters()]

    def run(*values):
        return tuple(tensors(torch.func.functional_call(method, dict(zip(names, values, strict=True)), (seen,))))

    assert torch.autograd.gradcheck(run, leaves)


def test_tokens_and_prefix(shape, rows):
    method = compose(SUPERPOS, MASKS).build(shape).double().eval()
    prompt = method(rows)
    superpos, masks = method.parts["superpos"](None), method.parts["multi-mask"](rows)
    assert torch.equal(prompt.tokens, superpos.tokens)
    for field in ("keys", "values", "gates", "penalty"):
        assert torch.equal(getattr(prompt, field), getattr(masks, field))
    rates = {name: part.learning_rate for name, part in method.components().items()}
    own = {name: part.learning_rate for name, part in method.parts["superpos"].components().items()}
    assert list(rates) == [
        "superpos.embeddings",
        "superpos.weights",
        "multi-mask.prefix",
        "multi-mask.masks",
        "multi-mask.router",
    ]
    assert rates["superpos.weights"] == own["weights"]
    assert method.components()["superpos.weights"].weight_decay == 1e-5
    assert method.components()["superpos.embeddings"].weight_decay == 0
    assert method.config.revision == SUPERPOS.revision + MASKS.revision


def test_the_heads_rate_is_that_of_the_first_part(monkeypatch):
    monkeypatch.setattr(type(SUPERPOS), "head_learning_rate", 0.5)
    assert compose(SUPERPOS, MASKS).head_learning_rate == 0.5
    assert compose(MASKS, SUPERPOS).head_learning_rate == type(MASKS).head_learning_rate != 0.5


def test_one_prefix_masked_twice(shape, rows):
    method = compose(MASKS, SELECTIVE).build(shape).double().eval()
    prompt, masks = method(rows), method.parts["multi-mask"]
    assert [name for name, _ in method.parts["selective-prefix"].named_parameters()] == []
    assert prompt.selectivity == SELECTIVE.alpha
    alone = masks(rows)
    for field in ("keys", "values", "gates"):
        assert torch.equal(getattr(prompt, field), getattr(alone, field))
    cosines = 0.0
    for site in range(SITES):
        for part in (prompt.keys, prompt.values):
            table = part[site, 0].tolist()
            pairs = [(i, j) for i in range(3) for j in range(i + 1, 3)]
            for i, j in pairs:
                dot = sum(a * b for a, b in zip(table[i], table[j], strict=True))
                norms = math.sqrt(sum(a * a for a in table[i]) * sum(b * b for b in table[j]))
                cosines += abs(dot) / norms / len(pairs)
    expected = 0.3 * 0.5 * cosines + alone.penalty.item()
    assert prompt.penalty.item() == pytest.approx(expected, abs=1e-12)


def test_the_prefix_is_that_of_the_part_that_is_nothing_else(shape, rows):
    method = compose(SELECTIVE, MASKS, PREFIX).build(shape).double().eval()
    prompt = method(rows)
    names = [name for name, _ in method.named_parameters()]
    assert names == ["parts.multi-mask.masks", "parts.multi-mask.router.weight", "parts.prefix-tuning.prefix"]
    assert torch.equal(prompt.keys, method.parts["prefix-tuning"]().keys)
    assert prompt.selectivity == SELECTIVE.alpha
    assert prompt.gates.shape == (SITES, 3, 3)
    first = compose(SELECTIVE, MASKS).build(shape).double().eval()
    assert torch.equal(first(rows).keys, first.parts["selective-prefix"]().keys)
    assert [name for name, _ in first.parts["multi-mask"].named_parameters()] == ["masks", "router.weight"]


def test_gates_of_two_parts(shape, rows):
    method = compose(PREFIX, MASKS, ADAPTIVE).build(shape).double().eval()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    assert method.reads_states
    prompt = method(rows)
    masks = method.parts["multi-mask"].modify(SoftPrompt(), rows).gates
    scales = method.parts["adaptive-prefix"].scales
    torch.testing.assert_close(prompt.gates, masks * scales[:, None, None])
    own = method.parts["adaptive-prefix"].modify(SoftPrompt()).gate_of
    assert torch.equal(prompt.gate_of(1, rows.embeddings, rows.mask), own(1, rows.embeddings, rows.mask))
    assert method.cannot_fold() == "of its part multi-mask, it depends on the input"


def test_tokens_in_order_and_updates_added(shape):
    short = EPTConfig(num_virtual_tokens=2, source_tokens=4, rank=1, max_length=3, multi_space=False)
    folded = FoldedConfig(num_virtual_tokens=0, update_length=5, source="mine")
    method = compose(SUPERPOS, short, folded).build(shape).double().eval()
    with torch.no_grad():
        method.parts["folded"].update.normal_()
    prompt = method()
    parts = [method.parts[name]() for name in ("superpos", "ept", "folded")]
    for i, (part, row) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        assert torch.equal(prompt.tokens[0, i], parts[part].tokens[0, row])
    assert prompt.update.shape == (1, 5, D)
    for i in range(5):
        expected = parts[2].update[0, i] + (parts[1].update[0, i] if i < 3 else 0)
        assert torch.equal(prompt.update[0, i], expected)
    assert method.config.input_tokens == 4


def test_mappings_are_merged():
    one, other = SoftPrompt(), SoftPrompt()
    # Standing in for any field that holds a mapping.
    one.gate_of, other.gate_of = {"a": 1}, {"b": 2}
    assert merge_prompts(one, other, "x").gate_of == {"a": 1, "b": 2}
    other.gate_of = {"a": 2}
    with pytest.raises(SoftPromptError, match="x and a part before it both change a; leave one out"):
        merge_prompts(one, other, "x")


def test_two_prefixes_of_parts_that_did_not_say_so():
    prefix = SoftPrompt(keys=torch.zeros(1, 1, 1, 1), values=torch.zeros(1, 1, 1, 1))
    with pytest.raises(SoftPromptError, match="x and a part before it both bring keys"):
        merge_prompts(prefix, prefix, "x")


@pytest.mark.parametrize(
    "parts",
    [
        (SUPERPOS, PREFIX),
        (EPT, dataclasses.replace(MASKS, num_masks=1)),
        (MultiMaskConfig(num_virtual_tokens=3, num_masks=1), SelectivePrefixConfig(num_virtual_tokens=3, alpha=None)),
        (PREFIX, AdaptivePrefixConfig(num_virtual_tokens=3, hidden_state=False)),
    ],
    ids=name_of,
)
def test_folding(shape, parts):
    method = compose(*parts).build(shape)
    config, folded = fold(method)
    method.eval()
    prompt, plain = method(), folded()
    gates = 1.0 if prompt.gates is None else prompt.gates.unsqueeze(-1)
    assert torch.equal(plain.keys, prompt.keys * gates)
    assert torch.equal(plain.values, prompt.values * gates)
    for field in ("tokens", "update"):
        one, other = getattr(plain, field), getattr(prompt, field)
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)
    assert config.source == name_of(parts)
    assert config.input_tokens == compose(*parts).input_tokens
    again = make_config("folded", **config.to_dict()).build(shape)
    again.load_state_dict(folded.state_dict())
    assert torch.equal(again().keys, plain.keys)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ((SUPERPOS, MASKS), "of its part multi-mask, it depends on the input"),
        ((EPT, SELECTIVE), "of its part selective-prefix, its mask depends on the queries"),
        ((SUPERPOS, ADAPTIVE), "of its part adaptive-prefix, its gates depend on what each layer gets"),
    ],
)
def test_what_does_not_fold(shape, parts, reason):
    with pytest.raises(SoftPromptError, match=f"cannot be folded: {reason}"):
        fold(compose(*parts).build(shape))


def test_compositions_in_compositions():
    assert compose(compose(SUPERPOS, PREFIX), MASKS) == compose(SUPERPOS, PREFIX, MASKS)


def test_sites_are_those_of_the_prefix():
    there = dataclasses.replace(PREFIX, sites=("decoder.self",))
    config = compose(SUPERPOS, there)
    assert config.sites == ("decoder.self",)
    assert make_config(config.method, **config.to_dict()) == config
    assert dataclasses.replace(config) == config


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((), "composed: a composition needs two parts or more"),
        ((PREFIX,), "prefix-tuning: a composition needs two parts or more"),
        ((PREFIX, 3), "compose takes configs of methods, not 3"),
        ((SUPERPOS, SUPERPOS), "superpos is there twice"),
        (
            (PREFIX, FoldedConfig(num_virtual_tokens=3, has_prefix=True)),
            "prefix-tuning and folded both are a prefix, and a prompt has one; leave one out",
        ),
        (
            (PREFIX, MultiMaskConfig(num_virtual_tokens=4)),
            r"multi-mask works on the prefix of prefix-tuning: give both the same num_virtual_tokens "
            r"\(prefix-tuning has 3, multi-mask 4\)",
        ),
        ((PREFIX, dataclasses.replace(MASKS, sites=("decoder.self",))), "give both the same sites"),
    ],
)
def test_what_does_not_go_together(parts, message):
    with pytest.raises(SoftPromptError, match=message) as error:
        compose(*parts)
    assert "\n" not in str(error.value)


def test_its_own_fields_are_not_settings():
    with pytest.raises(SoftPromptError, match="num_virtual_tokens is a setting of its parts"):
        ComposedConfig(parts=(SUPERPOS, PREFIX), num_virtual_tokens=4)
    with pytest.raises(SoftPromptError, match="sites is a setting of its parts"):
        ComposedConfig(parts=(SUPERPOS, PREFIX), sites=("encoder.self",))


def test_a_part_that_adds_nothing(shape):
    with pytest.raises(SoftPromptError, match="head-only has nothing to add; leave it out"):
        compose(HeadOnlyConfig(), SUPERPOS).build(shape)


def test_only_one_selectivity(shape):
    class Config(MethodConfig):
        method: ClassVar[str] = "other"
        uses_prefix: ClassVar[bool] = True
        modifies_prefix: ClassVar[bool] = True

        def build_modifier(self, shape):
            return Other(self)

    class Other(Method):
        def modify(self, prompt, rows=None):
            return dataclasses.replace(prompt, selectivity=2.0)

    method = compose(SELECTIVE, Config(num_virtual_tokens=3)).build(shape)
    with pytest.raises(SoftPromptError, match="only one part can bring selectivity, not other too"):
        method()


def test_make_config_of_a_composition():
    config = sp.make_config("superpos+multi-mask", **{"multi-mask.num_masks": 2, "num_virtual_tokens": 7})
    assert config == compose(SuperPosConfig(num_virtual_tokens=7), MultiMaskConfig(num_virtual_tokens=7, num_masks=2))
    assert config.setting("multi-mask.num_masks") == 2
    assert config.setting("num_virtual_tokens") == 7
    for name, fields, message in [
        ("superpos+multimask", {}, "unknown method 'multimask' in 'superpos\\+multimask'; did you mean 'multi-mask'"),
        ("superpos+multi-mask", {"rank": 3}, "none of its parts has a setting 'rank'"),
        ("superpos+multi-mask", {"ept.rank": 3}, "no part 'ept' to set rank of"),
        ("superpos+multi-mask", {"multi-mask.rank": 3}, "multi-mask has no setting 'rank'"),
        ("superpos+superpos", {}, "superpos is there twice"),
        ("superpos+ept", {"parts": [{"method": "ept"}, {"method": "superpos"}]}, "does not go with the parts ept"),
        ("superpos+ept", {"parts": [{"rank": 1}]}, "a part without the name of its method"),
        ("superpos+ept", {"parts": 3}, "composed: parts must be a list, not 3"),
    ]:
        with pytest.raises(SoftPromptError, match=message):
            sp.make_config(name, **fields)


def test_cosines_of_a_prefix_per_row():
    prefix = torch.randn(SITES, 2, 4, WIDTH, dtype=torch.float64)
    apart = torch.stack([mean_cosine(prefix[:, :1]), mean_cosine(prefix[:, 1:])])
    torch.testing.assert_close(mean_cosine(prefix), apart.mean(0))


def test_vitals_carry_the_names_of_their_parts(shape, monkeypatch):
    """What training measures of the whole prompt keeps its name."""
    declared = [Vital("routes.spread", 0.5, 0.1, "router: idle"), Vital("balance", 2.0)]
    measured = [Vital("penalty", None, 0.01, "loss: idle"), Vital("moved.prefix", None, 0.2, "prefix: idle")]
    method = compose(SUPERPOS, PREFIX).build(shape)
    monkeypatch.setattr(type(method.parts["superpos"]), "vitals", lambda self, rows: declared)
    monkeypatch.setattr(type(method.parts["prefix-tuning"]), "vitals", lambda self, rows: measured)
    assert method.vitals() == [
        Vital("superpos.routes.spread", 0.5, 0.1, "superpos's router: idle"),
        Vital("superpos.balance", 2.0),
        Vital("penalty", None, 0.01, "prefix-tuning's loss: idle"),
        Vital("moved.prefix-tuning.prefix", None, 0.2, "prefix-tuning's prefix: idle"),
    ]
