"""Where tokens go on encoders, and which positions a prefix has: the two options of placement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers as tf
from saved import Cli, model_folder, rows, write_csv
from torch import Tensor

import softprompts as sp
from softprompts.errors import SoftPromptError
from softprompts.methods import make_config

EXACT = {"rtol": 1e-9, "atol": 1e-9}
FRONT = sp.PromptTuningConfig(num_virtual_tokens=3, placement="front")
BEHIND = sp.PromptTuningConfig(num_virtual_tokens=3)
SHIFTED = sp.PrefixTuningConfig(num_virtual_tokens=3, init_std=0.5, positions="shifted")
KEPT = sp.PrefixTuningConfig(num_virtual_tokens=3, init_std=0.5)


def attached(family: str, **configs: sp.MethodConfig) -> Any:
    model = sp.attach(tiny.model(family))
    for seed, (name, config) in enumerate(configs.items()):
        model.add_prompt(name, config, seed=seed)
    model.prompts.double()
    tiny.shake(model)
    return model.eval()


def inputs_of(family: str, **more: Any) -> dict[str, Tensor]:
    inputs = tiny.batch(family, **more)
    if family != "t5":
        inputs.pop("labels")
    return inputs


def test_the_defaults_are_not_part_of_what_is_saved() -> None:
    for config in (BEHIND, KEPT, tiny.METHODS["multi-mask"], sp.compose(BEHIND, KEPT)):
        saved = str(config.to_dict())
        assert "placement" not in saved
        assert "positions" not in saved
    for config, key in ((FRONT, "placement"), (SHIFTED, "positions")):
        assert config.to_dict()[key] in ("front", "shifted")
        assert make_config(config.method, **config.to_dict()) == config
    both = sp.compose(FRONT, SHIFTED)
    assert (both.placement, both.positions) == ("front", "shifted")
    assert make_config(both.method, **both.to_dict()) == both


def test_settings_are_offered_where_they_mean_something() -> None:
    assert "placement" in sp.PromptTuningConfig.settable()
    assert "positions" not in sp.PromptTuningConfig.settable()
    assert "positions" in sp.PrefixTuningConfig.settable()
    assert "placement" not in sp.PrefixTuningConfig.settable()
    assert not {"placement", "positions"} & set(sp.LoraConfig.settable())


def test_unknown_values_and_mixtures_are_refused() -> None:
    with pytest.raises(SoftPromptError, match="placement must be one of"):
        sp.PromptTuningConfig(placement="back")
    with pytest.raises(SoftPromptError, match="positions must be one of"):
        sp.PrefixTuningConfig(positions="none")
    with pytest.raises(SoftPromptError, match="same placement"):
        sp.compose(FRONT, sp.PTuningConfig())
    with pytest.raises(SoftPromptError, match="positions"):
        sp.compose(SHIFTED, sp.MultiMaskConfig(num_virtual_tokens=3))


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
def test_tokens_in_front_are_read_in_place_of_the_first(family: str) -> None:
    model, inputs = attached(family, p=FRONT), inputs_of(family)
    mask = inputs["attention_mask"]
    embedded = model.get_input_embeddings()(inputs["input_ids"])
    tokens = model.prompts["p"].method().tokens.expand(3, -1, -1)
    plain = tiny.model(family)
    for name, module in model.prompts["p"].head.items():
        setattr(plain, name, module)
    wide = torch.cat([torch.ones(3, 3, dtype=mask.dtype), mask], 1)
    wanted = plain(inputs_embeds=torch.cat([tokens, embedded], 1), attention_mask=wide).logits
    torch.testing.assert_close(model(**inputs).logits, wanted, **EXACT)
    # With all hidden states asked for, nothing of the last layer is left out.
    torch.testing.assert_close(model(**inputs, output_hidden_states=True).logits, wanted, **EXACT)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "llama", "gpt2", "qwen3"])
def test_shifted_prefixes_are_a_cache_before_the_input(family: str) -> None:
    model, inputs = attached(family, p=SHIFTED), inputs_of(family)
    prompt = model.prompts["p"]
    soft, sites = prompt.method(), [model.config.num_attention_heads, -1]
    heads = getattr(model.config, "num_key_value_heads", None) or sites[0]
    pairs = [
        tuple(x[0].unflatten(-1, (heads, -1)).transpose(0, 1).expand(3, -1, -1, -1).contiguous() for x in pair)
        for pair in zip(soft.keys, soft.values, strict=True)
    ]
    plain = tiny.model(family)
    mask = torch.cat([torch.ones(3, 3, dtype=torch.long), inputs["attention_mask"]], 1)
    cache = tf.DynamicCache(pairs)
    base = plain.base_model
    wanted = base(input_ids=inputs["input_ids"], attention_mask=mask, past_key_values=cache).last_hidden_state
    found = model.base_model
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states[-1]
    real = inputs["attention_mask"].bool()
    del found
    torch.testing.assert_close(states[real], wanted[real], **EXACT)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama", "t5"])
def test_rows_do_not_depend_on_their_padding_or_their_neighbours(family: str) -> None:
    model = attached(family, front=FRONT, behind=BEHIND, shifted=SHIFTED, kept=KEPT, both=sp.compose(FRONT, SHIFTED))
    names = ["front", "behind", "shifted", "kept", "both", None]
    inputs = inputs_of(family, rows=6, columns=12)
    rows = [tiny.row(inputs, index) for index in range(6)]
    alone = [model(**row, prompt_names=[name]).logits[0] for row, name in zip(rows, names, strict=True)]
    for batch in (inputs, tiny.pad_left(inputs)):
        if family in ("t5", "roberta") and batch is not inputs:
            continue  # which have no way with padding on the left, with and without prompts
        logits = model(**batch, prompt_names=names).logits
        for index, wanted in enumerate(alone):
            real = batch["attention_mask"][index].bool() if family in ("gpt2", "llama") else slice(None)
            torch.testing.assert_close(logits[index][real], wanted, **EXACT)


def test_each_option_changes_something() -> None:
    for family, one, other in (
        ("bert", FRONT, BEHIND),
        ("bert", SHIFTED, KEPT),
        ("gpt2", SHIFTED, KEPT),
        ("distilbert", SHIFTED, KEPT),
    ):
        logits = [attached(family, p=config)(**inputs_of(family)).logits for config in (one, other)]
        assert (logits[0] - logits[1]).abs().max() > 1e-3
    decoder = [sp.PrefixTuningConfig(init_std=0.5, positions=p, sites=("decoder.self",)) for p in ("kept", "shifted")]
    for pair in (decoder, [KEPT, SHIFTED]):
        logits = [attached("t5", p=config)(**inputs_of("t5")).logits for config in pair]
        assert (logits[0] - logits[1]).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3", "t5"])
@pytest.mark.parametrize("cache", [None, "static", "none"])
def test_generation_goes_on_where_the_forward_pass_would(family: str, cache: str | None) -> None:
    model = attached(family, shifted=SHIFTED, kept=KEPT, front=FRONT)
    names = ["shifted", "kept", "front"]
    inputs = inputs_of(family)
    inputs.pop("labels", None)
    if family != "t5":
        inputs = tiny.pad_left(inputs)
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    more: dict[str, Any] = {"use_cache": False} if cache == "none" else {"cache_implementation": cache} if cache else {}
    found = model.generate(**inputs, **options, **more, prompt_names=names)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    decoder = torch.zeros(3, 1, dtype=torch.long)
    for _ in range(6):
        if family == "t5":
            logits = model(**inputs, decoder_input_ids=decoder, prompt_names=names, use_cache=False).logits
            decoder = torch.cat([decoder, logits[:, -1:].argmax(-1)], 1)
        else:
            logits = model(input_ids=ids, attention_mask=mask, prompt_names=names, use_cache=False).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
            mask = torch.cat([mask, mask.new_ones(3, 1)], 1)
    assert torch.equal(found, decoder if family == "t5" else ids)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_selective_prefixes_with_positions_on_t5(kernel: str) -> None:
    config = sp.SelectivePrefixConfig(num_virtual_tokens=3, alpha=4.0, selective_loss=0.0, positions="shifted")
    plain = tiny.model("t5")
    plain.set_attn_implementation(kernel)
    model = sp.attach(plain)
    model.add_prompt("selective", config, seed=1)
    model.add_prompt("shifted", SHIFTED, seed=2)
    model.prompts.double()
    tiny.shake(model)
    model.eval()
    inputs = inputs_of("t5")
    names = ["selective", "shifted", "selective"]
    logits = model(**inputs, prompt_names=names).logits
    for row, name in enumerate(names):
        torch.testing.assert_close(model(**inputs, prompt_names=name).logits[row], logits[row], **EXACT)
    reference = tiny.model("t5")
    reference.set_attn_implementation("eager")
    other = sp.attach(reference, config, "selective", seed=1)
    other.prompts.double()
    other.prompts["selective"].load_state_dict(model.prompts["selective"].state_dict())
    torch.testing.assert_close(other.eval()(**inputs).logits, model(**inputs, prompt_names="selective").logits, **EXACT)


@pytest.mark.parametrize("family", ["t5", "gpt2", "bert"])
def test_gradients_are_the_same_under_checkpointing(family: str) -> None:
    model, inputs = attached(family, p=SHIFTED).train(), tiny.batch(family)
    gradients = []
    for _ in range(2):
        model.zero_grad()
        tiny.loss_of(model, inputs).backward()
        gradients.append(model.prompts["p"].method.prefix.grad.clone())
        model.gradient_checkpointing_enable()
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[1], gradients[0], **EXACT)


def test_positions_are_counted_where_there_is_a_limit() -> None:
    model = attached("bert", p=SHIFTED)
    ids = torch.randint(5, 60, (1, 38))
    with pytest.raises(SoftPromptError, match="a prompt of 3 tokens and an input of 38 exceed the 40 positions"):
        model(input_ids=ids)
    model(input_ids=ids[:, :37])


def test_backbones_that_cannot_shift_say_so() -> None:
    with pytest.raises(SoftPromptError, match="use 'kept'"):
        sp.attach(tiny.model("bart"), SHIFTED)


@pytest.mark.parametrize("config", [FRONT, SHIFTED])
def test_they_are_saved_and_survive_folding(config: sp.MethodConfig, tmp_path: Path) -> None:
    model, inputs = attached("bert", p=config), inputs_of("bert")
    wanted = model(**inputs).logits
    model.save_prompt("p", tmp_path / "one")
    model.fold("p")
    torch.testing.assert_close(model(**inputs).logits, wanted, **EXACT)
    model.save_prompt("p", tmp_path / "two")
    for name in ("one", "two"):
        again = sp.attach(tiny.model("bert"), tmp_path / name).eval()
        torch.testing.assert_close(again(**inputs).logits, wanted, **EXACT)


def test_positions_are_a_setting_of_a_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cli = Cli(monkeypatch, capsys)
    monkeypatch.chdir(tmp_path)
    data = write_csv(tmp_path / "data.csv", rows())
    asked = ["train", "-m", model_folder("bert"), "--data", data, "--steps", "1", "--method", "prefix-tuning"]
    cli.fine(*asked)
    assert "holds this run, finished" in cli(*asked, "--set", "positions=kept").err  # the default, said aloud
    (first,) = [path.name for path in (tmp_path / "runs").iterdir()]
    cli.fine(*asked, "--set", "positions=shifted")
    other = next(path for path in (tmp_path / "runs").iterdir() if path.name != first)
    saved = json.loads((other / "prompt" / "softprompt_config.json").read_text())
    assert saved["config"]["positions"] == "shifted"
    cli.fine("predict", other, "the film was good")
    done = cli(*asked, "--set", "positions=shift")
    assert done.code == 2
    assert "positions must be one of kept, shifted" in done.err
