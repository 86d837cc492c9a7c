"""All that wants a GPU, as one script of at most eight minutes; writes JSON and a page in Markdown.

    python benchmarks/gpu.py [--seconds 480] [--parts step,lanes] [--out build/gpu]
    python benchmarks/gpu.py --dry-run

The parts: the tests with "gpu" in their names; a training step, and lanes, of the dimensions of T5-base and of Llama
with 1B (random weights) beside PEFT in the same process; memory at 4,096 tokens; training on backbones in few bits; the
sweep over model classes (`python -m tests.models`) of ten families by attention kernel.

Each part is a process of its own with a budget of seconds. What it has measured by then is kept; a part that fails does
not stop the others. Exit code 1: something failed; 2: there is no GPU. ``--dry-run`` does all of it on the CPU at tiny
sizes in about a minute: the numbers mean nothing then.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import machine, prepare
from gpu_parts import PARTS, ROOT, Given, Row

_END = 5.0  # seconds that are left for the page


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", help="of frozen weights; default: bfloat16, on a CPU float32")
    parser.add_argument("--tiny", action="store_true", help="tiny models and few rounds")
    parser.add_argument("--dry-run", action="store_true", help="as --device cpu --tiny")
    parser.add_argument("--seconds", type=float, default=480, help="for all parts together")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, separated by commas")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"))
    parser.add_argument("--only", help=argparse.SUPPRESS)  # one part, in a process of its own
    options = parser.parse_args()
    if options.dry_run:
        options.device, options.tiny = "cpu", True
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("no GPU: torch sees no CUDA device here; --dry-run tries all parts at tiny sizes", file=sys.stderr)
        return 2
    dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    given = Given(options.device, options.tiny, dtype, options.seconds, options.out)
    if options.only:
        measure(given, options.only)
        return 0
    if unknown := [name for name in options.parts.split(",") if name not in PARTS]:
        parser.error(f"unknown parts: {', '.join(unknown)}; known: {', '.join(PARTS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    until, found = time.monotonic() + options.seconds - _END, {}
    for name in options.parts.split(","):
        found[name] = part(given, name, min(PARTS[name][0], until - time.monotonic()))
        print(f"{name}: {found[name]['status']}, {found[name]['seconds']:.0f} s", flush=True)
    write(given, found)
    failed = [name for name, one in found.items() if one["status"].startswith("failed") or errors(one["rows"])]
    print(f"{options.out / 'gpu.md'}: {len(found)} parts" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return int(bool(failed))


def errors(rows: list[Row]) -> list[str]:
    """What failed of ours: PEFT's own failures are rows too, but no failure of this script."""
    return [row["error"] for row in rows if "error" in row and not str(row.get("variant")).startswith("PEFT")]


def measure(given: Given, name: str) -> None:
    """Runs a part in this process, and writes each row as soon as it is there."""
    if given.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "1"
    prepare(torch.get_num_threads())
    with open(rows_file(given, name), "w", encoding="utf-8") as file:
        for row in PARTS[name][1](given):
            file.write(json.dumps(row) + "\n")
            file.flush()


def rows_file(given: Given, name: str) -> Path:
    return given.folder / f"{name}.jsonl"


def part(given: Given, name: str, limit: float) -> dict[str, Any]:
    """Runs a part in a process of its own: its status, the seconds it took, and its rows."""
    if limit < 1:
        return {"status": "skipped: no time left", "seconds": 0.0, "rows": []}
    rows_file(given, name).unlink(missing_ok=True)
    options = ["--device", given.device, "--dtype", given.dtype, "--seconds", str(limit), "--out", str(given.folder)]
    command = [sys.executable, __file__, "--only", name, *options, *["--tiny"] * given.tiny]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    start = time.monotonic()
    with open(given.folder / f"{name}.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            code = process.wait(limit)
            status = "done" if code == 0 else f"failed: exit code {code}, {last_line(given, name)}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = f"cut after {limit:.0f} s"
    file = rows_file(given, name)
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {"status": status, "seconds": time.monotonic() - start, "rows": [json.loads(line) for line in lines if line]}


def last_line(given: Given, name: str) -> str:
    lines = (given.folder / f"{name}.log").read_text(encoding="utf-8").strip().splitlines()
    return lines[-1][:200] if lines else "no word"


def write(given: Given, found: dict[str, Any]) -> None:
    """Writes gpu.json and gpu.md."""
    device = torch.cuda.get_device_name(given.device) if given.device.startswith("cuda") else "CPU"
    facts = {
        "date": datetime.date.today().isoformat(),
        "device": device,
        "given": {**dataclasses.asdict(given), "folder": None},
        "machine": machine(),
        "parts": found,
    }
    (given.folder / "gpu.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    tiny = " Tiny sizes: the numbers mean nothing." if given.tiny else ""
    versions = ", ".join(
        f"{name} {facts['machine'][name]}" for name in ("torch", "transformers", "peft", "softprompts")
    )
    text = [f"# Measured on {device}", f"{facts['date']}; {versions}; weights in {given.dtype}.{tiny}"]
    for name, one in found.items():
        text += [
            f"## {name}",
            f"{PARTS[name][1].__doc__} ({one['status']}, {one['seconds']:.0f} s)",
            table(one["rows"]),
        ]
    (given.folder / "gpu.md").write_text("\n\n".join(filter(None, text)) + "\n", encoding="utf-8")


def table(rows: list[Row]) -> str:
    """Rows in Markdown, with a column for each key that one of them has."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    cells = [["" if row.get(key) is None else str(row[key]).replace("|", "\\|") for key in keys] for row in rows]
    lines = [keys, ["---"] * len(keys), *cells] if rows else []
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
