"""Losses that need another pass: AdaMix's consistency, MPT's distillation, against loops over rows and tokens."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

import softprompts as sp
from softprompts.methods.common import divergence
from softprompts.tasks import collate
from softprompts.training import Lane, TrainConfig, train
from softprompts.training.extra_passes import comparisons
from softprompts.training.losses import model_inputs, run_pass

ADAMIX = sp.AdaMixConfig(num_experts=4, bottleneck=3, consistency=0.7, share_up=False)
MPT = sp.MPTConfig(num_virtual_tokens=3, rank=2, teacher="on the model", distillation=0.6, temperature=2.0)
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def rows_of(form: str, count: int = 6, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of different lengths: classes, scores, tags, spans or choices of an encoder, answers of "t5" or "llama"."""
    draw = random.Random(seed)
    made: list[dict[str, Any]] = []
    for _ in range(count):
        ids = [draw.randrange(5, 60) for _ in range(draw.randrange(3, 8))]
        row: dict[str, Any] = {"input_ids": ids}
        if form == "classes":
            row["label"] = draw.randrange(3)
        elif form == "scores":
            row["label"] = draw.random()
        elif form == "tags":
            row["labels"] = [-100, *(draw.randrange(3) for _ in ids[2:]), -100]
        elif form == "spans":
            row["span"] = (0, draw.randrange(len(ids)))
        elif form == "choices":
            row = {"choices": [{"input_ids": ids[at:]} for at in range(draw.randrange(2, 4))], "label": 1}
        else:
            answer = [draw.randrange(5, 60) for _ in range(draw.randrange(1, 4))]
            if form == "llama":
                row = {"input_ids": ids + answer, "labels": [-100] * len(ids) + answer}
            else:
                row["labels"] = answer
        made.append(row)
    return made


def model_for(form: str, **prompts: sp.MethodConfig) -> Any:
    """A model that answers so, with prompts on it whose tensors all matter."""
    labels = {"scores": 1, "choices": 1, "spans": 2}.get(form, 3)
    family = form if form in ("t5", "llama") else "bert"
    if family == "bert":
        made = sp.attach(tiny.model("bert", tokens=form in ("tags", "spans"), num_labels=labels))
    else:
        made = sp.attach(tiny.model(family))
    for index, (name, config) in enumerate(prompts.items()):
        made.add_prompt(name, config, seed=index)
    made.prompts.double()
    tiny.shake(made)
    return made


def one_step(model: Any, lanes: list[Lane], side: str = "right") -> dict[str, tuple[float, dict[str, Tensor]]]:
    """Loss and gradients of the first step of each lane."""
    found: dict[str, tuple[float, dict[str, Tensor]]] = {}

    def watch(lane: Lane) -> None:
        update = lane.update

        def noted(loss: float, norm: float) -> None:
            named = model.prompts[lane.name].named_parameters()
            found[lane.name] = (loss, {key: p.grad.clone() for key, p in named if p.grad is not None})
            update(loss, norm)

        lane.update = noted  # type: ignore[method-assign]

    for lane in lanes:
        watch(lane)
    train(model, lanes, pad_id=0, padding_side=side)
    return found


def kl(p: list[Tensor], q: list[Tensor]) -> Tensor:
    """Of two lists of probabilities."""
    return sum((a * (a.log() - b.log()) for a, b in zip(p, q, strict=True)), torch.zeros(()).double())


def softmax(logits: list[Tensor], heat: float = 1.0) -> list[Tensor]:
    powers = [(value / heat).exp() for value in logits]
    return [power / sum(powers) for power in powers]


def decisions(form: str, rows: list[dict[str, Any]], batch: dict[str, Tensor], logits: Tensor) -> list[list[Any]]:
    """Row by row, where labels count: the logits to choose from and the index of the right one."""
    found: list[list[Any]] = []
    at = 0
    for index, row in enumerate(rows):
        first = int(batch["attention_mask"][index].argmax()) if "attention_mask" in batch else 0
        if form == "choices":
            scores = [logits[at + place, 0] for place in range(len(row["choices"]))]
            at += len(scores)
            found.append([(scores, row["label"])])
        elif form in ("classes", "scores"):
            found.append([(list(logits[index]), row["label"])])
        elif form == "spans":
            tokens = range(first, first + len(row["input_ids"]))
            found.append([([logits[index, t, end] for t in tokens], row["span"][end]) for end in (0, 1)])
        else:
            shift = 1 if form == "llama" else 0
            start = 0 if form == "t5" else first
            places = [place for place, label in enumerate(row["labels"]) if label != -100]
            found.append([(list(logits[index, start + place - shift]), row["labels"][place]) for place in places])
    return found


