"""Prompts as embeddings: plain transformers given these as ``inputs_embeds`` does what the attached model does."""

from __future__ import annotations

import base64
import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor

import softprompts as sp
from softprompts.model.interop.embeddings import decode_embeds, encode_embeds, prompt_embeds

IDS = [1, 17, 9, 30, 44, 8]
INPUT = ["prompt-tuning", "superpos", "smop", "dept", "ept"]


def plain(family: str) -> Any:
    """The model that no prompt was ever attached to."""
    return tiny.model(family)


def run(model: Any, **inputs: Any) -> Tensor:
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[0, 5, 6]])
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("method", INPUT)
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "qwen3", "t5", "bart", "bert"])
def test_logits_are_equal(family: str, method: str) -> None:
    model = tiny.attached(family, method)
    embeds = prompt_embeds(model, method, IDS)
    assert embeds.dtype == torch.float64 and not embeds.requires_grad
    other = plain(family)
    if family == "bert":
        other.classifier = model.prompts[method].head["classifier"]
    ours, theirs = run(model, input_ids=torch.tensor([IDS])), run(other, inputs_embeds=embeds[None])
    with model.disable_prompt():
        assert (run(model, input_ids=torch.tensor([IDS])) - ours).abs().max() > 1e-3
    if tiny.FAMILIES[family][0] == "decoder":
        theirs = theirs[:, -len(IDS) :]
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["prompt-tuning", "dept"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "t5"])
def test_greedy_generation_is_equal(family: str, method: str) -> None:
    model = tiny.attached(family, method)
    ids = IDS if family == "t5" or method == "prompt-tuning" else IDS * 3  # as long as the update of embeddings
    embeds = prompt_embeds(model, method, torch.tensor([ids]))
    more = {"max_new_tokens": 10, "do_sample": False}
    ours = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), **more)
    mask = torch.ones(1, len(embeds), dtype=torch.long)
    theirs = plain(family).generate(inputs_embeds=embeds[None], attention_mask=mask, **more)
    ours = ours if family == "t5" else ours[:, len(ids) :]
    assert theirs.shape[1] >= 3 and torch.equal(theirs, ours)


@pytest.mark.parametrize(
    ("family", "scale", "keep"), [("llama", 1.0, 0), ("gemma3", 4.0, 0), ("bert", 1.0, 1), ("t5", 1, 0)]
)
def test_saved_tokens_go_in_front(family: str, scale: float, keep: int, tmp_path: Path) -> None:
    model = tiny.attached(family, "superpos")
    model.save_embeddings("superpos", tmp_path / "e")
    facts = json.loads((tmp_path / "e" / "prompt_embeds.json").read_text())
    tokens = load_file(tmp_path / "e" / "prompt_embeds.safetensors")["prompt_embeds"]
    assert sorted(file.name for file in (tmp_path / "e").iterdir()) == [
        "prompt_embeds.json",
        "prompt_embeds.safetensors",
    ]
    assert facts["shape"] == [2, 16] == list(tokens.shape) and facts["dtype"] == "float64"
    assert facts["embedding_scale"] == pytest.approx(scale) and facts["keep_first"] == keep
    assert facts["of"] == ("the encoder" if family == "t5" else "the model") and facts["method"] == "superpos"
    text = plain(family).get_input_embeddings()(torch.tensor(IDS))
    joined = torch.cat([text[:keep], tokens, text[keep:]])
    assert torch.equal(joined, prompt_embeds(model, "superpos", IDS))


