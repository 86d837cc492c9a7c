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

import softprompts as sp

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
