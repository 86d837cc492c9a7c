import dataclasses

import pytest
import torch
from torch import Tensor

from softprompts.errors import SoftPromptError
from softprompts.methods import FullConfig, Shape


def shaken(method):
    torch.manual_seed(7)
    for parameter in method.parameters():
        parameter.data += torch.randn_like(parameter)
    return method


@pytest.mark.parametrize("fields", [{}, {"shared_tables": True}])
def test_contract(check_contract, fields):
    check_contract(FullConfig(**fields))


def test_equals_a_model_with_these_parameters(shape, modules, inputs, through):
    method = shaken(FullConfig().build(shape).double())
    made = through(method())
    assert set(made) == set(modules) - {"positions"}
    before = {path: module(inputs[path]) for path, module in modules.items()}
    for path, out in made.items():
        for name, own in modules[path].named_parameters():
            tied = "tokens/weight" if path == "head" else f"{path}.{name}".replace(".", "/")
            own.data = method.theta[tied].data
        torch.testing.assert_close(out, modules[path](inputs[path]), rtol=0, atol=0)
        assert not torch.allclose(out, before[path])


def test_modules_are_left_as_they_were(shape, modules, inputs, through):
    parameters = {path: dict(module.named_parameters()) for path, module in modules.items()}
    values = {id(p): p.detach().clone() for own in parameters.values() for p in own.values()}
    through(shaken(FullConfig(shared_tables=True).build(shape).double())())
    for path, module in modules.items():
        for name, parameter in module.named_parameters():
            assert parameter is parameters[path][name]
            assert torch.equal(parameter, values[id(parameter)])
    with pytest.raises(IndexError):
        through(FullConfig().build(dataclasses.replace(shape, parts=tuple(map(short, shape.parts)))).double()())
    assert all(modules[path]._parameters[name] is p for path, own in parameters.items() for name, p in own.items())


def short(part):
    """An embedding with too few rows for the input: the module fails."""
    if part.kind != "embedding":
        return part
    return dataclasses.replace(part, tensors={"weight": torch.zeros(1, part.out_features)})


def test_starts_as_the_frozen_model_and_leaves_it_alone(shape, modules, inputs, through):
    method = FullConfig().build(shape)
    assert all(p.data_ptr() != t.data_ptr() for p in method.parameters() for s in shape.parts for t in tensors(s))
    for path, out in through(method.double()()).items():
        torch.testing.assert_close(out, modules[path](inputs[path]), rtol=0, atol=0)


def tensors(part) -> list[Tensor]:
    return list(part.tensors.values())


def test_bad_settings(shape):
    with pytest.raises(SoftPromptError, match="shared_tables must be true or false"):
        FullConfig(shared_tables=1)
    with pytest.raises(SoftPromptError, match="full: this backbone has no module with parameters"):
        FullConfig().build(Shape(8, 3, 6, shape.vocabulary))
    packed = dataclasses.replace(shape.parts[2], tensors={"weight": torch.zeros(4, dtype=torch.uint8)})
    with pytest.raises(SoftPromptError, match=r"full: 'layers.0.self.q' is quantised"):
        FullConfig().build(dataclasses.replace(shape, parts=(packed,)))
    assert FullConfig().build(shape).cannot_fold() == "it changes the model's weights"


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        ("t5-base", {}, 222_903_552 - 2 * 32 * 12),
        ("t5-base", {"shared_tables": True}, 222_903_552),
        ("bert-base", {}, 108_310_272),
    ],
)
def test_count(count_on, name, fields, expected):
    assert count_on(FullConfig(**fields), name) == expected
