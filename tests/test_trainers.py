"""What `PromptTraining` adds to Hugging Face's and TRL's trainers."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers as tf
from torch import Tensor
from trainer_inputs import arguments, prompt_state, tokenizer
from trainer_inputs import rows as dataset

import softprompts as sp
from softprompts.trainers import PromptTraining, parameter_groups
from softprompts.training.extra_passes import comparisons
from softprompts.training.losses import run_pass


class PromptTrainer(PromptTraining, tf.Trainer):
    pass


def test_groups_are_components_with_their_own_rates() -> None:
    model = tiny.attached("bert", "multi-mask", "prompt-tuning")
    groups = {
        group["name"]: group for group in parameter_groups(model, {"prompt-tuning": 0.5, "multi-mask.head": 0.25})
    }
    own = {name: prompt.components() for name, prompt in model.prompts.items()}
    assert groups.keys() == {f"{name}.{part}" for name, parts in own.items() for part in parts}
    assert {group["lr"] for name, group in groups.items() if name.startswith("prompt-tuning")} == {0.5}
    assert groups["multi-mask.head"]["lr"] == 0.25
    others = [name for name in own["multi-mask"] if name != "head"]
    assert all(groups[f"multi-mask.{n}"]["lr"] == own["multi-mask"][n].learning_rate for n in others)
    decayed = parameter_groups(tiny.attached("bert", "superpos"), weight_decay=0.3)
    decays = {group["name"].partition(".")[2]: group["weight_decay"] for group in decayed}
    assert decays == {"embeddings": 0.0, "weights": 1e-5, "head": 0.3}
    listed = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    with pytest.raises(sp.SoftPromptError, match="no prompt or component 'multi-mask.haed'.*multi-mask.head"):
        parameter_groups(model, {"multi-mask.haed": 1.0})


def test_a_trainer_takes_them(tmp_path: Path) -> None:
    class Faster(PromptTrainer):
        learning_rates = {"prompt-tuning": 0.3}  # noqa: RUF012

    model = tiny.attached("bert", "prompt-tuning", dtype=torch.float32)
    before = prompt_state(model)
    trainer = Faster(model, tf.TrainingArguments(**arguments(tmp_path)), train_dataset=dataset("bert"))
    trainer.train()
    assert {group["initial_lr"] for group in trainer.optimizer.param_groups} == {0.3}
    assert all(not torch.equal(value, before[key]) for key, value in prompt_state(model).items())


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_losses_of_second_passes_join(family: str, tmp_path: Path) -> None:
    model = sp.attach(tiny.model(family), sp.AdaMixConfig(consistency=1.0), name="mix", seed=0)
    model.prompts.double()
    tiny.shake(model)
    model.train()
    inputs = tiny.batch(family)
    trainer = PromptTrainer(model, tf.TrainingArguments(**arguments(tmp_path)), train_dataset=dataset(family))
    torch.manual_seed(3)
    loss = trainer.compute_loss(model, dict(inputs))
    torch.manual_seed(3)
    plain = model(**inputs).loss
    first = run_pass(model, inputs, ["mix"] * 3)
    more = comparisons(model, inputs, ["mix"] * 3, first, {"mix": None})["mix"] / len(first.logits)
    assert more > 1e-4
    torch.testing.assert_close(loss, plain + more)
    model.eval()
    torch.testing.assert_close(trainer.compute_loss(model, dict(inputs)), model(**inputs).loss)


def sft(model: Any, folder: Path, mixin: bool = True) -> Any:
    trl = pytest.importorskip("trl")
    bases = (PromptTraining, trl.SFTTrainer) if mixin else (trl.SFTTrainer,)
    settings = {**arguments(folder), "bf16": False, "completion_only_loss": True, "gradient_checkpointing": False}
    rows = [{"prompt": f"word{i} word9 word{i + 9}", "completion": " word7 word20"} for i in range(5, 13)]
    from datasets import Dataset

    return type("Trainer", bases, {})(
        model=model,
        args=trl.SFTConfig(**settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(eos_token="word4"),
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("method", ["prompt-tuning", "multi-mask", "selective-prefix", "superpos", "ept", "lora"])
def test_trls_loss_is_the_models_own(method: str, tmp_path: Path) -> None:
    model = tiny.attached("llama", method, dtype=torch.float32)
    trainer = sft(model, tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    assert (batch["labels"] == -100).any() and (batch["labels"] != -100).any()
    model.train()
    wanted = torch.autograd.grad(model(**batch).loss, list(model.prompts.parameters()), allow_unused=True)
    own = model(**batch).loss
    loss = trainer.compute_loss(model, dict(batch), num_items_in_batch=(batch["labels"][:, 1:] != -100).sum())
    torch.testing.assert_close(loss, own, rtol=1e-4, atol=1e-5)
    gradients = torch.autograd.grad(loss, list(model.prompts.parameters()), allow_unused=True)
    for one, other in zip(gradients, wanted, strict=True):
        if other is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("method", "said"), [("multi-mask", "PromptTraining"), ("selective-prefix", "PromptTraining")])
def test_trl_alone_is_refused_where_it_would_go_wrong(method: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(sp.SoftPromptError, match=said):
        sft(tiny.attached("llama", method, dtype=torch.float32), tmp_path, mixin=False).train()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("mixin", [True, False])
def test_trl_and_a_changed_output_layer(mixin: bool, tmp_path: Path) -> None:
    model = tiny.attached("llama", "full", dtype=torch.float32)
    with pytest.raises(sp.SoftPromptError, match="changes the output layer, which this trainer goes past"):
        sft(model, tmp_path, mixin=mixin).train()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_trl_alone_trains_plain_prompts(tmp_path: Path) -> None:
    model = tiny.attached("llama", "prefix-tuning", dtype=torch.float32)
    before = prompt_state(model)
    sft(model, tmp_path, mixin=False).train()
    assert all(not torch.equal(value, before[key]) for key, value in prompt_state(model).items())


# --- preferences ------------------------------------------------------------------------------------------------------

INPUT_DEPENDENT = ["multi-mask", "smop", "adaptive-prefix"]


def dpo(model: Any, reference: Any, folder: Path, mixin: bool = True) -> Any:
    trl = pytest.importorskip("trl")
    bases = (PromptTraining, trl.DPOTrainer) if mixin else (trl.DPOTrainer,)
    settings = {**arguments(folder), "bf16": False, "gradient_checkpointing": False, "beta": 0.5}
    rows = [
        {"prompt": f"word{i} word9", "chosen": " word7 word20 word8"[: 7 * (i % 3 + 1)], "rejected": f" word{i + 20}"}
        for i in range(5, 13)
    ]
    from datasets import Dataset

    return type("Trainer", bases, {})(
        model=model,
        ref_model=reference,
        args=trl.DPOConfig(**settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(eos_token="word4"),
    )


def log_probabilities(model: Any, batch: Any, names: Any = None) -> Tensor:
    """Of each row's completion, where prompts see the context only."""
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    given = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "context_mask": labels == -100}
    if names is not None:
        given["prompt_names"] = names
    logits = model(**given).logits[:, :-1].log_softmax(-1)
    picked = logits.gather(2, batch["input_ids"][:, 1:, None])[..., 0]
    return (picked * batch["completion_mask"][:, 1:]).sum(1)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("method", [*INPUT_DEPENDENT, "prompt-tuning"])
