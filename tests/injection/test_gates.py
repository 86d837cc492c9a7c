"""Gates: prefix keys and values times a number per token, where a site attends."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import tiny
import torch
from torch import Tensor, nn

import softprompts as sp
from softprompts.injection.speedups.gated_prefix import gate
from softprompts.injection.state import state_of
from softprompts.methods.common import plain_prefix
from softprompts.soft_prompt import SoftPrompt


@dataclass(frozen=True, kw_only=True)
class Config(sp.MethodConfig):
    """Settings of `Gated`."""

    num_virtual_tokens: int = 3
    multiplied: bool = False
    selectivity: float | None = None

    method: ClassVar[str] = "gated"
    uses_prefix: ClassVar[bool] = True

    def build(self, shape: sp.Shape) -> sp.Method:
        return Gated(self, shape)


class Gated(sp.Method):
    """A prefix with gates that depend on a row's tokens; ``multiplied``: handed over as a product."""

    per_row = True

    def __init__(self, config: Config, shape: sp.Shape):
        super().__init__(config)
        self.num_sites = shape.num_sites
        self.multiplied, self.selectivity = config.multiplied, config.selectivity
        self.table = nn.Parameter(torch.randn(config.num_virtual_tokens, 2 * shape.num_sites * shape.kv_width))
        self.scale = nn.Parameter(torch.rand(shape.num_sites, 1, config.num_virtual_tokens) + 0.5)

    def forward(self, rows: sp.Rows | None = None) -> SoftPrompt:
        assert rows is not None
        prefix = plain_prefix(self.table, self.num_sites)
        keys, values = prefix.keys, prefix.values
        assert keys is not None and values is not None
        gates = self.scale * (1 + rows.mean().sum(-1)[:, None])
        if self.multiplied:
            return SoftPrompt(
                keys=keys * gates[..., None], values=values * gates[..., None], selectivity=self.selectivity
            )
        return SoftPrompt(keys=keys, values=values, gates=gates, selectivity=self.selectivity)

    def components(self) -> dict[str, sp.Component]:
        return {"all": sp.Component(list(self.parameters()), learning_rate=1e-2)}


def outcome(family: str, names: list[str | None], multiplied: bool, selectivity: float | None) -> list[Tensor]:
    """Loss and gradients of a batch in which "a" and "b" are gated prompts of different lengths and sites."""
    model = tiny.attached(family, "prefix-tuning")
    sites = ("decoder.self", "decoder.cross") if family == "t5" else None
    settings = {"multiplied": multiplied, "selectivity": selectivity}
    model.add_prompt("a", Config(**settings), seed=1)
    model.add_prompt("b", Config(num_virtual_tokens=5, sites=sites, **settings), seed=2)
    model.prompts.to(torch.float64)
    model(**tiny.batch(family, rows=len(names)), prompt_names=names).loss.backward()
    found = {name: p.grad for name, p in model.prompts.named_parameters() if p.grad is not None}
    assert {name.split(".")[0] for name in found} >= {name for name in names if name is not None}
    return list(found.values())


