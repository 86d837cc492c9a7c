"""EleutherAI's lm-evaluation-harness on an attached model, with a task of one's own: a YAML file and rows as JSON.

    python examples/lm_eval_harness.py --model HuggingFaceTB/SmolLM2-135M

The harness takes model objects: HFLM(pretrained=model, tokenizer=tokenizer). Every row uses the active prompt.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from small_models import reviews, small_model

import softprompts as sp


def write_task(folder: Path, rows: int) -> None:
    """Writes a task for the harness: the likelier of two words is chosen as the label."""
    data = folder / "reviews.jsonl"
    lines = [{"text": text, "gold": int(label == "positive")} for text, label in reviews("validation", rows)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    task = {
        "task": "packaged_reviews",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "review : {{text}} answer :",
        "doc_to_choice": ["negative", "positive"],
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "reviews.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")


def by_hand(model: Any, tokenizer: Any, context: str, choice: str) -> float:
    """The log-likelihood of a choice after a context."""
    ids = tokenizer(f"{context} {choice}", return_tensors="pt")["input_ids"]
    start = len(tokenizer(context)["input_ids"])
    with torch.no_grad():
        scores = model(ids).logits[0, start - 1 : -1].log_softmax(-1)
    return float(scores.gather(1, ids[0, start:, None]).sum())


def main() -> dict[str, Any]:
    """Evaluates; returns the harness's accuracy, and its log-likelihoods beside our own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a causal language model; default: a small random one")
    parser.add_argument("--prompt", help="folder of a trained prompt; default: a fresh one")
    parser.add_argument("--rows", type=int, default=20)
    options = parser.parse_args()
    name = options.model or small_model("llama", tempfile.mkdtemp())
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    model = sp.attach(transformers.AutoModelForCausalLM.from_pretrained(name).eval())
    if options.prompt:
        model.load_prompt(options.prompt, name="reviews")
    else:
        model.add_prompt("reviews", sp.PromptTuningConfig(num_virtual_tokens=10), tokenizer=tokenizer, seed=0)
    model.set_prompt("reviews")

    folder = Path(tempfile.mkdtemp())
    write_task(folder, options.rows)
    outcome = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, device="cpu"),
        tasks=["packaged_reviews"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    pairs = []
    for sample in outcome["samples"]["packaged_reviews"]:
        context = f"review : {sample['doc']['text']} answer :"
        theirs = [float(answer[0]) for answer in sample["filtered_resps"]]
        ours = [by_hand(model, tokenizer, context, choice) for choice in ("negative", "positive")]
        pairs.append((theirs, ours))
    accuracy = outcome["results"]["packaged_reviews"]["acc,none"]
    print({"accuracy": accuracy, "first row, harness and by hand": pairs[0]})
    return {"accuracy": accuracy, "pairs": pairs}


if __name__ == "__main__":
    main()