def forward(model: Any, batch: dict[str, Tensor], name: str, **more: Any) -> Any:
    return model(**model_inputs(model, batch), prompt_names=name, **more)


FORMS = ["classes", "scores", "tags", "spans", "choices", "t5", "llama"]


@pytest.mark.parametrize("form", FORMS)
def test_consistency(form: str) -> None:
    side = "left" if form in ("spans", "tags", "llama") else "right"
    rows, model = rows_of(form), model_for(form, a=ADAMIX)
    batch = collate(rows, 0, side)
    model.train()
    torch.manual_seed(11)  # what a lane draws begins at its seed
    passes = [forward(model, batch, "a").logits for _ in range(2)]
    assert not torch.allclose(*passes)  # other experts
    total, count = torch.zeros((), dtype=torch.float64), 0
    for one, other in zip(*(decisions(form, rows, batch, logits) for logits in passes), strict=True):
        for (scores, right), (again, _) in zip(one, other, strict=True):
            count += 1
            if form == "scores":
                total = total + (scores[0] - right) ** 2 + 0.7 * (scores[0] - again[0]) ** 2 / 2
                continue
            p, q = softmax(scores), softmax(again)
            total = total - p[right].log() + 0.7 * (kl(p, q) + kl(q, p)) / 2
    model.zero_grad()
    (total / count).backward()
    wanted = {key: p.grad.clone() for key, p in model.prompts["a"].named_parameters() if p.grad is not None}

    model.zero_grad()
    lane = Lane("a", TrainConfig(max_steps=1, batch_size=6, seed=11), rows)
    loss, gradients = one_step(model, [lane], side)["a"]
    close = {"rtol": 1e-5, "atol": 1e-6} if form == "scores" else CLOSE  # scores are collated in float32
    assert loss == pytest.approx(total.item() / count, rel=close["rtol"])
    assert wanted.keys() == gradients.keys()
    for key in wanted:
        torch.testing.assert_close(gradients[key], wanted[key], **close)


def states_behind(form: str, rows: list[dict[str, Any]], batch: dict[str, Tensor], states: Tensor) -> list[list[Any]]:
    """For each decision, the hidden states that are compared: of one token, or of all of the row."""
    found: list[list[Any]] = []
    for index, row in enumerate(rows):
        if form in ("tags", "t5", "llama"):
            line = [place for place, label in enumerate(row["labels"]) if label != -100]
            shift = 1 if form == "llama" else 0
            found.append([[states[index, place - shift]] for place in line])
        else:
            tokens = [states[index, t] for t in range(batch["input_ids"].shape[1]) if batch["attention_mask"][index, t]]
            found.append([tokens] * (2 if form == "spans" else 1))
    return found


