"""A soft prompt and LoRA together on one frozen model: trained jointly, saved as one folder, loaded as one.

python examples/prompt_and_lora.py --steps 200
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import transformers
from small_models import reviews

import softprompts as sp
from softprompts.backbones import packaged
from softprompts.trainers import PromptTraining


class PromptTrainer(PromptTraining, transformers.Trainer):
    """The prompt, LoRA's matrices and the head each with their own learning rate."""


def main() -> dict[str, Any]:
    """Trains; returns the accuracy and how far the loaded prompt's logits are from the trained one's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", default="runs/prompt-and-lora")
    options = parser.parse_args()
    name = packaged.resolve_model(options.model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)

    def backbone() -> Any:
        return transformers.AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)

    both = sp.compose(sp.PromptTuningConfig(num_virtual_tokens=10), sp.LoraConfig(rank=8))
    model = sp.attach(backbone(), both, name="both", seed=0)
    model.add_prompt("plain", sp.PromptTuningConfig(num_virtual_tokens=10), seed=0)  # another, for the mixed batch

    def rows(split: str, count: int) -> list[dict[str, Any]]:
        return [
            {**tokenizer(text, truncation=True, max_length=64), "labels": int(label == "positive")}
            for text, label in reviews(split, count)
        ]

    test = rows("validation", max(8, options.rows // 4))
    trainer = PromptTrainer(
        model,
        transformers.TrainingArguments(
            output_dir=options.out,
            max_steps=options.steps,
            per_device_train_batch_size=32,
            save_strategy="no",
            dataloader_pin_memory=False,
            report_to=[],
            seed=0,
        ),
        train_dataset=rows("train", options.rows),
        eval_dataset=test,
        processing_class=tokenizer,
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda result: {"accuracy": float((result.predictions.argmax(-1) == result.label_ids).mean())},
    )
    trainer.train()
    accuracy = trainer.evaluate()["eval_accuracy"]

    folder = Path(options.out) / "both"
    model.save_prompt("both", folder)
    loaded = sp.attach(backbone()).load_prompt(folder).eval()
    batch = tokenizer([text for text, _ in reviews("test", 4)], padding=True, return_tensors="pt")
    model.eval()
    with torch.no_grad():
        trained = model(**batch, prompt_names="both").logits
        again = loaded(**batch).logits
        mixed = model(**batch, prompt_names=["both", "plain", "both", "plain"]).logits
    results = {
        "accuracy": accuracy,
        "after loading": float((trained - again).abs().max()),
        "in a mixed batch": float((mixed[[0, 2]] - trained[[0, 2]]).abs().max()),
        "files": sorted(file.name for file in folder.iterdir()),
    }
    print(results)
    return results


if __name__ == "__main__":
    main()
