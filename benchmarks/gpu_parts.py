"""The parts of `benchmarks/gpu.py`: each yields rows of numbers as soon as it has them."""

from __future__ import annotations

import copy
import functools
import importlib.util
import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch import Tensor

import softprompts as sp
from softprompts.backbones.loading import quantization_arguments
from softprompts.backbones.quantized import BACKENDS
from softprompts.errors import SoftPromptError, first_line
from softprompts.model.attach import attach
from softprompts.training.config import TrainConfig
from softprompts.training.lane import Lane
from softprompts.training.loop import train

ROOT = Path(__file__).resolve().parents[1]
LENGTH = 20  # tokens of a prompt
METHODS = ("prompt-tuning", "prefix-tuning", "multi-mask", "selective-prefix", "superpos", "ept")
FAMILIES = "llama,qwen3,mistral,gemma2,gpt2,opt,bert,roberta,t5,bart"
KERNELS = ("flash_attention_2", "sdpa", "flex_attention")
PACKAGES = {"flash_attention_2": "flash_attn"}  # that a kernel needs
_GPU_TEST = re.compile(r"def test_\w*gpu")
_COUNT = re.compile(r"(\d+) (passed|failed|skipped|error)|(\w+): (\d+)")

Row = dict[str, Any]
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Given:
    """What a part is told: where it runs, how small, and for how many seconds at most."""

    device: str
    tiny: bool
    dtype: str
    seconds: float
    folder: Path

    @property
    def weights(self) -> torch.dtype:
        """The type of frozen weights."""
        return getattr(torch, self.dtype)


# --- models, rows and steps -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """A model's dimensions, and the batch that it is measured with."""

    name: str
    config: Any
    cls: Any
    rows: int
    tokens: int
    answer: int  # tokens at the end that are targets; of an encoder-decoder, those of its decoder
    lora: tuple[str, str]

    def model(self, given: Given) -> Any:
        """The model with random weights."""
        with torch.device(given.device):
            return self.cls._from_config(self.config, dtype=given.weights).eval()

    def batch(self, given: Given) -> Inputs:
        """Random rows of one length."""
        ids = torch.randint(10, self.config.vocab_size, (self.rows, self.tokens), device=given.device)
        if self.config.is_encoder_decoder:
            labels = torch.randint(10, self.config.vocab_size, (self.rows, self.answer), device=given.device)
        else:
            labels = ids.clone()
            labels[:, : -self.answer] = -100
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def t5(tiny: bool) -> Size:
    """T5-base, or small ones."""
    wide = {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12, "vocab_size": 32128}
    small = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 60}
    config = tf.T5Config(**(small if tiny else wide), decoder_start_token_id=0, dropout_rate=0.0)
    sizes = (2, 12, 3) if tiny else (32, 256, 8)
    return Size("T5-base", config, tf.T5ForConditionalGeneration, *sizes, ("q", "v"))


def llama(tiny: bool, layers: int = 16, rows: int = 8, tokens: int = 512) -> Size:
    """Llama 3.2 of 1B, or small ones."""
    wide = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8}
    small = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    more = {"vocab_size": 60 if tiny else 128256, "num_hidden_layers": 2 if tiny else layers}
    config = tf.LlamaConfig(**(small if tiny else wide), **more, max_position_embeddings=8192, tie_word_embeddings=True)
    sizes = (2, 12, 3) if tiny else (rows, tokens, 64)
    return Size("Llama-1B", config, tf.LlamaForCausalLM, *sizes, ("q_proj", "v_proj"))


def twin(model: Any) -> Any:
    """A copy with the same weights in memory."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]})


def method(name: str) -> sp.MethodConfig:
    return sp.make_config(name, num_virtual_tokens=LENGTH)


def attached(model: Any, name: str) -> Any:
    return attach(twin(model), method(name), name="p", seed=0)


def adapted(model: Any, size: Size, kind: str) -> Any:
    """The model under PEFT."""
    import peft

    task = "SEQ_2_SEQ_LM" if size.config.is_encoder_decoder else "CAUSAL_LM"
    config = {
        "prompt": lambda: peft.PromptTuningConfig(task_type=task, num_virtual_tokens=LENGTH),
        "prefix": lambda: peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=LENGTH),
        "LoRA": lambda: peft.LoraConfig(task_type=task, r=8, target_modules=list(size.lora)),
    }[kind]()
    return peft.get_peft_model(twin(model), config)


def stepper(model: Any, batch: Inputs) -> Callable[[], float]:
    """Takes a training step of what the model trains, and returns the loss."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)

    def step() -> float:
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def forward(model: Any, batch: Inputs) -> float:
    with torch.no_grad():
        return float(model(**batch).loss)


