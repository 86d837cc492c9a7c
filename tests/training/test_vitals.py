"""Vitals of every prompt, against plain loops; they change no number, and idle parts are named at the end."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import nn

import softprompts as sp
from softprompts import SoftPromptError
from softprompts.injection.prompt import Prompt
from softprompts.methods import Rows, Vital
from softprompts.storage.run_folder import load_metrics
from softprompts.tasks.batches import collate
from softprompts.training import load_result, loop, train
from softprompts.training.vitals import Vitals, gradient_vitals, rows_to_look_at, vitals_of

TOKENS, D, SITES = 2, 4, 3


def norm(xs: Any) -> float:
    return math.sqrt(sum(x * x for x in xs))


def mean(xs: Any) -> float:
    xs = list(xs)
    return sum(xs) / len(xs)


class Given(sp.Method):
    """Hands over what it is given."""

    def __init__(self, prompt: sp.SoftPrompt, vitals: tuple[Vital, ...] = (), per_row: bool = True):
        super().__init__(sp.PromptTuningConfig(num_virtual_tokens=TOKENS))
        self.prompt, self.declared, self.per_row = prompt, vitals, per_row
        self.weight = nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))

    def forward(self, rows: Rows | None = None) -> sp.SoftPrompt:
        assert not self.training
        assert (rows is not None) == self.per_row
        return self.prompt

    def vitals(self, rows: Rows | None = None) -> list[Vital]:
        assert rows is not None
        return list(self.declared)

    def components(self) -> dict[str, sp.Component]:
        return {"weight": sp.Component([self.weight], learning_rate=1.0)}


def measured(method: sp.Method, rows: Rows, **more: Any) -> Vitals:
    return vitals_of(Prompt(method.config, method, None, [], (0, 0)).train(), rows, **more)


@pytest.fixture
def some_rows() -> Rows:
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 0, 0], [1, 1, 0, 0]]).bool()
    return Rows(torch.randn(3, 4, D, dtype=torch.float64), mask)


def test_what_a_prompt_hands_over(some_rows: Rows) -> None:
    tokens, update = torch.randn(3, TOKENS, D).double(), torch.randn(1, 6, D).double()
    gates = torch.rand(SITES, 3, TOKENS).double()
    found = measured(Given(sp.SoftPrompt(tokens=tokens, update=update, gates=gates)), some_rows).numbers
    pairs = zip(some_rows.embeddings.tolist(), some_rows.mask.tolist(), strict=True)
    embedding = mean(norm(e) for row, mask in pairs for e, seen in zip(row, mask, strict=True) if seen)
    rows = tokens.tolist()
    middle = [[mean(row[i][x] for row in rows) for x in range(D)] for i in range(TOKENS)]
    apart = norm(row[i][x] - middle[i][x] for row in rows for i in range(TOKENS) for x in range(D))
    whole = norm(x for row in rows for token in row for x in token)
    spreads = []
    for site in gates.tolist():
        for token in range(TOKENS):
            values = [row[token] for row in site]
            spreads.append(math.sqrt(mean((v - mean(values)) ** 2 for v in values)))
    expected = {
        "tokens.norm": mean(norm(token) for row in rows for token in row) / embedding,
        "tokens.spread": apart / whole,
        "update.norm": mean(norm(row) for row in update[0, :3].tolist()) / embedding,  # texts have 3 tokens at most
        "gates.mean": gates.mean().item(),
        "gates.spread": mean(spreads),
    }
    assert found == pytest.approx(expected, rel=1e-12)
    # Of what all rows share, there is no spread.
    shared = Given(sp.SoftPrompt(tokens=tokens[:1], gates=gates[:, :1]), per_row=False)
    assert set(measured(shared, some_rows).numbers) == {"tokens.norm", "gates.mean"}


def test_distance_from_the_start(some_rows: Rows) -> None:
    method = Given(sp.SoftPrompt())
    start = {"method.weight": torch.tensor([0.0, 2.0], dtype=torch.float64)}
    assert measured(method, some_rows, start=start).numbers == {"moved.weight": pytest.approx(norm([3, 2]) / 2)}
    # From zero, the distance itself.
    start["method.weight"].zero_()
    assert measured(method, some_rows, start=start).numbers == {"moved.weight": pytest.approx(5)}


def test_idle_parts(some_rows: Rows) -> None:
    declared = (
        Vital("one", torch.tensor(0.1), 0.2, "router: idle"),
        Vital("two", 0.3, 0.2, "masks: idle"),
        Vital("penalty", None, 0.01, "loss: idle"),
        Vital("absent", None, 1.0, "never said"),
        Vital("undefined", math.nan, 1.0, "never said"),
        Vital("plain", 0.5, 1.0),
    )
    found = measured(Given(sp.SoftPrompt(), declared), some_rows, gradients={"penalty": 0.005})
    assert found.numbers == {"one": pytest.approx(0.1), "two": 0.3, "undefined": None, "plain": 0.5, "penalty": 0.005}
    assert found.idle == ["router: idle", "loss: idle", "plain is 0.5, less than 1"]
    assert json.dumps(found.line(), allow_nan=False)
    with pytest.raises(SoftPromptError, match=r"prompt-tuning: the vital 'two' is of shape \(2,\): give one number"):
        measured(Given(sp.SoftPrompt(), (Vital("two", torch.ones(2)),)), some_rows)


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_rows_are_evenly_spaced_and_show_no_answers(family: str) -> None:
    kind = tiny.FAMILIES[family][0]
    model = sp.attach(tiny.model(family), sp.PromptTuningConfig(num_virtual_tokens=2))
    rows = []
    for number in range(70):
        ids = [10 + number % 40, 11, 12, 13, 14][: 3 + number % 3]
        answer = {"encoder": {"label": 1}, "encoder-decoder": {"labels": [5, 2]}}
        rows.append({"input_ids": ids} | answer.get(kind, {"labels": [-100] * (len(ids) - 1) + [ids[-1]]}))
    seen, chosen = rows_to_look_at(model, rows, pad_id=0), rows[::3]
    assert len(seen.mask) == len(chosen) == 24
    table = model.get_input_embeddings().weight
    for number, row in enumerate(chosen):
        visible = len(row["input_ids"]) - (kind == "decoder")
        assert seen.mask[number].tolist() == [place < visible for place in range(seen.mask.shape[1])]
        expected = table[row["input_ids"][:visible]].detach()
        torch.testing.assert_close(seen.embeddings[number, :visible], expected)


@pytest.mark.parametrize("clip", [None, 1e-3])
@pytest.mark.parametrize("parts", [1, 3])
def test_gradients_of_a_step(toy: Any, clip: float | None, parts: int) -> None:
    """Before clipping, whatever passes a step goes through; the penalty's at the prefix, which it depends on."""
    fields = {"selective_loss": 0.5, "init_std": 0.3}
    model = toy.add(toy.model(double=True), "a", "selective-prefix", double=True, **fields)
    prompt = model.prompts["a"]
    prefix, head = prompt.method.prefix, list(prompt.head.parameters())
    batch = collate(toy.train, toy.pad)
    loss = nn.functional.cross_entropy(model(batch["input_ids"], batch["attention_mask"]).logits, batch["labels"])
    rows = prefix.view(4, -1, prefix.shape[1] // 4).transpose(0, 1)
    penalty = 0.0
    for table in rows:  # a key or value table of a layer each
        for i in range(4):
            for j in range(i):
                cosine = (table[i] @ table[j]).abs() / (table[i].norm() * table[j].norm())
                penalty = penalty + 0.5 * cosine * 2 / (4 * 3) * 0.5
    torch.testing.assert_close(model.penalties["a"], penalty)
    gradients = torch.autograd.grad(loss + penalty, [prefix, *head], retain_graph=True)
    (own,) = torch.autograd.grad(penalty, [prefix])
    sizes = {"batch_size": 48 // parts, "gradient_accumulation_steps": parts, "max_steps": 1, "max_grad_norm": clip}
    (result,) = train(model, [toy.lane(validation=None, **sizes)], pad_id=toy.pad)
    whole = norm(gradients[0].flatten().tolist())
    expected = {
        "gradient.prefix": whole,
        "gradient.head": norm(x for gradient in gradients[1:] for x in gradient.flatten().tolist()),
        "penalty": norm(own.flatten().tolist()) / whole,
    }
    assert {name: result.vitals[name] for name in expected} == pytest.approx(expected, rel=1e-8)
    assert result.history == [{**result.history[0], "vitals": result.vitals}]


def test_a_prompt_without_gradients_has_none(some_rows: Rows) -> None:
    method = Given(sp.SoftPrompt(penalty=torch.tensor(1.0)))
    assert gradient_vitals(method.components(), method, some_rows) == {}


def test_numbers_of_training_do_not_depend_on_them(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained() -> tuple[Any, Any]:
        model = toy.add(toy.model(), "a", "noisy")
        toy.add(model, "b", "multi-mask", l1_lambda=0.1)
        toy.add(model, "c", "selective-prefix")
        results = train(model, [toy.lane(name, eval_every=2) for name in "abc"], pad_id=toy.pad)
        return [[line["loss"] for line in each.history] for each in results], model.prompts.state_dict()

    losses, state = trained()
    monkeypatch.setattr(loop, "gradient_vitals", lambda *args: {})
    monkeypatch.setattr(loop, "vitals_of", lambda *args: Vitals())
    others, other = trained()
    assert losses == others
    assert all(torch.equal(value, other[name]) for name, value in state.items())


ROUTER = "router: all rows get the same masks"


@pytest.mark.parametrize("scale", [0.0, 30.0])
def test_an_idle_router_is_named_at_the_end(toy: Any, tmp_path: Path, scale: float) -> None:
    model = toy.add(toy.model(), "a", "multi-mask")
    with torch.no_grad():
        model.prompts["a"].method.router.weight *= scale
    lane = toy.lane(folder=tmp_path / "a", max_steps=4, eval_every=2, learning_rates={"router": 1e-9})
    (result,) = train(model, [lane], pad_id=toy.pad)
    assert (ROUTER in result.idle) == (scale == 0)
    assert (result.vitals["routes.spread"] < 1e-6) == (scale == 0)
    stored, lines = load_result(tmp_path / "a"), load_metrics(tmp_path / "a")
    assert stored["vitals"] == lines[-1]["vitals"] == result.vitals
    assert stored["idle"] == result.idle == lines[-1].get("idle", [])
    assert {"gates.spread", "moved.router", "gradient.masks", "masks.apart"} <= result.vitals.keys()


def test_resumed_from_another_start(toy: Any, tmp_path: Path) -> None:
    """The start is that of the run, whatever the prompt holds that goes on with it; old runs have none."""

    def run(folder: Path, seed: int, pause_at: int | None = None) -> Any:
        model = toy.add(toy.model(double=True), "a", "multi-mask", seed=seed, double=True)
        lane = toy.lane(folder=folder, max_steps=6, eval_every=3)
        lane.pause_at = pause_at
        return train(model, [lane], pad_id=toy.pad)[0]

    whole = run(tmp_path / "whole", 0)
    for folder, kept in (("kept", True), ("lost", False)):
        run(tmp_path / folder, 0, pause_at=4)
        if not kept:
            (tmp_path / folder / "checkpoint" / "start.pt").unlink()
        again = run(tmp_path / folder, 1)
        moved = {name for name in whole.vitals if name.startswith("moved.")}
        assert moved == {"moved.prefix", "moved.masks", "moved.router", "moved.head"}
        expected = {name: value for name, value in whole.vitals.items() if kept or name not in moved}
        assert again.vitals == pytest.approx(expected, abs=1e-12)
        assert again.idle == whole.idle
