"""Prints the tests of the rooms that changed against main, committed or not: what `make check` runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
ELSEWHERE = {"docs": "docs", "examples": "examples", "recipes": "bench"}  # the tests of what is no package


def changed_files(main: str) -> list[str]:
    """Files of the working tree that differ from where its branch left main, and those that git does not know yet."""

    def git(*arguments: str) -> list[str]:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"git {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout.splitlines()

    (base,) = git("merge-base", main, "HEAD")
    return [*git("diff", "--name-only", base), *git("ls-files", "--others", "--exclude-standard")]


def path_for(file: str, tests: Path) -> Path | None:
    """The test file or folder for a file of the repository; None: there is none."""
    top, *rest = PurePosixPath(file).parts
    if top == "tests":
        path = tests.joinpath(*rest)
        is_test = path.name.startswith("test_") and path.suffix == ".py"
        path = path if is_test else path.parent  # what tests share: all that are beside and below it
    elif top == "softprompts":
        path = tests / (rest[0] if len(rest) > 1 else f"test_{rest[0]}")
        if len(rest) == 1 and not path.exists():  # the package itself, its version, its script
            path = tests / "test_public.py"
    elif top in ELSEWHERE:
        path = tests / ELSEWHERE[top]
    else:
        return None
    return path if path.exists() else None


def outermost(paths: Iterable[Path]) -> list[Path]:
    """Paths without those that lie in another one."""
    unique = set(paths)
    return sorted(path for path in unique if not unique & set(path.parents))


if __name__ == "__main__":
    found = [path_for(file, ROOT / "tests") for file in changed_files(*(sys.argv[1:] or ["main"]))]
    for path in outermost(path for path in found if path is not None):
        print(path.relative_to(ROOT))