@pytest.mark.parametrize("family", ["bert", "llama", "t5", "gpt2"])
@pytest.mark.parametrize("selectivity", [None, 4.0])
@pytest.mark.parametrize("names", [["a"] * 3, ["a", None, "b", "a", "prefix-tuning", "b"]], ids=["one", "mixed"])
def test_gates_are_a_product(family: str, names: list[str | None], selectivity: float | None) -> None:
    ours = outcome(family, names, False, selectivity)
    for mine, theirs in zip(ours, outcome(family, names, True, selectivity), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shared_gates", [True, False])
@pytest.mark.parametrize(("prefixes", "rows"), [(1, None), (3, None), (2, [1, 0, 1])])
def test_the_function_and_its_gradients(shared_gates: bool, prefixes: int, rows: list[int] | None) -> None:
    part = torch.randn(prefixes, 2, 4, dtype=torch.float64, requires_grad=True)
    gates = torch.rand(1 if shared_gates else 3, 2, dtype=torch.float64, requires_grad=True)
    own = None if rows is None else torch.tensor(rows)
    made = gate(part, own, gates)
    for m in range(made.shape[0]):
        source = part[rows[m] if rows is not None else m if prefixes > 1 else 0]
        for token in range(2):
            expected = source[token] * gates[0 if shared_gates else m, token]
            torch.testing.assert_close(made[m, token], expected)
    assert torch.autograd.gradcheck(lambda part, gates: gate(part, own, gates), (part, gates))


@pytest.mark.parametrize("mixed", [False, True])
def test_a_gated_prefix_keeps_no_more_than_a_plain_one(mixed: bool) -> None:
    length, rows, width = 200, 4, 16

    def kept(config: sp.MethodConfig) -> int:
        model = sp.attach(tiny.model("bert"))
        for name in ("one", "two"):
            model.add_prompt(name, config, seed=0)
        model.prompts.to(torch.float64)
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = 0 if storage.data_ptr() in weights else storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(**tiny.batch("bert", rows=rows), prompt_names=["one", "two"] * 2 if mixed else "one")
        prefixes = state_of(model).last_pass._prefixes.values()
        sites, tables = len(state_of(model).backbone.sites), 2 if mixed else 1
        assert len(prefixes) == sites
        held = sum(prefix.keys.nbytes + prefix.values.nbytes for prefix in prefixes)
        assert held == 2 * tables * sites * length * width * 8
        return sum(sizes.values())

    plain = kept(sp.PrefixTuningConfig(num_virtual_tokens=length))
    gated = kept(sp.MultiMaskConfig(num_virtual_tokens=length, num_masks=2))
    joined = 2 * 2 * 2 * length * width * 8 if mixed else 0  # both tables in one tensor, whose gradient is asked for
    assert gated - plain - joined < rows * length * width * 8  # a copy of the keys of a single site


# --- gates that depend on what sites are called with ----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Given(sp.MethodConfig):
    """Settings of `GivenPrefix`."""

    method: ClassVar[str] = "given"
    uses_prefix: ClassVar[bool] = True

    def build(self, shape: sp.Shape) -> sp.Method:
        return GivenPrefix(self)


class GivenPrefix(sp.Method):
    """A prefix that a test fills in, ``(S, R, l, w)``."""

    def forward(self, rows: sp.Rows | None = None) -> SoftPrompt:
        return SoftPrompt(keys=self.keys, values=self.values)  # type: ignore[arg-type]


def states_of(model: Any, run: Any) -> list[list[Tensor]]:
    """What each attention site is called with while ``run()`` runs."""
    sites = state_of(model).backbone.sites
    seen: list[list[Tensor]] = [[] for _ in sites]

    def note(index: int) -> Any:
        return lambda module, args, kwargs: seen[index].append(kwargs.get("hidden_states", args[0] if args else None))

    handles = [s.module.register_forward_pre_hook(note(i), with_kwargs=True) for i, s in enumerate(sites)]
    run()
    for handle in handles:
        handle.remove()
    return seen


def visible_at(family: str, kind: str, inputs: dict[str, Tensor], row: int, mean: bool) -> list[int]:
    """The columns whose states make a row's gates."""
    if tiny.FAMILIES[family][0] == "encoder-decoder" and kind != "encoder.self":
        return [0]
    real = inputs["attention_mask"][row].bool()
    if tiny.FAMILIES[family][0] == "decoder":  # no targets
        real = real & (inputs["labels"][row] == -100)
    columns = real.nonzero().flatten().tolist()
    if tiny.FAMILIES[family][0] != "decoder":  # padding is moved to the right
        columns = list(range(len(columns)))
    return columns if mean else columns[:1]


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("summary", ["first", "mean"])
@torch.no_grad()
def test_a_pass_with_gates_from_states(family: str, side: str, summary: str) -> None:
    """The states of a pass, put into the formula by hand, make a prefix under which the same pass comes out."""
    model = sp.attach(tiny.model(family), check=False)  # the given prefix is filled in below
    model.add_prompt("x", sp.AdaptivePrefixConfig(num_virtual_tokens=3, summary=summary), seed=0)
    model.add_prompt("given", Given(num_virtual_tokens=3))
    model.prompts.to(torch.float64)
    tiny.shake(model)
    inputs = tiny.batch(family)
    if side == "left":
        inputs = tiny.pad_left(inputs)
    outputs = []
    states = states_of(model, lambda: outputs.append(model(**inputs, prompt_names="x")))
    method, sites = model.prompts["x"].method, state_of(model).backbone.sites
    table = method.prefix.view(3, len(sites), 2, -1)
    keys = torch.zeros(len(sites), 3, 3, table.shape[-1], dtype=torch.float64)
    values = torch.zeros_like(keys)
    for index, site in enumerate(sites):
        (seen,) = states[index]
        assert seen.shape[-1] == site.width == method.projection.shape[1]
        for row in range(3):
            columns = visible_at(family, site.kind, inputs, row, summary == "mean")
            h = sum(seen[row, column] for column in columns) / len(columns)
            for token in range(3):
                score = float((h * method.projection[index, :, token]).sum())
                gate = float(method.scales[index]) / (1 + math.exp(-score))
                keys[index, row, token] = gate * table[token, index, 0]
                values[index, row, token] = gate * table[token, index, 1]
    given = model.prompts["given"].method
    model.prompts["given"].head = model.prompts["x"].head
    given.keys, given.values = keys, values
    again = model(**inputs, prompt_names="given")
    torch.testing.assert_close(again.logits, outputs[0].logits, rtol=1e-9, atol=1e-10)
    assert not torch.allclose(again.logits, model(**inputs, prompt_names=[None] * 3).logits)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "bart"])
