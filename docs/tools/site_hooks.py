"""What mkdocs does beyond mkdocs.yml: the colours of the package, and a link to the repository where there is one."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

from softprompts.plotting import css

PROJECT = Path(__file__).parents[2] / "pyproject.toml"
_REPOSITORY = ("repository", "source", "source code", "github", "code")  # names that projects give its address


def on_config(config: Any) -> Any:
    """Takes the repository's address from the project's metadata; without one there is no link."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    config.repo_url = repository(project.get("urls", {}))
    return config


def repository(urls: dict[str, str]) -> str | None:
    """The repository's address among those of a project; None where it names none."""
    by_name = {name.lower(): address for name, address in urls.items()}
    return next((by_name[name] for name in _REPOSITORY if name in by_name), None)


def on_files(files: Any, *, config: Any) -> Any:
    """Adds the style sheet of the package's colours, which all of its pages have."""
    files.append(File.generated(config, "palette.css", content=css()))
    return files
