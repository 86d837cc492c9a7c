"""``python -m tests.models``: every model class of transformers that takes text, with prompts on it."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from tests.models.factory import classes
from tests.models.page import page
from tests.models.runner import FAILED, read, run


def main() -> int:
    """Runs, prints the counts, and returns 1 where a cell failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.models", description=__doc__)
    parser.add_argument("--types", help="model types, separated by commas; all by default")
    parser.add_argument("--results", type=Path, default=Path("build/models.jsonl"), help="cells, a line each; resumed")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time")
    parser.add_argument("--only-failed", action="store_true", help="run again what failed")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument("--no-run", action="store_true", help="only count, and write the page")
    parser.add_argument("--page", type=Path, help="write the page of the documentation here")
    given = parser.parse_args()
    if given.fresh:
        given.results.unlink(missing_ok=True)
    types = given.types.split(",") if given.types else list(classes())
    unknown = [name for name in types if name not in classes()]
    if unknown:
        parser.error(f"unknown model types: {', '.join(unknown)}")
    if not given.no_run:
        run(given.results, types, given.workers, given.only_failed)
    known = {key: cell for key, cell in read(given.results).items() if key[0] in types}
    counts = Counter(
        cell.verdict for (_, _, check), cell in known.items() if check != "build" or cell.verdict != "exact"
    )
    print(", ".join(f"{verdict}: {count}" for verdict, count in sorted(counts.items())))
    for (model_type, name, check), cell in sorted(known.items()):
        if cell.verdict in FAILED:
            print(f"{cell.verdict:6} {model_type} {name} {check}: {cell.difference or ''} {cell.note}")
    if given.page:
        given.page.write_text(page(known))
    return int(any(cell.verdict in FAILED for cell in known.values()))


if __name__ == "__main__":
    sys.exit(main())
