import dataclasses

import pytest
import torch

from softprompts.errors import SoftPromptError
from softprompts.methods import BitFitConfig, Shape


def shaken(method):
    torch.manual_seed(7)
    for parameter in method.parameters():
        parameter.data += torch.randn_like(parameter)
    return method


def unbiased(shape):
    """The same backbone without any bias."""
    parts = [dataclasses.replace(p, tensors={k: v for k, v in p.tensors.items() if k != "bias"}) for p in shape.parts]
    return dataclasses.replace(shape, parts=tuple(parts))


def test_contract(check_contract):
    check_contract(BitFitConfig())


def test_training_what_is_added_is_training_the_bias(shape, modules, inputs, through):
    method = shaken(BitFitConfig().build(shape).double())
    made = through(method())
    assert set(made) == {path for path, module in modules.items() if getattr(module, "bias", None) is not None}
    for path, out in made.items():
        modules[path].bias.data += method.added[path.replace(".", "/")].data
        torch.testing.assert_close(out, modules[path](inputs[path]))


def test_new_biases_where_the_model_has_none(shape, modules, inputs, through):
    method = shaken(BitFitConfig().build(unbiased(shape)).double())
    made = through(method())
    assert set(made) == set(modules) - {"tokens", "positions"}
    for path, out in made.items():
        added, before = method.added[path.replace(".", "/")].tolist(), modules[path](inputs[path])
        for row in range(3):
            for token in range(2):
                wanted = [before[row, token, i].item() + c for i, c in enumerate(added)]
                assert out[row, token].tolist() == pytest.approx(wanted, abs=1e-12)


def test_starts_as_the_frozen_model(shape, modules, inputs, through):
    for path, out in through(BitFitConfig().build(shape).double()()).items():
        assert torch.equal(out, modules[path](inputs[path]))


def test_bad_settings(shape):
    with pytest.raises(SoftPromptError, match="bitfit: this backbone has no linear layer or norm"):
        BitFitConfig().build(Shape(8, 3, 6, shape.vocabulary))
    with pytest.raises(SoftPromptError, match="num_virtual_tokens must be 0"):
        BitFitConfig(num_virtual_tokens=1)
    assert BitFitConfig().build(shape).cannot_fold() == "it changes the model's weights"


@pytest.mark.parametrize(("name", "expected"), [("t5-base", 280_960), ("bert-base", 102_912)])
def test_count(count_on, name, expected):
    assert count_on(BitFitConfig(), name) == expected
