"""What needs the backbone: routers, attention to prefixes, neighbours in the vocabulary, several prompts."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from saved import model_folder, rows, write_csv

import softprompts as sp
from softprompts.analysis import (
    attention_maps,
    curve,
    figures,
    load_of,
    neighbours,
    open_prompts,
    sample_of,
    similarities,
    soft_tokens,
)
from softprompts.analysis.attention_maps import EDGES
from softprompts.errors import SoftPromptError
from softprompts.injection.state import state_of
from tests.analysis.reading import Train, numbers, raw, softmax

SELECTIVE = sp.SelectivePrefixConfig(num_virtual_tokens=3, alpha=2.0, init_std=1.0)
TOKENS = sp.PromptTuningConfig(num_virtual_tokens=3)


def table(saved: Any) -> np.ndarray:
    """The backbone's own embedding table."""
    return saved.loaded.model.get_input_embeddings().weight.detach().double().numpy()


def naive_shares(saved: Any, texts: Any, tensors: Any) -> np.ndarray:
    """A router on the mean embedding, standardised where its prompt has the numbers for that, row by row."""
    words = table(saved)
    means = np.stack([words[row["input_ids"]].mean(0) for row in texts.features])
    if "method.router.center" in tensors:
        means = 4 * (means - tensors["method.router.center"]) / tensors["method.router.spread"]
    return np.stack([softmax(tensors["method.router.weight"] @ mean) for mean in means])


@pytest.mark.parametrize("family", ["bert", "t5", "llama"])
@pytest.mark.parametrize("config", [sp.SMoPConfig(num_prompts=3), sp.MultiMaskConfig(num_masks=3)], ids=["smop", "mm"])
def test_router_load_by_class(train: Train, family: str, config: sp.MethodConfig) -> None:
    folder = train(config, family)
    (saved,) = open_prompts([folder])
    found, texts = load_of(saved, 10), sample_of(saved, 10)
    shares = naive_shares(saved, texts, raw(folder))
    assert len(set(texts.labels)) == 2 and len(texts.labels) == found.rows.sum()
    assert found.classes == ("negative", "positive") and found.mixed == (config.method == "multi-mask")
    for place, name in enumerate(found.classes):
        own = [i for i, label in enumerate(texts.labels) if label == name]
        np.testing.assert_allclose(found.shares[place], shares[own].mean(0), atol=1e-6)
        counts = [sum(int(shares[i].argmax() == route) for i in own) for route in range(3)]
        assert found.chosen[place].tolist() == counts and found.rows[place] == len(own)
    np.testing.assert_allclose(found.spread, shares.std(0), atol=1e-6)


def test_several_routes_a_row_and_attention_over_sources(train: Train) -> None:
    (saved,) = open_prompts([train(sp.SMoPConfig(num_prompts=4, top_k=2))])
    found = load_of(saved, 10)
    assert (found.chosen.sum(1) == 2 * found.rows).all()
    sources = tuple(str(train(TOKENS, seed=seed)) for seed in (0, 1))
    folder = train(sp.AttemptConfig(num_virtual_tokens=3, sources=sources, bottleneck=4, temperature=0.5))
    (saved,) = open_prompts([folder])
    found, texts, tensors = load_of(saved, 10), sample_of(saved, 10), raw(folder)
    prompts = np.stack([*tensors["method.sources"], tensors["method.prompt"]]).max(1)
    shares = []
    for row in texts.features:
        pooled = table(saved)[row["input_ids"]].max(0)
        hidden = tensors["method.down.weight"] @ pooled
        hidden = tensors["method.up.weight"] @ (hidden / (1 + np.exp(-hidden)))
        hidden = (hidden - hidden.mean()) / np.sqrt(hidden.var() + 1e-5)
        hidden = hidden * tensors["method.norm.weight"] + tensors["method.norm.bias"]
        shares.append(softmax(prompts @ hidden / 0.5))
    assert found.routes == ("source 0", "source 1", "target")
    own = [i for i, label in enumerate(texts.labels) if label == "positive"]
    np.testing.assert_allclose(found.shares[1], np.stack(shares)[own].mean(0), atol=1e-5)
    (picture,) = figures("router", [saved], rows=10)
    drawn = [axes.images[0].get_array() for axes in picture.figure.axes if axes.images]
    np.testing.assert_array_equal(drawn[0], found.shares)
    np.testing.assert_allclose(drawn[1], found.chosen / found.rows[:, None])