@pytest.mark.parametrize("form", [form for form in FORMS if form != "choices"])
@pytest.mark.parametrize("teacher", [sp.PrefixTuningConfig(num_virtual_tokens=2), sp.PromptTuningConfig()])
def test_distillation(form: str, teacher: sp.MethodConfig) -> None:
    rows, model = rows_of(form), model_for(form, a=MPT, teacher=teacher)
    batch = collate(rows, 0)

    def answers(name: str) -> tuple[list[list[Any]], list[list[Any]]]:
        made = forward(model, batch, name, output_hidden_states=True)
        hidden = made.decoder_hidden_states if form == "t5" else made.hidden_states
        return decisions(form, rows, batch, made.logits), states_behind(form, rows, batch, hidden[-1])

    with torch.no_grad():
        model.eval()
        taught, taught_states = answers("teacher")
    model.train()
    own, own_states = answers("a")
    total, count = torch.zeros((), dtype=torch.float64), 0
    for index in range(len(rows)):
        for line, (scores, right) in enumerate(own[index]):
            count += 1
            theirs = taught[index][line][0]
            if form == "scores":
                nll, logits = (scores[0] - right) ** 2, (scores[0] - theirs[0]) ** 2 / 2
            else:
                nll = -softmax(scores)[right].log()
                logits = 4 * kl(softmax(theirs, 2.0), softmax(scores, 2.0))
            pairs = list(zip(own_states[index][line], taught_states[index][line], strict=True))
            states = sum(sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / 16 for x, y in pairs) / len(pairs)
            total = total + nll + 0.6 * (logits + states)
    model.zero_grad()
    (total / count).backward()
    wanted = {key: p.grad.clone() for key, p in model.prompts["a"].named_parameters() if p.grad is not None}
    before = {key: value.clone() for key, value in model.prompts["teacher"].state_dict().items()}

    model.zero_grad()
    lane = Lane("a", TrainConfig(max_steps=1, batch_size=6), rows, teacher="teacher")
    loss, gradients = one_step(model, [lane])["a"]
    close = {"rtol": 1e-5, "atol": 1e-6} if form == "scores" else CLOSE
    assert loss == pytest.approx(total.item() / count, rel=close["rtol"])
    assert wanted.keys() == gradients.keys()
    for key in wanted:
        torch.testing.assert_close(gradients[key], wanted[key], **close)
    assert all(p.grad is None for p in model.prompts["teacher"].parameters())
    for key, value in model.prompts["teacher"].state_dict().items():
        assert torch.equal(value, before[key]), key


def test_states_of_choices_cannot_be_compared() -> None:
    rows, model = rows_of("choices"), model_for("choices", a=MPT, teacher=sp.PromptTuningConfig())
    lane = Lane("a", TrainConfig(max_steps=1, batch_size=6), rows, teacher="teacher")
    with pytest.raises(sp.SoftPromptError, match="hidden states are not compared of rows of choices"):
        train(model, [lane], pad_id=0)
    config = sp.MPTConfig(num_virtual_tokens=3, teacher="there", match_states=False)
    model.add_prompt("b", config).prompts["b"].double()
    (result,) = train(model, [Lane("b", TrainConfig(max_steps=1), rows, teacher="teacher")], pad_id=0)
    assert result.stop_reason == "max_steps"


def test_divergence() -> None:
    torch.manual_seed(0)
    p, q = (torch.randn(3, 4, dtype=torch.float64).requires_grad_() for _ in range(2))
    expected = [kl(softmax(list(a)), softmax(list(b))) for a, b in zip(p, q, strict=True)]
    torch.testing.assert_close(divergence(p, q), torch.stack(expected))
    assert torch.autograd.gradcheck(divergence, (p, q))

    def behind_nothing(one: Tensor, other: Tensor) -> Tensor:
        none = torch.full((3, 2), -torch.inf, dtype=torch.float64)
        return divergence(torch.cat([one, none], 1), torch.cat([other, none], 1))

    torch.testing.assert_close(behind_nothing(p, q), divergence(p, q))
    assert torch.autograd.gradcheck(behind_nothing, (p, q))
    assert divergence(p, p).abs().max() < 1e-12
    torch.testing.assert_close(divergence(p[:, :1], q[:, :1]), (p - q)[:, 0] ** 2 / 2)
    # p the normal distribution around a, q around b: the integral of p log(p/q).
    a, b, step = 0.3, -1.1, 1e-3
    points = [a - 12 + step * i for i in range(int(24 / step))]
    density = [math.exp(-((x - a) ** 2) / 2) / math.sqrt(2 * math.pi) for x in points]
    integral = sum(d * ((x - b) ** 2 - (x - a) ** 2) / 2 * step for d, x in zip(density, points, strict=True))
    assert divergence(torch.tensor([[a]]), torch.tensor([[b]])).item() == pytest.approx(integral, rel=1e-4)


# --- lanes ------------------------------------------------------------------------------------------------------------

