"""transformers' own test suites as a check: `python -m tests.foreign`.

The tests of ten families, `ModelTesterMixin` and `GenerationTesterMixin` with what each family adds, run on plain
models and, those that pass, on attached ones: with a prompt that is switched off, a prefix, an input prompt, a
multi-mask. What fails there and is not in expected.yaml is a fault.

It needs a checkout of transformers with its `tests`, of the version that is installed or near it, named by the variable
SOFTPROMPTS_TRANSFORMERS, and what these tests import (parameterized, timeout-decorator, httpx). Results are kept in a
folder, a file a family; started again it goes on.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.foreign import report

VARIABLE = "SOFTPROMPTS_TRANSFORMERS"
FAMILIES = ("bert", "roberta", "gpt2", "llama", "mistral", "mixtral", "t5", "bart", "llava", "mamba")
FORMS = ("off", "prefix", "input", "multi-mask")
_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]


def checkout() -> Path | str:
    """The checkout of transformers that the environment names; without one, a sentence that says what is missing."""
    named = os.environ.get(VARIABLE)
    if not named:
        return f"{VARIABLE} names no checkout of transformers with its tests"
    if not (Path(named) / "tests" / "test_modeling_common.py").is_file():
        return f"{VARIABLE}={named}: there is no tests/test_modeling_common.py in it"
    return Path(named).resolve()


def run_family(source: Path, family: str, results: Path, forms: Sequence[str], tests: str, limit: int) -> int:
    """Runs one family in its own process, again where the process dies; returns its exit status."""
    command = [sys.executable, str(_HERE / "suite.py"), str(source), family, str(results), "--limit", str(limit)]
    command += ["--forms", *forms, "--tests", tests]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))}
    log = results.with_suffix(".log")
    while True:
        length = results.stat().st_size if results.exists() else 0
        with log.open("a") as output:
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, cwd=results.parent)
            while process.poll() is None:
                time.sleep(0.2)
                if results.exists() and time.time() - results.stat().st_mtime > 3 * limit:  # deaf to its alarm
                    process.kill()
        if not process.returncode:
            return 0
        if not results.exists() or results.stat().st_size == length:  # it does not even start
            print(f"{family}: {report.last_line(log)}", file=sys.stderr)
            return process.returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.foreign", description=__doc__.split("\n")[0])
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), metavar="NAME", help="of transformers' models")
    parser.add_argument("--forms", nargs="*", choices=FORMS, default=list(FORMS))
    parser.add_argument("--tests", default="", metavar="REGEX", help="only tests with this in their names")
    parser.add_argument("--limit", type=int, default=60, help="seconds a test")
    parser.add_argument("--results", type=Path, default=_ROOT / "build" / "foreign", help="where results are kept")
    parser.add_argument("--page", action="store_true", help="run nothing: print the page of the docs")
    settings = parser.parse_args()
    if settings.page:
        print(report.page(settings.results, settings.families, settings.forms, settings.tests), end="")
        return 0
    source = checkout()
    if isinstance(source, str):
        print(f"nothing to run: {source}", file=sys.stderr)
        return 2
    settings.results.mkdir(parents=True, exist_ok=True)
    for family in settings.families:
        results = settings.results.resolve() / f"{family}.jsonl"
        run_family(source, family, results, settings.forms, settings.tests, settings.limit)
    counts = report.counts(settings.results, settings.families, settings.forms, settings.tests)
    print(report.table(counts))
    faults = report.unexpected(settings.results, settings.families, settings.forms, settings.tests)
    for row in faults:
        print(f"{row['family']}, {row['form']}: {row['case']}.{row['test']}: {row['outcome']} {row['message'][:200]}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
