"""Rows through changed modules: equal to models with these weights, in mixed batches and caches, and back."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import tiny
import torch
import transformers as tf
from torch import Tensor, nn

import softprompts as sp
from softprompts.backbones.backbone import Backbone
from softprompts.injection import module_dispatch
from softprompts.injection.speedups import frozen_linear
from softprompts.injection.state import state_of
from softprompts.soft_prompt import Frozen
from softprompts.training import predict
from softprompts.training.losses import run_pass

EXACT = {"rtol": 1e-9, "atol": 1e-9}
CHANGING: dict[str, sp.MethodConfig] = {
    "lora": sp.LoraConfig(rank=2, dropout=0.5),
    "bitfit": sp.BitFitConfig(),
    "full": sp.FullConfig(),
    "adapter": sp.AdapterConfig(reduction=4),
    "adapterdrop": sp.AdapterDropConfig(reduction=4, robust=True),
    "adamix": sp.AdaMixConfig(bottleneck=3),
}
OTHERS = {name: tiny.METHODS[name] for name in ("prompt-tuning", "prefix-tuning", "multi-mask")}
ALL = CHANGING | OTHERS


def attached(family: str, *names: str, **fields: Any) -> Any:
    model = sp.attach(tiny.model(family, **fields))
    for i, name in enumerate(names):
        model.add_prompt(name, ALL[name], seed=i)
    model.prompts.to(model.dtype)
    tiny.shake(model, 0.1)
    return model.eval()


def changed(model: Any) -> list[str]:
    return [name for name, module in model.named_modules() if module_dispatch._SLOT in module.__dict__]


def inputs_of(family: str, rows: int = 3) -> dict[str, Tensor]:
    inputs = tiny.batch(family, rows=rows, columns=max(7, rows + 1))
    if family in tiny.SEQ2SEQ:
        inputs["labels"] = torch.randint(5, 60, (rows, 4))
    else:
        inputs.pop("labels")
    return inputs


# --- what it computes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_full_is_a_model_with_these_weights(family: str) -> None:
    model, inputs = attached(family, "full"), inputs_of(family)
    got, theta = model(**inputs).logits, dict(model.prompts["full"].method.theta)
    head = model.prompts["full"].head
    plain = tiny.model(family)
    for name, module in (head or {}).items():
        getattr(plain, name).load_state_dict(module.state_dict())
    assert not torch.allclose(plain(**inputs).logits, got)
    with torch.no_grad():
        for part, module in Backbone(plain).parts:
            for name, parameter in module.named_parameters():
                own = f"{part.path}.{name}".replace(".", "/")
                if own in theta:
                    parameter.copy_(theta.pop(own))
    assert not theta
    torch.testing.assert_close(plain(**inputs).logits, got, **EXACT)


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_lora_is_a_model_with_merged_weights(family: str) -> None:
    model, inputs = attached(family, "lora"), inputs_of(family)
    got, method = model(**inputs).logits, model.prompts["lora"].method
    plain = tiny.model(family)
    for name, module in (model.prompts["lora"].head or {}).items():
        getattr(plain, name).load_state_dict(module.state_dict())
    with torch.no_grad():
        for part, module in Backbone(plain).parts:
            if part.path in method.changes:
                own = part.path.replace(".", "/")
                product = method.b[own] @ method.a[own]
                module.weight += product.t() if part.kind == "conv1d" else product
    torch.testing.assert_close(plain(**inputs).logits, got, **EXACT)


@pytest.mark.parametrize("method", list(CHANGING))
@pytest.mark.parametrize("family", ["bert", "t5", "gpt2"])
def test_gradients_reach_all_parameters_and_are_those_of_each_row_alone(family: str, method: str) -> None:
    model, inputs = attached(family, method, "prefix-tuning"), tiny.batch(family)
    prompt = model.prompts[method]
    names = [method, "prefix-tuning", method]

    def gradients(rows: Sequence[int], owners: list[str]) -> dict[str, Tensor]:
        model.zero_grad()
        logits = model(**{k: v[list(rows)] for k, v in inputs.items()}, prompt_names=owners).logits
        real = [r for r, name in enumerate(owners) if name == method]
        mask = inputs["attention_mask"][list(rows)][real]
        weights = mask[..., None] if family in tiny.DECODERS else 1
        (logits[real].square() * weights).sum().backward()
        return {name: p.grad.clone() for name, p in prompt.named_parameters() if p.grad is not None}

    mixed, alone = gradients(range(3), names), gradients([0, 2], [method] * 2)
    left_out = {"adamix": set(), "adapterdrop": {f"method.{n}" for n in dropped(prompt.method)}}.get(method, set())
    assert mixed.keys() == alone.keys() == dict(prompt.named_parameters()).keys() - left_out
    for name, gradient in mixed.items():
        torch.testing.assert_close(gradient, alone[name], **EXACT, msg=name)
    assert not any(p.grad is not None for n, p in model.named_parameters() if not n.startswith("prompts."))


def dropped(method: Any) -> list[str]:
    first = {path.replace(".", "/") for path, layer in getattr(method, "layers", {}).items() if layer == 0}
    return [name for name, _ in method.named_parameters() if name.split(".", 1)[1] in first]


# --- mixed batches ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
@pytest.mark.parametrize("order", ["by prompt", "mixed"])
def test_rows_of_a_mixed_batch_equal_separate_batches(family: str, order: str) -> None:
    model = attached(family, *ALL)
    names: list[str | None] = [*ALL, None, *ALL]
    if order == "by prompt":
        names.sort(key=str)
    few = inputs_of(family, rows=5)
    inputs = {key: value.repeat(4, 1)[: len(names)] for key, value in few.items()}
    with torch.no_grad():
        mixed = tiny.real_logits(family, model(**inputs, prompt_names=names).logits, inputs["attention_mask"])
        for index, name in enumerate(names):
            alone = model(**tiny.row(inputs, index), prompt_names=[name]).logits[0]
            torch.testing.assert_close(mixed[index][..., : alone.shape[-1]], alone, **EXACT)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "bart"])
@pytest.mark.parametrize("beams", [1, 3])
def test_mixed_generation_equals_each_alone(family: str, beams: int) -> None:
    model = attached(family, *ALL)
    names: list[str | None] = ["full", "prompt-tuning", None, "lora", "bitfit", "full"]
    inputs = inputs_of(family, rows=6)
    inputs.pop("labels", None)
    if family in tiny.DECODERS:
        inputs = tiny.pad_left(inputs)
    options = {"max_new_tokens": 5, "num_beams": beams, "do_sample": False, "eos_token_id": None}
    together = model.generate(**inputs, **options, prompt_names=names)
    for index, name in enumerate(names):
        alone = model.generate(**{k: v[index : index + 1] for k, v in inputs.items()}, **options, prompt_names=[name])
        assert torch.equal(together[index], alone[0]), name


def test_the_frozen_module_runs_once_for_all_rows() -> None:
    model, inputs = attached("bert", "lora", "bitfit", "full"), inputs_of("bert", rows=6)
    query = model.bert.encoder.layer[0].attention.self.query
    rows: list[int] = []
    own = type(query).forward

    class Counting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            rows.append(len(x))
            return own(self, x)

    query.__class__ = Counting
    model(**inputs, prompt_names=["lora", None, "bitfit", "lora", None, "bitfit"])
    assert rows == [6]
    rows.clear()
    model(**inputs, prompt_names="full")
    assert rows == [6]
    rows.clear()
    model(**inputs, prompt_names=["full", "full", "full", "lora", "full", "full"])
    assert sorted(rows) == [5, 6]


@pytest.mark.parametrize("family", ["t5", "llama", "gpt2"])
def test_losses_at_a_few_places_are_those_of_each_row(family: str) -> None:
    model = attached(family, "full", "bitfit", "lora")
    names: list[str | None] = ["bitfit", "full", None, "bitfit", "lora"]
    inputs = tiny.batch(family, rows=5, columns=9)
    labels = inputs.pop("labels")
    labels[:, 1] = -100
    inputs = {**inputs, "decoder_input_ids": labels.clamp(min=0)} if family == "t5" else inputs
    for owners in (names, ["bitfit", "bitfit", "full", "full", "lora"]):
        together = run_pass(model, {**inputs, "labels": labels}, owners).losses
        for index, name in enumerate(owners):
            row = {key: value[index : index + 1] for key, value in inputs.items()}
            alone = run_pass(model, {**row, "labels": labels[index : index + 1]}, [name]).losses
            torch.testing.assert_close(together[index : index + 1], alone, **EXACT)
            logits = model(**row, prompt_names=[name]).logits[0]
            shift = 0 if family == "t5" else 1
            wanted = sum(
                -logits[at - shift].log_softmax(-1)[target]
                for at, target in enumerate(labels[index].tolist())
                if target != -100 and at >= shift
            )
            torch.testing.assert_close(together[index], wanted, **EXACT)


def test_what_all_rows_share_cannot_differ_within_a_batch() -> None:
    model = sp.attach(tiny.model("t5"), sp.FullConfig(shared_tables=True), "whole")
    model.add_prompt("other", sp.LoraConfig())
    inputs = inputs_of("t5")
    model(**inputs, prompt_names="whole")
    model(**inputs, prompt_names="other")
    with pytest.raises(sp.SoftPromptError, match="prompt 'whole' changes '.*relative_attention_bias', which is the"):
        model(**inputs, prompt_names=["whole", "other", "whole"])


@pytest.mark.filterwarnings("ignore")
def test_modules_that_see_rows_only_some_of_the_time_are_left_alone() -> None:
    """DeBERTa's projections also see its table of relative positions, which is the same for all rows."""
    config = tf.DebertaV2Config(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        max_position_embeddings=40, relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"],
    )  # fmt: skip
    torch.manual_seed(0)
    model = sp.attach(tf.DebertaV2ForSequenceClassification(config).double().eval())
    for name in ("full", "bitfit"):
        model.add_prompt(name, ALL[name])
    model.prompts.double()
    tiny.shake(model)
    model.eval()
    method = model.prompts["full"].method
    left = {part.path.rpartition(".")[2] for part, _ in state_of(model).backbone.parts} - {
        path.rpartition(".")[2] for path in method.changes
    }
    assert {"pos_key_proj", "pos_query_proj"} <= left and "query_proj" in {p.rpartition(".")[2] for p in method.changes}
    inputs = inputs_of("bert")
    names = ["full", "bitfit", None]
    mixed = model(**inputs, prompt_names=names).logits
    for index, name in enumerate(names):
        alone = model(**tiny.row(inputs, index), prompt_names=[name]).logits[0]
        torch.testing.assert_close(mixed[index], alone, **EXACT)