LANES: dict[str, tuple[sp.MethodConfig, int, dict[str, Any]]] = {
    "plain": (sp.PromptTuningConfig(num_virtual_tokens=2), 2, {"batch_size": 5}),
    "mixed": (ADAMIX, 2, {"batch_size": 4, "seed": 3}),
    "few": (ADAMIX, 3, {"batch_size": 2, "gradient_accumulation_steps": 3, "seed": 4}),
    "taught": (MPT, 2, {"batch_size": 6, "seed": 5}),
    "pupil": (MPT, 3, {"batch_size": 3, "gradient_accumulation_steps": 2}),
    "both": (sp.compose(MPT, ADAMIX), 2, {"batch_size": 4, "seed": 6}),
    "router": (sp.MultiMaskConfig(num_virtual_tokens=2, num_masks=2, router_noise=True), 3, {"batch_size": 5}),
}


def build(names: list[str], family: str) -> tuple[Any, list[Lane]]:
    model = sp.attach(tiny.model(family))
    labels = {"two": 2, "three": 3}
    for name, count in labels.items():
        head = {"num_labels": count} if family == "bert" else {}
        model.add_prompt(name, sp.PrefixTuningConfig(num_virtual_tokens=3, init_std=0.5), seed=count, **head)
    for name in names:
        config, count, _ = LANES[name]
        model.add_prompt(name, config, seed=len(name), **({"num_labels": count} if family == "bert" else {}))
    model.prompts.double()
    lanes = []
    for name in names:
        _, count, training = LANES[name]
        rows = rows_of("classes" if family == "bert" else family, 13, seed=len(name))
        rows = [{**row, "label": row["label"] % count} for row in rows] if family == "bert" else rows
        teacher = {2: "two", 3: "three"}[count]
        lanes.append(Lane(name, TrainConfig(max_steps=4, **training), rows, teacher=teacher))
    return model, lanes


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_lanes_end_where_they_would_alone(family: str) -> None:
    model, lanes = build(list(LANES), family)
    together = {result.name: result for result in train(model, lanes, pad_id=0)}
    for name in LANES:
        alone, (lane,) = build([name], family)
        (result,) = train(alone, [lane], pad_id=0)
        losses = [line["loss"] for line in result.history]
        assert [line["loss"] for line in together[name].history] == pytest.approx(losses, rel=1e-9)
        for key, value in alone.prompts[name].state_dict().items():
            torch.testing.assert_close(model.prompts[name].state_dict()[key], value, rtol=0, atol=1e-8, msg=key)


def test_accumulated_batches_are_one_batch() -> None:
    found = []
    for sizes in ({"batch_size": 6}, {"batch_size": 2, "gradient_accumulation_steps": 3}):
        for form in ("classes", "t5"):
            model = model_for(form, a=MPT, teacher=sp.PromptTuningConfig(num_virtual_tokens=2))
            lane = Lane("a", TrainConfig(max_steps=1, **sizes), rows_of(form), teacher="teacher")
            found.append(one_step(model, [lane])["a"])
    for one, other in zip(found[:2], found[2:], strict=True):
        assert one[0] == pytest.approx(other[0], rel=1e-9)
        for key in one[1]:
            torch.testing.assert_close(one[1][key], other[1][key], **CLOSE)


@pytest.mark.parametrize("form", ["classes", "t5"])
def test_checkpointed_layers(form: str) -> None:
    """Layers of several passes are run anew in one backward pass, each under its own experts."""
    found = []
    for checkpointing in (False, True):
        model = model_for(form, a=ADAMIX, b=MPT, teacher=sp.PromptTuningConfig(num_virtual_tokens=2))
        if checkpointing:
            model.gradient_checkpointing_enable()
        config = TrainConfig(max_steps=1, batch_size=6, seed=2)
        found.append(one_step(model, [Lane(name, config, rows_of(form), teacher="teacher") for name in "ab"]))
    for name, (loss, gradients) in found[0].items():
        assert found[1][name][0] == pytest.approx(loss, rel=1e-12)
        for key, value in gradients.items():
            torch.testing.assert_close(found[1][name][1][key], value, **CLOSE)


def test_bf16() -> None:
    losses = []
    for bf16 in (False, True):
        model = sp.attach(tiny.model("bert", torch.float32))
        model.add_prompt("teacher", sp.PromptTuningConfig(num_virtual_tokens=3), seed=2)
        model.add_prompt("a", MPT, seed=0).add_prompt("b", ADAMIX, seed=1)
        tiny.shake(model)
        config = TrainConfig(max_steps=1, batch_size=6, bf16=bf16)
        lanes = [Lane(name, config, rows_of("classes"), teacher="teacher") for name in "ab"]
        found = one_step(model, lanes)
        assert all(g.dtype == torch.float32 and g.isfinite().all() for _, some in found.values() for g in some.values())
        losses.append([found[name][0] for name in "ab"])
    assert losses[0] == pytest.approx(losses[1], rel=0.03) and losses[0] != losses[1]


