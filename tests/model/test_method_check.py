"""`check_method`: methods of the library pass, and each way of breaking the contract fails the check of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import softprompts as sp
from softprompts.methods import Rows, Shape, registry
from softprompts.model import method_check
from softprompts.model.method_check import Outcome, check_method
from softprompts.validation import settings


@settings
class BrokenConfig(sp.MethodConfig):
    """A prompt that looks at its input, and can be broken.

    Attributes:
        way: how.
    """

    way: str = ""

    uses_tokens: ClassVar[bool] = True

    def to_dict(self) -> dict[str, Any]:
        fields = super().to_dict()
        return {**fields, "way": fields["way"].upper()} if self.way == "settings" else fields


class Broken(sp.Method, config=BrokenConfig):
    config: BrokenConfig
    per_row = True

    def __init__(self, config: BrokenConfig, shape: Shape):
        super().__init__(config)
        self.tokens = nn.Parameter(torch.randn(config.num_virtual_tokens, shape.hidden_size))
        self.scale = nn.Parameter(torch.randn(shape.hidden_size))
        self.start = torch.randn(shape.hidden_size) if config.way == "saved" else torch.zeros(shape.hidden_size)
        if config.way == "build":
            raise KeyError("nothing there")

    def forward(self, rows: Rows | None = None) -> sp.SoftPrompt:
        assert rows is not None
        way, seen = self.config.way, rows.mean() * self.scale + self.start
        if way == "alone":
            seen = rows.embeddings.mean(1) * self.scale  # of padding too
        if way == "mixed":
            seen = seen - seen.mean(0)  # of the rows that are there
        if way == "gradients":
            seen = seen.detach()
        if way == "influence":
            seen = seen + 0 * self.scale.sum() - rows.mean() * self.scale
        tokens = self.tokens + 0.1 * seen[:, None]
        if way == "repeatable":
            tokens = tokens + torch.randn_like(tokens)
        if way == "infinite":
            tokens = tokens / 0
        return sp.SoftPrompt(
            tokens=tokens[..., 1:] if way == "shapes" else tokens[:, 1:] if way == "length" else tokens
        )

    def components(self) -> dict[str, sp.Component]:
        return {"prompt": sp.Component([self.tokens, *([] if self.config.way == "components" else [self.scale])], 1e-2)}

    def vitals(self, rows: Rows | None = None) -> list[Any]:
        return [rows.missing] if self.config.way == "told" and rows is not None else []  # type: ignore[attr-defined]

    def cannot_fold(self) -> str | None:
        return None if self.config.way == "folded" else super().cannot_fold()


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    sp.register("broken")(BrokenConfig)
    monkeypatch.setattr(method_check, "_MODELS", {"encoder": method_check._encoder})  # the others have a test below
    yield
    del registry._REGISTRY["broken"]


def failed(found: list[Outcome]) -> dict[str, str]:
    return {one.check: one.fault for one in found if one.fault}


def test_a_method_that_is_whole_passes() -> None:
    found = list(check_method(BrokenConfig()))
    assert not failed(found) and len(found) > 8
    assert [(one.check, one.left_out) for one in found if one.left_out] == [("folded", "it depends on the input")]


@pytest.mark.parametrize("name", ["prompt-tuning", "multi-mask"])
def test_methods_of_the_library_pass_on_models_of_every_kind(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    found = list(check_method(sp.make_config(name, num_virtual_tokens=3)))
    assert not failed(found)
    assert "on the encoder, decoder, encoder-decoder;" in found[1].holds


@pytest.mark.parametrize(
    ("way", "check", "told"),
    [
        ("settings", "settings", "they change on their way"),
        ("components", "build", r"lists the parameter 'scale' 0 times"),
        ("build", "build", r"KeyError: 'nothing there' \(test_method_check.py, line \d+\)"),
        ("shapes", "shapes", "tokens are of shape"),
        ("length", "shapes", "9 tokens, and the config says 10"),
        ("infinite", "shapes", "not finite"),
        ("gradients", "gradients", "no gradient reaches 'scale'"),
        ("influence", "gradients", "the gradient of 'scale' is 0 everywhere"),
        ("repeatable", "repeatable", "differ in eval mode"),
        ("saved", "saved", "other outputs than the one that was saved"),
        ("alone", "alone", "a row alone has other outputs"),
        ("mixed", "mixed batch", "its own rows change"),
        ("told", "views, vitals", "AttributeError"),
        ("folded", "folded", "."),
    ],
)
def test_each_fault_fails_its_check(way: str, check: str, told: str) -> None:
    faults = failed(list(check_method(BrokenConfig(way=way))))
    assert check in faults
    with pytest.raises(AssertionError, match=told):
        raise AssertionError(faults[check])


def test_a_method_that_fits_no_model_fails_and_one_that_fits_some_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    some = list(check_method(sp.PrefixTuningConfig(num_virtual_tokens=2, sites=("encoder.self",))))
    assert not failed(some) and "not on the decoder (" in some[1].holds
    monkeypatch.setattr(method_check, "_MODELS", {"decoder": method_check._decoder})
    none = list(check_method(sp.PrefixTuningConfig(num_virtual_tokens=2, sites=("encoder.self",))))
    assert set(failed(none)) == {"build"} and none[-1].left_out
