"""Hugging Face's Trainer on a frozen encoder: two prompts, each with its own learning rates, the best of them kept.

python examples/trainer.py --steps 200
"""

from __future__ import annotations

import argparse
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from small_models import reviews

import softprompts as sp
from softprompts.backbones import packaged
from softprompts.trainers import PromptTraining


class PromptTrainer(PromptTraining, transformers.Trainer):
    """Trainer with the prompts' own learning rates and the further losses of their methods."""

    learning_rates: ClassVar[dict[str, float]] = {"plain": 0.05, "masked": 0.03, "masked.head": 0.01}


def main() -> dict[str, float]:
    """Trains; returns each prompt's accuracy on the validation rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="all-minilm-l6-v2", help="an encoder: hub id, folder or the packaged one")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", default="runs/trainer")
    options = parser.parse_args()

    name = packaged.resolve_model(options.model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
    sp.attach(model, sp.PrefixTuningConfig(num_virtual_tokens=10), name="plain", seed=0)
    model.add_prompt("masked", sp.MultiMaskConfig(num_virtual_tokens=10, num_masks=4), seed=0)

    def rows(split: str, count: int) -> list[dict[str, Any]]:
        features = []
        for text, label in reviews(split, count):
            encoded = tokenizer(text, truncation=True, max_length=64)
            for prompt in model.prompts:  # each row once for every prompt, all in the same forward passes
                features.append({**encoded, "labels": int(label == "positive"), "prompt_names": prompt})
        return features

    def collate(features: list[dict[str, Any]]) -> dict[str, Any]:
        texts = [{key: f[key] for key in ("input_ids", "attention_mask")} for f in features]
        batch = dict(tokenizer.pad(texts, return_tensors="pt"))
        batch["labels"] = torch.tensor([f["labels"] for f in features])
        batch["prompt_names"] = [f["prompt_names"] for f in features]
        return batch

    test = rows("validation", max(8, options.rows // 4))

    def metrics(prediction: transformers.EvalPrediction) -> dict[str, float]:
        correct = prediction.predictions.argmax(-1) == prediction.label_ids
        prompts = np.array([row["prompt_names"] for row in test])
        return {name: float(correct[prompts == name].mean()) for name in model.prompts}

    trainer = PromptTrainer(
        model,
        transformers.TrainingArguments(
            output_dir=options.out,
            max_steps=options.steps,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=64,
            eval_strategy="steps",
            eval_steps=max(1, options.steps // 4),
            save_strategy="steps",
            save_steps=max(1, options.steps // 4),
            load_best_model_at_end=True,
            metric_for_best_model="loss",
            remove_unused_columns=False,  # or "prompt_names" would be dropped
            dataloader_pin_memory=False,
            report_to=[],
            seed=0,
        ),
        train_dataset=rows("train", options.rows),
        eval_dataset=test,
        data_collator=collate,
        compute_metrics=metrics,
    )
    trainer.train()
    trainer.save_model(options.out)  # a folder for each prompt, and nothing of the backbone
    scores = trainer.evaluate()
    accuracies = {name: scores[f"eval_{name}"] for name in model.prompts}
    print({"best step": trainer.state.best_global_step, **accuracies})
    return accuracies


if __name__ == "__main__":
    main()