@pytest.mark.parametrize("dropout", [False, True])
def test_a_teacher_drops_nothing(dropout: bool) -> None:
    """It says the same in every pass, with dropout in the backbone too; afterwards all is in training mode again."""
    model = model_for("classes", a=MPT, teacher=sp.MultiMaskConfig(num_virtual_tokens=2, router_dropout=0.5))
    model.backbone_dropout = dropout
    model.train()
    batch, names = collate(rows_of("classes"), 0), ["a"] * 6
    seen: list[Tensor] = []
    method = model.prompts["a"].method

    def note(own: Any, others: Any) -> Tensor:
        seen.append(others["teacher"].logits)
        assert others["teacher"].states.shape == (6, 7, 16) and not others["teacher"].states.requires_grad
        return type(method).compare(method, own, others)

    method.compare = note
    for _ in range(2):
        first = run_pass(model, batch, names, True)
        (found,) = comparisons(model, batch, names, first, {"a": "teacher"}).values()
        assert found.requires_grad
    assert torch.equal(*seen) and model.training and model.prompts["teacher"].method.training
    with torch.no_grad():
        alone = model.eval()(**model_inputs(model, batch), prompt_names="teacher").logits
    torch.testing.assert_close(seen[0], alone, rtol=0, atol=1e-12)  # which computes less of the last layer


def test_others_pay_nothing() -> None:
    """One pass for all, and one more for the rows of those that compare."""
    for names in (["plain", "router"], ["plain", "mixed", "few"], ["plain", "both"]):
        model, lanes = build(names, "bert")
        seen: list[int] = []
        sizes: list[int] = []
        for part in range(3):
            drawn = {lane.name: lane.next_batches()[part : part + 1] for lane in lanes}
            rows = {name: len(batch) for name, batches in drawn.items() for batch in batches}
            passes = {"plain": 1, "router": 1, "mixed": 2, "few": 2, "both": 3}
            sizes += [sum(count for name, count in rows.items() if passes[name] > at) for at in range(3)]
        sizes = [size for size in sizes if size]
        assert (len(sizes) == 1) == (names[-1] == "router")

        def note(_: Any, args: Any, kwargs: dict[str, Any], seen: list[int] = seen) -> None:
            seen.append(len(kwargs["prompt_names"]))

        handle = model.register_forward_pre_hook(note, with_kwargs=True)
        train(model, lanes, pad_id=0)
        handle.remove()
        assert seen[: len(sizes)] == sizes


def test_what_cannot_teach() -> None:
    model = sp.attach(tiny.model("bert"))
    model.add_prompt("a", MPT, labels=["x", "y"])
    model.add_prompt("other", sp.PromptTuningConfig(), labels=["y", "x"])
    model.add_prompt("more", sp.PromptTuningConfig(), num_labels=3)
    rows = rows_of("classes")
    cases = [
        (None, "run 'a': mpt learns from a teacher: put its prompt on the model and name it in the lane's teacher"),
        ("gone", "run 'a': mpt learns from a teacher: put its prompt on the model"),
        ("other", r"its teacher answers with other labels \(y, x\) than it does \(x, y\)"),
        ("more", r"its teacher answers with other labels \(LABEL_0, LABEL_1, LABEL_2\) than"),
    ]
    for teacher, message in cases:
        with pytest.raises(sp.SoftPromptError, match=message):
            train(model, [Lane("a", TrainConfig(max_steps=1), rows, teacher=teacher)], pad_id=0)


def test_a_pass_that_fails_leaves_no_hook_behind() -> None:
    model = model_for("t5", a=MPT, teacher=sp.PromptTuningConfig())
    decoder = model.get_decoder()
    before = len(decoder._forward_hooks)
    with pytest.raises(sp.SoftPromptError):
        run_pass(model, collate(rows_of("t5"), 0), "nobody", True)
    assert len(decoder._forward_hooks) == before
