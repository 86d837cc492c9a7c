"""A prompt built into a model directory: plain transformers gives what the attached model gives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import tokenizers_of as own
import torch
import transformers as tf
from safetensors.torch import load_file
from torch import Tensor

import softprompts as sp
from softprompts.model.interop.prompt_tokens import save_tokenizer, with_prompt_tokens
from softprompts.soft_prompt import Part

AUTO = {
    "encoder": tf.AutoModelForSequenceClassification,
    "encoder-decoder": tf.AutoModelForSeq2SeqLM,
    "decoder": tf.AutoModelForCausalLM,
}
TOKENS = sp.PromptTuningConfig(num_virtual_tokens=3)
WEIGHTS: dict[str, sp.MethodConfig] = {
    "lora": tiny.METHODS["lora"],
    "full": sp.FullConfig(),
    "full-tables": sp.FullConfig(shared_tables=True),
    "bitfit": sp.BitFitConfig(),
}


def attached(family: str, config: sp.MethodConfig, tokens: bool = False, **more: Any) -> Any:
    dtype = more.pop("dtype", torch.float64)
    labels = ["no", "maybe *", "yes"] if tiny.FAMILIES[family][0] == "encoder" else None
    model = sp.attach(tiny.model(family, dtype, tokens, **more), config, "p", labels=labels, seed=3)
    model.prompts.to(torch.float32 if dtype == torch.bfloat16 else dtype)
    tiny.shake(model)
    return model.eval()


def outputs(model: Any, batch: dict[str, Any], **more: Any) -> Tensor:
    kind = "encoder-decoder" if model.config.is_encoder_decoder else ""
    if kind:
        more["decoder_input_ids"] = torch.tensor([[0, 5, 6], [0, 7, 8]])
    with torch.no_grad():
        return model(**batch, **more).logits


def reload(folder: Path, auto: Any) -> tuple[Any, Any]:
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval(), tf.AutoTokenizer.from_pretrained(folder)


def same(family: str, model: Any, tokenizer: Any, folder: Path, auto: Any = None, texts: Any = own.TEXTS) -> float:
    """The largest difference, at the real tokens of a padded batch; both sides of padding where both are usual."""
    kind = tiny.FAMILIES[family][0]
    plain, made = reload(folder, auto or AUTO[kind])
    worst = 0.0
    for side in ("right", "left") if kind == "decoder" else ("right",):
        batch, new = own.encoded(tokenizer, texts, side), own.encoded(made, texts, side)
        # A plain model given no positions counts padding on the left too; generate tells it better.
        places = {"position_ids": (new["attention_mask"].cumsum(1) - 1).clamp(min=0)} if side == "left" else {}
        ours, theirs = outputs(model, batch), outputs(plain, new, **places)
        with model.disable_prompt():
            bare = outputs(model, batch)
        words = len(tokenizer)
        for row in range(len(ours)):
            mine, other, none = ours[row], theirs[row], bare[row]
            if kind == "decoder":
                real = batch["attention_mask"][row].bool()
                count = int(real.sum())
                mine, none = mine[real][:, :words], none[real][:, :words]
                other = other[new["attention_mask"][row].bool()][-count:, :words]
            elif kind == "encoder-decoder":
                mine, other, none = mine[:, :words], other[:, :words], none[:, :words]
            assert mine.shape == other.shape
            assert (mine - none).abs().max() > 1e-3  # the prompt does something
            worst = max(worst, float((mine - other).abs().max()))
    return worst


# --- equal outputs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["bert", "t5", "bart", "llama", "gemma3", "qwen3", "gpt2"])
def test_tokens_become_tokens_of_the_vocabulary(family: str, tmp_path: Path) -> None:
    model, tokenizer = attached(family, TOKENS), own.tokenizer_for(family)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert model.materialize("p", tmp_path / "m", tokenizer) == tmp_path / "m"
    assert same(family, model, tokenizer, tmp_path / "m") < 1e-12
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [file.name for file in tmp_path.iterdir()] == ["m"]
    assert not list((tmp_path / "m").glob("softprompt*"))


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_pairs_of_texts(family: str, tmp_path: Path) -> None:
    model, tokenizer = attached(family, TOKENS), own.tokenizer_for(family)
    model.materialize("p", tmp_path / "m", tokenizer)
    if family == "bert":
        types = own.encoded(tf.AutoTokenizer.from_pretrained(tmp_path / "m"), own.PAIRS)["token_type_ids"]
        assert types[0].tolist() == [0] * 7 + [1] * 5
        assert same(family, model, tokenizer, tmp_path / "m", texts=own.PAIRS) < 1e-12
    else:
        old, new = tokenizer(*own.PAIRS[0])["input_ids"], tf.AutoTokenizer.from_pretrained(tmp_path / "m")
        assert new(*own.PAIRS[0])["input_ids"][3:] == old


MERGED = [(family, method, False) for family in ("bert", "roberta", "distilbert", "electra") for method in WEIGHTS]
MERGED += [
    (family, method, tied) for family in ("t5", "bart", "llama", "gpt2") for method in WEIGHTS for tied in (False, True)
]


@pytest.mark.parametrize(("family", "method", "tied"), MERGED)
def test_weights_are_merged(family: str, method: str, tied: bool, tmp_path: Path) -> None:
    kind = tiny.FAMILIES[family][0]
    model, tokenizer = attached(family, WEIGHTS[method], tie_word_embeddings=tied), own.tokenizer_for(family)
    if family == "roberta":  # its padding is token 1
        tokenizer.pad_token = "<s>"
    if method == "bitfit" and family in ("t5", "llama"):
        with pytest.raises(sp.SoftPromptError, match="^bitfit: '.*' has no bias, and a new one would be another arch"):
            model.materialize("p", tmp_path / "m")
        assert list(tmp_path.iterdir()) == []
        return
    model.materialize("p", tmp_path / "m", tokenizer)
    assert same(family, model, tokenizer, tmp_path / "m") < 1e-12
    plain, _ = reload(tmp_path / "m", AUTO[kind])
    if kind != "encoder":
        output, table = plain.get_output_embeddings().weight, plain.get_input_embeddings().weight
        assert (output.data_ptr() == table.data_ptr()) is tied
        assert len(table) == 60


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
@pytest.mark.parametrize("other", ["lora", "full"])
def test_tokens_and_weights_in_one_directory(family: str, other: str, tmp_path: Path) -> None:
    model, tokenizer = attached(family, sp.compose(TOKENS, WEIGHTS[other])), own.tokenizer_for(family)
    model.materialize("p", tmp_path / "m", tokenizer)
    assert same(family, model, tokenizer, tmp_path / "m") < 1e-12


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert", "electra"])
def test_tagging_on_any_encoder(family: str, tmp_path: Path) -> None:
    model, tokenizer = attached(family, TOKENS, tokens=True), own.tokenizer_for(family)
    model.materialize("p", tmp_path / "m", tokenizer)
    plain, made = reload(tmp_path / "m", tf.AutoModelForTokenClassification)
    old, new = own.encoded(tokenizer, own.TEXTS[:1]), own.encoded(made, own.TEXTS[:1])
    ours, theirs = outputs(model, old), outputs(plain, new)
    keep = int(family == "bert")
    torch.testing.assert_close(theirs[:, keep + 3 :], ours[:, keep:], rtol=0, atol=1e-12)


def test_heads_without_tokens_and_their_labels(tmp_path: Path) -> None:
    model, tokenizer = attached("distilbert", sp.HeadOnlyConfig()), own.tokenizer_for("distilbert")
    model.materialize("p", tmp_path / "m", tokenizer)
    plain, _ = reload(tmp_path / "m", AUTO["encoder"])
    assert plain.config.id2label == {0: "no", 1: "maybe *", 2: "yes"}
    assert plain.config.label2id["yes"] == 2
    assert same("distilbert", model, tokenizer, tmp_path / "m") < 1e-12


def test_another_number_of_labels(tmp_path: Path) -> None:
    model = sp.attach(tiny.model("bert"), TOKENS, "p", labels=["a", "b", "c", "d", "e"]).eval()
    model.prompts.double()
    tokenizer = own.tokenizer_for("bert")
    model.materialize("p", tmp_path / "m", tokenizer)
    plain, made = reload(tmp_path / "m", AUTO["encoder"])
    ours, theirs = outputs(model, own.encoded(tokenizer)), outputs(plain, own.encoded(made))
    assert theirs.shape == (2, 5)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-12)


def test_a_scaled_table_and_a_spare_one(tmp_path: Path) -> None:
    """Gemma multiplies embeddings with sqrt(d); rows that no token has are used before the table grows."""
    model, tokenizer = attached("gemma3", TOKENS), own.tokenizer_for("gemma3")
    model.materialize("p", tmp_path / "m", tokenizer)
    plain, made = reload(tmp_path / "m", AUTO["decoder"])
    ids = made("a")["input_ids"][:3]
    assert ids == [len(tokenizer), len(tokenizer) + 1, len(tokenizer) + 2]
    tokens = model.prompts["p"].method(None).tokens[0]
    torch.testing.assert_close(plain.get_input_embeddings()(torch.tensor(ids)), tokens)
    torch.testing.assert_close(plain.get_input_embeddings().weight[ids] * 4.0, tokens)  # d = 16
    assert len(plain.get_input_embeddings().weight) == 60

    model = attached("llama", sp.PromptTuningConfig(num_virtual_tokens=45), vocab_size=60)
    model.materialize("p", tmp_path / "big", tokenizer)
    plain, _ = reload(tmp_path / "big", AUTO["decoder"])
    assert plain.config.vocab_size == len(tokenizer) + 45 == len(plain.get_output_embeddings().weight)
    assert same("llama", model, tokenizer, tmp_path / "big") < 1e-12


def test_the_type_of_the_weights_is_kept(tmp_path: Path) -> None:
    model, tokenizer = (
        attached("llama", sp.compose(TOKENS, WEIGHTS["lora"]), dtype=torch.bfloat16),
        own.tokenizer("start"),
    )
    model.materialize("p", tmp_path / "m", tokenizer)
    assert {value.dtype for value in load_file(tmp_path / "m" / "model.safetensors").values()} == {torch.bfloat16}
    plain, made = reload(tmp_path / "m", AUTO["decoder"])
    assert plain.dtype == torch.bfloat16
    ours, theirs = outputs(model, own.encoded(tokenizer)), outputs(plain, own.encoded(made))
    torch.testing.assert_close(theirs[0, 3:, :20], ours[0, :, :20], rtol=0.1, atol=0.1)


# --- generation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("llama", False), ("gpt2", True), ("t5", True)])
def test_prompt_tokens_are_never_generated(family: str, tied: bool, tmp_path: Path) -> None:
    model, tokenizer = attached(family, TOKENS, tie_word_embeddings=tied), own.tokenizer_for(family)
    with torch.no_grad():
        model.prompts["p"].method.prompt.mul_(20)  # logits far above those of all words, where they are tied
    model.materialize("p", tmp_path / "m", tokenizer)
    plain, made = reload(tmp_path / "m", AUTO[tiny.FAMILIES[family][0]])
    new = set(made.get_vocab().values()) - set(tokenizer.get_vocab().values())
    assert plain.generation_config.suppress_tokens == sorted(new)
    batch, wide = own.encoded(tokenizer, side="left"), own.encoded(made, side="left")
    more = {"max_new_tokens": 8, "min_new_tokens": 8, "suppress_tokens": [*range(len(tokenizer), 60)]}
    ours = model.generate(**batch, **more)[:, -8:]
    theirs = plain.generate(**wide, **{**more, "suppress_tokens": [*more["suppress_tokens"], *new]})[:, -8:]
    assert torch.equal(ours, theirs)
    alone = plain.generate(**wide, max_new_tokens=8, do_sample=True)
    start = wide["input_ids"].shape[1] if family != "t5" else 0
    assert not new & set(alone[:, start:].flatten().tolist())
    if tied:
        free = plain.generate(**wide, max_new_tokens=8, suppress_tokens=None)
        assert new & set(free[:, start:].flatten().tolist())  # it would, if it were let
    assert "soft-prompt" not in made.batch_decode(alone, skip_special_tokens=True)[0]


def test_lengths_of_the_generation_config_count_the_prompt(tmp_path: Path) -> None:
    model, tokenizer = attached("llama", TOKENS), own.tokenizer_for("llama")
    model.generation_config.max_length = 12
    model.materialize("p", tmp_path / "m", tokenizer)
    plain, made = reload(tmp_path / "m", AUTO["decoder"])
    ours = model.generate(**own.encoded(tokenizer, own.TEXTS[1:]), suppress_tokens=[*range(23, 60)], do_sample=False)
    theirs = plain.generate(**own.encoded(made, own.TEXTS[1:]), suppress_tokens=[*range(23, 60)], do_sample=False)
    assert torch.equal(ours, theirs[:, 3:])


# --- tokenizers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("post", list(own.POST))
@pytest.mark.parametrize("keep", [0, 1])
def test_every_post_processor(post: str, keep: int, tmp_path: Path) -> None:
    before = own.tokenizer(post)
    if keep and post in ("none", "byte-level", "end"):
        with pytest.raises(sp.SoftPromptError, match="puts no special token there"):
            with_prompt_tokens(before, 2, keep, None)
        return
    made = with_prompt_tokens(before, 2, keep, None)
    save_tokenizer(made.tokenizer, tmp_path, ["a film", ("a", "film")])
    back = tf.AutoTokenizer.from_pretrained(tmp_path)
    for texts in (("the film was good",), ("the film", "was good")):
        old, new = (one(*texts, return_token_type_ids=True) for one in (before, back))
        ids = old["input_ids"]
        assert new["input_ids"] == [*ids[:keep], *made.ids, *ids[keep:]]
        types = old["token_type_ids"]
        assert new["token_type_ids"] == [*types[:keep], 0, 0, *types[keep:]]
        assert len(back(*texts, truncation=True, max_length=6)["input_ids"]) == 6
        offsets = back(*texts, return_offsets_mapping=True)["offset_mapping"]
        plain = before(*texts, return_offsets_mapping=True)["offset_mapping"]
        assert offsets == [*plain[:keep], (0, 0), (0, 0), *plain[keep:]]
    assert back.decode(back("the film")["input_ids"], skip_special_tokens=True) == "the film"
    assert back("the film", add_special_tokens=False)["input_ids"] == [6, 8]


@pytest.mark.parametrize("named", [False, True])
def test_chats_begin_with_the_prompt(named: bool, tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    before = own.tokenizer("start")
    before.chat_template = {"default": template, "other": template} if named else template
    made = with_prompt_tokens(before, 2, 0, None)
    save_tokenizer(made.tokenizer, tmp_path, ["a"])
    chat = [{"role": "user", "content": "the film"}]
    back = tf.AutoTokenizer.from_pretrained(tmp_path)
    old = before.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"]
    assert back.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"] == [*made.ids, *old]


def test_the_longest_input() -> None:
    for longest, limit, now in ((30, None, 33), (30, 40, 33), (39, 40, 40), (40, 40, 40)):
        made = with_prompt_tokens(own.tokenizer("ends", model_max_length=longest), 3, 1, limit)
        assert made.tokenizer.model_max_length == now
    before = own.tokenizer("ends")
    assert with_prompt_tokens(before, 3, 1, 40).tokenizer.model_max_length == before.model_max_length


def test_a_model_that_has_a_prompt_gets_another(tmp_path: Path) -> None:
    model, tokenizer = attached("llama", TOKENS), own.tokenizer_for("llama")
    model.materialize("p", tmp_path / "one", tokenizer)
    plain, made = reload(tmp_path / "one", AUTO["decoder"])
    again = sp.attach(plain, TOKENS, "p", seed=8)
    again.prompts.double()
    again.materialize("p", tmp_path / "two", made)
    assert same("llama", again, made, tmp_path / "two") < 1e-12


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("prefix-tuning", "prefix goes to keys and values"),
        ("multi-mask", "depends on the input"),
        ("smop", "depends on the input"),
        ("adaptive-prefix", "prefix goes to keys"),
        ("dept", "changes the text's embeddings by their place"),
        ("adapter", "no change of their weights"),
    ],
)
def test_what_no_weights_do_is_refused(method: str, reason: str, tmp_path: Path) -> None:
    model = tiny.attached("bert", method)
    with pytest.raises(sp.SoftPromptError, match=rf"^{method}: .*{reason}") as error:
        model.materialize(method, tmp_path / "m", own.tokenizer_for("bert"))
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", ["roberta", "distilbert", "modernbert", "electra"])
def test_a_head_that_would_read_the_prompt_is_refused(family: str, tmp_path: Path) -> None:
    model, tokenizer = attached(family, TOKENS), own.tokenizer_for(family)
    with pytest.raises(sp.SoftPromptError, match="where a head reads a text's first token"):
        model.materialize("p", tmp_path / "m", tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    model, tokenizer = attached("bert", TOKENS), own.tokenizer_for("bert")
    (tmp_path / "file").write_text("x")
    with pytest.raises(sp.SoftPromptError, match="is a file; name a folder"):
        model.materialize("p", tmp_path / "file", tokenizer)
    with pytest.raises(sp.SoftPromptError, match="not empty: name a new folder"):
        model.materialize("p", tmp_path, tokenizer)
    with pytest.raises(sp.SoftPromptError, match="unknown prompt 'q'"):
        model.materialize("q", tmp_path / "m", tokenizer)
    with pytest.raises(sp.SoftPromptError, match=r"needs the tokenizer.*pass tokenizer="):
        model.materialize("p", tmp_path / "m")
    with pytest.raises(sp.SoftPromptError, match="needs a fast tokenizer.*int is none"):
        model.materialize("p", tmp_path / "m", 3)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    (tmp_path / "empty").mkdir()
    model.materialize("p", tmp_path / "empty", tokenizer)
    assert same("bert", model, tokenizer, tmp_path / "empty") < 1e-12


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = attached("bert", TOKENS), own.tokenizer_for("bert")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("softprompts.model.interop.materialize.save_tokenizer", fail)
    with pytest.raises(OSError, match="disk full"):
        model.materialize("p", tmp_path / "m", tokenizer)
    assert list(tmp_path.iterdir()) == []
    assert model.prompts["p"].method.training is False and sp.is_attached(model)


def test_half_of_a_tie_is_refused(tmp_path: Path) -> None:
    """A bias that two modules share cannot have two values."""
    model = attached("gpt2", WEIGHTS["bitfit"])
    one, other = model.transformer.h[0].ln_1, model.transformer.h[0].ln_2
    other.bias = one.bias
    with pytest.raises(sp.SoftPromptError, match=r"share their bias, and the prompt changes one of them only"):
        model.materialize("p", tmp_path / "m", own.tokenizer_for("gpt2"))


# --- the contract of methods ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_lora_is_merged_into_the_weight(kind: str) -> None:
    model = attached("gpt2" if kind == "conv1d" else "llama", WEIGHTS["lora"])
    from softprompts.injection.state import state_of

    method = model.prompts["p"].method
    parts = state_of(model).backbone.described_parts("lora")
    merged = method.merged(parts)
    assert set(merged) == set(method.changes)
    for part in parts:
        if part.path in merged:
            assert part.kind == kind
            name = part.path.replace(".", "/")
            change = (method.b[name].double() @ method.a[name].double()) * method.scale
            wanted = part.tensors["weight"] + (change.T if kind == "conv1d" else change)
            torch.testing.assert_close(merged[part.path]["weight"], wanted, rtol=0, atol=1e-14)
            assert part.tensors["weight"].data_ptr() != merged[part.path]["weight"].data_ptr()


def test_lora_on_quantised_weights_is_not_merged() -> None:
    model = attached("llama", WEIGHTS["lora"])
    part = Part(model.prompts["p"].method.changes[0], "linear", tensors={"weight": torch.zeros(2, 2, dtype=torch.int8)})
    with pytest.raises(sp.SoftPromptError, match="is quantised"):
        model.prompts["p"].method.merged([part])


# --- without this library ---------------------------------------------------------------------------------------------


def test_a_process_that_does_not_know_us(tmp_path: Path) -> None:
    model, tokenizer = attached("bert", sp.compose(TOKENS, WEIGHTS["lora"])), own.tokenizer_for("bert")
    model.materialize("p", tmp_path / "m", tokenizer)
    code = f"""
import json, sys
sys.modules["softprompts"] = None  # an import would fail
import transformers
made = transformers.pipeline("text-classification", {str(tmp_path / "m")!r}, top_k=None, function_to_apply="none")
print(json.dumps(made({own.TEXTS!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    found = json.loads(done.stdout)
    ours = outputs(model, own.encoded(tokenizer))
    for row, scores in zip(ours, found, strict=True):
        by_name = {one["label"]: one["score"] for one in scores}
        torch.testing.assert_close(
            torch.tensor([by_name[name] for name in ("no", "maybe *", "yes")]).double(), row, rtol=0, atol=1e-6
        )