def wait(given: Given) -> None:
    if given.device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds(given: Given, run: Callable[[], Any]) -> float:
    wait(given)
    start = time.perf_counter()
    run()
    wait(given)
    return time.perf_counter() - start


def added_mb(given: Given, run: Callable[[], Any]) -> float | None:
    """The peak of the memory that a step adds on a GPU, in MB."""
    if not given.device.startswith("cuda"):
        return None
    wait(given)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    wait(given)
    return round((torch.cuda.max_memory_allocated() - before) / 1e6, 1)


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def side_by_side(given: Given, variants: dict[str, Callable[[], Callable[[], Any]]], base: str) -> Iterator[Row]:
    """Times of the variants in turn, round after round, each also as the median ratio to the base's.

    What cannot be made or run is a row with the reason.
    """
    runs: dict[str, Callable[[], Any]] = {}
    memory: dict[str, float | None] = {}
    for name, make in variants.items():
        try:
            runs[name] = make()
            for _ in range(1 if given.tiny else 3):
                runs[name]()
            memory[name] = added_mb(given, runs[name])
        except Exception as error:  # also of other libraries; the other variants go on
            runs.pop(name, None)
            yield {"variant": name, "error": first_line(error)}
    rounds = 2 if given.tiny else 15
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(given, run))
    for name, taken in times.items():
        ratio = [a / b for a, b in zip(taken, times.get(base, taken), strict=True)]
        yield {
            "variant": name,
            "ms": round(1000 * median(taken), 2),
            f"/ {base}": round(median(ratio), 3),
            "MB added": memory[name],
        }


# --- the parts --------------------------------------------------------------------------------------------------------


def tests(given: Given) -> Iterator[Row]:
    """The tests that need a GPU; without one they are skipped."""
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if _GPU_TEST.search(path.read_text())]
    yield command(given, "gpu tests", ["-m", "pytest", *files, "-k", "gpu", "-q", "-n0", "-p", "no:cacheprovider"])


def sweep(given: Given) -> Iterator[Row]:
    """The sweep over model classes, of the ten main families, by kernel."""
    known = subprocess.run([sys.executable, "-m", "tests.models", "--help"], cwd=ROOT, capture_output=True, text=True)
    if "--device" not in known.stdout:
        yield {"variant": "sweep", "skipped": "python -m tests.models takes no --device here"}
        return
    for kernel in KERNELS[1:2] if given.tiny else KERNELS:
        package = PACKAGES.get(kernel)
        if package is not None and importlib.util.find_spec(package) is None:
            yield {"variant": kernel, "skipped": f"{package} is not installed"}
            continue
        options = ["--types", "bert" if given.tiny else FAMILIES, "--device", given.device, "--dtype", given.dtype]
        results = ["--results", str(given.folder / f"models-{kernel}.jsonl"), "--fresh"]
        yield command(given, kernel, ["-m", "tests.models", *options, "--attn", kernel, *results])


def command(given: Given, name: str, arguments: list[str]) -> Row:
    """Runs Python with these arguments, and reads the counts in what it prints last."""
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=given.seconds)
    lines = [line for line in done.stdout.splitlines() if line.strip()] or done.stderr.splitlines()[-1:] or [""]
    counted = next((line for line in reversed(lines) if _COUNT.search(line)), "")
    counts = {words[1] or words[2]: int(words[0] or words[3]) for words in _COUNT.findall(counted)}
    problem = {} if done.returncode in (0, 5) else {"error": f"exit code {done.returncode}: {lines[-1][:160]}"}
    return {"variant": name, **counts, **problem}


def step(given: Given) -> Iterator[Row]:
    """A training step of each method beside PEFT's, as a ratio to the inference forward."""
    for size in (t5(given.tiny), llama(given.tiny)):
        model, batch = size.model(given), size.batch(given)
        variants: dict[str, Callable[[], Callable[[], Any]]] = {
            "inference forward": lambda model=model, batch=batch: functools.partial(forward, twin(model), batch)
        }
        for name in METHODS:
            variants[name] = lambda name=name, model=model, batch=batch: stepper(attached(model, name), batch)
        for kind in ("prompt", "prefix", "LoRA"):
            variants[f"PEFT {kind}"] = lambda kind=kind, size=size, model=model, batch=batch: stepper(
                adapted(model, size, kind), batch
            )
        for row in side_by_side(given, variants, "inference forward"):
            yield {"model": size.name, **row}


