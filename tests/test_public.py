"""What `import softprompts as sp` promises."""

from __future__ import annotations

import importlib.resources
import inspect
import subprocess
import sys

import pytest

import softprompts as sp


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", sp.__all__)
def test_every_public_name_is_there_and_explained(name: str) -> None:
    thing = getattr(sp, name)
    if name != "__version__":
        assert (inspect.getdoc(thing) or "").strip()
    if inspect.isclass(thing) and thing.__module__.startswith("softprompts"):
        for method, function in vars(thing).items():
            if inspect.isfunction(function) and not method.startswith("_") and function.__module__ == thing.__module__:
                assert (inspect.getdoc(getattr(thing, method)) or "").strip(), f"{name}.{method}"


def test_the_lists_of_names_agree() -> None:
    assert len(set(sp.__all__)) == len(sp.__all__) and set(sp.__all__) <= set(dir(sp))
    with pytest.raises(AttributeError, match="no attribute 'atach'"):
        _ = sp.atach


def test_a_fresh_import_resolves_every_name_and_lists_methods() -> None:
    code = """
import sys, softprompts as sp
assert "torch" not in sys.modules
print(len(sp.methods()))
import softprompts.methods.contract
print(len(sp.methods()), sp.methods.__name__)
assert all(getattr(sp, name) is not None for name in sp.__all__)
"""
    count = len(sp.methods())
    assert fresh(code).split() == [str(count), str(count), "softprompts.methods"]


def test_methods_can_be_listed_after_their_base_module_was_imported() -> None:
    code = "import softprompts.methods.contract; import softprompts as sp; print('prefix-tuning' in sp.methods())"
    assert fresh(code) == "True"


HEAVY = {
    "torch",
    "transformers",
    "accelerate",
    "sklearn",
    "scipy",
    "datasets",
    "huggingface_hub",
    "numpy",
    "matplotlib",
}


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        ("--help", set()),
        *((f"{verb} --help", set()) for verb in ("train", "compare", "search", "transfer", "tasks show", "bench run")),
        ("tasks", set()),
        ("methods", {"torch", "numpy"}),
    ],
)
def test_what_a_verb_does_not_need_is_not_imported(command: str, needed: set[str]) -> None:
    """Start-up time is that of imports: torch takes a second, transformers and scikit-learn half of one each."""
    code = f"""
import sys
sys.argv = ["softprompts", *{command.split()}]
from softprompts.__main__ import main
try:
    main()
except SystemExit as stop:
    assert not stop.code
print("heavy:", *sorted({HEAVY} & set(sys.modules)))
"""
    assert set(fresh(code).splitlines()[-1].split()[1:]) <= needed


def test_only_the_verb_that_is_called_is_imported() -> None:
    code = """
import sys
sys.argv = ["softprompts", "push", "--help"]
from softprompts.__main__ import main
try:
    main()
except SystemExit:
    pass
print(*(name for name in sys.modules if name.startswith("softprompts.commands.")))
"""
    assert set(fresh(code).splitlines()[-1].split()) == {
        f"softprompts.commands.{name}" for name in ("push", "terminal", "usage", "options", "parsing", "run_file")
    }


def test_the_package_says_that_it_is_typed() -> None:
    assert importlib.resources.files("softprompts").joinpath("py.typed").is_file()