@pytest.mark.parametrize("summary", ["first", "mean"])
def test_generation_keeps_the_gates_of_its_first_step(family: str, summary: str) -> None:
    model = sp.attach(tiny.model(family))
    model.add_prompt("x", sp.AdaptivePrefixConfig(num_virtual_tokens=3, summary=summary), seed=0)
    model.add_prompt("y", tiny.METHODS["multi-mask"], seed=0)
    model.prompts.to(torch.float64)
    tiny.shake(model)
    inputs = {key: value for key, value in tiny.pad_left(tiny.batch(family)).items() if key != "labels"}
    settings = {"max_new_tokens": 5, "do_sample": False, "prompt_names": ["x", "y", "x"]}
    together = model.generate(**inputs, **settings)
    assert torch.equal(together, model.generate(**inputs, **settings, use_cache=False))
    beams = model.generate(**inputs, **settings, num_beams=3)
    for row, name in enumerate(("x", "y", "x")):
        alone = {key: value[row : row + 1] for key, value in inputs.items()}
        one = model.generate(**alone, **settings | {"prompt_names": name})
        assert torch.equal(one[0], together[row, : one.shape[1]])
        one = model.generate(**alone, **settings | {"prompt_names": name}, num_beams=3)
        assert torch.equal(one[0], beams[row, : one.shape[1]])


def test_targets_do_not_reach_the_gates() -> None:
    model = sp.attach(tiny.model("llama"), sp.AdaptivePrefixConfig(num_virtual_tokens=3), seed=0)
    model.prompts.to(torch.float64)
    tiny.shake(model)
    inputs = tiny.batch("llama")
    other = {key: value.clone() for key, value in inputs.items()}
    other["input_ids"][0, 5:] = 7
    first, second = (model(**given).logits for given in (inputs, other))
    torch.testing.assert_close(first[0, :5], second[0, :5], rtol=0, atol=1e-12)
    # With labels of no row, all tokens are context, and later ones matter to the gates of earlier ones.
    first, second = (model(given["input_ids"], given["attention_mask"]).logits for given in (inputs, other))
    assert not torch.allclose(first[0, :5], second[0, :5])


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_checkpointing_computes_the_same_gates(family: str) -> None:
    found = []
    for checkpointed in (False, True):
        model = tiny.attached(family, "adaptive-prefix", "multi-mask")
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.train()
        model.prompts.eval()
        model(**tiny.batch(family), prompt_names=["adaptive-prefix", "multi-mask", "adaptive-prefix"]).loss.backward()
        found.append({name: p.grad for name, p in model.prompts.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        assert grad.abs().sum() > 0 or "router" in name, name
        torch.testing.assert_close(found[1][name], grad, rtol=1e-9, atol=1e-12)


def test_sites_are_watched_only_while_there_is_need() -> None:
    model = sp.attach(tiny.model("bert"))

    def hooks() -> int:
        return sum(len(site.module._forward_pre_hooks) for site in state_of(model).backbone.sites)

    assert hooks() == 0
    model.add_prompt("plain", tiny.METHODS["multi-mask"])
    assert hooks() == 0
    model.add_prompt("x", tiny.METHODS["adaptive-prefix"])
    model.add_prompt("y", tiny.METHODS["adaptive-prefix"])
    assert hooks() == 2
    model.delete_prompt("x")
    assert hooks() == 2
    twin = copy.deepcopy(model)
    twin.delete_prompt("y")
    assert hooks() == 2
    model.delete_prompt("y")
    assert hooks() == 0
    model.add_prompt("z", sp.AdaptivePrefixConfig(hidden_state=False))
    assert hooks() == 0
    model.add_prompt("w", tiny.METHODS["adaptive-prefix"])
    sites = state_of(model).backbone.sites
    sp.detach(model)
    assert sum(len(site.module._forward_pre_hooks) for site in sites) == 0
