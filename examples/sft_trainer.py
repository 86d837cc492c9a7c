"""TRL's SFTTrainer on a frozen causal model: a loss on completions alone, an instance-wise prefix and a plain prompt.

    python examples/sft_trainer.py --model meta-llama/Llama-3.2-1B --method prefix-tuning

SFTTrainer computes its loss without the model's forward. `PromptTraining` hides the targets from the prompts there and
adds their penalties; methods that need this are refused without it.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import transformers
from datasets import Dataset
from small_models import reviews, small_model
from trl import SFTConfig, SFTTrainer

import softprompts as sp
from softprompts.trainers import PromptTraining


class PromptTrainer(PromptTraining, SFTTrainer):
    """SFTTrainer for prompts of every method."""


def main() -> list[float]:
    """Trains; returns the loss at the start, and every ten steps from there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a causal language model; default: a small random one")
    parser.add_argument("--method", default="prompt-tuning", help="see 'softprompts methods'")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", default="runs/sft")
    options = parser.parse_args()

    name = options.model or small_model("llama", tempfile.mkdtemp())
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    model = transformers.AutoModelForCausalLM.from_pretrained(name)
    sp.attach(model, sp.make_config(options.method, num_virtual_tokens=10), tokenizer=tokenizer, seed=0)

    rows: list[dict[str, Any]] = [
        {"prompt": f"review : {text} answer :", "completion": f" {label}"}
        for text, label in reviews("train", options.rows)
    ]
    trainer = PromptTrainer(
        model=model,
        args=SFTConfig(
            output_dir=options.out,
            max_steps=options.steps,
            per_device_train_batch_size=16,
            completion_only_loss=True,
            max_length=128,
            # Packed rows would share the one prompt at their beginning: leave packing off.
            packing=False,
            gradient_checkpointing=False,
            logging_steps=10,
            logging_first_step=True,
            save_strategy="no",
            bf16=False,
            dataloader_pin_memory=False,
            report_to=[],
            seed=0,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(options.out)  # the prompt alone
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    print({"first": losses[0], "last": losses[-1]})
    return losses


if __name__ == "__main__":
    main()
