"""Wrong answers among calls of one model from eight threads: forward and generate, under every method.

    python benchmarks/threads.py [--calls 1000] [--threads 8] [--families bert llama t5]

Each call is compared bit for bit with the same call alone. Models are the small random ones of the tests.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

import thread_calls
import tiny


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--families", nargs="+", default=["bert", "llama", "t5"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    for family in args.families:
        names = list(tiny.METHODS)
        model, began = tiny.attached(family, *names), time.perf_counter()
        wrong = thread_calls.wrong(model, thread_calls.calls(family, names), args.calls, args.threads)
        seconds = time.perf_counter() - began
        print(f"{family}: {wrong} wrong of {args.calls} calls, {len(names)} methods, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
