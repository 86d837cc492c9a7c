"""Compositions on models: against passes written out by hand, mixed with others, saved, folded, on the command line."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import source_prompts
import tiny
import torch
from torch import Tensor

import softprompts as sp
from softprompts.methods.modules import key

SUPERPOS = sp.SuperPosConfig(num_virtual_tokens=2, num_sampled_tokens=4)
EPT = sp.EPTConfig(num_virtual_tokens=3, rank=2, max_length=5, num_spaces=2, space_hidden_size=4, source_tokens=6)
MASKS = sp.MultiMaskConfig(num_virtual_tokens=3, num_masks=2, router_dropout=0.0)
SELECTIVE = sp.SelectivePrefixConfig(num_virtual_tokens=3, alpha=4.0, selective_loss=1e-2)
PREFIX = sp.PrefixTuningConfig(num_virtual_tokens=3)
COMPOSED = {
    "superpos+multi-mask": sp.compose(SUPERPOS, MASKS),
    "ept+selective-prefix": sp.compose(EPT, SELECTIVE),
    "multi-mask+selective-prefix": sp.compose(MASKS, SELECTIVE),
    "superpos+adaptive-prefix+multi-mask": sp.compose(SUPERPOS, sp.AdaptivePrefixConfig(num_virtual_tokens=3), MASKS),
}


def attached(family: str, **prompts: sp.MethodConfig) -> Any:
    model = sp.attach(tiny.model(family))
    for i, (name, config) in enumerate(prompts.items()):
        model.add_prompt(name, config, seed=i)
    model.prompts.to(torch.float64)
    tiny.shake(model)
    return model


def softmax(scores: list[float], factors: list[float]) -> list[float]:
    """Weights ``m exp(s) / sum m exp(s)``."""
    weights = [factor * math.exp(score - max(scores)) for score, factor in zip(scores, factors, strict=True)]
    return [weight / sum(weights) for weight in weights]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


class ByHand:
    """A pass of tiny BERT over one row without padding, with the prompt's formulas written out."""

    def __init__(self, model: Any, name: str):
        self.model, self.bert, self.name = model, model.bert, name
        self.parts = dict(model.prompts[name].method.parts.items())
        self.heads, self.width = 4, 4

    def logits(self, ids: Tensor) -> Tensor:
        table = self.bert.embeddings.word_embeddings.weight
        words = [table[i] for i in ids.tolist()]
        prefix = self.prefix(words)
        words = self.with_update(words)
        words = [words[0], *self.tokens(), *words[1:]]
        places = self.bert.embeddings.position_embeddings.weight
        types = self.bert.embeddings.token_type_embeddings.weight[0]
        states = [self.bert.embeddings.LayerNorm(word + places[i] + types) for i, word in enumerate(words)]
        for site, layer in enumerate(self.bert.encoder.layer):
            states = self.layer(layer, states, *prefix[site])
        head = self.model.prompts[self.name].head
        return head["classifier"](torch.tanh(self.bert.pooler.dense(states[0])))

    def tokens(self) -> list[Tensor]:
        if "superpos" in self.parts:
            part = self.parts["superpos"]
            return [
                sum(part.weights[i, j] * part.embeddings[i, j] for j in range(part.weights.shape[1]))
                for i in range(len(part.weights))
            ]
        if "ept" in self.parts:
            return self.ept_tokens(self.parts["ept"])
        return []

    def ept_tokens(self, part: Any) -> list[Tensor]:
        change = self.change(part)
        made = []
        for own in part.prompt:
            scores = [float(own @ row) / math.sqrt(len(own)) for row in change]
            weights = softmax(scores, [1.0] * len(scores))
            token = own + sum(weight * row for weight, row in zip(weights, change, strict=True))
            gates = part.gate(own).tolist()
            shares = softmax(gates, [1.0] * len(gates))
            token = token + sum(share * space(own) for share, space in zip(shares, part.spaces, strict=True))
            made.append(part.center + part.unit * token)
        return made

    @staticmethod
    def change(part: Any) -> list[Tensor]:
        return [sum(part.a[i, r] * part.b[r] for r in range(part.a.shape[1])) for i in range(len(part.a))]

    def with_update(self, words: list[Tensor]) -> list[Tensor]:
        if "ept" not in self.parts:
            return words
        part = self.parts["ept"]
        change = [part.config.update_scale * part.unit * row for row in self.change(part)]
        return [word + change[i] if i < len(change) else word for i, word in enumerate(words)]

    def prefix(self, words: list[Tensor]) -> list[tuple[list[Tensor], list[Tensor], float | None]]:
        """Per site: keys, values and alpha."""
        source = self.parts["multi-mask" if "multi-mask" in self.parts else "selective-prefix"]
        table = source.prefix.view(3, 2, 2, -1)
        alpha = 4.0 if "selective-prefix" in self.parts else None
        found = []
        for site in range(2):
            gates = [1.0] * 3
            if "multi-mask" in self.parts:
                mean = sum(words) / len(words)
                seen = 4 * (mean - source.router.center) / source.router.spread
                logits = (source.router.weight @ seen).tolist()
                chosen, masks = softmax(logits, [1.0] * len(logits)), source.masks.tolist()
                gates = [sigmoid(sum(p * masks[k][t][site] for k, p in enumerate(chosen))) for t in range(3)]
            keys = [gates[t] * table[t, site, 0] for t in range(3)]
            values = [gates[t] * table[t, site, 1] for t in range(3)]
            found.append((keys, values, alpha))
        return found

    def layer(
        self, layer: Any, states: list[Tensor], keys: list[Tensor], values: list[Tensor], alpha: float | None
    ) -> list[Tensor]:
        own = layer.attention.self
        keys = [*keys, *(own.key(state) for state in states)]
        values = [*values, *(own.value(state) for state in states)]
        made = []
        for state in states:
            query, heads = own.query(state), []
            for head in range(self.heads):
                part = slice(head * self.width, (head + 1) * self.width)
                scores = [float(query[part] @ key[part]) / math.sqrt(self.width) for key in keys]
                factors = [sigmoid(alpha * s) if alpha is not None and i < 3 else 1.0 for i, s in enumerate(scores)]
                weights = softmax(scores, factors)
                heads.append(sum(weight * value[part] for weight, value in zip(weights, values, strict=True)))
            mixed = layer.attention.output.LayerNorm(layer.attention.output.dense(torch.cat(heads)) + state)
            inner = torch.nn.functional.gelu(layer.intermediate.dense(mixed))
            made.append(layer.output.LayerNorm(layer.output.dense(inner) + mixed))
        return made


