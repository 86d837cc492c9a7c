"""Inference throughput of a batch whose rows use many prompts, beside one prompt for all rows and beside PEFT.

    python benchmarks/mixed.py [--rows 32,128] [--prompts 32] [--tokens 28] [--rounds 20] [--quick] [--json FILE]

Every variant answers the same rows; rows take the prompts in turn (row i the prompt i modulo --prompts).

- no prompt: the bare backbone, which was never attached.
- no prompt, + 20: the same over 20 more tokens a row, the floor of a batch in which any row has an input prompt of 20.
- one prompt: one pass, all rows under one prefix of 10.
- many prefixes: one pass, rows under --prompts different prefixes of 10, each with its own head.
- many lengths: the same with prefixes of 5, 10, 15 and 20.
- many methods: the same with prompts of five methods, lengths as before; input prompts lengthen their rows.
- small batches: the prefixes of 10 again, but the rows of each prompt as a batch of their own.
- PEFT one adapter, PEFT small batches: prefix tuning of 10 by PEFT. A batch of PEFT has one prompt, so that many take
  `set_adapter` and one small batch each.

All run in one process, one pass each in turn, round after round. The ratio is the median over rounds of (rows/s of the
variant / rows/s of "one prompt" in the same round). First, the logits of "many prefixes" and "many methods" are
compared with those of small batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from common import LENGTH, Inputs, batch, config, fresh, interleave, numbers, parse, parser, report, summary

import softprompts as sp

LENGTHS = (5, 10, 15, 20)
METHODS = ("prefix-tuning", "multi-mask", "prompt-tuning", "superpos", "selective-prefix")


def main() -> None:
    made = parser(__doc__, rounds=20, warmup=2)
    made.add_argument("--rows", type=numbers, default=[32, 128])
    made.add_argument("--prompts", type=int, default=32)
    made.add_argument("--tokens", type=int, default=28)
    options = parse(made, rounds=5, warmup=1)

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
    report(
        options,
        f"{options.prompts} prompts, rows of {options.tokens} tokens, {options.model}",
        ["rows", "variant", "rows/s", "/ one prompt", "quartiles"],
        lines,
        rows,
    )


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

    made = peft.PrefixTuningConfig(task_type=peft.TaskType.SEQ_CLS, num_virtual_tokens=LENGTH)
    model = peft.get_peft_model(fresh(options.model), made, adapter_name="prefix0")
    for number in range(1, options.prompts):
        model.add_adapter(f"prefix{number}", made)
    return model.eval()


def of_rows(kind: str, rows: int, prompts: int) -> list[str]:
    """The prompt of each row."""
    return [f"{kind}{row % prompts}" for row in range(rows)]


def parts(inputs: Inputs, prompts: int) -> Iterable[tuple[int, Inputs]]:
    """The rows of each prompt as a batch of their own, cut to their longest row."""
    for number in range(min(prompts, len(inputs["input_ids"]))):
        width = int(inputs["attention_mask"][number::prompts].sum(1).max())
        yield number, {name: tensor[number::prompts, :width] for name, tensor in inputs.items()}


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

    return {
        "no prompt": lambda: bare(**inputs) and None,
        f"no prompt, + {longest}": lambda: bare(**longer) and None,
        "one prompt": together("prefix0"),
        "many prefixes": many("prefix"),
        "many lengths": many("length"),
        "many methods": many("method"),
        "small batches": our_small_batches,
        "PEFT one adapter": their_one,
        "PEFT small batches": their_small_batches,
    }


if __name__ == "__main__":
    main()
