"""Runs transformers' tests of one family, plain and attached, and writes what came out: a script of its own process.

It is run by its path, as the package `tests` is that of transformers here. Results are lines of JSON; what is in the
file already is not run again. A test that fails on the plain model is not run on attached ones.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import re
import signal
import sys
import time
import types
import unittest
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Of other machinery than models: many processes, pipelines, real training. Our process has none of their parts.
_LEFT_OUT = ("test_fsdp_mixin", "test_tensor_parallel_mixin", "test_pipeline_mixin", "test_training_mixin")
# torch.compile takes minutes a test; and one test for many number types and kernels, of which the plain one is kept.
_NOT_RUN = re.compile(r"test_\w*compil\w*|test_eager_matches_sdpa_inference_\w+(fp16|bf16|_sdpa_kernels)\w*")


class _TooLong(BaseException):
    pass


class _Empty(types.ModuleType):
    """A module in which every name is a class without anything."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (), {})
        setattr(self, name, made)
        return made


def cases(family: str) -> Iterator[type[unittest.TestCase]]:
    """The test classes of a family."""
    for name in _LEFT_OUT:
        sys.modules[f"tests.{name}"] = _Empty(f"tests.{name}")
    module = importlib.import_module(f"tests.models.{family}.test_modeling_{family}")
    common: Any = importlib.import_module("tests.test_modeling_common").ModelTesterMixin
    for case in vars(module).values():
        if isinstance(case, type) and issubclass(case, common) and issubclass(case, unittest.TestCase):
            yield case


def names_of(case: type[unittest.TestCase]) -> list[str]:
    """The tests of a class, without those of exporters, of torch.compile and repetitions."""
    common: Any = importlib.import_module("tests.test_modeling_common")
    exported = {name for base in common.ExportTesterMixin.__mro__ for name in vars(base)}
    exported |= {name for base in case.__mro__ if base.__name__.startswith("Export") for name in vars(base)}
    names = unittest.TestLoader().getTestCaseNames(case)
    return [name for name in names if name not in exported and not _NOT_RUN.match(name)]


def run(test: unittest.TestCase, limit: int) -> tuple[str, str]:
    """Outcome ("passed", "skipped", "failed", "too long") and the last line of the error."""

    def stop(*_: Any) -> None:
        raise _TooLong

    import numpy
    import torch

    rng = importlib.import_module("tests.test_modeling_common").global_rng
    for seed in (random.seed, numpy.random.seed, torch.manual_seed, rng.seed):
        seed(0)
    result = unittest.TestResult()
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(limit)
    try:
        test.run(result)
    except _TooLong:
        return "too long", f"more than {limit} s"
    finally:
        signal.alarm(0)
    problems = [*result.errors, *result.failures]
    if problems:
        return "failed", _message(problems[0][1])
    return ("skipped", result.skipped[0][1]) if result.skipped else ("passed", "")


def _message(trace: str) -> str:
    """The error of a traceback with its message, in one line."""
    lines = trace.rstrip().splitlines()
    starts = [i for i, line in enumerate(lines) if re.match(r"[A-Za-z_][\w.]*(:|$)", line)]
    return " ".join(line.strip() for line in lines[starts[-1] if starts else -1 :] if line.strip())[:600]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkout", type=Path)
    parser.add_argument("family")
    parser.add_argument("results", type=Path)
    parser.add_argument("--forms", nargs="*", default=[])
    parser.add_argument("--tests", default="", help="a regular expression for what a name has in it")
    parser.add_argument("--limit", type=int, default=60)
    settings = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    sys.path[:0] = [str(settings.checkout), str(settings.checkout / "utils")]
    warnings.simplefilter("ignore")
    found = list(cases(settings.family))
    import torch
    from attaching import attached

    torch.set_num_threads(1)
    done: dict[tuple[str, str, str], str] = {}
    if settings.results.exists():
        for line in settings.results.read_text().splitlines():
            row = json.loads(line)
            done[row["case"], row["test"], row["form"]] = row["outcome"]
    with settings.results.open("a", buffering=1) as file:

        def note(case: type, name: str, form: str, outcome: str, message: str = "", seconds: float = 0.0) -> None:
            row = {"case": case.__name__, "test": name, "form": form, "outcome": outcome}
            file.write(json.dumps(row | {"message": message, "seconds": round(seconds, 2)}) + "\n")
            done[case.__name__, name, form] = outcome

        for case in found:
            made: Any = case("run")
            made.setUp()  # some find their classes there
            for name in names_of(case):
                if not re.search(settings.tests, name):
                    continue
                for form in ["plain", *settings.forms]:
                    if done.get((case.__name__, name, "plain"), "passed") != "passed" and form != "plain":
                        continue
                    before = done.get((case.__name__, name, form))
                    if before == "started":
                        note(case, name, form, "died")
                    if before is not None:
                        continue
                    note(case, name, form, "started")
                    start = time.monotonic()
                    if form == "plain":
                        outcome, message = run(case(name), settings.limit)
                    else:
                        with attached(form, case, made.all_model_classes):
                            outcome, message = run(case(name), settings.limit)
                    note(case, name, form, outcome, message, time.monotonic() - start)


if __name__ == "__main__":
    main()
