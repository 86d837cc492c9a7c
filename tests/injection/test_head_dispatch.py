"""Task heads: each prompt owns its own, and every row of a batch goes through that of its prompt."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
import transformers as tf
from torch import Tensor, nn

import softprompts as sp

EXACT = {"rtol": 1e-9, "atol": 1e-9}


def settings(family: str, **more: Any) -> Any:
    made = tiny.FAMILIES[family][1]()
    made.classifier_dropout = 0.0
    for key, value in more.items():
        setattr(made, key, value)
    return made


def build(cls: Any, family: str, *names: str, counts: tuple[int | None, ...] = (), **more: Any) -> Any:
    """A random model of a class, with prompts on it that have heads of the given sizes."""
    torch.manual_seed(0)
    model = sp.attach(cls(settings(family, **more)).double().eval())
    for i, name in enumerate(names):
        number = counts[i] if counts else None
        model.add_prompt(name, tiny.METHODS[name], num_labels=number, seed=i)
    model.prompts.double()
    tiny.shake(model)
    return model.eval()


HEADS: dict[str, tuple[Any, str, list[str]]] = {
    "bert": (tf.BertForSequenceClassification, "bert", ["classifier"]),
    "roberta": (tf.RobertaForSequenceClassification, "roberta", ["classifier"]),
    "distilbert": (tf.DistilBertForSequenceClassification, "distilbert", ["pre_classifier", "classifier"]),
    "modernbert": (tf.ModernBertForSequenceClassification, "modernbert", ["head", "classifier"]),
    "electra": (tf.ElectraForSequenceClassification, "electra", ["classifier"]),
    "bart": (tf.BartForSequenceClassification, "bart", ["classification_head"]),
    "t5": (tf.T5ForSequenceClassification, "t5", ["classification_head"]),
    "llama": (tf.LlamaForSequenceClassification, "llama", ["score"]),
    "gpt2": (tf.GPT2ForSequenceClassification, "gpt2", ["score"]),
}


def classifier_batch(family: str) -> dict[str, Tensor]:
    inputs = tiny.batch(family)
    if family in ("bart", "t5"):  # these classify at the end of the sequence
        for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
            row[mask.sum() - 1] = 2
    inputs["labels"] = torch.tensor([1, 0, 1])
    return inputs


@pytest.mark.parametrize("family", list(HEADS))
def test_prompts_own_their_heads(family: str) -> None:
    cls, base, names = HEADS[family]
    model = build(cls, base, "prompt-tuning", "prefix-tuning", counts=(None, 5), num_labels=3, pad_token_id=0)
    for prompt, count in (("prompt-tuning", 3), ("prefix-tuning", 5)):
        assert list(model.prompts[prompt].head) == names
        assert model.prompts[prompt].num_labels == count
        assert all(p.requires_grad for p in model.prompts[prompt].head.parameters())
    assert not any(p.requires_grad for name in names for p in getattr(model, name).parameters())
    own = {id(p) for p in model.prompts["prompt-tuning"].parameters()}
    assert not own & {id(p) for p in model.prompts["prefix-tuning"].parameters()}

    inputs = classifier_batch(family)
    for prompt, count in (("prompt-tuning", 3), ("prefix-tuning", 5)):
        model.zero_grad()
        out = model.set_prompt(prompt)(**inputs)
        assert out.logits.shape == (3, count)
        torch.testing.assert_close(out.loss, F.cross_entropy(out.logits, inputs["labels"]), rtol=1e-6, atol=0)
        out.loss.backward()
        for name, parameter in model.named_parameters():
            if name.startswith(f"prompts.{prompt}."):
                assert parameter.grad is not None, name
                assert parameter.grad.abs().max() > 0, name
            else:
                assert parameter.grad is None, name


@pytest.mark.parametrize("family", list(HEADS))
def test_a_new_head_starts_as_the_models_own_where_it_fits(family: str) -> None:
    cls, base, names = HEADS[family]
    torch.manual_seed(0)
    model = cls(settings(base, num_labels=3, pad_token_id=0)).double().eval()
    originals = {name: {k: v.clone() for k, v in getattr(model, name).state_dict().items()} for name in names}
    sp.attach(model, sp.PrefixTuningConfig(), "same")
    model.add_prompt("other", sp.PrefixTuningConfig(), num_labels=4)
    for name in names:
        same, other = (model.prompts[p].head[name].state_dict() for p in ("same", "other"))
        assert all(torch.equal(same[key], value) for key, value in originals[name].items())
        assert same.keys() == other.keys()
    last = [m for m in model.prompts["other"].head.modules() if isinstance(m, nn.Linear)][-1]
    assert last.out_features == 4
    assert (last.weight.dtype, last.bias is None) == (torch.float32, base in ("llama", "gpt2"))
    assert 0.1 < last.weight.std() / getattr(model.config, "initializer_range", 0.02) < 3


@pytest.mark.parametrize("names", [["prefix-tuning"] * 3, ["prompt-tuning", "prefix-tuning", None]])
@pytest.mark.parametrize("ignored", [[1], [0, 2], [0, 1, 2]])
def test_rows_with_an_ignored_label_do_not_count(names: list[str | None], ignored: list[int]) -> None:
    model = build(tf.BertForSequenceClassification, "bert", "prompt-tuning", "prefix-tuning", num_labels=3)
    inputs = classifier_batch("bert")
    inputs["labels"][ignored] = -100
    out = model(**inputs, prompt_names=names)
    expected = F.cross_entropy(out.logits, inputs["labels"])  # not a number where no row counts
    torch.testing.assert_close(out.loss, expected, rtol=1e-6, atol=0, equal_nan=True)
    summed = model(**inputs, prompt_names=names, num_items_in_batch=4).loss
    expected = F.cross_entropy(out.logits, inputs["labels"], reduction="sum") / 4
    torch.testing.assert_close(summed, expected, rtol=1e-6, atol=0)
    bare = model(**inputs, prompt_names=[None] * 3)
    torch.testing.assert_close(bare.loss, F.cross_entropy(bare.logits, inputs["labels"]), **EXACT, equal_nan=True)


def test_minus_a_hundred_is_a_value_in_regression() -> None:
    model = build(tf.BertForSequenceClassification, "bert", "prefix-tuning", counts=(1,))
    inputs = classifier_batch("bert") | {"labels": torch.tensor([-100.0, 1.0, 2.0])}
    out = model(**inputs)
    torch.testing.assert_close(out.loss, F.mse_loss(out.logits[:, 0], inputs["labels"].double()), rtol=1e-6, atol=0)


@pytest.mark.parametrize("family", list(HEADS))
def test_different_numbers_of_labels_in_one_batch(family: str) -> None:
    cls, base, _ = HEADS[family]
    names = ["prompt-tuning", "prefix-tuning", None]
    model = build(cls, base, "prompt-tuning", "prefix-tuning", counts=(2, 5), num_labels=3, pad_token_id=0)
    inputs = classifier_batch(family)
    out = model(**inputs, prompt_names=names)
    assert out.logits.shape == (3, 5)
    widths = [2, 5, 3]
    losses = []
    for row, (name, width) in enumerate(zip(names, widths, strict=True)):
        assert torch.isfinite(out.logits[row, :width]).all()
        assert (out.logits[row, width:] == float("-inf")).all()
        alone = model(**tiny.row(inputs, row), prompt_names=[name])
        assert alone.logits.shape == (1, width)
        torch.testing.assert_close(out.logits[row, :width], alone.logits[0], **EXACT)
        losses.append(F.cross_entropy(alone.logits, inputs["labels"][row : row + 1]))
    torch.testing.assert_close(out.loss, torch.stack(losses).mean(), rtol=1e-6, atol=0)
    assert (out.logits.argmax(1) < torch.tensor(widths)).all()
    as_tuple = model(**inputs, prompt_names=names, return_dict=False)
    assert torch.equal(as_tuple[0], out.loss)
    assert torch.equal(as_tuple[1], out.logits)
    assert next(iter(out)) == "loss"
    out.loss.backward()
    for name, parameter in model.prompts.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("family", ["bert", "t5", "llama"])
def test_rows_come_back_in_the_order_of_the_batch(family: str) -> None:
    cls, base, _ = HEADS[family]
    chosen = ("prompt-tuning", "prefix-tuning", "ept", "multi-mask")
    model = build(cls, base, *chosen, counts=(2, 5, 3, 4), num_labels=3, pad_token_id=0)
    names = ["prefix-tuning", "ept", None, "multi-mask", "prompt-tuning", "prefix-tuning", "multi-mask", "ept", None]
    inputs = tiny.batch(family, rows=9, columns=11)
    inputs.pop("labels")
    if family == "t5":
        inputs["input_ids"][range(9), inputs["attention_mask"].sum(1) - 1] = 2
    mixed = model(**inputs, prompt_names=names).logits
    for row, name in enumerate(names):
        alone = model(**tiny.row(inputs, row), prompt_names=[name]).logits[0]
        torch.testing.assert_close(mixed[row, : len(alone)], alone, **EXACT)
        assert (mixed[row, len(alone) :] == float("-inf")).all()


def test_gradients_of_a_mixed_batch_are_those_of_its_parts() -> None:
    names = ["prompt-tuning", "prefix-tuning", "prompt-tuning"]
    model = build(tf.BertForSequenceClassification, "bert", *names[:2], counts=(2, 5), num_labels=3)
    inputs = classifier_batch("bert")
    model(**inputs, prompt_names=names).loss.backward()
    together = {name: p.grad.clone() for name, p in model.prompts.named_parameters()}
    model.zero_grad()
    for row, name in enumerate(names):
        (model(**tiny.row(inputs, row), prompt_names=name).loss / 3).backward()
    for name, parameter in model.prompts.named_parameters():
        torch.testing.assert_close(together[name], parameter.grad, **EXACT)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_regression_and_several_labels_a_row(family: str) -> None:
    cls, base, _ = HEADS[family]
    model = build(cls, base, "prompt-tuning", "prefix-tuning", counts=(1, 4), num_labels=3, pad_token_id=0)
    inputs = classifier_batch(family)
    scores = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    out = model(**inputs | {"labels": scores}, prompt_names="prompt-tuning")
    assert out.logits.shape == (3, 1)
    torch.testing.assert_close(out.loss, ((out.logits[:, 0] - scores) ** 2).mean(), rtol=1e-6, atol=0)
    column = model(**inputs | {"labels": scores[:, None]}, prompt_names="prompt-tuning")
    torch.testing.assert_close(column.loss, out.loss, **EXACT)

    several = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]], dtype=torch.float64)
    out = model(**inputs | {"labels": several}, prompt_names="prefix-tuning")
    expected = F.binary_cross_entropy_with_logits(out.logits, several)
    torch.testing.assert_close(out.loss, expected, rtol=1e-6, atol=0)
    model.config.problem_type = "multi_label_classification"
    whole = model(**inputs | {"labels": several.long()}, prompt_names="prefix-tuning")
    torch.testing.assert_close(whole.loss, expected, rtol=1e-6, atol=0)


def test_several_labels_a_row_with_different_numbers_of_labels() -> None:
    model = build(
        tf.BertForSequenceClassification, "bert", "prompt-tuning", "prefix-tuning", counts=(2, 5), num_labels=3
    )
    inputs = classifier_batch("bert")
    labels = torch.randint(0, 2, (3, 5)).double()
    out = model(**inputs | {"labels": labels}, prompt_names=["prompt-tuning", "prefix-tuning", None])
    losses = [
        F.binary_cross_entropy_with_logits(out.logits[row, :width], labels[row, :width])
        for row, width in enumerate((2, 5, 3))
    ]
    torch.testing.assert_close(out.loss, torch.stack(losses).mean(), rtol=1e-6, atol=0)


def test_the_loss_of_an_accumulated_batch_adds_up() -> None:
    model = build(
        tf.BertForSequenceClassification, "bert", "selective-prefix", "prefix-tuning", counts=(3, 4), num_labels=3
    )
    inputs = classifier_batch("bert")
    for name, labels in (
        ("selective-prefix", inputs["labels"]),
        ("prefix-tuning", torch.rand(3, 4, dtype=torch.float64)),
    ):
        whole = model(**inputs | {"labels": labels}, prompt_names=name).loss
        parts = [
            model(
                **{key: value[rows] for key, value in (inputs | {"labels": labels}).items()},
                prompt_names=name,
                num_items_in_batch=labels.numel(),
            ).loss
            for rows in (slice(0, 2), slice(2, 3))
        ]
        torch.testing.assert_close(parts[0] + parts[1], whole, **EXACT)


def test_the_penalty_of_an_accumulated_language_model_batch_adds_up() -> None:
    model, inputs = tiny.attached("llama", "selective-prefix"), tiny.batch("llama")
    items = int((inputs["labels"] != -100).sum())
    with_items = model(**inputs, num_items_in_batch=items).loss
    torch.testing.assert_close(with_items, model(**inputs).loss, rtol=1e-6, atol=0)
    halves = [
        model(**{key: value[rows] for key, value in inputs.items()}, num_items_in_batch=items).loss
        for rows in (slice(0, 2), slice(2, 3))
    ]
    torch.testing.assert_close(halves[0] + halves[1], with_items, rtol=1e-6, atol=0)


# --- other tasks ---


def test_token_classification() -> None:
    names = ["prompt-tuning", "prefix-tuning", None]
    model = build(tf.BertForTokenClassification, "bert", "prompt-tuning", "prefix-tuning", counts=(4, 6), num_labels=5)
    inputs = tiny.batch("bert")
    labels = torch.randint(0, 4, (3, 7)).masked_fill(inputs["attention_mask"] == 0, -100)
    inputs["labels"] = labels
    for name, count in (("prompt-tuning", 4), ("prefix-tuning", 6), (None, 5)):
        out = model(**inputs, prompt_names=[name] * 3)
        assert out.logits.shape == (3, 7, count)
        expected = F.cross_entropy(out.logits.flatten(0, 1), labels.flatten())
        torch.testing.assert_close(out.loss, expected, rtol=1e-6, atol=0)
    mixed = model(**inputs, prompt_names=names)
    assert mixed.logits.shape == (3, 7, 6)
    tokens = [F.cross_entropy(mixed.logits[r], labels[r], reduction="sum") for r in range(3)]
    torch.testing.assert_close(mixed.loss, sum(tokens) / (labels != -100).sum(), rtol=1e-6, atol=0)
    for row, name in enumerate(names):
        alone = tiny.row({k: v for k, v in inputs.items() if k != "labels"}, row)
        width = (4, 6, 5)[row]
        real = inputs["attention_mask"][row].bool()
        expected = model(**alone, prompt_names=[name]).logits[0]
        torch.testing.assert_close(mixed.logits[row][real][:, :width], expected, **EXACT)
    mixed.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.prompts.parameters())


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning", "selective-prefix"])
def test_question_answering(method: str) -> None:
    model = build(tf.BertForQuestionAnswering, "bert", method)
    inputs = tiny.batch("bert")
    inputs.pop("labels")
    starts, ends = torch.tensor([1, 2, 0]), torch.tensor([3, 2, 4])
    out = model(**inputs, start_positions=starts, end_positions=ends)
    assert out.start_logits.shape == out.end_logits.shape == (3, 7)
    expected = (F.cross_entropy(out.start_logits, starts) + F.cross_entropy(out.end_logits, ends)) / 2
    penalty = sum(model.penalties.values())
    assert (method == "selective-prefix") == bool(model.penalties)
    torch.testing.assert_close(out.loss, expected + penalty, rtol=1e-6, atol=0)
    as_tuple = model(**inputs, start_positions=starts, end_positions=ends, return_dict=False)
    torch.testing.assert_close(as_tuple[0], out.loss, **EXACT)
    out.loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.prompts.parameters())
    no_answers = model(**inputs, return_dict=False)
    assert torch.equal(no_answers[0], out.start_logits)
    bare = model(**inputs, prompt_names=[None] * 3)
    mixed = model(**inputs, prompt_names=[method, None, method])
    torch.testing.assert_close(mixed.start_logits[0], out.start_logits[0], **EXACT)
    torch.testing.assert_close(mixed.start_logits[1, :6], bare.start_logits[1, :6], **EXACT)


def test_multiple_choice() -> None:
    model = build(tf.BertForMultipleChoice, "bert", "prompt-tuning", "multi-mask")
    torch.manual_seed(2)
    ids = torch.randint(5, 60, (3, 2, 6))
    mask = torch.ones_like(ids)
    mask[1, 1, 4:] = 0
    labels = torch.tensor([1, 0, 1])
    names = ["prompt-tuning", "multi-mask", "multi-mask"]
    out = model(input_ids=ids, attention_mask=mask, labels=labels, prompt_names=names)
    assert out.logits.shape == (3, 2)
    torch.testing.assert_close(out.loss, F.cross_entropy(out.logits, labels), rtol=1e-6, atol=0)
    for row, name in enumerate(names):
        alone = model(input_ids=ids[row : row + 1], attention_mask=mask[row : row + 1], prompt_names=name)
        torch.testing.assert_close(out.logits[row], alone.logits[0], **EXACT)
    out.loss.backward()
    for key, parameter in model.prompts.named_parameters():
        assert parameter.grad is not None
        if not key.endswith("classifier.bias"):  # which moves all choices alike, so the softmax does not see it
            assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning", "ept"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_decoders_are_pooled_at_their_last_real_token(family: str, method: str, side: str) -> None:
    model = build(HEADS[family][0], family, method, num_labels=3, pad_token_id=0)
    inputs = tiny.batch(family)
    inputs.pop("labels")
    padded = tiny.pad_left(inputs) if side == "left" else inputs
    logits = model(**padded).logits
    for row in range(3):
        torch.testing.assert_close(logits[row], model(**tiny.row(inputs, row)).logits[0], **EXACT)
    base = model.base_model(**inputs).last_hidden_state
    last = base[range(3), inputs["attention_mask"].sum(1) - 1]
    head = model.prompts[method].head["score"]
    torch.testing.assert_close(model(**inputs).logits, head(last), **EXACT)


# --- label names ---


def test_label_names_follow_the_active_prompt() -> None:
    model = tiny.model("bert")
    model.config.id2label = {0: "no", 1: "maybe", 2: "yes"}
    model.config.label2id = {"no": 0, "maybe": 1, "yes": 2}
    sp.attach(model, sp.PrefixTuningConfig(), "own")
    model.add_prompt("stars", sp.PrefixTuningConfig(), labels=["one", "two", "three", "four"])
    model.add_prompt("plain", sp.PrefixTuningConfig(), num_labels=2)
    assert model.prompts["own"].labels == ["no", "maybe", "yes"]
    assert model.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    model.set_prompt("stars")
    assert model.config.id2label == {0: "one", 1: "two", 2: "three", 3: "four"}
    assert model.config.label2id == {"one": 0, "two": 1, "three": 2, "four": 3}
    assert model.config.num_labels == model.num_labels == 4
    model.set_prompt("plain")
    assert model.config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert model.num_labels == 2
    with model.disable_prompt():
        assert model.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
        assert model.num_labels == 3
    assert model.num_labels == 2
    model.set_prompt(None).delete_prompt("plain")
    assert model.config.num_labels == 3
    model.set_prompt("stars")
    sp.detach(model)
    assert model.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    assert model.config.label2id == {"no": 0, "maybe": 1, "yes": 2}
    assert model.config.num_labels == model.num_labels == 3


def test_models_without_a_task_head_have_none() -> None:
    for family in ("llama", "t5"):
        model = sp.attach(tiny.model(family), sp.PrefixTuningConfig())
        assert model.prompts["default"].head is None
        assert model.prompts["default"].num_labels is None
        assert model.prompts["default"].labels == []
    base = sp.attach(tf.BertModel(settings("bert")), sp.PrefixTuningConfig())
    assert base.prompts["default"].head is None


def test_a_heads_parameters_are_a_component() -> None:
    model = sp.attach(tiny.model("bert"), sp.PrefixTuningConfig())
    parts = model.prompts["default"].components()
    assert parts["head"].learning_rate == sp.PrefixTuningConfig.head_learning_rate
    model.add_prompt("alone", sp.HeadOnlyConfig())
    alone = model.prompts["alone"].components()
    assert alone.keys() == {"head"} and alone["head"].learning_rate == sp.HeadOnlyConfig.head_learning_rate
    model.delete_prompt("alone")
    assert list(parts) == ["prefix", "head"]
    listed = [id(p) for part in parts.values() for p in part.parameters]
    assert sorted(listed) == sorted(id(p) for p in model.parameters() if p.requires_grad)
