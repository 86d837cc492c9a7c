"""Backbones in 4 and 8 bits: the numbers are those of the weights that they stand for, and only prompts train."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers as tf
from saved import Cli, model_folder, rows, write_csv
from torch import Tensor
from trainer_inputs import arguments, prompt_state
from trainer_inputs import rows as dataset

import softprompts as sp
from softprompts.backbones import quantized
from softprompts.backbones.loading import quantization_arguments
from softprompts.experiments.run_record import Run
from softprompts.experiments.workbench import Workbench
from softprompts.tasks.data import Data
from softprompts.training import TrainConfig, load_result

pytest.importorskip("bitsandbytes")
pytest.importorskip("torchao")

KINDS = list(quantized.BACKENDS)
FAMILIES = ["bert", "t5", "llama"]
CLASSES: dict[str, Any] = {
    "bert": tf.AutoModelForSequenceClassification,
    "t5": tf.AutoModelForSeq2SeqLM,
    "llama": tf.AutoModelForCausalLM,
}
# A block of 4-bit weights has 64 numbers.
SIZES: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 64, "intermediate_size": 64, "initializer_range": 0.1},
    "t5": {"d_model": 64, "d_kv": 16, "d_ff": 64, "num_heads": 4, "initializer_factor": 0.5},
    "llama": {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16, "initializer_range": 0.1},
}
METHODS: dict[str, sp.MethodConfig] = {
    "prompt-tuning": sp.PromptTuningConfig(num_virtual_tokens=3),
    "prefix-tuning": sp.PrefixTuningConfig(num_virtual_tokens=3),
    "superpos": sp.SuperPosConfig(num_virtual_tokens=2, num_sampled_tokens=5),
    "dept": sp.DePTConfig(num_virtual_tokens=3, rank=2, max_length=16),
    "multi-mask": sp.MultiMaskConfig(num_virtual_tokens=3, num_masks=2, router_dropout=0.0),
    "selective-prefix": sp.SelectivePrefixConfig(num_virtual_tokens=3, alpha=4.0, selective_loss=1e-2),
    "lora": sp.LoraConfig(rank=2, dropout=0.0, targets=("query", "value", "ffn.in")),
    "adapter": sp.AdapterConfig(reduction=4),
    "bitfit": sp.BitFitConfig(),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for family in FAMILIES:
        made[family] = tmp_path_factory.mktemp(family)
        tiny.model(family, torch.float32, **SIZES[family]).save_pretrained(made[family])
    return made


@pytest.fixture(scope="module")
def load(folders: dict[str, Path]) -> Callable[..., Any]:
    """A fresh model of a family, quantised or (None) as it is."""
    kept: dict[tuple[str, str | None], Any] = {}

    def loaded(family: str, kind: str | None) -> Any:
        if (family, kind) not in kept:
            config = tf.AutoConfig.from_pretrained(folders[family])
            more = {} if kind is None else quantization_arguments(CLASSES[family], config, kind, torch.device("cpu"))
            kept[family, kind] = CLASSES[family].from_pretrained(folders[family], **more).eval()
        return copy.deepcopy(kept[family, kind])

    return loaded


def packed(model: Any) -> dict[str, torch.nn.Module]:
    return {name: module for name, module in model.named_modules() if quantized.holds_packed(module)}


def as_floats(model: Any, plain: Any) -> Any:
    """The plain model with the numbers that the quantised one's weights stand for."""
    for name, module in packed(model).items():
        plain.get_submodule(name).weight.data.copy_(quantized.dequantized_weight(module))
    return plain


def bytes_of(model: Any) -> dict[str, Tensor]:
    """Everything of the backbone, bit for bit."""
    found: dict[str, Tensor] = {}
    for name, value in model.named_parameters():
        if name.startswith("prompts."):
            continue
        state = getattr(value, "quant_state", None)
        if state is not None:
            found[f"{name} absmax"], found[f"{name} code"] = state.absmax.clone(), state.code.clone()
        if type(value).__module__.startswith("torchao"):
            found[name], found[f"{name} scale"] = value.qdata.clone(), value.scale.clone()
        else:
            found[name] = value.detach().clone()
    for name, module in packed(model).items():
        scale = getattr(getattr(module, "state", None), "SCB", None)
        if scale is not None:
            found[f"{name} scale"] = scale.clone()
    return found


