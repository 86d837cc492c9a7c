"""`attach` and `detach`, and what an attached model is: names, modes, counts, seeds, sites, limits and copies."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers as tf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor

import softprompts as sp
from softprompts.injection.speedups import frozen_linear
from softprompts.injection.state import state_of

EXACT = {"rtol": 1e-9, "atol": 1e-9}
_IDS = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}


def one_line(error: pytest.ExceptionInfo[Any]) -> str:
    text = str(error.value)
    assert isinstance(error.value, sp.SoftPromptError)
    assert text
    assert "\n" not in text
    return text


def tokenizer() -> Any:
    words = {f"word{i}": i for i in range(3, 60)} | {"[PAD]": 0, "[CLS]": 1, "[UNK]": 2}
    core = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    core.pre_tokenizer = Whitespace()
    return tf.PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", cls_token="[CLS]", unk_token="[UNK]")


# --- the object ---


@pytest.mark.parametrize("family", ["bert", "t5", "llama"])
def test_attach_returns_the_same_object_of_its_own_class(family: str) -> None:
    model = tiny.model(family)
    original, name = type(model), type(model).__name__
    assert not sp.is_attached(model)
    same = sp.attach(model, sp.PromptTuningConfig())
    assert same is model
    assert sp.is_attached(model)
    assert isinstance(model, original)
    assert isinstance(model, sp.PromptModel)
    assert isinstance(model, tf.PreTrainedModel)
    assert type(model).__name__ == name
    assert type(model).__module__ == original.__module__
    assert list(model.prompts) == ["default"]
    assert model.active_prompt == "default"
    assert sp.detach(model) is model
    assert type(model) is original
    assert not sp.is_attached(model)


def test_attach_refuses_what_it_cannot_serve() -> None:
    with pytest.raises(sp.SoftPromptError) as error:
        sp.attach(torch.nn.Linear(2, 2), sp.PromptTuningConfig())
    assert "Linear" in one_line(error)
    model = sp.attach(tiny.model("bert"), sp.PromptTuningConfig())
    with pytest.raises(sp.SoftPromptError) as error:
        sp.attach(model, sp.PromptTuningConfig())
    assert "add_prompt" in one_line(error)
    sp.detach(model)
    with pytest.raises(sp.SoftPromptError) as error:
        sp.detach(model)
    one_line(error)


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "..", "-a", "a b", "ä", "a\n", None, 3])
def test_bad_names_are_refused(name: Any) -> None:
    model = sp.attach(tiny.model("bert"))
    with pytest.raises(sp.SoftPromptError) as error:
        model.add_prompt(name, sp.PromptTuningConfig())
    assert "prompt name" in str(error.value)
    assert len(model.prompts) == 0
    assert model.active_prompt is None


@pytest.mark.parametrize("name", ["keys", "type", "float", "items", "forward", "training", "prompts", "0", "a-b_C"])
def test_names_of_module_attributes_work(name: str) -> None:
    model = sp.attach(tiny.model("bert"), sp.PrefixTuningConfig(), name)
    model.prompts.double()
    assert list(model.prompts) == [name]
    assert list(model.prompts.keys()) == [name]
    inputs = tiny.batch("bert")
    tiny.loss_of(model.train(), inputs, prompt_names=name).backward()
    assert all(parameter.grad is not None for parameter in model.prompts[name].parameters())
    assert f"prompts.{name}.method.prefix" in model.state_dict()
    model.delete_prompt(name)
    assert len(model.prompts) == 0


def test_duplicate_and_unknown_names() -> None:
    model = tiny.attached("bert", "prompt-tuning", "prefix-tuning")
    with pytest.raises(sp.SoftPromptError) as error:
        model.add_prompt("prompt-tuning", sp.PromptTuningConfig())
    assert "already" in one_line(error)
    inputs = tiny.batch("bert")
    calls: list[Any] = [
        lambda: model.set_prompt("prompt-tunin"),
        lambda: model.delete_prompt("prompt-tunin"),
        lambda: model.fold("prompt-tunin"),
        lambda: model.save_prompt("prompt-tunin", "never-written"),
        lambda: model(**inputs, prompt_names="prompt-tunin"),
        lambda: model(**inputs, prompt_names=["prompt-tuning", "prompt-tunin", None]),
    ]
    for call in calls:
        with pytest.raises(sp.SoftPromptError) as error:
            call()
        assert "did you mean 'prompt-tuning'?" in one_line(error)
    with pytest.raises(sp.SoftPromptError) as error:
        model.set_prompt("zzz")
    assert "prefix-tuning, prompt-tuning" in one_line(error)
    assert model.active_prompt == "prompt-tuning"
    decoder = tiny.attached("llama", "prompt-tuning")
    with pytest.raises(sp.SoftPromptError):
        decoder.generate(input_ids=torch.tensor([[5, 6]]), prompt_names="prompt-tunin")


@pytest.mark.parametrize("names", [["prompt-tuning"] * 2, ["prompt-tuning", None], ["prefix-tuning"] * 6, []])
def test_one_name_per_row(names: list[str | None]) -> None:
    model = tiny.attached("bert", "prompt-tuning", "prefix-tuning")
    with pytest.raises(sp.SoftPromptError) as error:
        model(**tiny.batch("bert"), prompt_names=names)
    assert "3 rows" in one_line(error)
    decoder = tiny.attached("llama", "prompt-tuning", "prefix-tuning")
    with pytest.raises(sp.SoftPromptError):
        decoder.generate(input_ids=torch.tensor([[5, 6]] * 3), prompt_names=names, max_new_tokens=1)


def test_set_disable_and_delete() -> None:
    model = tiny.attached("llama", "prompt-tuning", "prefix-tuning")
    inputs = tiny.batch("llama")
    by_name = {n: model(**inputs, prompt_names=n).logits for n in model.prompts}
    bare = model(**inputs, prompt_names=[None] * 3).logits
    assert model.active_prompt == "prompt-tuning"
    assert torch.equal(model(**inputs).logits, by_name["prompt-tuning"])
    assert model.set_prompt("prefix-tuning") is model
    assert torch.equal(model(**inputs).logits, by_name["prefix-tuning"])
    with model.disable_prompt():
        assert model.active_prompt is None
        assert torch.equal(model(**inputs).logits, bare)
        assert torch.equal(model(**inputs, prompt_names="prompt-tuning").logits, by_name["prompt-tuning"])
    assert model.active_prompt == "prefix-tuning"
    with pytest.raises(KeyError), model.disable_prompt():
        raise KeyError
    assert model.active_prompt == "prefix-tuning"
    with pytest.warns(UserWarning, match="'prompt-tuning' is active now"), model.disable_prompt():
        model.delete_prompt("prefix-tuning")
    assert list(model.prompts) == [model.active_prompt] == ["prompt-tuning"]
    assert torch.equal(model(**inputs).logits, by_name["prompt-tuning"])
    model.set_prompt("prompt-tuning").delete_prompt("prompt-tuning")
    assert model.active_prompt is None
    assert torch.equal(model(**inputs).logits, bare)


def test_the_first_prompt_becomes_active_unless_none_was_asked_for(tmp_path: Path) -> None:
    model = sp.attach(tiny.model("bert"))
    assert model.active_prompt is None
    model.add_prompt("first", sp.PrefixTuningConfig()).add_prompt("second", sp.PrefixTuningConfig())
    assert model.active_prompt == "first"
    model.save_prompt("second", tmp_path)
    model.set_prompt(None).add_prompt("third", sp.PrefixTuningConfig()).load_prompt(tmp_path, "fourth")
    assert model.active_prompt is None
    with model.disable_prompt():
        model.add_prompt("fifth", sp.PrefixTuningConfig())
    model.add_prompt("sixth", sp.PrefixTuningConfig())
    assert model.active_prompt is None
    with pytest.warns(UserWarning, match="'first' is active now"):
        model.set_prompt("second").delete_prompt("second")
    assert model.active_prompt == "first"
    for name in list(model.prompts)[::-1]:
        model.delete_prompt(name)
    assert model.active_prompt is None
    model.add_prompt("seventh", sp.PrefixTuningConfig())
    assert model.active_prompt == "seventh"

    bare = sp.attach(tiny.model("bert")).set_prompt(None).load_prompt(tmp_path)
    assert bare.active_prompt is None
    fresh = sp.attach(tiny.model("bert"))
    fresh(**tiny.batch("bert"))  # without any prompt, which is nobody's choice
    with fresh.disable_prompt():
        fresh.add_prompt("early", sp.PrefixTuningConfig())
        assert fresh.active_prompt is None
    assert fresh.load_prompt(tmp_path).active_prompt == "second"


def test_rows_without_a_prompt_generate_bare() -> None:
    model = tiny.attached("llama", "prompt-tuning")
    ids = tiny.batch("llama", rows=1)["input_ids"]
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    prompted = model.generate(input_ids=ids, **options)
    bare = model.generate(input_ids=ids, **options, prompt_names=[None])
    assert not torch.equal(prompted, bare)
    sp.detach(model)
    assert torch.equal(model.generate(input_ids=ids, **options), bare)


# --- counts ---


def t5_base() -> Any:
    with torch.device("meta"):
        return tf.T5ForConditionalGeneration(
            tf.T5Config(vocab_size=32128, d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12)
        )


ONE_STACK = {"sites": ("decoder.self",)}
COUNTS = [
    (sp.PromptTuningConfig(num_virtual_tokens=100), 76_800),
    (sp.PrefixTuningConfig(num_virtual_tokens=20, **ONE_STACK), 368_640),
    (sp.PrefixTuningConfig(num_virtual_tokens=20, sites=("encoder.self", "decoder.self")), 737_280),
    (sp.PrefixTuningConfig(num_virtual_tokens=20), 1_105_920),
    (sp.SelectivePrefixConfig(num_virtual_tokens=20, **ONE_STACK), 368_640),
    (sp.MultiMaskConfig(num_virtual_tokens=10, num_masks=4, **ONE_STACK), 187_872),
    (sp.SuperPosConfig(num_virtual_tokens=10, num_sampled_tokens=128), 984_320),
    (
        sp.EPTConfig(num_virtual_tokens=60, rank=30, max_length=256, space_hidden_size=256, num_spaces=4),
        1_656_836,
    ),
    (sp.EPTConfig(num_virtual_tokens=60, rank=30, max_length=256, multi_space=False), 76_800),
    (sp.EPTConfig(num_virtual_tokens=40, rank=45, max_length=256, multi_space=False), 76_800),
]


def test_trainable_parameters_of_t5_base_are_the_papers() -> None:
    model = sp.attach(t5_base())
    assert model.num_trainable_parameters() == (0, 222_903_552)
    for i, (config, count) in enumerate(COUNTS):
        model.add_prompt(f"p{i}", config)
        assert model.num_trainable_parameters() == (count, 222_903_552 + count), config
        parts = model.prompts[f"p{i}"].components()
        assert sum(p.numel() for part in parts.values() for p in part.parameters) == count
        model.delete_prompt(f"p{i}")


def test_print_trainable_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    model = sp.attach(t5_base(), sp.PromptTuningConfig(num_virtual_tokens=100))
    model.print_trainable_parameters()
    expected = "trainable params: 76,800 || all params: 222,980,352 || trainable%: 0.0344\n"
    assert capsys.readouterr().out == expected


# --- starting values ---


@pytest.mark.parametrize("method", list(tiny.METHODS))
def test_a_seed_repeats_the_start_and_leaves_the_global_state(method: str) -> None:
    model = sp.attach(tiny.model("bert"))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model.add_prompt("a", tiny.METHODS[method], num_labels=5, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    model.add_prompt("b", tiny.METHODS[method], num_labels=5, seed=1)
    model.add_prompt("c", tiny.METHODS[method], num_labels=5, seed=2)
    a, b, c = (dict(model.prompts[name].named_parameters()) for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert any(not torch.equal(a[key], c[key]) for key in a)


def test_prompts_start_from_text_and_from_label_words() -> None:
    words, model = tokenizer(), tiny.model("bert")
    table = model.get_input_embeddings().weight.detach().float()
    text = sp.PromptTuningConfig(num_virtual_tokens=5, init="text", init_text="word7 word9 word11")
    sp.attach(model, text, "text", tokenizer=words)
    assert torch.equal(model.prompts["text"].method.prompt.detach(), table[[7, 9, 11, 7, 9]])
    labels = sp.PromptTuningConfig(num_virtual_tokens=4, init="labels", label_words=("word5", "word6 word8"))
    model.add_prompt("labels", labels, tokenizer=words, seed=0)
    started = model.prompts["labels"].method.prompt.detach()
    assert torch.equal(started[0], table[5])
    torch.testing.assert_close(started[1], table[[6, 8]].mean(0))
    rest = [(table == row).all(1).nonzero()[0].item() for row in started[2:]]
    assert not set(rest) & {0, 1, 2}, "special tokens are no starting values"
    with pytest.raises(sp.SoftPromptError) as error:
        model.add_prompt("nobody", text)
    assert "tokenizer" in one_line(error)
    assert "nobody" not in model.prompts


def test_starting_values_go_through_the_scaling_of_the_embeddings() -> None:
    model = tiny.model("gemma3")
    sp.attach(model, sp.PromptTuningConfig(num_virtual_tokens=3), seed=0)
    scaled = model.get_input_embeddings()(torch.arange(60)).float()
    for row in model.prompts["default"].method.prompt.detach():
        assert (scaled - row).abs().sum(1).min() < 1e-4


# --- models without the attention interface ---


def _bloom() -> Any:
    return tf.BloomForCausalLM(tf.BloomConfig(**_IDS, hidden_size=16, n_layer=2, n_head=4, initializer_range=0.3))


OUTSIDE: dict[str, Any] = {
    "deberta-v2": lambda: tf.DebertaV2ForSequenceClassification(
        tf.DebertaV2Config(
            **_IDS,
            **_SMALL,
            intermediate_size=24,
            max_position_embeddings=40,
            relative_attention=True,
            pos_att_type=["c2p", "p2c"],
            position_biased_input=False,
        )
    ),
    "mpnet": lambda: tf.MPNetForSequenceClassification(
        tf.MPNetConfig(vocab_size=60, **_SMALL, intermediate_size=24, max_position_embeddings=40)
    ),
    "longformer": lambda: tf.LongformerForTokenClassification(
        tf.LongformerConfig(**_IDS, **_SMALL, intermediate_size=24, max_position_embeddings=40, attention_window=4)
    ),
    "xlnet": lambda: tf.XLNetForSequenceClassification(
        tf.XLNetConfig(
            vocab_size=60, d_model=16, n_layer=2, n_head=4, d_inner=24, initializer_range=0.3, summary_type="first"
        )
    ),
    "bloom": _bloom,
    "falcon": lambda: tf.FalconForCausalLM(
        tf.FalconConfig(**_IDS, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, initializer_range=0.3)
    ),
    "gpt-j": lambda: tf.GPTJForCausalLM(
        tf.GPTJConfig(
            vocab_size=60, n_positions=40, n_embd=16, n_layer=2, n_head=4, rotary_dim=4, initializer_range=0.3
        )
    ),
}


@pytest.mark.filterwarnings("ignore:Input ids are automatically padded")
@pytest.mark.parametrize("name", list(OUTSIDE))
def test_models_without_the_attention_interface_refuse_prefixes_and_take_input_prompts(name: str) -> None:
    torch.manual_seed(0)
    dtype = torch.float32 if name == "bloom" else torch.float64  # Bloom's masks overflow in float64
    model = OUTSIDE[name]().to(dtype).eval()
    ids = torch.randint(5, 60, (2, 6))
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    before = model(input_ids=ids, attention_mask=mask).logits
    kernel = model.config._attn_implementation
    for method in ("prefix-tuning", "multi-mask", "selective-prefix"):
        with pytest.raises(sp.SoftPromptError) as error:
            sp.attach(model, tiny.METHODS[method])
        assert type(model).__name__ in one_line(error)
        assert "input prompts work" in str(error.value)
        assert not sp.is_attached(model)
        assert model.config._attn_implementation == kernel
        assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, before)

    sp.attach(model, tiny.METHODS["prompt-tuning"], seed=0)
    model.prompts.to(dtype)
    out = model(input_ids=ids, attention_mask=mask).logits
    assert out.shape == before.shape
    assert not torch.allclose(out, before)
    (out * torch.randn_like(out)).sum().backward()
    for key, parameter in model.prompts.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key
    alone = model(input_ids=ids[1:, :4]).logits[0]
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if name == "bloom" else EXACT
    torch.testing.assert_close(out[1, :4] if out.ndim == 3 else out[1], alone, **tolerance)
    if model.can_generate():
        left_ids = torch.cat([torch.zeros(1, 2, dtype=torch.long), ids[1:, :4]], 1)
        left_mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
        left = model(input_ids=left_ids, attention_mask=left_mask).logits[0, 2:]
        torch.testing.assert_close(left, alone, **tolerance)
        options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        both = [
            model.generate(input_ids=left_ids, attention_mask=left_mask, use_cache=cache, **options)
            for cache in (True, False)
        ]
        assert torch.equal(*both)
        unpadded = model.generate(input_ids=ids[1:, :4], attention_mask=mask[1:, :4], **options)
        assert torch.equal(both[0][:, -4:], unpadded[:, -4:])


def test_another_kernel_is_named_in_the_error() -> None:
    model = tiny.model("bert")
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(sp.SoftPromptError) as error:
        sp.attach(model, sp.SelectivePrefixConfig())
    assert "attn_implementation='sdpa'" in one_line(error)
    assert not sp.is_attached(model)
    assert model.config._attn_implementation == "flex_attention"


# --- sites ---


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize("chosen", [("encoder.self",), ("decoder.self",), ("decoder.cross",), None])
def test_only_chosen_sites_get_a_prefix(family: str, chosen: tuple[str, ...] | None) -> None:
    model = tiny.model(family)
    sp.attach(model, sp.PrefixTuningConfig(num_virtual_tokens=3, sites=chosen, init_std=0.5), seed=0)
    model.prompts.double()
    state = model._softprompt_state
    asked: dict[str, set[bool]] = {}
    for site in state.backbone.sites:
        original, *more = site.module.__dict__["_softprompt_site"]

        def spy(i: int, rows: int, kind: str = site.kind, original: Any = original) -> Any:
            found = original(i, rows)
            asked.setdefault(kind, set()).add(found is not None)
            return found

        site.module.__dict__["_softprompt_site"] = (spy, *more)
    inputs = tiny.batch(family)
    prompted = model(**inputs)
    kinds = ("encoder.self", "decoder.self", "decoder.cross")
    assert asked == {kind: {chosen is None or kind in chosen} for kind in kinds}
    bare = model(**inputs, prompt_names=[None] * 3)
    same_encoder = torch.equal(prompted.encoder_last_hidden_state, bare.encoder_last_hidden_state)
    assert same_encoder == (chosen is not None and "encoder.self" not in chosen)
    assert not torch.allclose(prompted.logits, bare.logits)
    number = len(model.prompts["default"].sites)
    assert number == (6 if chosen is None else 2)


def test_unknown_sites() -> None:
    with pytest.raises(sp.SoftPromptError) as error:
        sp.PrefixTuningConfig(sites=("decoder.slf",))
    assert "did you mean 'decoder.self'" in one_line(error)
    model = tiny.model("llama")
    with pytest.raises(sp.SoftPromptError) as error:
        sp.attach(model, sp.PrefixTuningConfig(sites=("encoder.self",)))
    assert "decoder.self" in one_line(error)
    assert not sp.is_attached(model)


# --- limits ---


@pytest.mark.parametrize(("family", "limit"), [("roberta", 38), ("bert", 40), ("gpt2", 40), ("bart", 40)])
def test_prompts_and_inputs_stay_within_the_position_table(family: str, limit: int) -> None:
    with pytest.raises(sp.SoftPromptError) as error:
        sp.attach(tiny.model(family), sp.PromptTuningConfig(num_virtual_tokens=limit))
    assert str(limit) in one_line(error)
    model = sp.attach(tiny.model(family), sp.PromptTuningConfig(num_virtual_tokens=8))
    model.prompts.double()
    fits = tiny.batch(family, columns=limit - 8)
    assert torch.isfinite(model(**fits).logits).all()
    with pytest.raises(sp.SoftPromptError) as error:
        model(**tiny.batch(family, columns=limit - 7))
    assert f"{limit} positions" in one_line(error)
    assert torch.isfinite(model(**fits).logits).all(), "a refused call leaves nothing behind"
    with model.disable_prompt():
        model(**tiny.batch(family, columns=limit))
    sp.attach(tiny.model(family), sp.PrefixTuningConfig(num_virtual_tokens=limit)).double()(
        **tiny.batch(family, columns=limit)
    )


def test_generation_stops_at_the_position_table_with_one_clear_line() -> None:
    model = sp.attach(tiny.model("gpt2"), sp.PromptTuningConfig(num_virtual_tokens=8))
    model.prompts.double()
    options = {"do_sample": False, "eos_token_id": None}
    ids = tiny.batch("gpt2", rows=1, columns=30)["input_ids"]
    assert model.generate(input_ids=ids, max_new_tokens=3, **options).shape[1] == 33
    with pytest.raises(sp.SoftPromptError) as error:
        model.generate(input_ids=ids, max_new_tokens=5, **options)
    assert "40 positions" in one_line(error)


# --- copies ---


@pytest.mark.parametrize("family", ["bert", "t5", "llama"])
@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning", "multi-mask"])
def test_a_deep_copy_is_independent(family: str, method: str) -> None:
    model = tiny.attached(family, method).train()
    inputs = tiny.batch(family)
    tiny.loss_of(model, inputs)  # a pass under way in the original must not hinder the copy
    twin = copy.deepcopy(model)
    assert type(twin) is type(model)
    before = tiny.loss_of(model, inputs).item()
    assert tiny.loss_of(twin, inputs).item() == before
    optimizer = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], lr=0.1)
    tiny.loss_of(twin, inputs).backward()
    assert all(p.grad is None for p in model.parameters())
    optimizer.step()
    assert tiny.loss_of(model, inputs).item() == before
    assert tiny.loss_of(twin, inputs).item() != before
    model.delete_prompt(method)
    trained = tiny.loss_of(twin, inputs).item()
    sp.detach(model)
    assert tiny.loss_of(twin, inputs).item() == trained
    sp.detach(twin)
    model.requires_grad_(False)
    twin.requires_grad_(False)
    assert tiny.loss_of(twin.eval(), inputs).item() == tiny.loss_of(model.eval(), inputs).item()


# --- gradient checkpointing and modes ---


def gradients(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    tiny.loss_of(model, inputs).backward()
    return {name: p.grad.clone() for name, p in model.prompts.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["bert", "t5", "llama"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_enabled_before_attach(family: str, reentrant: bool) -> None:
    inputs = tiny.batch(family)
    plain = gradients(tiny.attached(family, "prefix-tuning", "multi-mask").train().set_prompt("multi-mask"), inputs)
    model = tiny.model(family)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    function = next(
        m._gradient_checkpointing_func for m in model.modules() if "_gradient_checkpointing_func" in vars(m)
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sp.attach(model)
    assert [w for w in caught if "use_reentrant" in str(w.message)] != [] if reentrant else not caught
    for i, name in enumerate(("prefix-tuning", "multi-mask")):
        model.add_prompt(name, tiny.METHODS[name], seed=i)
    model.prompts.double()
    tiny.shake(model)
    found = gradients(model.train().set_prompt("multi-mask"), inputs)
    assert plain.keys() == found.keys()
    for name in plain:
        torch.testing.assert_close(found[name], plain[name], **EXACT)
    sp.detach(model)
    after = next(m._gradient_checkpointing_func for m in model.modules() if "_gradient_checkpointing_func" in vars(m))
    assert after is function


def test_reentrant_checkpointing_enabled_later_warns_and_gives_equal_gradients() -> None:
    inputs = tiny.batch("llama")
    model = tiny.attached("llama", "prefix-tuning").train()
    plain = gradients(model, inputs)
    with pytest.warns(UserWarning, match="use_reentrant"):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    found = gradients(model, inputs)
    for name in plain:
        torch.testing.assert_close(found[name], plain[name], **EXACT)
    model.gradient_checkpointing_disable()
    again = gradients(model, inputs)
    assert all(torch.equal(again[name], plain[name]) for name in plain)


@pytest.mark.parametrize("dropout", [False, True])
def test_training_mode_reaches_the_backbone_only_when_asked(dropout: bool) -> None:
    model = sp.attach(tiny.model("bert"), sp.PrefixTuningConfig(), backbone_dropout=dropout)
    assert not any(module.training for module in model.modules())
    model.train()
    assert model.training
    assert all(module.training for module in model.prompts.modules())
    assert all(module.training == dropout for module in model.bert.modules())
    assert all(module.training == dropout for module in model.classifier.modules())
    model.prompts.double()
    inputs = tiny.batch("bert")
    inputs.pop("labels")
    torch.manual_seed(0)
    assert torch.equal(model(**inputs).logits, model(**inputs).logits) != dropout
    model.eval()
    assert not any(module.training for module in model.modules())
    assert torch.equal(model(**inputs).logits, model(**inputs).logits)


def test_a_new_prompt_takes_the_mode_of_the_model() -> None:
    model = sp.attach(tiny.model("bert").train(), sp.PrefixTuningConfig(), "a")
    assert model.prompts["a"].training
    assert model.eval().add_prompt("b", sp.PrefixTuningConfig()).prompts["b"].training is False


def test_detach_restores_trainable_flags_and_modes_that_were_mixed() -> None:
    model = tiny.model("bert")
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 3 == 0)
    for i, module in enumerate(model.modules()):
        module.training = i % 2 == 0
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    ignored = model._keys_to_ignore_on_save
    sp.attach(model, sp.PrefixTuningConfig()).train()
    assert [n for n, p in model.named_parameters() if p.requires_grad and not n.startswith("prompts.")] == []
    model.eval()
    sp.detach(model)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert [module.training for module in model.modules()] == modes
    assert model._keys_to_ignore_on_save == ignored
    assert all("softprompt" not in key for module in model.modules() for key in vars(module))


@pytest.mark.parametrize(
    "config",
    [
        sp.PromptTuningConfig(num_virtual_tokens=40),
        sp.PrefixTuningConfig(sites=("decoder.cross",)),
        sp.EPTConfig(rank=30, max_length=40, source_tokens=60),
        sp.PromptTuningConfig(init="text", init_text="no tokenizer here"),
    ],
)
def test_a_failing_attach_leaves_the_model_plain(config: sp.MethodConfig) -> None:
    model, inputs = tiny.model("bert"), tiny.batch("bert")
    before, keys = model(**inputs).logits, set(vars(model))
    with pytest.raises(sp.SoftPromptError) as error:
        sp.attach(model, config)
    one_line(error)
    assert not sp.is_attached(model)
    assert type(model) is tf.BertForSequenceClassification
    assert set(vars(model)) == keys
    assert all(p.requires_grad for p in model.parameters())
    assert not any("forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(model(**inputs).logits, before)
    sp.attach(model, sp.PrefixTuningConfig())


def test_labels_that_do_not_fit() -> None:
    model = sp.attach(tiny.model("bert"))
    with pytest.raises(sp.SoftPromptError) as error:
        model.add_prompt("a", sp.PrefixTuningConfig(), num_labels=3, labels=["x", "y"])
    assert "2 label names for 3 labels" in one_line(error)
    decoder = tiny.model("llama")
    with pytest.raises(sp.SoftPromptError) as error:
        sp.attach(decoder, sp.PrefixTuningConfig(), num_labels=3)
    assert "no task head" in one_line(error)
    assert not sp.is_attached(decoder)


# --- losses, outputs and inputs ---


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_the_penalty_joins_the_loss(family: str) -> None:
    model, inputs = tiny.attached(family, "selective-prefix"), tiny.batch(family)
    out = model(**inputs)
    logits, labels = out.logits, inputs["labels"]
    if family == "llama":
        logits, labels = logits[:, :-1], labels[:, 1:]
    task = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1))
    method = model.prompts["selective-prefix"].method
    table = method.prefix.view(3, -1, 2, method.prefix.shape[1] // (2 * method.num_sites))
    total = torch.zeros((), dtype=torch.float64)
    pairs = [(0, 1), (0, 2), (1, 2)]
    for site in range(table.shape[1]):
        for which in range(2):
            cosines = [
                torch.nn.functional.cosine_similarity(table[i, site, which], table[j, site, which], dim=0).abs()
                for i, j in pairs
            ]
            total = total + 0.5 * torch.stack(cosines).mean()
    penalty = 1e-2 * total
    assert penalty > 1e-4
    torch.testing.assert_close(model.penalties["selective-prefix"], penalty, rtol=1e-7, atol=0)
    torch.testing.assert_close(out.loss, task + penalty, rtol=1e-6, atol=0)  # transformers' own loss is a float32 one
    torch.testing.assert_close(model(**inputs, return_dict=False)[0], task + penalty, rtol=1e-6, atol=0)
    assert (
        model(**{k: v for k, v in inputs.items() if family == "t5" or k != "labels"}).logits.shape == out.logits.shape
    )


@pytest.mark.parametrize("family", ["bert", "t5", "llama", "gpt2", "bart"])
@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning", "ept", "multi-mask"])
def test_tuples_and_embeddings_instead_of_ids(family: str, method: str) -> None:
    model, inputs = tiny.attached(family, method), tiny.batch(family)
    out = model(**inputs)
    first, second = model(**inputs, return_dict=False)[:2]
    assert torch.equal(first, out.loss)
    assert torch.equal(second, out.logits)
    embedded = {k: v for k, v in inputs.items() if k != "input_ids"}
    embedded["inputs_embeds"] = model.get_input_embeddings()(inputs["input_ids"])
    torch.testing.assert_close(model(**embedded).logits, out.logits, **EXACT)
    positional = model(inputs["input_ids"], attention_mask=inputs["attention_mask"], labels=inputs["labels"])
    assert torch.equal(positional.logits, out.logits)


@pytest.mark.parametrize("method", list(tiny.METHODS))
@pytest.mark.parametrize("family", tiny.SEQ2SEQ)
def test_an_encoder_called_alone_serves_the_decoder(family: str, method: str) -> None:
    model, inputs = tiny.attached(family, method), tiny.batch(family)
    direct = model(**inputs)
    encoded = model.get_encoder()(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    rest = {"attention_mask": inputs["attention_mask"], "labels": inputs["labels"]}
    both = model(encoder_outputs=encoded, **rest)
    assert torch.equal(both.logits, direct.logits)
    assert torch.equal(both.loss, direct.loss)
    assert direct.encoder_last_hidden_state.shape == (3, 7, 16)
    generated = model.generate(
        encoder_outputs=encoded, attention_mask=inputs["attention_mask"], max_new_tokens=4, do_sample=False
    )
    again = model.generate(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=4, do_sample=False
    )
    assert torch.equal(generated, again)
    with model.disable_prompt():
        bare = model.get_encoder()(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        assert torch.equal(bare[0], model(**inputs).encoder_last_hidden_state)


@pytest.mark.parametrize("family", ["bert", "llama", "t5", "modernbert"])
def test_attention_maps_have_the_prefix_columns(family: str) -> None:
    model = tiny.model(family)
    model.set_attn_implementation("eager")
    sp.attach(model, sp.PrefixTuningConfig(num_virtual_tokens=3, init_std=0.5), seed=0)
    model.add_prompt("selective", sp.SelectivePrefixConfig(num_virtual_tokens=2, init_std=0.5), seed=0)
    model.prompts.double()
    inputs = tiny.batch(family)
    for name, length in (("default", 3), ("selective", 2), (None, 0)):
        out = model(**inputs, output_attentions=True, prompt_names=[name] * 3)
        for group in ("attentions", "encoder_attentions", "decoder_attentions", "cross_attentions"):
            for weights in getattr(out, group, None) or ():
                keys = 4 if group == "decoder_attentions" else 7
                assert weights.shape[-1] == keys + length
                torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]), rtol=1e-6, atol=1e-6)
                assert (weights[..., :length] > 0).all()
    prompted = model(**inputs, output_attentions=True)
    maps = prompted.get("attentions") or prompted.get("encoder_attentions")
    assert maps is not None
    assert len(maps) == 2


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_hidden_states_cover_the_input_only(family: str) -> None:
    model, inputs = tiny.attached(family, "prompt-tuning"), tiny.batch(family)
    out = model(**inputs, output_hidden_states=True)
    states = out.encoder_hidden_states if family == "t5" else out.hidden_states
    assert len(states) == 3
    assert {state.shape for state in states} == {(3, 7, 16)}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_causal_models_prompt_does_not_see_the_targets(family: str) -> None:
    model, inputs = tiny.attached(family, "multi-mask"), tiny.batch(family, rows=2)
    changed = {key: value.clone() for key, value in inputs.items()}
    changed["input_ids"][:, 5:] = (changed["input_ids"][:, 5:] + 11) % 50 + 5
    changed["labels"] = changed["input_ids"].masked_fill(inputs["labels"] == -100, -100)
    first, second = model(**inputs).logits, model(**changed).logits
    torch.testing.assert_close(first[:, :5], second[:, :5], **EXACT)
    assert not torch.allclose(first[:, 5:], second[:, 5:])
    inputs.pop("labels")
    changed.pop("labels")
    assert not torch.allclose(model(**inputs).logits[:, :5], model(**changed).logits[:, :5])
    context = torch.zeros_like(inputs["input_ids"])
    context[:, :3] = 1
    given = model(**inputs, context_mask=context.bool()).logits
    torch.testing.assert_close(given, first, **EXACT)


def test_bare_rows_with_labels_leave_no_problem_type_behind() -> None:
    model = sp.attach(tiny.model("bert"), sp.PrefixTuningConfig(), "score", num_labels=1)
    model.prompts.double()
    inputs = tiny.batch("bert")
    floats = inputs | {"labels": torch.tensor([0.5, 1.0, -1.0], dtype=torch.float64)}
    before = model(**floats).loss
    with model.disable_prompt():
        model(**inputs)
    assert torch.equal(model(**floats).loss, before)
    assert before > 0


# --- where prompts go in ---


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning", "lora", "full", "dept", "smop"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_base_model_is_attached_like_any_other(family: str, method: str) -> None:
    """The model itself is where prompts go in: each row under its own, from the first layer on."""
    whole = tiny.attached(family, method, "prefix-mlp")
    inner = copy.deepcopy(tiny.model(family).base_model)
    base = sp.attach(inner)
    for name in (method, "prefix-mlp"):
        base.add_prompt(name, tiny.METHODS[name], seed=0)
        base.prompts.double()
        base.prompts[name].method.load_state_dict(whole.prompts[name].method.state_dict(), strict=False)
    base.eval()
    inputs = {key: value for key, value in tiny.batch(family).items() if key != "labels"}
    names = [method, "prefix-mlp", method]
    with torch.no_grad(), state_of(whole).under(names):
        wanted = whole.base_model(**inputs).last_hidden_state
    with torch.no_grad():
        mixed = base(**inputs, prompt_names=names).last_hidden_state
        alone = base(**inputs, prompt_names=method).last_hidden_state
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(mixed[real], wanted[real], rtol=0, atol=1e-12)
    torch.testing.assert_close(mixed[0], alone[0], rtol=0, atol=1e-12)
    assert (mixed[1] - alone[1]).abs().max() > 1e-3


def test_a_model_that_goes_past_its_base_model() -> None:
    """OPT for causal language modelling calls the decoder of its base model, not the base model."""
    config = tf.OPTConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        ffn_dim=24,
        max_position_embeddings=40,
        word_embed_proj_dim=16,
        init_std=0.3,
    )
    torch.manual_seed(0)
    plain = tf.OPTForCausalLM(config).double().eval()
    model = sp.attach(copy.deepcopy(plain), tiny.METHODS["prompt-tuning"], seed=0)
    model.prompts.double()
    ids = torch.tensor([[5, 6, 7, 8]])
    tokens = model.prompts["default"].method(None).tokens
    with torch.no_grad():
        embedded = torch.cat([tokens, plain.get_input_embeddings()(ids)], 1)
        wanted = plain(inputs_embeds=embedded).logits[:, 3:]
        torch.testing.assert_close(model.eval()(ids).logits, wanted, rtol=0, atol=1e-12)
        assert (plain(ids).logits - wanted).abs().max() > 1e-3


# --- the caller's config ---


@pytest.mark.parametrize("family", ["bert", "t5", "llama", "gpt2"])
def test_a_config_that_the_caller_holds_stays_as_it_was(family: str) -> None:
    first = tiny.model(family)
    config = first.config
    second = type(first)(config)
    before = config._attn_implementation
    labels = ["x", "y"] if family == "bert" else None
    sp.attach(first, sp.PrefixTuningConfig(num_virtual_tokens=2), seed=1, labels=labels)
    assert config._attn_implementation == before and config.id2label != {0: "x", 1: "y"}
    for model in (second, type(second)(first.config)):
        sp.attach(model, sp.PrefixTuningConfig(num_virtual_tokens=2), seed=1)
        sp.detach(model)
        assert model.config._attn_implementation == before
    for module in first.modules():  # all parts of the model hold the same copy
        part = getattr(module, "config", None)
        assert not isinstance(part, tf.PreTrainedConfig) or part._attn_implementation.startswith("softprompts|")
    assert sp.detach(first).config._attn_implementation == before


# --- devices by default ---


@contextlib.contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("context", [torch.device, default_device])
@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-mlp", "superpos", "multi-mask", "lora"])
@pytest.mark.parametrize("family", ["bert", "t5", "llama"])
def test_a_prompt_is_where_its_model_is_whatever_the_default_device(
    family: str, method: str, context: Any, tmp_path: Path
) -> None:
    more: dict[str, Any] = {"labels": ["a", "b", "c", "d"]} if family == "bert" else {}  # others than the model's three
    inputs = tiny.batch(family)
    model, other = (tiny.model(family, torch.float32) for _ in range(2))
    usual = sp.attach(tiny.model(family, torch.float32), tiny.METHODS[method], "p", seed=1, **more).eval()
    frozen_linear.pays.cache_clear()
    frozen_linear.works.cache_clear()
    with context("meta"):
        sp.attach(model, tiny.METHODS[method], "p", seed=1, **more).eval()
        model.save_prompt("p", tmp_path / "p")
        sp.attach(other, tmp_path / "p").eval()
    for attached in (model, other):
        state = attached.prompts.state_dict()
        assert {value.device.type for value in state.values()} == {"cpu"}
        assert all(torch.equal(value, state[key]) for key, value in usual.prompts.state_dict().items())
        assert torch.equal(attached(**inputs).logits, usual(**inputs).logits)
    assert frozen_linear.works()


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_a_model_that_gives_out_maps_by_its_config_gives_out_as_many_as_before(family: str) -> None:
    """transformers puts hooks in at the first such pass, once: which must not be one that attach tries."""
    inputs = tiny.batch(family)
    with torch.no_grad():
        settings = {"_attn_implementation": "eager", "output_attentions": True}
        wanted = tiny.model(family, **settings)(**inputs)
        model = tiny.model(family, **settings)
        sp.attach(model, sp.PromptTuningConfig(num_virtual_tokens=2), seed=0).set_prompt(None)
        for attached in (model, sp.detach(model)):
            given = attached(**inputs)
            assert list(given) == list(wanted)
            for name in ("attentions", "encoder_attentions", "decoder_attentions"):
                if name in wanted:
                    assert [part.shape for part in given[name]] == [part.shape for part in wanted[name]]


def test_a_vocabulary_of_four_special_tokens_takes_prompts() -> None:
    model = tiny.model("llama", vocab_size=4, pad_token_id=3)
    plain = copy.deepcopy(model)
    sp.attach(model, sp.PromptTuningConfig(num_virtual_tokens=2), seed=0)
    ids = torch.tensor([[0, 1, 2, 1]])
    prompt = model.prompts["default"].method(None).tokens
    typed = torch.cat([prompt, plain.get_input_embeddings()(ids)], 1)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, plain(inputs_embeds=typed).logits[:, 2:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("made", [tf.MambaModel, tf.MambaForCausalLM])
def test_state_spaces_take_input_prompts_with_a_head_and_without(made: Any) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "intermediate_size": 32}
    model = made(tf.MambaConfig(vocab_size=60, bos_token_id=1, eos_token_id=2, pad_token_id=0, **shape)).eval()
    plain, ids = copy.deepcopy(model), torch.randint(3, 60, (2, 5))
    sp.attach(model, sp.PromptTuningConfig(num_virtual_tokens=3), seed=0)
    prompt = model.prompts["default"].method(None).tokens.expand(2, -1, -1)
    typed = torch.cat([prompt, plain.get_input_embeddings()(ids)], 1)
    with torch.no_grad():
        given, wanted = model(ids)[0], plain(inputs_embeds=typed)[0][:, 3:]
        mixed = model(ids, prompt_names=["default", None])[0]
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed, torch.stack([given[0], plain(ids)[0][1]]), rtol=0, atol=1e-5)