@pytest.mark.parametrize("name", ["superpos+multi-mask", "ept+selective-prefix", "multi-mask+selective-prefix"])
@torch.no_grad()
def test_a_pass_is_the_sum_of_the_parts(name: str) -> None:
    model = attached("bert", x=COMPOSED[name])
    inputs = tiny.batch("bert")
    found = model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    by_hand = ByHand(model, "x")
    for row in range(3):
        ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
        torch.testing.assert_close(found[row], by_hand.logits(ids), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_mixed_batches(family: str) -> None:
    """Every row comes out as alone, and so do the gradients of each prompt."""
    prompts = {f"p{i}": config for i, config in enumerate(COMPOSED.values())}
    names: list[Any] = [*prompts, None, "p0", "plain", "p2"]
    model = attached(family, **prompts, plain=tiny.METHODS["multi-mask"])
    inputs = tiny.batch(family, rows=7)
    inputs = {key: torch.cat([value, value[:1]]) for key, value in inputs.items()}
    outputs = model(**inputs, prompt_names=names)
    rows = []
    for row, name in enumerate(names):
        alone = tiny.row(inputs, row)
        rows.append(model(**alone, prompt_names=[name]).logits)
        real = outputs.logits[row]
        if family == "llama":
            real = real[inputs["attention_mask"][row].bool()]
        torch.testing.assert_close(real, rows[-1][0], rtol=1e-9, atol=1e-10)
    parameters = [p for p in model.prompts.parameters() if p.requires_grad]

    def grads(logits: list[Tensor]) -> list[Tensor | None]:
        return torch.autograd.grad(sum(row.square().mean() for row in logits), parameters, allow_unused=True)

    together = tiny.real_logits(family, outputs.logits, inputs["attention_mask"])
    for one, other in zip(grads(together), grads([row[0] for row in rows]), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
@pytest.mark.parametrize("name", list(COMPOSED))
def test_saved_and_loaded(family: str, name: str, tmp_path: Path) -> None:
    model = attached(family, x=COMPOSED[name])
    model.save_prompt("x", tmp_path / "x")
    saved = json.loads((tmp_path / "x" / "softprompt_config.json").read_text())
    assert saved["method"] == name
    other = sp.attach(tiny.model(family))
    other.load_prompt(tmp_path / "x")
    assert other.prompts["x"].config == COMPOSED[name]
    inputs = tiny.batch(family)
    first, second = (m(**inputs, prompt_names="x") for m in (model, other))
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(first.loss, second.loss)
    saved["config"]["parts"][0]["num_virtual_tokens"] = 10**9
    (tmp_path / "x" / "softprompt_config.json").write_text(json.dumps(saved))
    with pytest.raises(sp.SoftPromptError, match="config has num_virtual_tokens=1000000000"):
        other.load_prompt(tmp_path / "x", name="y")


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_folded(family: str, tmp_path: Path) -> None:
    model = attached(family, x=sp.compose(SUPERPOS, sp.MultiMaskConfig(num_virtual_tokens=3, num_masks=1)))
    inputs = tiny.batch(family)
    before = model(**inputs).logits
    model.fold("x")
    torch.testing.assert_close(model(**inputs).logits, before, rtol=1e-12, atol=1e-12)
    model.save_prompt("x", tmp_path / "x")
    other = sp.attach(tiny.model(family))
    other.load_prompt(tmp_path / "x")
    assert torch.equal(other(**inputs, prompt_names="x").logits, model(**inputs).logits)


@pytest.mark.parametrize("name", list(COMPOSED))
def test_generation_with_and_without_a_cache(name: str) -> None:
    model = attached("llama", x=COMPOSED[name])
    inputs = {key: value for key, value in tiny.pad_left(tiny.batch("llama")).items() if key != "labels"}
    settings = {"max_new_tokens": 4, "do_sample": False, "prompt_names": "x"}
    assert torch.equal(model.generate(**inputs, **settings), model.generate(**inputs, **settings, use_cache=False))


CHANGE = sp.EPTConfig(num_virtual_tokens=0, rank=2, max_length=4, source_tokens=6)


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
@torch.no_grad()
def test_a_change_of_the_input_without_tokens(family: str) -> None:
    """Alone and beside a prefix, which does not see it."""
    model = attached(family, change=CHANGE, both=sp.compose(CHANGE, MASKS), masks=MASKS, bare=sp.HeadOnlyConfig())
    both, inputs = model.prompts["both"].method, tiny.batch(family)
    model.prompts["change"].method.load_state_dict(both.parts["ept"].state_dict())
    model.prompts["masks"].method.load_state_dict(both.parts["multi-mask"].state_dict())
    heads = [model.prompts[name].head for name in model.prompts]
    for head in heads[1:]:
        if head is not None:
            head.load_state_dict(heads[0].state_dict())
    words = model.get_input_embeddings()(inputs["input_ids"])
    changed = words.clone()
    changed[:, :4] += both.parts["ept"]().update
    given = {key: value for key, value in inputs.items() if key != "input_ids"}

    def real(output: Any) -> Tensor:
        return torch.cat(tiny.real_logits(family, output.logits, inputs["attention_mask"]))

    found = real(model(**inputs, prompt_names="change"))
    torch.testing.assert_close(found, real(model(inputs_embeds=changed, **given, prompt_names="bare")))
    # The router looks at the input as it is.
    gates = both.parts["multi-mask"](sp.Rows(words, _context(family, inputs))).gates
    found = real(model(**inputs, prompt_names="both"))
    masks = model.prompts["masks"].method
    masks.forward = lambda rows: replace(type(masks).forward(masks, rows), gates=gates)
    torch.testing.assert_close(found, real(model(inputs_embeds=changed, **given, prompt_names="masks")))
    wide = inputs["attention_mask"].bool()[:, None, None].expand(-1, -1, 7, -1)
    with pytest.raises(sp.SoftPromptError, match="need a 2-D attention_mask"):
        model(**inputs | {"attention_mask": wide}, prompt_names="change")


def _context(family: str, inputs: dict[str, Tensor]) -> Tensor:
    real = inputs["attention_mask"].bool()
    return real & (inputs["labels"] == -100) if family == "llama" else real


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_a_prefix_beside_lora_is_that_prefix_on_merged_weights(family: str) -> None:
    config = sp.compose(PREFIX, sp.LoraConfig(rank=2, alpha=3.0, dropout=0.0))
    model, inputs = attached(family, x=config), tiny.batch(family)
    got = model(**inputs, prompt_names="x").logits
    parts = model.prompts["x"].method.parts
    other = tiny.model(family)
    with torch.no_grad():
        for path in parts["lora"].changes:
            name = next(name for name in (path, f"{other.base_model_prefix}.{path}") if _has(other, name))
            a, b = (table[key(path)] for table in (parts["lora"].a, parts["lora"].b))
            other.get_submodule(name).weight += 3.0 / 2 * b @ a
    sp.attach(other, PREFIX, name="x")
    other.prompts.to(torch.float64)
    other.prompts["x"].method.load_state_dict(parts["prefix-tuning"].state_dict())
    if other.prompts["x"].head is not None:
        other.prompts["x"].head.load_state_dict(model.prompts["x"].head.state_dict())
    torch.testing.assert_close(got, other(**inputs).logits, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(got, model(**inputs, prompt_names=[None] * len(got)).logits)


def _has(model: Any, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def test_parts_that_start_from_saved_prompts_load_without_them(tmp_path: Path) -> None:
    source = source_prompts.saved(tmp_path / "source", hidden_size=16)
    config = sp.compose(sp.SPoTConfig(sources=(source,), num_virtual_tokens=3), MASKS)
    assert config.files() == (source,)
    assert source not in json.dumps(config.identity())
    model = attached("bert", x=config)
    model.save_prompt("x", tmp_path / "x")
    shutil.rmtree(source)
    other = sp.attach(tiny.model("bert"))
    other.load_prompt(tmp_path / "x")
    inputs = tiny.batch("bert")
    assert torch.equal(model(**inputs, prompt_names="x").logits, other(**inputs, prompt_names="x").logits)