def shaken(model: Any, *names: str) -> Any:
    made = sp.attach(model)
    for i, name in enumerate(names):
        made.add_prompt(name, METHODS[name], seed=i)
    tiny.shake(made, 0.1)
    return made.eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_quantised_and_what_trains_is_not(load: Any, family: str, kind: str) -> None:
    model = load(family, kind)
    layers = packed(model)
    assert len(layers) >= 12 and not any("classifier" in name or "lm_head" in name for name in layers)
    assert quantized.name_of(model) == kind and quantized.name_of(load(family, None)) is None
    numbers = sum(map(quantized.size, model.parameters()))
    assert numbers == sum(p.numel() for p in load(family, None).parameters())
    assert all(quantized.dequantized_weight(m).shape == (m.out_features, m.in_features) for m in layers.values())


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_weights_that_were_repacked_for_inference_are_put_back(load: Any, kind: str) -> None:
    """bitsandbytes does it where there is AVX512-BF16, in the first pass without gradients."""
    model, plain, inputs = load("llama", kind), load("llama", None), tiny.batch("llama")
    plain = shaken(as_floats(model, plain), "prompt-tuning")
    with torch.no_grad():
        model(**inputs)
    model = shaken(model, "prompt-tuning")
    grads = []
    for each in (model, plain):
        with torch.no_grad():
            each(**inputs)
        each(**inputs).loss.backward()
        grads.append(each.prompts["prompt-tuning"].method.prompt.grad)
    # What it makes of the scales is their third digit; without the products' gradients nothing would agree.
    torch.testing.assert_close(*grads, rtol=0.05, atol=0.02 * grads[1].abs().max().item())


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning", "dept", "selective-prefix", "lora", "adapter"])
@pytest.mark.parametrize("kind", ["nf4", "fp4", "torchao-int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_numbers_are_those_of_the_dequantised_weights(load: Any, family: str, kind: str, method: str) -> None:
    model = load(family, kind)
    plain = shaken(as_floats(model, load(family, None)), method)
    model = shaken(model, method)
    plain.prompts.load_state_dict(model.prompts.state_dict())
    inputs = tiny.batch(family)
    results = []
    for each in (model, plain):
        output = each(**inputs)
        output.loss.backward()
        results.append((output.logits.detach(), {n: p.grad for n, p in each.prompts.named_parameters()}))
    (ours, our_grads), (theirs, their_grads) = results
    for one, other in zip(
        tiny.real_logits(family, ours, inputs["attention_mask"]),
        tiny.real_logits(family, theirs, inputs["attention_mask"]),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert any(grad is not None for grad in our_grads.values())
    for name, grad in their_grads.items():
        torch.testing.assert_close(our_grads[name], grad, rtol=1e-3, atol=1e-4, msg=name)


def test_int8_numbers_are_those_of_rounded_inputs_and_weights(load: Any) -> None:
    """LLM.int8() rounds what goes into a product too, row by row; here with tensors of float64."""
    model = load("bert", "int8")
    layer = packed(model)["bert.encoder.layer.0.intermediate.dense"]
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        made = layer(x).double()
    half = x.half().double()
    scale = half.abs().amax(1, keepdim=True)
    codes = (half * 127 / scale).round()
    wanted = (codes * scale / 127) @ quantized.dequantized_weight(layer).double().T + layer.bias.double()
    torch.testing.assert_close(made, wanted, rtol=0, atol=5e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_prompt_trains(load: Any, family: str, kind: str, method: str) -> None:
    model = sp.attach(load(family, kind), METHODS[method], seed=0)
    model.train()
    before = bytes_of(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert all(p.dtype == torch.float32 for p in parameters)
    assert {id(p) for p in parameters} == {id(p) for p in model.prompts.parameters() if p.requires_grad}
    groups = model.prompts["default"].components().values()
    optimizer = torch.optim.AdamW([{"params": list(g.parameters), "lr": 1e-2} for g in groups])
    inputs, losses = tiny.batch(family), []
    for _ in range(6):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is None for n, p in model.named_parameters() if not n.startswith("prompts."))
    after = bytes_of(model)
    assert len(before) > 20 and all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_go_to_the_plain_model_and_back(load: Any, family: str, kind: str, tmp_path: Path) -> None:
    model = shaken(load(family, kind), "prefix-tuning", "lora")
    for name in model.prompts:
        model.save_prompt(name, tmp_path / name)
        assert json.loads((tmp_path / name / "softprompt_config.json").read_text())["backbone"]["quantization"] == kind
    plain = sp.attach(load(family, None))
    back = sp.attach(load(family, kind))
    inputs = tiny.batch(family)
    for name in model.prompts:
        plain.load_prompt(tmp_path / name)
        plain.save_prompt(name, tmp_path / f"{name} again")
        back.load_prompt(tmp_path / f"{name} again")
        with torch.no_grad():
            there, here = (each(**inputs, prompt_names=name).logits for each in (model, back))
        assert torch.equal(there, here)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_detached_it_is_what_it_was(load: Any, family: str, kind: str) -> None:
    model, inputs = load(family, kind), tiny.batch(family)
    quantized.keep_layout(model)  # as bitsandbytes repacks what runs without gradients
    with torch.no_grad():
        before = model(**inputs).logits
        sp.attach(model, METHODS["lora"], seed=0)
        assert torch.equal(model(**inputs, prompt_names=[None] * 3).logits, before)
        sp.detach(model)
        assert all(
            module.support_avx512bf16_for_cpu == type(module)(32, 32).support_avx512bf16_for_cpu
            for module in packed(model).values()
            if kind in ("nf4", "fp4")
        )
        quantized.keep_layout(model)
        assert torch.equal(model(**inputs).logits, before)
    assert not getattr(model, "_hf_peft_config_loaded", False)


@pytest.mark.parametrize("kind", ["nf4", "fp4", "torchao-int8"])  # int8 sets outliers apart by the whole batch
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_a_mixed_batch_are_those_of_each_prompt(load: Any, family: str, kind: str) -> None:
    names = ["prompt-tuning", "lora", "prefix-tuning"]
    model = shaken(load(family, kind), *names)
    inputs = {key: value for key, value in tiny.batch(family).items() if key != "labels"}
    if family == "t5":
        inputs["decoder_input_ids"] = torch.tensor([[0, 7, 8]] * 3)
    with torch.no_grad():
        mixed = model(**inputs, prompt_names=names).logits
        alone = [model(**inputs, prompt_names=name).logits[i] for i, name in enumerate(names)]
    for row, own, mask in zip(mixed, alone, inputs["attention_mask"].bool(), strict=True):
        there = mask if family == "llama" else slice(None)
        torch.testing.assert_close(row[there], own[there], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["t5", "llama"])
def test_generates_alike_with_and_without_cache(load: Any, family: str, kind: str) -> None:
    model = shaken(load(family, kind), "prefix-tuning", "prompt-tuning")
    ids = tiny.batch(family)["input_ids"][:1]
    for name in model.prompts:
        found = [
            model.generate(input_ids=ids, prompt_names=name, max_new_tokens=5, do_sample=False, use_cache=use)
            for use in (True, False)
        ]
        # int8 rounds by what else is in the pass, so that near ties may fall either way.
        assert found[0].shape == found[1].shape if kind == "int8" else torch.equal(*found)


@pytest.mark.parametrize("kind", ["nf4", "int8", "torchao-int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_trainer_with_gradient_checkpointing(load: Any, family: str, kind: str, tmp_path: Path) -> None:
    states = []
    for checkpointing in (False, True):
        model = shaken(load(family, kind), "prefix-tuning")
        frozen, before = bytes_of(model), prompt_state(model)
        settings = arguments(tmp_path, gradient_checkpointing=checkpointing)
        tf.Trainer(model, tf.TrainingArguments(**settings), train_dataset=dataset(family)).train()
        states.append(prompt_state(model))
        assert all(not torch.equal(value, before[key]) for key, value in states[-1].items())
        after = bytes_of(model)
        assert all(torch.equal(value, after[key]) for key, value in frozen.items())
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_packed_cannot_be_trained(load: Any, kind: str) -> None:
    with pytest.raises(sp.SoftPromptError, match="is quantised, and its weights cannot be trained.*lora or adapter"):
        sp.attach(load("bert", kind), sp.FullConfig())


@pytest.mark.parametrize("config", ["nf4", "torchao-int8"])
def test_a_head_that_was_quantised_with_the_rest_trains(folders: Any, config: str) -> None:
    """As transformers loads a classifier when it is not told to leave the head alone."""
    model = CLASSES["bert"].from_pretrained(folders["bert"], quantization_config=quantized.quantization_config(config))
    assert quantized.is_packed(model.classifier.weight)
    wanted = quantized.dequantized_weight(model.classifier)
    sp.attach(model, METHODS["prompt-tuning"])
    head = model.prompts["default"].head["classifier"]
    assert type(head) is torch.nn.Linear and torch.equal(head.weight, wanted)
    model(**tiny.batch("bert")).loss.backward()
    assert head.weight.grad.abs().sum() > 0


def test_what_cannot_be_had_is_refused_before_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(sp.SoftPromptError, match="unknown quantisation 'nf5'; did you mean 'nf4'"):
        quantized.require_backend("nf5")
    with pytest.raises(sp.SoftPromptError, match="torchao has nothing for mps, only for cpu, cuda"):
        quantized.require_backend("torchao-int8", "mps")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for kind, package in quantized.BACKENDS.items():
        with pytest.raises(sp.SoftPromptError, match=rf"quantize={kind} needs {package}: pip install"):
            Workbench("no-such-model", Data(task="reviews"), quantize=kind)


def test_without_a_backend_a_prompt_says_how_to_load_it_all_the_same(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = sp.attach(load("bert", "nf4"), sp.PromptTuningConfig(num_virtual_tokens=2), name="p")
    model.save_prompt("p", tmp_path / "p")
    monkeypatch.setattr("softprompts.backbones.quantized.importlib.util.find_spec", lambda name: None)
    with pytest.raises(sp.SoftPromptError, match=r"needs bitsandbytes: pip install.*quantize=None") as caught:
        sp.load(tmp_path / "p")
    assert "\n" not in str(caught.value)


# --- the command line and the workbench -------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    data = write_csv(tmp_path / "data.csv", rows(40))
    return ["-m", model_folder("bert"), "--data", str(data), "--steps", "4", "--eval-every", "2", "--batch-size", "8"]


def test_train_and_predict(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = Cli(monkeypatch, capsys)
    folders = {}
    for name, more in {"nf4": ["--quantize", "nf4"], "plain": []}.items():
        cli.fine("train", *command, "--method", "prefix-tuning", *more, "--out", str(tmp_path / name))
        (folders[name],) = [path.parent for path in (tmp_path / name).glob("*/result.json")]
    assert folders["nf4"].name != folders["plain"].name
    result = load_result(folders["nf4"])
    assert result["quantize"] == "nf4" and "quantize" not in load_result(folders["plain"])
    assert result["backbone_parameters"] == load_result(folders["plain"])["backbone_parameters"]
    # By default as it was trained, and otherwise as is asked for.
    model = sp.load(folders["nf4"] / "prompt")
    assert quantized.name_of(model) == "nf4"
    assert quantized.name_of(sp.load(folders["nf4"] / "prompt", quantize=None)) is None
    assert quantized.name_of(sp.load(folders["plain"] / "prompt", quantize="torchao-int8")) == "torchao-int8"
    own = tf.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4")
    assert quantized.name_of(sp.load(folders["nf4"] / "prompt", quantization_config=own)) == "fp4"
    cli.fine("predict", str(folders["nf4"]), "good words")
    cli.fine("train", *command, "--method", "lora", "--quantize", "nf4", "--folder", str(tmp_path / "lora"))
    cli.fine("export", str(tmp_path / "lora"), "--to", "model", "--out", str(tmp_path / "model"))
    written = tf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert not getattr(written, "is_quantized", False)


def test_runs_that_share_passes_end_as_alone(tmp_path: Path) -> None:
    data = Data(train=str(write_csv(tmp_path / "data.csv", rows(40))))
    bench = Workbench(model_folder("bert"), data, quantize="nf4")
    training = TrainConfig(max_steps=4, batch_size=8, eval_every=2)
    wanted = [Run(METHODS[name], training) for name in ("prompt-tuning", "lora", "multi-mask")]
    shared = bench.run_all(wanted, root=tmp_path / "shared", lanes=3, progress=False)
    alone = bench.run_all(wanted, root=tmp_path / "alone", lanes=1, progress=False)
    for (one, _), (other, _) in zip(shared, alone, strict=True):
        for key, value in sp.load(one / "prompt").prompts.state_dict().items():
            torch.testing.assert_close(sp.load(other / "prompt").prompts.state_dict()[key], value, rtol=1e-3, atol=1e-5)
