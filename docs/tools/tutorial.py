"""Runs docs/tutorial.md, puts what its blocks print under them, and makes the notebook of the same.

    python docs/tools/tutorial.py              # the page with outputs anew, and examples/tutorial.ipynb
    python docs/tools/tutorial.py --notebook   # the notebook alone, from the page as it is

Blocks are run in their order in an empty folder: ``python`` in one program, ``bash`` as commands of softprompts, one
that is titled "in a second terminal" beside the others. A ``text`` block is what the block before it prints.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE, NOTEBOOK = ROOT / "docs" / "tutorial.md", ROOT / "examples" / "tutorial.ipynb"
_BLOCK = re.compile(r'^```(python|bash|text)(?: title="([^"]+)")?\n(.*?)^```\n', re.MULTILINE | re.DOTALL)
_SECOND, _PORT = "in a second terminal", "8000"
Start = Callable[[Sequence[str], Path], Any]  # a command of softprompts in a folder: something like a `Popen`


@dataclass(frozen=True)
class Block:
    """A block of code, and what the page says that it prints."""

    kind: str
    title: str
    code: str
    shown: str = ""


def parts(page: str) -> list[str | Block]:
    """The page's prose and its blocks, in their order."""
    found: list[str | Block] = []
    end = 0
    for match in _BLOCK.finditer(page):
        prose, (kind, title, code) = page[end : match.start()].strip("\n"), match.groups(default="")
        if prose:
            found.append(prose)
        if kind == "text":
            before = found[-1]
            assert isinstance(before, Block), "a text block belongs to the block right before it"
            found[-1] = Block(before.kind, before.title, before.code, code)
        else:
            found.append(Block(kind, title, code))
        end = match.end()
    rest = page[end:].strip("\n")
    return [*found, rest] if rest else found


def outputs(blocks: Sequence[Block], folder: Path, start: Start) -> list[str]:
    """What each block prints; that of a command in a second terminal is left out."""
    printed, scope, beside = [], {"__name__": "__main__"}, []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    try:
        for block in blocks:
            code = block.code.replace(_PORT, port)
            if block.kind == "python":
                with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as seen:
                    exec(compile(code, "tutorial", "exec"), scope)
                printed.append(seen.getvalue().replace(port, _PORT))
                continue
            text = ""
            for line in code.replace("\\\n", " ").splitlines():
                name, *arguments = shlex.split(line)
                assert name == "softprompts", line
                process = start(arguments, folder)
                if block.title == _SECOND:
                    beside.append(process)
                    continue
                out, err = process.communicate()
                assert process.returncode == 0, err
                text += out
            printed.append(text)
    finally:
        for process in beside:
            process.kill()
    return printed


def with_outputs(page: str, printed: Sequence[str]) -> str:
    """The page with what its blocks printed."""
    rest = iter(printed)
    text = ""
    for part in parts(page):
        if isinstance(part, str):
            text += f"{part}\n\n"
            continue
        title = f' title="{part.title}"' if part.title else ""
        text += f"```{part.kind}{title}\n{part.code}```\n\n"
        if output := "\n".join(line.rstrip() for line in next(rest).strip("\n").splitlines()):
            text += f"```text\n{output}\n```\n\n"
    return text.rstrip("\n") + "\n"


def notebook(page: str) -> str:
    """The page as a notebook, in the format 4.5 of Jupyter."""
    cells: list[dict[str, Any]] = []
    for number, part in enumerate(parts(page)):
        cell: dict[str, Any] = {"id": f"part-{number}", "metadata": {}}
        if isinstance(part, str):
            cell |= {"cell_type": "markdown", "source": part.splitlines(keepends=True)}
        else:
            magic = "%%bash --bg\n" if part.title == _SECOND else "%%bash\n" if part.kind == "bash" else ""
            shown = {"name": "stdout", "output_type": "stream", "text": part.shown.splitlines(keepends=True)}
            cell |= {
                "cell_type": "code",
                "execution_count": None,
                "outputs": [shown] if part.shown else [],
                "source": (magic + part.code.rstrip("\n")).splitlines(keepends=True),
            }
        cells.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _start(arguments: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "softprompts", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "88"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    if "--notebook" not in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as place:
            blocks = [part for part in parts(text) if isinstance(part, Block)]
            text = with_outputs(text, outputs(blocks, Path(place), _start))
        PAGE.write_text(text, encoding="utf-8")
    NOTEBOOK.write_text(notebook(text), encoding="utf-8")
