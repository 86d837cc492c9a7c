"""Inference throughput of a batch whose rows use many prompts, beside one prompt for all rows and beside PEFT.

    python benchmarks/mixed.py [--rows 32,128] [--prompts 32] [--tokens 28] [--rounds 20] [--idle 200] [--quick]
                               [--json FILE]

Every variant answers the same rows; rows take the prompts in turn (row i the prompt i modulo --prompts).

- no prompt: the bare backbone, which was never attached.
- no prompt, + 20: the same over 20 more tokens a row, the floor of a batch in which any row has an input prompt of 20.
- one prompt: one pass, all rows under one prefix of 10.
- many prefixes: one pass, rows under --prompts different prefixes of 10, each with its own head.
- many lengths: the same with prefixes of 5, 10, 15 and 20.
- many methods: the same with prompts of five methods, lengths as before; input prompts lengthen their rows.
- many methods, sorted: the same rows in two passes, those with input prompts in one and all others in the other, each
  cut to its own longest row: what a serving layer gains that queues by the kind of prompt.
- small batches: the prefixes of 10 again, but the rows of each prompt as a batch of their own.
- PEFT one adapter, PEFT small batches: prefix tuning of 10 by PEFT. A batch of PEFT has one prompt, so that many take
  `set_adapter` and one small batch each.

All run in one process, one pass each in turn, round after round. The ratio is the median over rounds of (rows/s of the
variant / rows/s of "one prompt" in the same round). First, the logits of "many prefixes" and "many methods" are
compared with those of small batches.

Then --idle prompts of each method are loaded from their files and forgotten again: milliseconds for one, bytes of its
files and of its tensors in memory (its head included), and what the resident memory grows by for each.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from common import LENGTH, Inputs, batch, config, finish, fresh, interleave, numbers, parse, parser, show, summary

import softprompts as sp

LENGTHS = (5, 10, 15, 20)
METHODS = ("prefix-tuning", "multi-mask", "prompt-tuning", "superpos", "selective-prefix")


def main() -> None:
    arguments = parser(__doc__, rounds=20, warmup=2)
    arguments.add_argument("--rows", type=numbers, default=[32, 128])
    arguments.add_argument("--prompts", type=int, default=32)
    arguments.add_argument("--tokens", type=int, default=28)
    arguments.add_argument("--idle", type=int, default=200)
    options = parse(arguments, rounds=5, warmup=1, idle=20)

    mine, bare, others = ours(options), fresh(options.model).eval(), theirs(options)
    rows, lines = [], []
    for count in options.rows:
        inputs = batch(count, options.tokens)
        del inputs["labels"]
        with torch.inference_mode():
            difference = check(mine, inputs, options.prompts)
            times = interleave(variants(mine, bare, others, inputs, options.prompts), options.rounds, options.warmup)
        for name, taken in times.items():
            # Times of one prompt over times of the variant: the ratio of their rates.
            compared = summary(times["one prompt"], taken)
            rate = count / summary(taken, taken)["median_seconds"]
            compared["median_seconds"] = count / rate
            rows.append({"rows": count, "variant": name, "rows_per_second": rate, **compared, "difference": difference})
            quartiles = f"{compared['ratio_q1']:.2f}-{compared['ratio_q3']:.2f}"
            lines.append((str(count), name, f"{rate:.0f}", f"{compared['ratio']:.2f}", quartiles))
    show(
        f"{options.prompts} prompts, rows of {options.tokens} tokens, {options.model}",
        ["rows", "variant", "rows/s", "/ one prompt", "quartiles"],
        lines,
    )
    del mine, bare, others
    loaded = [idle(options, name) for name in METHODS]
    show(
        f"{options.idle} idle prompts of {LENGTH}",
        ["method", "ms to load", "ms to forget", "kB of files", "kB of tensors", "kB resident"],
        [
            (
                row["method"],
                f"{1000 * row['load_seconds']:.1f}",
                f"{1000 * row['forget_seconds']:.2f}",
                *(f"{row[f'{what}_bytes'] / 1e3:.0f}" for what in ("file", "tensor", "resident")),
            )
            for row in loaded
        ],
    )
    finish(options, rows + loaded)


def ours(options: Any) -> Any:
    model = sp.attach(fresh(options.model))
    for number in range(options.prompts):
        length = LENGTHS[number % len(LENGTHS)]
        model.add_prompt(f"prefix{number}", config("prefix-tuning"), seed=number)
        model.add_prompt(f"length{number}", config("prefix-tuning", length), seed=number)
        model.add_prompt(f"method{number}", config(METHODS[number % len(METHODS)], length), seed=number)
    return model.eval()


def theirs(options: Any) -> Any:
    import peft

    settings = peft.PrefixTuningConfig(task_type=peft.TaskType.SEQ_CLS, num_virtual_tokens=LENGTH)
    model = peft.get_peft_model(fresh(options.model), settings, adapter_name="prefix0")
    for number in range(1, options.prompts):
        model.add_adapter(f"prefix{number}", settings)
    return model.eval()


def of_rows(kind: str, rows: int, prompts: int) -> list[str]:
    """The prompt of each row."""
    return [f"{kind}{row % prompts}" for row in range(rows)]


def parts(inputs: Inputs, prompts: int) -> Iterable[tuple[int, Inputs]]:
    """The rows of each prompt as a batch of their own, cut to their longest row."""
    for number in range(min(prompts, len(inputs["input_ids"]))):
        width = int(inputs["attention_mask"][number::prompts].sum(1).max())
        yield number, {name: tensor[number::prompts, :width] for name, tensor in inputs.items()}


def uses_tokens(name: str) -> bool:
    """Whether a prompt "method7" lengthens the input of its rows."""
    return config(METHODS[int(name.removeprefix("method")) % len(METHODS)]).uses_tokens


def queue(inputs: Inputs, names: list[str], rows: list[int]) -> tuple[Inputs, list[str]]:
    """Some rows with their prompts, cut to the longest of them."""
    width = int(inputs["attention_mask"][rows].sum(1).max())
    return {name: tensor[rows, :width] for name, tensor in inputs.items()}, [names[row] for row in rows]


def check(model: Any, inputs: Inputs, prompts: int) -> float:
    """The largest difference between logits of a mixed batch and those of small batches; fails if it is large."""
    worst = 0.0
    for kind in ("prefix", "method"):
        together = model(**inputs, prompt_names=of_rows(kind, len(inputs["input_ids"]), prompts)).logits
        for number, part in parts(inputs, prompts):
            alone = model(**part, prompt_names=f"{kind}{number}").logits
            worst = max(worst, float((together[number::prompts] - alone).abs().max()))
    if worst > 1e-4:
        raise SystemExit(f"logits of a mixed batch differ by {worst:.2g} from those of small batches")
    return worst


def idle(options: Any, method: str) -> dict[str, Any]:
    """Loads prompts from files and forgets them: seconds and bytes of one."""
    model = sp.attach(fresh(options.model))
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"prompt{number}" for number in range(options.idle)]
        for number, path in enumerate(paths):
            model.add_prompt(path.name, config(method), seed=number)
            model.save_prompt(path.name, path)
            model.delete_prompt(path.name)
        model.load_prompt(paths[0])  # what is only done once
        model.delete_prompt(paths[0].name)
        before = resident()
        load = [seconds(lambda path=path: model.load_prompt(path)) for path in paths]
        held = resident() - before
        tensors = sum(tensor.nbytes for tensor in model.prompts.state_dict().values())
        forget = [seconds(lambda path=path: model.delete_prompt(path.name)) for path in paths]
        files = sum(file.stat().st_size for path in paths for file in path.rglob("*") if file.is_file())
    return {
        "method": method,
        "idle": options.idle,
        "load_seconds": statistics.median(load),
        "forget_seconds": statistics.median(forget),
        "file_bytes": files / options.idle,
        "tensor_bytes": tensors / options.idle,
        "resident_bytes": held / options.idle,
    }


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def resident() -> int:
    """Bytes in memory, after what is free has been given back where the C library can."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def variants(model: Any, bare: Any, peft_model: Any, inputs: Inputs, prompts: int) -> dict[str, Callable[[], None]]:
    small = list(parts(inputs, prompts))
    longest = max(LENGTHS)
    longer = {name: F.pad(tensor, (0, longest), value=1) for name, tensor in inputs.items()}

    def together(names: str | list[str]) -> Callable[[], None]:
        return lambda: model(**inputs, prompt_names=names) and None

    def our_small_batches() -> None:
        for number, part in small:
            model(**part, prompt_names=f"prefix{number}")

    def their_small_batches() -> None:
        for number, part in small:
            peft_model.set_adapter(f"prefix{number}", inference_mode=True)
            peft_model(**part)

    def their_one() -> None:
        peft_model.set_adapter("prefix0", inference_mode=True)
        peft_model(**inputs)

    def many(kind: str) -> Callable[[], None]:
        return together(of_rows(kind, len(inputs["input_ids"]), prompts))

    names = of_rows("method", len(inputs["input_ids"]), prompts)
    queues = [
        queue(inputs, names, [row for row, name in enumerate(names) if uses_tokens(name) == kind]) for kind in (0, 1)
    ]

    def in_queues() -> None:
        for part, owners in queues:
            model(**part, prompt_names=owners)

    return {
        "no prompt": lambda: bare(**inputs) and None,
        f"no prompt, + {longest}": lambda: bare(**longer) and None,
        "one prompt": together("prefix0"),
        "many prefixes": many("prefix"),
        "many lengths": many("length"),
        "many methods": many("method"),
        "many methods, sorted": in_queues,
        "small batches": our_small_batches,
        "PEFT one adapter": their_one,
        "PEFT small batches": their_small_batches,
    }


if __name__ == "__main__":
    main()
