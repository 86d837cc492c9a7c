"""An attached model under Hugging Face's Trainer, Seq2SeqTrainer and pipelines, which know nothing of prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers as tf
from datasets import Dataset
from safetensors.torch import load_file
from torch import Tensor
from trainer_inputs import arguments, prompt_state, rows, tokenizer
from transformers.integrations.neftune import activate_neftune

import softprompts as sp
from softprompts.trainers import PromptTraining

METHODS = ["prompt-tuning", "prefix-tuning", "multi-mask"]


def trained(model: Any, folder: Path, data: Dataset, **more: Any) -> tf.Trainer:
    trainer = tf.Trainer(model, tf.TrainingArguments(**arguments(folder, **more)), train_dataset=data)
    trainer.train()
    return trainer


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("method", METHODS)
def test_prompts_move_alike_with_and_without_gradient_checkpointing(family: str, method: str, tmp_path: Path) -> None:
    results = []
    for checkpointing in (False, True):
        model = tiny.attached(family, method)
        before = prompt_state(model)
        frozen = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("prompts.")}
        calls: list[int] = []
        trainer = tf.Trainer(
            model,
            tf.TrainingArguments(**arguments(tmp_path, gradient_checkpointing=checkpointing)),
            train_dataset=rows(family),
        )
        count = torch.utils.checkpoint.checkpoint

        def counted(*args: Any, count: Any = count, calls: list[int] = calls, **kwargs: Any) -> Any:
            calls.append(1)
            return count(*args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("torch.utils.checkpoint.checkpoint", counted)
            patch.setattr("transformers.modeling_utils.checkpoint", counted, raising=False)
            trainer.train()
        assert bool(calls) == checkpointing
        after = prompt_state(model)
        assert all(not torch.equal(before[key], after[key]) for key in after), method
        assert all(torch.equal(frozen[k], v) for k, v in model.state_dict().items() if k in frozen)
        results.append(after)
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("method", ["selective-prefix", "prompt-tuning"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_accumulated_batches_equal_whole_ones(family: str, method: str, tmp_path: Path) -> None:
    states = []
    for size, parts in ((4, 1), (2, 2), (1, 4)):
        model = tiny.attached(family, method)
        trained(model, tmp_path, rows(family), per_device_train_batch_size=size, gradient_accumulation_steps=parts)
        states.append(prompt_state(model))
    for other in states[1:]:
        for key, value in states[0].items():
            torch.testing.assert_close(other[key], value, rtol=1e-5, atol=1e-6)


def test_what_a_trainer_saves_is_ours_alone_and_resumes(tmp_path: Path) -> None:
    model = tiny.attached("bert", "prefix-tuning", dtype=torch.float32)
    start = prompt_state(model)
    common = {"optim": "adamw_torch", "learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 2}
    trained(model, tmp_path / "whole", rows("bert"), max_steps=4, **common)
    whole = prompt_state(model)
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    ours = {"README.md", "softprompt.safetensors", "softprompt_config.json", "model.safetensors"}
    written = {file.name for file in checkpoint.iterdir()}
    assert ours <= written
    assert not any(name.startswith(("pytorch_model", "config.json", "adapter")) for name in written)
    stored = load_file(checkpoint / "model.safetensors")
    assert stored.keys() == {f"prompts.{key}" for key in start}
    prompts = sum(value.numel() * 4 for value in start.values())
    assert (checkpoint / "model.safetensors").stat().st_size < prompts + 1500
    backbone = sum(p.numel() * 4 for n, p in model.named_parameters() if not n.startswith("prompts."))
    assert sum((checkpoint / name).stat().st_size for name in ours) < backbone

    again = tiny.attached("bert", "prefix-tuning", dtype=torch.float32)
    again.prompts.load_state_dict({key: torch.zeros_like(value) for key, value in start.items()})
    trainer = tf.Trainer(
        again,
        tf.TrainingArguments(**arguments(tmp_path / "whole", max_steps=4, **common)),
        train_dataset=rows("bert"),
    )
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert trainer.state.global_step == 4
    for key, value in whole.items():
        torch.testing.assert_close(prompt_state(again)[key], value, rtol=1e-5, atol=1e-6)
        assert not torch.equal(value, start[key])

    fresh = sp.attach(tiny.model("bert", torch.float32)).load_prompt(tmp_path / "whole" / "checkpoint-4")
    assert all(torch.equal(prompt_state(fresh)[key], value) for key, value in whole.items())


@pytest.mark.parametrize("names", [["prefix-tuning"], ["prompt-tuning", "prefix-tuning"]])
def test_the_best_prompt_comes_back_at_the_end(names: list[str], tmp_path: Path) -> None:
    model = tiny.attached("bert", *names, dtype=torch.float32).set_prompt("prefix-tuning")
    seen: dict[int, tuple[float, dict[str, Tensor]]] = {}

    class Watch(tf.TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
            seen[state.global_step] = (metrics["eval_loss"], prompt_state(model))

    trainer = tf.Trainer(
        model,
        tf.TrainingArguments(
            **arguments(
                tmp_path,
                max_steps=6,
                learning_rate=4.0,  # far too high, so that the last step is not the best
                save_strategy="steps",
                save_steps=1,
                eval_strategy="steps",
                eval_steps=1,
                load_best_model_at_end=True,
                metric_for_best_model="eval_loss",
                greater_is_better=False,
            )
        ),
        train_dataset=rows("bert"),
        eval_dataset=rows("bert"),
        callbacks=[Watch()],
    )
    trainer.train()
    best = min(seen, key=lambda step: seen[step][0])
    last = max(seen)
    assert best != last
    assert trainer.state.best_global_step == best
    now = prompt_state(model)
    assert all(torch.equal(now[key], value) for key, value in seen[best][1].items())
    assert any(not torch.equal(now[key], value) for key, value in seen[last][1].items())
    assert trainer.evaluate()["eval_loss"] == pytest.approx(seen[best][0], rel=1e-5)

    trainer.save_model(str(tmp_path / "final"))
    source = tmp_path / "final" if len(names) == 1 else tmp_path / "final" / "prefix-tuning"
    fresh = sp.attach(tiny.model("bert", torch.float32)).load_prompt(source)
    state = prompt_state(fresh)
    assert all(torch.equal(now[key], value) for key, value in state.items())


def test_rows_may_name_their_prompts_in_the_data_set(tmp_path: Path) -> None:
    model = tiny.attached("bert", "prompt-tuning", "prefix-tuning")
    before = prompt_state(model)
    names = ["prompt-tuning", "prefix-tuning"] * 4
    data = rows("bert").add_column("prompt_names", names)

    def collate(features: list[dict[str, Any]]) -> dict[str, Any]:
        keys = ("input_ids", "attention_mask", "labels")
        batch: dict[str, Any] = {key: torch.tensor([f[key] for f in features]) for key in keys}
        return batch | {"prompt_names": [f["prompt_names"] for f in features]}

    trainer = tf.Trainer(model, tf.TrainingArguments(**arguments(tmp_path)), train_dataset=data, data_collator=collate)
    trainer.train()
    after = prompt_state(model)
    assert all(not torch.equal(before[key], after[key]) for key in after)


@pytest.mark.parametrize("method", METHODS)
def test_seq2seq_trainer_generates_with_the_prompt(method: str, tmp_path: Path) -> None:
    model = tiny.attached("t5", method, dtype=torch.float32)
    before = prompt_state(model)
    trainer = tf.Seq2SeqTrainer(
        model,
        tf.Seq2SeqTrainingArguments(
            **arguments(tmp_path, predict_with_generate=True, generation_max_length=6, per_device_eval_batch_size=8)
        ),
        train_dataset=rows("t5"),
        eval_dataset=rows("t5"),
    )
    trainer.train()
    assert all(not torch.equal(before[key], value) for key, value in prompt_state(model).items())
    predicted = trainer.predict(rows("t5")).predictions
    inputs = {k: v for k, v in tiny.batch("t5", rows=8, columns=9).items() if k != "labels"}
    model.eval()
    own = model.generate(**inputs, max_length=6)
    width = min(predicted.shape[1], own.shape[1])
    assert (torch.tensor(predicted)[:, :width] == own[:, :width]).all()
    bare = model.generate(**inputs, max_length=6, prompt_names=[None] * 8)
    assert bare.shape != own.shape or not torch.equal(bare, own)


# --- pipelines ---


def test_text_classification_pipeline_speaks_the_prompts_labels() -> None:
    model = sp.attach(tiny.model("bert", torch.float32))
    model.add_prompt("mood", tiny.METHODS["prompt-tuning"], labels=["sad", "happy"], seed=0)
    model.add_prompt("stars", tiny.METHODS["prefix-tuning"], labels=["one", "two", "three", "four", "five"], seed=1)
    pipe = tf.pipeline("text-classification", model=model.eval(), tokenizer=tokenizer(), device="cpu")
    texts = ["word5 word9 word7", "word20"]
    for name, labels in (("mood", {"sad", "happy"}), ("stars", {"one", "two", "three", "four", "five"})):
        model.set_prompt(name)
        found = pipe(texts, top_k=None, batch_size=2)
        assert [{item["label"] for item in row} for row in found] == [labels, labels]
        encoded = tokenizer()(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            probabilities = model(**encoded).logits.softmax(-1)
        for row, scores in zip(found, probabilities, strict=True):
            for item in row:
                index = model.prompts[name].labels.index(item["label"])
                assert item["score"] == pytest.approx(scores[index].item(), abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_text_generation_pipeline_uses_the_prompt(method: str) -> None:
    model = tiny.attached("llama", method, dtype=torch.float32)
    words = tokenizer(padding_side="left")
    pipe = tf.pipeline("text-generation", model=model, tokenizer=words, device="cpu")
    texts = ["word5 word9 word7", "word20"]
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    found = pipe(texts, batch_size=2, return_tensors=True, max_new_tokens=5, do_sample=False)
    for text, result in zip(texts, found, strict=True):
        ids = words(text, return_tensors="pt")["input_ids"]
        own = model.generate(input_ids=ids, **options)[0].tolist()
        produced = result[0]["generated_token_ids"]
        assert own[: ids.shape[1]] == ids[0].tolist()
        produced = list(produced)
        while produced and produced[0] == 0:
            produced.pop(0)
        stop = produced.index(2) if 2 in produced else len(produced)
        assert produced[:stop] == own[:stop]
        assert stop > ids.shape[1] or own[ids.shape[1]] == 2


# --- options that must act ------------------------------------------------------------------------------------------


class PromptTrainer(PromptTraining, tf.Trainer):
    pass


NOISY = [("bert", "prompt-tuning"), ("bert", "prefix-tuning"), ("llama", "prefix-tuning"), ("t5", "prompt-tuning")]


@pytest.mark.parametrize(("family", "method"), NOISY)
def test_noise_on_embeddings_acts(family: str, method: str, tmp_path: Path) -> None:
    model = tiny.attached(family, method)
    inputs = tiny.batch(family)
    handle = activate_neftune(model, 5.0)
    model.train()
    torch.manual_seed(1)
    noisy = model(**inputs).loss
    torch.manual_seed(1)
    assert torch.equal(noisy, model(**inputs).loss) and not torch.equal(noisy, model(**inputs).loss)
    table = model.get_input_embeddings()
    handle.remove()
    torch.manual_seed(1)
    embedded = table(inputs["input_ids"])
    size = 5.0 / (embedded.shape[1] * embedded.shape[2]) ** 0.5
    embedded = embedded + torch.zeros_like(embedded).uniform_(-size, size)
    given = {key: value for key, value in inputs.items() if key != "input_ids"} | {"inputs_embeds": embedded}
    if family != "t5":  # which takes no embeddings without a decoder's input
        torch.testing.assert_close(noisy, model(**given).loss, rtol=1e-5, atol=1e-5)
    model.eval()
    assert not table.training
    results = [
        trained(tiny.attached(family, method), tmp_path, rows(family), neftune_noise_alpha=alpha)
        for alpha in (None, 5.0)
    ]
    first, second = (prompt_state(trainer.model) for trainer in results)
    assert any(not torch.equal(first[key], second[key]) for key in first)


def test_noise_that_reaches_nothing_is_told() -> None:
    model = tiny.attached("t5", "prefix-tuning")
    activate_neftune(model, 5.0)
    with pytest.warns(UserWarning, match="neftune_noise_alpha has no effect on prompts without tokens"):
        model.train()


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_penalties_are_part_of_a_smoothed_loss(family: str, accumulate: int, tmp_path: Path) -> None:
    """Equal to the smoothed loss by hand of all rows at once, plus the penalty once."""
    model = tiny.attached(family, "selective-prefix")
    size = 8 // accumulate
    more = {"label_smoothing_factor": 0.3, "per_device_train_batch_size": size, "max_steps": 1, "max_grad_norm": 0.0}
    start, data = prompt_state(model), rows(family)
    settings = tf.TrainingArguments(**arguments(tmp_path, gradient_accumulation_steps=accumulate, **more))
    trainer = PromptTrainer(model, settings, train_dataset=data)
    trainer.learning_rates = dict.fromkeys(model.prompts, 0.1)
    trainer.train()
    moved = prompt_state(model)
    for key, value in model.prompts.named_parameters():
        value.data.copy_(start[key])
    batch = {key: torch.tensor(data[key]) for key in data.column_names}
    labels = batch.pop("labels")
    seen = {"context_mask": torch.cumsum(labels != -100, 1) == 0} if family == "llama" else {}
    model.train()
    logits = model(**batch, **seen).logits
    (penalty,) = model.penalties.values()
    logits, labels = (logits[:, :-1], labels[:, 1:]) if family == "llama" else (logits, labels)
    logs = torch.log_softmax(logits, -1)[labels != -100]
    wanted = labels[labels != -100]
    loss = -0.7 * logs[torch.arange(len(wanted)), wanted].mean() - 0.3 * logs.mean() + penalty
    assert penalty.item() > 1e-3
    names, values = zip(*model.prompts.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, values, allow_unused=True)
    for name, gradient in zip(names, gradients, strict=True):
        if gradient is not None:
            torch.testing.assert_close(moved[name], start[name] - 0.1 * gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_loss_that_leaves_penalties_out_is_told(family: str, tmp_path: Path) -> None:
    model = tiny.attached(family, "selective-prefix")
    with pytest.raises(sp.SoftPromptError, match="has a penalty, and this loss leaves it out|looks at the input"):
        trained(model, tmp_path, rows(family), label_smoothing_factor=0.1)
    inputs = tiny.batch(family)
    labels = inputs.pop("labels")
    seen = {"context_mask": torch.ones_like(inputs["input_ids"], dtype=torch.bool)} if family == "llama" else {}
    model.train()
    with pytest.raises(sp.SoftPromptError, match=r"has a penalty.*model\.penalties"):
        model(**inputs, **seen).logits.sum().backward()
    (model(**inputs, **seen).logits.sum() + sum(model.penalties.values())).backward()
    model(**inputs, **seen, labels=labels).loss.backward()


def test_the_optimizer_is_the_arguments_own(tmp_path: Path) -> None:
    def made(**more: Any) -> Any:
        model = tiny.attached("bert", "prefix-tuning", dtype=torch.float32)
        trainer = PromptTrainer(model, tf.TrainingArguments(**arguments(tmp_path, **more)), train_dataset=rows("bert"))
        trainer.learning_rates = {"prefix-tuning": 0.3}
        return trainer.create_optimizer()

    assert isinstance(made(), torch.optim.SGD)
    adam = made(optim="adamw_torch", weight_decay=0.25, adam_beta2=0.9)
    assert isinstance(adam, torch.optim.AdamW) and {group["lr"] for group in adam.param_groups} == {0.3}
    assert {group["weight_decay"] for group in adam.param_groups} == {0.25}
    assert {group["betas"] for group in adam.param_groups} == {(0.9, 0.9)}
    settings = tf.TrainingArguments(**arguments(tmp_path, learning_rate=0.7))
    trainer = PromptTrainer(tiny.attached("bert", "prefix-tuning"), settings, train_dataset=rows("bert"))
    with pytest.warns(
        UserWarning, match="learning_rate=0.7 has no effect under PromptTraining: set its learning_rates"
    ):
        trainer.create_optimizer()


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("mixin", [True, False])
def test_penalties_are_added_once_however_a_step_is_split(family: str, mixin: bool, tmp_path: Path) -> None:
    results = []
    for accumulate in (1, 4):
        model = tiny.attached(family, "selective-prefix")
        more = {
            "per_device_train_batch_size": 8 // accumulate,
            "gradient_accumulation_steps": accumulate,
            "max_steps": 1,
        }
        settings = tf.TrainingArguments(**arguments(tmp_path, **more))
        trainer = (PromptTrainer if mixin else tf.Trainer)(model, settings, train_dataset=rows(family))
        if mixin:
            trainer.learning_rates = dict.fromkeys(model.prompts, 0.1)
        trainer.train()
        results.append(prompt_state(model))
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, rtol=1e-5, atol=1e-7)


def test_other_options_count_rows_and_tokens_without_prompts(tmp_path: Path) -> None:
    model = tiny.attached("llama", "prompt-tuning")
    data = rows("llama")
    more = {"train_sampling_strategy": "group_by_length", "include_num_input_tokens_seen": "non_padding"}
    trainer = trained(model, tmp_path, data, **more, max_steps=2, auto_find_batch_size=True)
    assert trainer.state.num_input_tokens_seen == int(torch.tensor(data["attention_mask"]).sum())