@pytest.mark.parametrize("tuned_reference", [False, True])
def test_preferences_are_scored_without_a_look_at_the_answers(
    method: str, tuned_reference: bool, tmp_path: Path
) -> None:
    model = tiny.attached("llama", method, dtype=torch.float32)
    tiny.shake(model, 0.5)
    reference: Any = copy.deepcopy(model) if tuned_reference else tiny.model("llama", torch.float32)
    trainer = dpo(model, reference, tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    model.train()
    model.prompts.eval()
    loss = trainer.compute_loss(model, dict(batch))
    own = log_probabilities(model, batch)
    with torch.no_grad():
        if not tuned_reference:
            reference = sp.attach(reference)
        other = log_probabilities(reference, batch, None if tuned_reference else [None] * len(own))
    better, worse = (own - other).chunk(2)
    wanted = -torch.nn.functional.logsigmoid(0.5 * (better - worse)).mean()
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("method", INPUT_DEPENDENT)
def test_preferences_without_the_mixin_are_refused(method: str, tmp_path: Path) -> None:
    model = tiny.attached("llama", method, dtype=torch.float32)
    with pytest.raises(sp.SoftPromptError, match="PromptTraining before the trainer's class"):
        dpo(model, tiny.model("llama", torch.float32), tmp_path, mixin=False).train()


@pytest.mark.parametrize("method", INPUT_DEPENDENT)
def test_a_loss_of_the_users_own_says_what_is_given(method: str) -> None:
    model, inputs = tiny.attached("llama", method).train(), tiny.batch("llama")
    labels = inputs.pop("labels")
    with pytest.raises(sp.SoftPromptError, match="looks at the input, and nothing says which of it is to be predicted"):
        model(**inputs)
    model.prompts.eval()
    with_labels = model(**inputs, labels=labels).logits
    torch.testing.assert_close(model(**inputs, context_mask=labels == -100).logits, with_labels, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        model(**inputs)  # no training


@pytest.mark.parametrize("method", [*INPUT_DEPENDENT, "prompt-tuning", "ept"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_scores_without_a_mask_do_not_depend_on_the_batch(family: str, method: str) -> None:
    """As lm-evaluation-harness asks for them: rows are filled up with zeros on the right."""
    model, inputs = tiny.attached(family, method), tiny.batch(family)
    told = pytest.warns(UserWarning, match="end with padding or a token 0, and no attention_mask")
    with told if method in INPUT_DEPENDENT else contextlib.nullcontext():
        together = model(inputs["input_ids"]).logits
    for row, mask in enumerate(inputs["attention_mask"]):
        alone = model(inputs["input_ids"][row, mask.bool()][None]).logits[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_tokens_0_that_cannot_be_padding_are_seen() -> None:
    """Of a row alone, and of a batch all of whose rows end with them: as with a mask that says so."""
    model = tiny.attached("gpt2", "multi-mask")
    for ids in (torch.tensor([[7, 8, 0, 0]]), torch.tensor([[7, 8, 9, 0], [5, 9, 11, 0]])):
        expected = model(ids, attention_mask=torch.ones_like(ids)).logits
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-9, atol=1e-9)
