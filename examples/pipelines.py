"""transformers' pipelines on attached models: classification, tagging and generation, prompts switched by name.

python examples/pipelines.py
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
import transformers
from small_models import small_model

import softprompts as sp
from softprompts.backbones import packaged

TEXTS = ["A good thriller.", "Idiotic and ugly."]


def main() -> dict[str, Any]:
    """Runs each pipeline; returns their outputs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="all-minilm-l6-v2")
    parser.add_argument("--decoder", help="a causal language model; default: a small random one")
    options = parser.parse_args()
    encoder = packaged.resolve_model(options.encoder)
    decoder = options.decoder or small_model("llama", tempfile.mkdtemp())
    words = transformers.AutoTokenizer.from_pretrained(encoder)
    outputs: dict[str, Any] = {}

    # In place of add_prompt, model.load_prompt(folder) brings a trained one.
    model = sp.attach(transformers.AutoModelForSequenceClassification.from_pretrained(encoder))
    model.add_prompt("sentiment", sp.PrefixTuningConfig(num_virtual_tokens=5), labels=["negative", "positive"], seed=0)
    model.add_prompt("topic", sp.PromptTuningConfig(num_virtual_tokens=5), labels=["plot", "cast", "music"], seed=1)
    classify = transformers.pipeline("text-classification", model=model, tokenizer=words, device="cpu")
    for prompt in model.prompts:
        model.set_prompt(prompt)
        outputs[prompt] = classify(TEXTS, top_k=None)
    # Both prompts in one forward pass, without the pipeline: each row has its own prompt and labels.
    with torch.no_grad():
        logits = model(**words(TEXTS, padding=True, return_tensors="pt"), prompt_names=["sentiment", "topic"]).logits
    outputs["mixed"] = logits.softmax(-1)

    tagger = transformers.AutoModelForTokenClassification.from_pretrained(encoder)
    sp.attach(tagger, sp.PrefixTuningConfig(num_virtual_tokens=5), name="ner", labels=["O", "PER", "LOC"], seed=0)
    tag = transformers.pipeline("token-classification", model=tagger, tokenizer=words, device="cpu")
    outputs["ner"] = tag("Rob Reiner films in Boston.")

    writer = transformers.AutoModelForCausalLM.from_pretrained(decoder)
    sp.attach(writer, sp.PromptTuningConfig(num_virtual_tokens=5), name="review", seed=0)
    generate = transformers.pipeline(
        "text-generation",
        model=writer,
        tokenizer=transformers.AutoTokenizer.from_pretrained(decoder, padding_side="left"),
        device="cpu",
    )
    outputs["review"] = generate(["The film is", "It"], max_new_tokens=5, do_sample=False, batch_size=2)
    for name, answer in outputs.items():
        print(name, answer)
    return outputs


if __name__ == "__main__":
    main()
