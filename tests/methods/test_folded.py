import dataclasses

import pytest
import torch

from softprompts.errors import SoftPromptError
from softprompts.methods import (
    DePTConfig,
    DPTConfig,
    EPTConfig,
    FoldedConfig,
    MultiMaskConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    PTuningConfig,
    ResidualConfig,
    SelectivePrefixConfig,
    Shape,
    SuperPosConfig,
    fold,
    make_config,
)
from softprompts.methods.contract import Method
from softprompts.soft_prompt import SoftPrompt

SMALL_EPT = {"num_virtual_tokens": 3, "source_tokens": 4, "rank": 2, "max_length": 5, "space_hidden_size": 3}
FOLDABLE = [
    PromptTuningConfig(num_virtual_tokens=3),
    PrefixTuningConfig(num_virtual_tokens=3),
    PrefixTuningConfig(num_virtual_tokens=3, reparameterize=True, sites=("decoder.self",)),
    SuperPosConfig(num_virtual_tokens=3, num_sampled_tokens=4),
    EPTConfig(**SMALL_EPT),
    EPTConfig(**{**SMALL_EPT, "num_virtual_tokens": 0}),
    MultiMaskConfig(num_virtual_tokens=3, num_masks=1),
    PTuningConfig(num_virtual_tokens=3, hidden_size=4),
    PTuningConfig(num_virtual_tokens=3, hidden_size=4, encoder="lstm", lstm_dropout=0.5),
    ResidualConfig(num_virtual_tokens=3, bottleneck=4, dropout=0.5),
    ResidualConfig(num_virtual_tokens=3, bottleneck=4, shared_mlp=False),
    DPTConfig(num_virtual_tokens=3, rank=2),
    DePTConfig(num_virtual_tokens=3, rank=2, max_length=5, scale="released"),
    SelectivePrefixConfig(num_virtual_tokens=3, alpha=None, selective_loss=0),
]


def gated(prompt):
    """The same prompt with its gates multiplied in."""
    if prompt.gates is None:
        return prompt
    gates = prompt.gates.unsqueeze(-1)
    return dataclasses.replace(prompt, keys=prompt.keys * gates, values=prompt.values * gates, gates=None)


@pytest.mark.parametrize("source", FOLDABLE, ids=lambda config: config.method)
def test_fold_changes_no_bit(shape, same_prompt, source):
    method = source.build(shape)
    config, folded = fold(method)
    assert method.training
    with torch.no_grad():
        assert same_prompt(folded(), gated(method.eval()(None)))
        for parameter in method.parameters():
            parameter.add_(1.0)
        assert not same_prompt(folded(), gated(method(None)))
    assert (config.source, config.sites) == (source.method, source.sites)
    assert config.num_virtual_tokens == source.num_virtual_tokens
    assert (config.uses_tokens, config.uses_prefix) == (source.uses_tokens, source.uses_prefix)


@pytest.mark.parametrize("source", FOLDABLE, ids=lambda config: config.method)
def test_load(shape, same_prompt, source):
    config, folded = fold(source.build(shape))
    again = make_config("folded", **config.to_dict())
    assert again == config
    empty = again.build(shape)
    empty.load_state_dict(folded.state_dict())
    assert same_prompt(empty(), folded())


@pytest.mark.parametrize(
    "fields",
    [
        {"num_virtual_tokens": 2, "has_tokens": True},
        {"update_length": 3},
        {"num_virtual_tokens": 2, "has_prefix": True},
        {"num_virtual_tokens": 2, "has_tokens": True, "has_prefix": True, "update_length": 1},
    ],
)
def test_contract(check_contract, fields):
    check_contract(FoldedConfig(source="mine", **fields))


def test_fold_keeps_the_type(shape):
    _, folded = fold(PrefixTuningConfig(num_virtual_tokens=2).build(shape).double())
    assert folded().keys.dtype == torch.float64


def test_folding_twice_keeps_the_source(shape, same_prompt):
    config, folded = fold(SuperPosConfig(num_virtual_tokens=3, num_sampled_tokens=4).build(shape))
    again, twice = fold(folded)
    assert again == config
    assert again.source == "superpos"
    assert same_prompt(twice(), folded())


def test_selective_loss_ends_with_training(shape):
    _, folded = fold(SelectivePrefixConfig(num_virtual_tokens=3, alpha=None).build(shape))
    assert folded().penalty is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MultiMaskConfig(), "multi-mask: this prompt cannot be folded: it depends on the input"),
        (SelectivePrefixConfig(), "selective-prefix: this prompt cannot be folded: its mask depends on the queries"),
    ],
)
def test_what_does_not_fold(shape, config, message):
    with pytest.raises(SoftPromptError, match=message):
        fold(config.build(shape))


def test_fold_takes_what_evaluation_gives(shape):
    class Noisy(Method):
        def forward(self, rows=None):
            return SoftPrompt(tokens=torch.full((1, 2, 8), 9.0 if self.training else 1.0))

    noisy = Noisy(PromptTuningConfig())
    config, folded = fold(noisy)
    assert config.num_virtual_tokens == 2
    assert noisy.training
    assert torch.equal(folded().tokens, torch.ones(1, 2, 8))


def test_tokens_and_prefix_of_different_lengths(shape, same_prompt):
    class Odd(Method):
        def forward(self, rows=None):
            return SoftPrompt(tokens=torch.ones(1, 2, 8), keys=torch.ones(3, 1, 4, 6), values=torch.zeros(3, 1, 4, 6))

    config, folded = fold(Odd(PromptTuningConfig()))
    assert (config.num_virtual_tokens, config.prefix_length, config.input_tokens) == (2, 4, 2)
    again = make_config("folded", **config.to_dict()).build(shape)
    again.load_state_dict(folded.state_dict())
    assert same_prompt(again(), Odd(PromptTuningConfig())())


def test_needs_sites(shape):
    config = FoldedConfig(num_virtual_tokens=2, has_prefix=True)
    with pytest.raises(SoftPromptError, match="no attention site that takes a prefix"):
        config.build(Shape(8, 0, 0, shape.vocabulary))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "a prompt without any tensor"),
        ({"num_virtual_tokens": 2, "update_length": 3}, "num_virtual_tokens must be 0 exactly when"),
        ({"has_tokens": True}, "num_virtual_tokens must be 0 exactly when"),
        ({"has_tokens": 1}, "has_tokens must be true or false"),
        ({"num_virtual_tokens": 2, "has_tokens": True, "prefix_length": 3}, "prefix_length needs both tokens and a pr"),
        ({"update_length": -1}, "update_length must be at least 0"),
        ({"source": 3, "update_length": 1}, "source must be text, not 3"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(SoftPromptError, match=message):
        FoldedConfig(**fields)
