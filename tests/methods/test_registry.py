import dataclasses
import json
import subprocess
import sys
from typing import ClassVar

import pytest
import torch

import softprompts.methods
from softprompts.errors import SoftPromptError
from softprompts.methods import MethodConfig, Rows, Vocabulary, make_config, methods, register

NAMES = {
    "dept",
    "dpt",
    "ept",
    "folded",
    "multi-mask",
    "p-tuning",
    "prefix-tuning",
    "prompt-tuning",
    "residual",
    "selective-prefix",
    "smop",
    "superpos",
}


def test_all_methods_are_known():
    assert set(methods()) >= NAMES
    assert all(config.method == name for name, config in methods().items())


@pytest.mark.parametrize("name", sorted(NAMES - {"folded"}))
def test_config_survives_json(name):
    config = make_config(name, sites=["encoder.self", "decoder.cross"])
    again = make_config(name, **json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.sites == ("encoder.self", "decoder.cross")
    left_out = {"placement", "positions", "routes"}  # where they are the default
    assert set(config.to_dict()) == {field.name for field in dataclasses.fields(config)} - left_out


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_setting_is_documented(name):
    config = methods()[name]
    own = {field.name for field in dataclasses.fields(config)} - {f.name for f in dataclasses.fields(MethodConfig)}
    assert all(field in config.__doc__ for field in own)


def test_the_package_lists_every_method():
    built_in = {config.__name__ for config in methods().values() if config.__module__.startswith("softprompts.")}
    assert built_in <= set(dir(softprompts.methods))


def test_listing_methods_imports_torch_and_nothing_heavier():
    heavy = "{'transformers', 'sklearn', 'datasets', 'accelerate', 'scipy'}"
    code = f"import sys, softprompts.methods; print('torch' in sys.modules, {heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "True set()"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plain(MethodConfig):
    method: ClassVar[str] = "plain"

    rank: int = 4
    positions: str = "anything"

    def __post_init__(self):
        super().__post_init__()
        self.require(self.rank > 0, "no rank")


def test_a_plain_dataclass_has_its_inherited_settings_checked():
    config = Plain(sites=["encoder.self"], rank=2)
    assert (config.sites, config.rank, config.positions) == (("encoder.self",), 2, "anything")
    assert Plain(sites="decoder.self").sites == ("decoder.self",)
    assert dataclasses.replace(config, num_virtual_tokens=3).num_virtual_tokens == 3
    for fields, message in (
        ({"num_virtual_tokens": 0}, "plain: num_virtual_tokens must be at least 1, not 0"),
        ({"num_virtual_tokens": "x"}, "plain: num_virtual_tokens must be a whole number, not 'x'"),
        ({"placement": "left"}, "plain: placement must be one of behind-first, front, not 'left'"),
        ({"sites": ["encoder"]}, "plain: sites.0 must be one of encoder.self, .* not 'encoder'"),
        ({"rank": 0}, "plain: no rank"),
    ):
        with pytest.raises(SoftPromptError, match=f"^{message}"):
            Plain(**fields)


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_config("superpos").softmax = True


def test_unknown_method():
    with pytest.raises(SoftPromptError, match="unknown method 'prompt_tuning'; did you mean 'prompt-tuning'"):
        make_config("prompt_tuning")


def test_unknown_setting():
    with pytest.raises(SoftPromptError, match="superpos has no setting 'num_sampled_token'; did you mean 'num_sampled"):
        make_config("superpos", num_sampled_token=3)


def test_a_name_is_taken_once():
    with pytest.raises(SoftPromptError, match="'superpos' is already taken by SuperPosConfig"):

        @register("superpos")
        class Other(MethodConfig):
            pass


def test_mean_of_the_visible_tokens():
    embeddings = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]], [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]])
    rows = Rows(embeddings, torch.tensor([[True, True, False], [False, False, False]]))
    assert rows.mean().tolist() == [[2.0, 4.0], [0.0, 0.0]]


def test_largest_of_the_visible_tokens():
    embeddings = torch.tensor([[[1.0, -2.0], [-3.0, -1.0], [9.0, 9.0]], [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]])
    rows = Rows(embeddings, torch.tensor([[True, True, False], [False, False, False]]))
    assert rows.max().tolist() == [[1.0, -1.0], [0.0, 0.0]]


def test_nothing_left_to_sample():
    vocabulary = Vocabulary(lambda ids: torch.zeros(len(ids), 2), 10, special_ids=(0, 1))
    with pytest.raises(SoftPromptError, match="no token is left"):
        vocabulary.sample(1, limit=2)