# --- recomputation, random numbers, the last layer ---------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "adapterdrop", "adamix", "full"])
@pytest.mark.parametrize("family", ["bert", "t5", "llama"])
def test_gradient_checkpointing_draws_the_same(family: str, method: str) -> None:
    model, inputs = attached(family, method).train(), tiny.batch(family)

    def gradients() -> list[Tensor | None]:
        model.zero_grad()
        torch.manual_seed(3)
        tiny.loss_of(model, inputs).backward()
        return [p.grad for p in model.prompts.parameters()]

    plain = gradients()
    model.gradient_checkpointing_enable()
    for mine, theirs in zip(plain, gradients(), strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            torch.testing.assert_close(mine, theirs, **EXACT)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_one_column_of_the_last_layer_is_enough(family: str) -> None:
    model, inputs = attached(family, *CHANGING), inputs_of(family, rows=6)
    names = list(CHANGING)
    assert state_of(model).last_layer is not None
    narrow = model(**inputs, prompt_names=names).logits
    wide = model(**inputs, prompt_names=names, output_hidden_states=True).logits
    torch.testing.assert_close(narrow, wide, **EXACT)


@pytest.mark.skipif(not frozen_linear.works(), reason="this torch has no usable oneDNN")
def test_frozen_products_go_where_they_went(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_linear, "pays", lambda: True)
    model = attached("bert", "lora", "full", dtype=torch.float32)
    query = model.bert.encoder.layer[0].attention.self.query
    seen: list[int] = []
    product = frozen_linear._product

    def noted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        seen.extend([len(x)] * (weight.data_ptr() == query.weight.data_ptr()))
        return product(x, weight, bias)

    monkeypatch.setattr(frozen_linear, "_product", noted)
    inputs = inputs_of("bert")
    model(**inputs, prompt_names="lora")
    model(**inputs, prompt_names="full")
    model(**inputs, prompt_names=["lora", None, "lora"])
    assert seen == [3, 3]
    model.delete_prompt("full")
    model.delete_prompt("lora")
    assert query.__dict__["forward"].__func__ is frozen_linear._forward
    sp.detach(model)
    assert "forward" not in query.__dict__


# --- there and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_detach_gives_the_model_back(family: str) -> None:
    plain, inputs = tiny.model(family), inputs_of(family)
    before, state = plain(**inputs).logits, {k: v.clone() for k, v in plain.state_dict().items()}
    tensors = {name: id(p) for name, p in plain.named_parameters()}
    model = sp.attach(plain)
    for name, config in CHANGING.items():
        model.add_prompt(name, config)
    model.prompts.double()
    tiny.shake(model)
    with torch.no_grad():
        bare = model(**inputs, prompt_names=[None] * 3).logits
    torch.testing.assert_close(bare, before, rtol=0, atol=1e-12)
    for name in CHANGING:
        tiny.loss_of(model, tiny.batch(family), prompt_names=name).backward()
    sp.detach(model)
    assert torch.equal(model(**inputs).logits, before)
    assert {name: id(p) for name, p in model.named_parameters()} == tensors
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any("forward" in m.__dict__ or module_dispatch._SLOT in m.__dict__ for m in model.modules())


def test_modules_are_wrapped_only_while_a_prompt_changes_them() -> None:
    model = sp.attach(tiny.model("bert"), sp.PrefixTuningConfig(), "prefix")
    assert changed(model) == []
    model.add_prompt("lora", sp.LoraConfig())
    assert len(changed(model)) == 4
    assert all(name.endswith((".query", ".value")) for name in changed(model))
    model.add_prompt("adamix", sp.AdaMixConfig(bottleneck=2))
    model.add_prompt("keys", sp.LoraConfig(targets=("query", "key")))
    assert len(changed(model)) == 4 + 2 + 2
    model.set_prompt(None).delete_prompt("lora")
    assert {name.rpartition(".")[2] for name in changed(model)} == {"query", "key", "dense"}
    model.delete_prompt("keys")
    model.delete_prompt("adamix")
    assert changed(model) == []
    with pytest.raises(sp.SoftPromptError, match="changes the model's weights"):
        model.add_prompt("lora", sp.LoraConfig()).fold("lora")


@pytest.mark.parametrize("method", list(CHANGING))
def test_a_copy_has_prompts_of_its_own(method: str) -> None:
    model, inputs = attached("bert", method, "prefix-tuning"), inputs_of("bert")
    before = model(**inputs, prompt_names=method).logits
    twin = copy.deepcopy(model)
    assert torch.equal(twin(**inputs, prompt_names=method).logits, before)
    tiny.shake(twin)
    assert not torch.allclose(twin(**inputs, prompt_names=method).logits, before)
    assert torch.equal(model(**inputs, prompt_names=method).logits, before)
    twin.set_prompt(None).delete_prompt(method)
    assert changed(twin) == []
    assert torch.equal(model(**inputs, prompt_names=method).logits, before)


@pytest.mark.parametrize("method", list(CHANGING))
@pytest.mark.parametrize("family", ["bert", "t5", "llama"])
def test_save_and_load(family: str, method: str, tmp_path: Any) -> None:
    model, inputs = attached(family, method), inputs_of(family)
    before = model(**inputs).logits
    model.save_prompt(method, tmp_path)
    fresh = sp.attach(tiny.model(family)).load_prompt(tmp_path).eval()
    assert torch.equal(fresh(**inputs).logits, before)
    assert fresh.prompts[method].config == ALL[method]


def test_a_prompt_for_one_head_fits_the_same_backbone_with_another(tmp_path: Any) -> None:
    model = sp.attach(tiny.model("llama"), sp.LoraConfig(), "p")
    tiny.shake(model)
    model.save_prompt("p", tmp_path)
    base = sp.attach(copy.deepcopy(sp.detach(model)).model).load_prompt(tmp_path)
    assert len(changed(base)) == 4


def test_other_places_are_refused_in_a_line(tmp_path: Any) -> None:
    model = sp.attach(tiny.model("bert"), sp.LoraConfig(), "p")
    model.save_prompt("p", tmp_path)
    deeper = sp.attach(tiny.model("bert", num_hidden_layers=3))
    with pytest.raises(sp.SoftPromptError, match="another backbone"):
        deeper.load_prompt(tmp_path)
    assert changed(deeper) == []


def test_two_changes_on_top_of_each_other() -> None:
    module = nn.Linear(3, 4)
    x = torch.randn(2, 3)
    frozen = Frozen(module, module.forward)

    def scaled(frozen: Frozen, x: Tensor) -> Tensor:
        return 2 * frozen(x)

    def plus(frozen: Frozen, x: Tensor) -> Tensor:
        return frozen(x) + 1

    torch.testing.assert_close(plus(frozen.behind(scaled), x), 2 * module(x) + 1)
    torch.testing.assert_close(scaled(frozen.behind(plus), x), 2 * (module(x) + 1))


@pytest.mark.parametrize("family", ["t5", "llama", "bert"])
def test_predictions_of_several_prompts_at_once(family: str) -> None:
    model = attached(family, *ALL)
    draw = torch.Generator().manual_seed(2)
    features = [{"input_ids": torch.randint(5, 60, (4 + i % 3,), generator=draw).tolist()} for i in range(2 * len(ALL))]
    names = [*ALL, *ALL]
    answers = None if family == "bert" else [[7, 2], [9, 12, 2], [11, 2]]
    together = predict(model, features, names, pad_id=0, label_ids=answers, batch_size=10)
    for index, name in enumerate(names):
        alone = predict(model, features[index : index + 1], name, pad_id=0, label_ids=answers)
        assert together.probabilities is not None and alone.probabilities is not None
        assert together.probabilities[index] == pytest.approx(alone.probabilities[0], abs=1e-9)