def lanes(given: Given) -> Iterator[Row]:
    """Runs in shared passes beside the same runs one after another, and PEFT's one after another."""
    for size in (t5(given.tiny), llama(given.tiny, rows=4, tokens=128)):
        base = size.model(given)
        for count in (2,) if given.tiny else (4, 8):
            model, batch = attach(twin(base)), size.batch(given)
            for number in range(count):
                model.add_prompt(f"lane{number}", method("prefix-tuning"), seed=number)
            pairs = zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)
            features = [{"input_ids": ids, "labels": labels} for ids, labels in pairs]
            runs = functools.partial(trained, model, features, count, 1 if given.tiny else 4)
            times: dict[str, list[float]] = {"one after another": [], "shared": [], "PEFT prefix": []}
            try:
                other: Callable[[], float] | None = stepper(adapted(base, size, "prefix"), batch)
            except Exception as error:
                other = None
                yield {"model": size.name, "lanes": count, "variant": "PEFT prefix", "error": first_line(error)}
            for number in range(2 if given.tiny else 6):
                taken = {"one after another": runs(shared=False), "shared": runs(shared=True)}
                if other is not None:
                    taken["PEFT prefix"] = sum(seconds(given, other) for _ in range(count))
                if number:  # the first warms up
                    for name, value in taken.items():
                        times[name].append(value)
            for name, values in times.items():
                if values:
                    ratio = median([a / b for a, b in zip(values, times["shared"], strict=True)])
                    yield {
                        "model": size.name,
                        "lanes": count,
                        "variant": name,
                        "ms of a step of all": round(1000 * median(values), 2),
                        "/ shared": round(ratio, 3),
                    }


def trained(model: Any, features: list[Row], count: int, steps: int, shared: bool) -> float:
    """Seconds of a step of all lanes."""
    config = {"max_steps": steps, "batch_size": len(features), "eval_every": None}
    made = [Lane(f"lane{n}", TrainConfig(seed=n, **config), features) for n in range(count)]
    for group in [made] if shared else [[lane] for lane in made]:
        train(model, group, pad_id=0, progress=False)
    return sum(lane.step_seconds for lane in made) / steps


def memory(given: Given) -> Iterator[Row]:
    """What a training step of rows of 4,096 tokens adds."""
    size = llama(given.tiny, layers=8, rows=1, tokens=4096)
    model, batch = size.model(given), size.batch(given)
    variants: dict[str, Callable[[], Callable[[], Any]]] = {
        "inference forward": lambda: functools.partial(forward, twin(model), batch),
        "PEFT prefix": lambda: stepper(adapted(model, size, "prefix"), batch),
    }
    for name in ("prompt-tuning", "prefix-tuning", "selective-prefix"):
        variants[name] = lambda name=name: stepper(attached(model, name), batch)

    def checkpointed() -> Callable[[], float]:
        made = attached(model, "selective-prefix")
        made.gradient_checkpointing_enable()
        return stepper(made, batch)

    variants["selective-prefix, checkpointing"] = checkpointed
    for row in side_by_side(given, variants, "inference forward"):
        yield {"tokens": size.tokens, **row}


def quantised(given: Given) -> Iterator[Row]:
    """Training on backbones in few bits: the loss of one batch, first and last."""
    size = llama(given.tiny, layers=4, rows=4, tokens=256)
    if given.tiny:
        size.config.hidden_size, size.config.intermediate_size = 64, 64  # blocks of 64 numbers have a scale
        size.config.head_dim = 16
    batch, device = size.batch(given), torch.device(given.device)
    with tempfile.TemporaryDirectory() as folder:
        size.model(given).save_pretrained(folder)
        for backend in (None, *BACKENDS):
            row: Row = {"variant": backend or given.dtype}
            try:
                more = {} if backend is None else quantization_arguments(size.cls, size.config, backend, device)
                base = size.cls.from_pretrained(folder, dtype=given.weights, **more)
                base = base.to(device) if backend is None else base
                model = attach(base, method("prefix-tuning"), name="p", seed=0)
                run = stepper(model, batch)
                losses = [run() for _ in range(3 if given.tiny else 20)]
                row |= {"first loss": round(losses[0], 4), "last loss": round(losses[-1], 4)}
                if not math.isfinite(losses[-1]) or losses[-1] >= losses[0]:
                    row["error"] = "the loss does not fall"
                row |= {"ms": round(1000 * seconds(given, run), 2), "MB added": added_mb(given, run)}
                row["MB of weights"] = round(base.get_memory_footprint() / 1e6, 1)
            except SoftPromptError as error:
                row["skipped"] = str(error)
            except Exception as error:  # of the libraries; the others go on
                row["error"] = first_line(error)
            yield row


# The parts in order, and the seconds that each may take on a GPU.
PARTS: dict[str, tuple[int, Callable[[Given], Iterator[Row]]]] = {
    "tests": (60, tests),
    "step": (90, step),
    "lanes": (70, lanes),
    "memory": (50, memory),
    "quantised": (50, quantised),
    "sweep": (150, sweep),
}
