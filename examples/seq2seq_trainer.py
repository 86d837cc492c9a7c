"""Seq2SeqTrainer on a frozen T5 that answers with a word, scored by what it generates.

python examples/seq2seq_trainer.py --model google-t5/t5-small
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import transformers
from small_models import reviews, small_model

import softprompts as sp
from softprompts.trainers import PromptTraining


class PromptTrainer(PromptTraining, transformers.Seq2SeqTrainer):
    """Seq2SeqTrainer with the prompt's own learning rates."""


def main() -> dict[str, float]:
    """Trains; returns the scores of what is generated for the validation rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="an encoder-decoder; default: a small random one")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", default="runs/seq2seq")
    options = parser.parse_args()

    name = options.model or small_model("t5", tempfile.mkdtemp())
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(name)
    sp.attach(model, sp.PrefixTuningConfig(num_virtual_tokens=10), name="reviews", tokenizer=tokenizer, seed=0)

    def rows(split: str, count: int) -> list[dict[str, Any]]:
        features = []
        for text, label in reviews(split, count):
            encoded = tokenizer(f"review : {text}", truncation=True, max_length=96)
            answer = tokenizer(label)["input_ids"]
            ids = answer if answer[-1] == tokenizer.eos_token_id else [*answer, tokenizer.eos_token_id]
            features.append({key: encoded[key] for key in ("input_ids", "attention_mask")} | {"labels": ids})
        return features

    def metrics(prediction: transformers.EvalPrediction) -> dict[str, float]:
        def words(ids: Any) -> list[str]:
            ids[ids == -100] = tokenizer.pad_token_id
            return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]

        pairs = list(zip(words(prediction.predictions), words(prediction.label_ids), strict=True))
        return {
            "accuracy": sum(one == other for one, other in pairs) / len(pairs),
            "valid": sum(one in ("negative", "positive") for one, _ in pairs) / len(pairs),
        }

    trainer = PromptTrainer(
        model,
        transformers.Seq2SeqTrainingArguments(
            output_dir=options.out,
            max_steps=options.steps,
            per_device_train_batch_size=16,
            predict_with_generate=True,
            generation_max_length=6,
            save_strategy="no",
            dataloader_pin_memory=False,
            report_to=[],
            seed=0,
        ),
        train_dataset=rows("train", options.rows),
        eval_dataset=rows("validation", max(8, options.rows // 4)),
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer, model=model),
        compute_metrics=metrics,
    )
    trainer.train()
    trainer.save_model(options.out)
    scores = trainer.evaluate()
    print({key: scores[f"eval_{key}"] for key in ("accuracy", "valid", "loss")})
    return {key: float(scores[f"eval_{key}"]) for key in ("accuracy", "valid", "loss")}


if __name__ == "__main__":
    main()
