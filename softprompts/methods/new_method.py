"""The files that a method of the user's own begins with: the method, its test and a recipe."""

from __future__ import annotations

import importlib.util
import keyword
import sys
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from softprompts.errors import SoftPromptError
from softprompts.methods.contract_check import NAME
from softprompts.methods.registry import methods

_TEMPLATES = Environment(
    loader=PackageLoader("softprompts.methods", "starter"),
    undefined=StrictUndefined,
    keep_trailing_newline=True,
    autoescape=False,  # Python and YAML
)


def write_method(name: str, folder: str | Path = ".") -> list[Path]:
    """Writes a method that works, its test, and a recipe that compares it.

    Args:
        name: its name, such as "low-rank-prefix"; files are called after it ("low_rank_prefix.py").
        folder: where they go; made if it is not there.

    Returns:
        The files: method, test and recipe.

    Raises:
        SoftPromptError: the name cannot be used, or one of the files is there already; nothing is written then.
    """
    folder, module = Path(folder), name.replace("-", "_")
    if not NAME.fullmatch(name) or not name[0].isalpha():
        raise SoftPromptError(f"method name '{name}': use small letters, digits and single '-', from a letter on")
    if name in methods():
        raise SoftPromptError(f"there is a method '{name}' already; choose another name")
    if keyword.iskeyword(module) or module in sys.modules or _is_module(module, folder):
        raise SoftPromptError(f"method name '{name}': {module}.py would hide a module of that name; choose another")
    if folder.exists() and not folder.is_dir():
        raise SoftPromptError(f"{folder} is a file; name a folder for the method")
    files = {
        "method.py": folder / f"{module}.py",
        "test.py": folder / f"test_{module}.py",
        "recipe.yaml": folder / f"{module}.yaml",
    }
    there = next((file for file in files.values() if file.exists() or file.is_symlink()), None)
    if there is not None:
        raise SoftPromptError(f"{there} is there already; choose another name, or another folder with --out")
    words = name.split("-")
    texts = {
        kind: _TEMPLATES.get_template(f"{kind}.jinja").render(
            name=name,
            module=module,
            title=" ".join(words).capitalize(),
            cls="".join(word.capitalize() for word in words),
            file=files["method.py"].name,
            recipe=files["recipe.yaml"].name,
        )
        for kind in files
    }
    folder.mkdir(parents=True, exist_ok=True)
    for kind, file in files.items():
        with file.open("x", encoding="utf-8") as opened:  # never over what is there by now
            opened.write(texts[kind])
    return list(files.values())


def _is_module(module: str, folder: Path) -> bool:
    """Whether ``import module`` finds something that is not in the folder itself."""
    spec = importlib.util.find_spec(module)
    return spec is not None and (spec.origin is None or Path(spec.origin).resolve().parent != folder.resolve())