def test_rows_that_cannot_be_had_or_are_others(train: Train, tmp_path: Path) -> None:
    config = sp.SMoPConfig(num_prompts=2)
    shutil.copytree(train(config), tmp_path / "run")
    text = (tmp_path / "run/config.yaml").read_text()
    there = next(line for line in text.splitlines() if line.startswith("#   train: "))
    (tmp_path / "run/config.yaml").write_text(text.replace(there, f"#   train: {tmp_path / 'moved.csv'}"))
    with pytest.raises(SoftPromptError, match=r"no rows of its task .*moved.csv: no such file"):
        figures("router", [tmp_path / "run"])
    (picture,) = figures("router", [tmp_path / "run", train(config)], names=["moved", "there"])
    assert picture.name == "router-there" and "Left out: moved: no rows of its task" in picture.caption
    write_csv(tmp_path / "moved.csv", rows(count=20, seed=9))
    (picture,) = figures("router", [tmp_path / "run"])
    assert "not those that it was trained with" in picture.caption
    assert "not those" not in figures("router", [train(config)])[0].caption
    with pytest.raises(SoftPromptError, match="no rows of its task"):  # a prompt folder alone does not say where
        figures("router", [shutil.copytree(train(config) / "prompt", tmp_path / "bare")])


def test_the_curve_of_the_mask() -> None:
    found = curve(4.0, np.array([-1.0, 0.0, 0.5, 100.0, -30.0]))
    assert found.mask[:3] == pytest.approx([1 / (1 + math.exp(4)), 0.5, 1 / (1 + math.exp(-2))])
    assert found.masked[:3] == pytest.approx(
        [math.exp(-1) / (1 + math.exp(4)), 0.5, math.exp(0.5) / (1 + math.exp(-2))]
    )
    assert found.mask[3] == 1 and found.mask[4] == pytest.approx(math.exp(-120), rel=1e-9, abs=0)