def test_a_type_of_the_model_and_no_other(tmp_path: Path) -> None:
    model = tiny.attached("llama", "prompt-tuning", dtype=torch.bfloat16)
    model.prompts.float()
    model.save_embeddings("prompt-tuning", tmp_path / "e")
    tokens = load_file(tmp_path / "e" / "prompt_embeds.safetensors")["prompt_embeds"]
    assert tokens.dtype == prompt_embeds(model, "prompt-tuning", IDS).dtype == torch.bfloat16
    assert torch.equal(tokens, prompt_embeds(model, "prompt-tuning", IDS)[:3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_form_that_is_sent_comes_back(dtype: torch.dtype) -> None:
    embeds = torch.randn(5, 4).to(dtype)
    text = encode_embeds(embeds[1:4])
    assert text.isascii() and torch.equal(decode_embeds(text), embeds[1:4])
    # As vLLM reads it.
    assert torch.equal(torch.load(io.BytesIO(base64.b64decode(text, validate=True)), weights_only=True), embeds[1:4])
    assert len(base64.b64decode(encode_embeds(torch.zeros(1, 4)))) < 3000  # a slice does not take the whole with it


class Bomb:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("code was run",)


@pytest.mark.parametrize(
    "text",
    [
        "no base64!",
        base64.b64encode(b"junk").decode(),
        "",
        base64.b64encode(pickle.dumps(Bomb())).decode(),
    ],
)
def test_what_is_no_tensor_is_refused(text: str) -> None:
    with pytest.raises(sp.SoftPromptError, match="no embeddings can be read"):
        decode_embeds(text)


def test_a_pickled_object_is_refused() -> None:
    file = io.BytesIO()
    torch.save({"a": Bomb()}, file)
    with pytest.raises(sp.SoftPromptError, match="no embeddings can be read"):
        decode_embeds(base64.b64encode(file.getvalue()).decode())
    file = io.BytesIO()
    torch.save([1, 2], file)
    with pytest.raises(sp.SoftPromptError, match="holds something else"):
        decode_embeds(base64.b64encode(file.getvalue()).decode())


@pytest.mark.parametrize("embeds", [torch.zeros(2, 3, dtype=torch.float64), torch.zeros(1, 2, 3), torch.zeros(3)])
def test_what_vllm_would_refuse_is_not_sent(embeds: Tensor) -> None:
    with pytest.raises(sp.SoftPromptError, match=r"must be \(tokens, width\) in float32, float16 or bfloat16, not"):
        encode_embeds(embeds)


@pytest.mark.parametrize(
    ("method", "both", "reason"),
    [
        ("prefix-tuning", True, "prefix goes to keys and values inside the model"),
        ("multi-mask", True, "keys and values|depends on the input"),
        ("lora", True, "changes the model's weights"),
        ("smop", False, "depends on the input, so its tokens differ from text to text; prompt_embeds"),
        ("ept", False, "also changes the embeddings of the text, place by place; prompt_embeds"),
    ],
)
def test_what_is_no_embeddings_is_refused(method: str, both: bool, reason: str, tmp_path: Path) -> None:
    model = tiny.attached("llama", method)
    with pytest.raises(sp.SoftPromptError, match=f"^{method}: .*({reason})"):
        model.save_embeddings(method, tmp_path / "e")
    assert list(tmp_path.iterdir()) == []
    if both:
        with pytest.raises(sp.SoftPromptError, match=f"^{method}: "):
            prompt_embeds(model, method, IDS)
    else:
        assert len(prompt_embeds(model, method, IDS)) == len(IDS) + 3


def test_one_row_at_a_time(tmp_path: Path) -> None:
    model = tiny.attached("llama", "prompt-tuning").train()
    for ids in (torch.tensor([IDS, IDS]), [], torch.tensor(3)):
        with pytest.raises(sp.SoftPromptError, match="ids of one text, not a tensor of shape"):
            prompt_embeds(model, "prompt-tuning", ids)
    with pytest.raises(sp.SoftPromptError, match="unknown prompt 'p'"):
        prompt_embeds(model, "p", IDS)
    assert model.prompts["prompt-tuning"].method.training
    (tmp_path / "x").write_text("")
    with pytest.raises(sp.SoftPromptError, match="not empty"):
        model.save_embeddings("prompt-tuning", tmp_path)
