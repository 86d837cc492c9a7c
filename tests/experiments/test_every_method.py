"""Every method on real texts and three kinds of backbone: it learns, is saved, loaded and predicts beside the others.

Four film reviews are to be learned by heart. All methods are lanes of one call of the training loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from methods_page import known

import softprompts as sp
from softprompts.backbones.loading import load_backbone
from softprompts.backbones.packaged import DEFAULT_MODEL, resolve_model
from softprompts.errors import SoftPromptError
from softprompts.experiments.workbench import Workbench
from softprompts.storage import run_folder
from softprompts.storage.saved_prompt import read
from softprompts.tasks.batches import collate
from softprompts.tasks.data import Data
from softprompts.tasks.reviews_archive import reviews_archive
from softprompts.training import Lane, TrainConfig, train
from softprompts.training.prediction import evaluating, predict

ROWS, TOKENS = 4, 16
FALL = 0.8  # of the loss that a method may keep at most
STEPS = {"encoder": 24, "encoder-decoder": 60, "decoder": 60}

# Settings of methods that cannot be made, or are too slow to try, with their defaults; from folders of saved prompts.
Sources = list[str]
SETTINGS: dict[str, Callable[[Sources], dict[str, Any]]] = {
    "attempt": lambda sources: {"sources": sources},
    "dept": lambda sources: {"num_virtual_tokens": 10, "rank": 8},
    "dpt": lambda sources: {"num_virtual_tokens": 10, "rank": 8},
    "ept": lambda sources: {"num_virtual_tokens": 10, "rank": 8},
    "intrinsic": lambda sources: {"autoencoder": autoencoder(sources)},
    "spot": lambda sources: {"sources": sources},
}
# Learning rates of main components where the default, made for trained models, does not do on these.
RATES: dict[tuple[str, str], float] = {
    **{(kind, "lora"): 5e-3 for kind in ("encoder", "encoder-decoder", "decoder")},
    ("encoder", "dpt"): 3e-2,
    ("encoder", "intrinsic"): 1.0,
    **{("encoder", name): 9e-2 for name in ("prefix-tuning", "multi-mask", "selective-prefix", "mpt")},
    ("encoder-decoder", "dept"): 2e-2,
    ("encoder-decoder", "adapterdrop"): 1e-2,
    ("encoder-decoder", "mpt"): 2e-2,
    ("encoder-decoder", "spot"): 2e-2,
    ("decoder", "adapter"): 1e-2,
    ("decoder", "adapterdrop"): 1e-2,
}


def small_t5(vocabulary: int) -> Any:
    config = tf.T5Config(
        vocab_size=vocabulary,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
        tie_word_embeddings=False,
    )
    return scaled(tf.T5ForConditionalGeneration(config))


def small_llama(vocabulary: int) -> Any:
    config = tf.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    return scaled(tf.LlamaForCausalLM(config))


def scaled(model: Any) -> Any:
    """Embeddings as small as those of trained models, which the default rates are made for; an output that can tell
    its words apart.
    """
    model.get_input_embeddings().weight.data.normal_(std=0.05)
    model.get_output_embeddings().weight.data.normal_(std=0.5)
    return model


MADE = {"encoder": None, "encoder-decoder": small_t5, "decoder": small_llama}


@pytest.fixture(scope="module")
def reviews() -> Data:
    try:
        reviews_archive()
    except SoftPromptError as error:
        pytest.skip(str(error))
    return Data(task="reviews", max_train=ROWS, max_validation=ROWS)


def model_name(kind: str, folder: Path, tokenizer_from: Path) -> str:
    """The packaged encoder, or the folder of a small random model with a real tokenizer."""
    make = MADE[kind]
    if make is None:
        return DEFAULT_MODEL
    found = tokenizer_from if tokenizer_from.is_dir() else resolve_model(DEFAULT_MODEL)
    tokenizer = tf.AutoTokenizer.from_pretrained(found)
    torch.manual_seed(0)
    make(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def training(kind: str, method: str) -> TrainConfig:
    """On an encoder the prompt has to do it: its head hardly moves, but for the method that has nothing else."""
    rates = {"head": 1e-6} if kind == "encoder" and method != "head-only" else {}
    rate = RATES.get((kind, method))
    steps = STEPS[kind]  # written down at their end alone: all rows are one batch, and an epoch is one step
    return TrainConfig(max_steps=steps, batch_size=ROWS, eval_every=steps, learning_rate=rate, learning_rates=rates)


def losses(bench: Workbench, names: list[str]) -> dict[str, float]:
    """The loss of each prompt on all rows, without anything random."""
    batch = collate(bench.rows.split("train", TOKENS).features, bench.pad_id)
    with evaluating(bench.model):
        return {name: float(bench.model(**batch, prompt_names=name).loss) for name in names}


def moved(bench: Workbench, name: str, start: Mapping[str, torch.Tensor]) -> set[str]:
    """The components of which a tensor has changed."""
    prompt = bench.model.prompts[name]
    names = {id(parameter): key for key, parameter in prompt.named_parameters()}
    return {
        component
        for component, part in prompt.components().items()
        if any(not torch.equal(parameter, start[names[id(parameter)]]) for parameter in part.parameters)
    }


@pytest.mark.parametrize("kind", MADE)
def test_every_method_learns_and_survives(kind: str, reviews: Data, tmp_path: Path) -> None:
    name = model_name(kind, tmp_path / "model", Path(__file__).parents[3] / "shared" / "data" / "t5-tokenizer")
    torch.manual_seed(0)  # of the head, which the encoder's files lack
    bench = Workbench(name, reviews, max_length=TOKENS, evaluate=False)
    assert bench.kind == kind
    rows = bench.rows.split("train", TOKENS).features
    assert len(rows) == ROWS and len({row["label"] for row in rows}) == 2
    model, sources = bench.model, saved_sources(bench, tmp_path)
    asked = [method for method in known() if kind == "encoder" or method != "head-only"]
    labels = list(bench.task.label_names) if kind == "encoder" else None
    for method in asked:
        settings = SETTINGS.get(method, lambda _: {})(sources)
        model.add_prompt(method, sp.make_config(method, **settings), labels=labels, tokenizer=bench.tokenizer, seed=0)
    start = {method: {k: v.clone() for k, v in model.prompts[method].named_parameters()} for method in asked}
    before = losses(bench, asked)

    lanes = [
        Lane(
            method,
            training(kind, method),
            rows,
            folder=tmp_path / "runs" / method,
            record={"task": bench.task.name, "task_form": bench.task.form.to_dict(), "max_length": TOKENS},
        )
        for method in asked
    ]
    results = train(model, lanes, pad_id=bench.pad_id, progress=False)
    after = losses(bench, asked)
    predicted = {method: probabilities(model, bench, [method] * ROWS) for method in asked}

    # What was saved, on a backbone of its own, and all of it in one batch.
    again = sp.attach(load_backbone(name)[1])
    for method in asked:
        again.load_prompt(tmp_path / "runs" / method / run_folder.PROMPT, name=method)
    mixed = probabilities(again, bench, [method for method in asked for _ in rows])

    wrong: dict[str, str] = {}
    for place, (method, result) in enumerate(zip(asked, results, strict=True)):
        alone, beside = predicted[method], mixed[place * ROWS : (place + 1) * ROWS]
        print(f"{kind:16} {method:20} {before[method]:8.4f} {after[method]:8.4f}")  # pytest -s
        if result.stop_reason != "max_steps":
            wrong[method] = result.stop_reason
        elif not after[method] <= FALL * before[method] or not math.isfinite(before[method]):
            wrong[method] = f"its loss went from {before[method]:.3f} to {after[method]:.3f}"
        elif still := set(model.prompts[method].components()) - moved(bench, method, start[method]):
            wrong[method] = f"did not move: {', '.join(sorted(still))}"
        elif not torch.allclose(alone, beside, atol=1e-4):
            wrong[method] = f"predicts otherwise once saved and beside others, by {(alone - beside).abs().max():.2g}"
    assert not wrong

    # The whole way from a run folder and a text.
    answers = sp.Predictor(tmp_path / "runs" / asked[-1])([example.text for example in bench.task.train])
    assert [answer.label for answer in answers] == [bench.task.label_names[i] for i in predicted[asked[-1]].argmax(1)]


def autoencoder(sources: Sources) -> str:
    """A space of prompts around some."""
    file = Path(sources[0]).parent / "autoencoder.safetensors"
    tokens = read(Path(sources[0]))[1]["method.prompt"]
    spread = tokens.std() * torch.randn(1024, *tokens.shape, generator=torch.Generator().manual_seed(0))
    sp.fit_autoencoder(tokens + spread, file, dim=min(1000, tokens.numel() // 2), kind="linear")
    return str(file)


def saved_sources(bench: Workbench, folder: Path) -> Sources:
    """Prompts to start others from."""
    places = []
    for number in range(3):
        bench.model.add_prompt("source", sp.PromptTuningConfig(), tokenizer=bench.tokenizer, seed=100 + number)
        bench.model.save_prompt("source", folder / f"source{number}")
        bench.model.delete_prompt("source")
        places.append(str(folder / f"source{number}"))
    return places


def probabilities(model: Any, bench: Workbench, names: list[str]) -> torch.Tensor:
    """Of each label, for the rows under these prompts."""
    rows = bench.rows.split("train", TOKENS).features
    repeated = [rows[index % len(rows)] for index in range(len(names))]
    made = predict(model, repeated, names, pad_id=bench.pad_id, batch_size=64, label_ids=bench.rows.label_ids)
    return torch.tensor(made.probabilities)