def test_attention_by_hand(train: Train) -> None:
    """Eq. 6 in float64, from what each layer of an ordinary pass is called with."""
    folder = train(SELECTIVE)
    (saved,) = open_prompts([folder])
    texts = sample_of(saved, 5)
    found = attention_maps(saved, texts)
    model = saved.loaded.model
    sites = state_of(model).backbone.sites
    prefix = raw(folder)["method.prefix"]  # (l, S * 2 * w)
    length, heads = len(prefix), 4
    width = prefix.shape[1] // (2 * len(sites))
    states: list[list[np.ndarray]] = [[] for _ in sites]

    def keep(place: int) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            given = args[0] if args else kwargs["hidden_states"]
            states[place].append(given.detach().double().numpy()[0])

        return hook

    handles = [site.module.register_forward_pre_hook(keep(place), with_kwargs=True) for place, site in enumerate(sites)]
    with torch.no_grad():
        for row in texts.features:
            model(input_ids=torch.tensor([row["input_ids"]]), prompt_names=saved.attached_name)
    for handle in handles:
        handle.remove()
    for place, site in enumerate(sites):
        names = dict(site.module.named_modules())
        weights = {name: names[name].weight.detach().double().numpy() for name in ("query", "key")}
        biases = {name: names[name].bias.detach().double().numpy() for name in ("query", "key")}
        keys = prefix[:, 2 * place * width : (2 * place + 1) * width]
        before, after, scores = [], [], []
        for hidden in states[place]:
            query = hidden @ weights["query"].T + biases["query"]
            own = hidden @ weights["key"].T + biases["key"]
            for head in range(heads):
                part = slice(head * width // heads, (head + 1) * width // heads)
                for q in query[:, part]:
                    s = np.concatenate([keys[:, part] @ q, own[:, part] @ q]) / math.sqrt(width // heads)
                    mask = np.where(np.arange(len(s)) < length, 1 / (1 + np.exp(-2.0 * s)), 1.0)
                    before.append(np.exp(s)[:length] / np.exp(s).sum())
                    after.append((mask * np.exp(s))[:length] / (mask * np.exp(s)).sum())
                    scores += s[:length].tolist()
        np.testing.assert_allclose(found.before[place], np.mean(before, 0), atol=1e-5)
        np.testing.assert_allclose(found.after[place], np.mean(after, 0), atol=1e-5)
        assert found.negative[place] == pytest.approx(np.mean(np.array(scores) < 0), abs=2 / len(scores))
        counts, _ = np.histogram(scores, EDGES)
        assert found.scores[place].sum() == len(scores) and np.abs(found.scores[place] - counts).sum() <= 4
    assert found.after.sum() < found.before.sum()


@pytest.mark.parametrize("family", ["t5", "llama", "modernbert"])
def test_attention_of_other_families(train: Train, family: str) -> None:
    """After the mask: what the eager kernel gives out; the model itself is left as it was."""
    (saved,) = open_prompts([train(SELECTIVE, family)])
    texts = sample_of(saved, 3)
    model = saved.loaded.model
    before = model.config._attn_implementation
    found = attention_maps(saved, texts)
    assert model.config._attn_implementation == before == "softprompts|sdpa"
    model.set_attn_implementation("softprompts|eager")
    sums = np.zeros_like(found.after)
    counts = np.zeros(len(found.sites))
    for row in texts.features:
        inputs = {"input_ids": torch.tensor([row["input_ids"]])}
        if family == "t5":
            inputs["decoder_input_ids"] = torch.tensor([[0]])
        with torch.no_grad():
            output = model(**inputs, prompt_names=saved.attached_name, output_attentions=True)
        if family == "t5":
            kinds = {
                "encoder.self": output.encoder_attentions,
                "decoder.self": output.decoder_attentions,
                "decoder.cross": output.cross_attentions,
            }
            maps = [kinds[site.split()[0]][int(site.split()[1])] for site in found.sites]
        else:
            maps = list(output.attentions)
        for place, weights in enumerate(maps):
            sums[place] += weights[..., :3].double().sum((0, 1, 2)).numpy()
            counts[place] += weights[..., 0].numel()
    np.testing.assert_allclose(found.after, sums / counts[:, None], atol=1e-5)
    assert (np.abs(found.before - found.after).max(1) > 1e-4).all()


def test_without_a_mask_nothing_changes(train: Train) -> None:
    (saved,) = open_prompts([train(sp.PrefixTuningConfig(num_virtual_tokens=2))])
    found = attention_maps(saved, sample_of(saved, 3))
    np.testing.assert_allclose(found.before, found.after, atol=1e-7)
    (tokens,) = open_prompts([train(TOKENS)])
    with pytest.raises(SoftPromptError, match="prompt-tuning has no prefix"):
        attention_maps(tokens, sample_of(tokens, 3))


def test_pictures_of_the_mask(train: Train, tmp_path: Path) -> None:
    folder = train(SELECTIVE)
    curves, maps = figures("selective", [folder], rows=5)
    right = curves.figure.axes[1]
    x, y = right.lines[1].get_data()
    np.testing.assert_allclose(y, np.exp(x) / (1 + np.exp(-2 * x)))
    (saved,) = open_prompts([folder])
    found = attention_maps(saved, sample_of(saved, 5))
    drawn = [axes.images[0].get_array() for axes in maps.figure.axes if axes.images]
    np.testing.assert_array_equal(drawn[0], found.before)
    np.testing.assert_array_equal(drawn[1], found.after)
    assert len(numbers(maps.csv)) == found.after.size
    # Without rows the curves are drawn all the same.
    bare = shutil.copytree(folder / "prompt", tmp_path / "bare")
    (alone,) = figures("selective", [bare])
    assert "No attention on real rows" in alone.caption
    both = train(sp.compose(sp.MultiMaskConfig(num_virtual_tokens=3), SELECTIVE))
    assert len(figures("selective", [both, folder], rows=3)) == 3


def test_neighbours_by_brute_force(train: Train) -> None:
    config = sp.ResidualConfig(num_virtual_tokens=2, bottleneck=4)
    (saved,) = open_prompts([train(config)])
    tokens, names = soft_tokens(saved)
    model = saved.loaded.model
    method = model.prompts[saved.attached_name].method
    wanted = method(None).tokens[0].detach()  # what the backbone gets
    torch.testing.assert_close(tokens, wanted)
    words = table(saved)
    found = neighbours(tokens, names, saved.vocabulary(), 3)
    for place, token in enumerate(tokens.double().numpy()):
        cosines = [token @ word / np.linalg.norm(token) / np.linalg.norm(word) if word.any() else -9 for word in words]
        distances = [np.linalg.norm(token - word) if word.any() else np.inf for word in words]
        assert found.by_cosine[place].tolist() == np.argsort(cosines)[::-1][:3].tolist()
        assert found.by_distance[place].tolist() == np.argsort(distances)[:3].tolist()
        np.testing.assert_allclose(found.cosines[place], np.sort(cosines)[::-1][:3], atol=1e-5)
        np.testing.assert_allclose(found.distances[place], np.sort(distances)[:3], atol=1e-5)


def test_a_prompt_that_was_hardly_trained_is_near_its_vocabulary(train: Train) -> None:
    folder = train(TOKENS, learning_rate=1e-8)
    (picture,) = figures("tokens", [folder])
    lines = numbers(picture.csv)
    assert all(float(line[3]) > 0.9999 for line in lines if line[1] == "1")
    assert "3 of 3 have the same nearest as at the start" in picture.caption
    assert len([axes for axes in picture.figure.axes if axes.images]) == 1
    known = Path(model_folder("bert"), "tokenizer.json").read_text()
    assert all(f'"{line[2]}"' in known or line[2].startswith("<") for line in lines)
    (picture,) = figures("tokens", [train(sp.SMoPConfig(num_prompts=2, num_virtual_tokens=2))])
    assert len(numbers(picture.csv)) == 2 * 2 * 5
    with pytest.raises(SoftPromptError, match="puts no tokens into the input"):
        figures("tokens", [train(SELECTIVE)])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a.ravel() @ b.ravel() / np.linalg.norm(a) / np.linalg.norm(b))


def test_similarity_of_prompts(train: Train) -> None:
    folders = [train(TOKENS), train(TOKENS, seed=1), train(sp.PromptTuningConfig(num_virtual_tokens=3), seed=2)]
    prompts = open_prompts(folders)
    ((found,), reasons) = similarities(prompts)
    own = [raw(folder)["method.prompt"] for folder in folders]
    for i in range(3):
        for j in range(3):
            assert found.pooled[i, j] == pytest.approx(cosine(own[i].mean(0), own[j].mean(0)), abs=1e-6)
            assert found.flat is not None and found.flat[i, j] == pytest.approx(cosine(own[i], own[j]), abs=1e-6)
    starts = [saved.untrained(None).tokens[0] for saved in prompts]
    added = [(tokens - start.detach().double().numpy()).mean(0) for tokens, start in zip(own, starts, strict=True)]
    assert found.learned is not None
    assert found.learned[0, 2] == pytest.approx(cosine(added[0], added[2]), abs=1e-4)
    assert reasons == [] and found.part == "tokens"
    ((alone,), _) = similarities(prompts, with_start=False)
    assert alone.learned is None


def test_similarity_of_prefixes_and_of_what_cannot_be_compared(train: Train) -> None:
    plain = [train(sp.PrefixTuningConfig(num_virtual_tokens=2), seed=seed) for seed in (0, 1)]
    longer = train(sp.PrefixTuningConfig(num_virtual_tokens=4))
    single = train(sp.MultiMaskConfig(num_virtual_tokens=2, num_masks=1))
    ((found,), _) = similarities(open_prompts([*plain, single]))
    tensors = raw(single)
    gates = 1 / (1 + np.exp(-tensors["method.masks"][0]))  # (l, S)
    gated = tensors["method.prefix"].reshape(2, gates.shape[1], -1) * gates[:, :, None]
    first = raw(plain[0])["method.prefix"]
    assert found.part == "prefix"
    assert found.flat is not None and found.flat[0, 2] == pytest.approx(cosine(first, gated), abs=1e-6)
    ((found,), _) = similarities(open_prompts([plain[0], longer]))
    assert found.flat is None
    assert found.pooled[0, 1] == pytest.approx(cosine(first.mean(0), raw(longer)["method.prefix"].mean(0)), abs=1e-6)
    ((found,), reasons) = similarities(open_prompts([*plain, train(TOKENS), train(sp.SMoPConfig(num_prompts=2))]))
    assert len(reasons) == 2 and "no other tokens" in reasons[1] and "depend on the input" in reasons[0]
    with pytest.raises(SoftPromptError, match="depends on what layers get"):
        figures("similarity", [train(sp.AdaptivePrefixConfig(num_virtual_tokens=2))])
    (picture,) = figures("similarity", [*plain, longer])
    assert "not compared token by token" in picture.caption
    with pytest.raises(SoftPromptError, match="no other"):
        figures("similarity", [plain[0], train(TOKENS)])
    with pytest.raises(SoftPromptError, match="no other"):  # another backbone
        figures("similarity", [train(TOKENS), train(TOKENS, "t5")])
