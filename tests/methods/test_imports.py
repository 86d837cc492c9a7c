"""Methods from files: what is imported, what is refused and leaves nothing, and what is remembered of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from own_methods import forget as forget  # a fixture

from softprompts.errors import SoftPromptError
from softprompts.methods import make_config, methods
from softprompts.methods.imports import import_methods, imported, sources_of
from softprompts.methods.new_method import write_method

METHOD = """
import softprompts as sp


@sp.register("{name}")
class {cls}(sp.MethodConfig):
    pass
"""
Forget = Callable[[], None]


def write(folder: Path, file: str, text: str) -> str:
    (folder / file).write_text(text, encoding="utf-8")
    return str(folder / file)


def test_a_file_is_imported_once_and_remembered(tmp_path: Path, forget: Forget) -> None:
    write(tmp_path, "beside_it.py", "NAME = 'own-method'\n")
    text = METHOD.format(name="own-method", cls="OwnConfig").replace('"own-method"', "beside_it.NAME")
    file = write(tmp_path, "own_method.py", f"import beside_it\n{text}")
    assert import_methods(file) == import_methods(file) == ["own-method"]
    assert make_config("own-method").method == "own-method" and imported() == [file]
    source = sources_of("lora+own-method")["own-method"]
    assert source.file == Path(file) and source.to_dict()["file"] == "own_method.py"
    assert not sources_of("lora")
    forget()
    assert "own-method" not in methods() and not imported()


def test_a_module_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forget: Forget) -> None:
    (tmp_path / "own_package").mkdir()
    write(tmp_path / "own_package", "inner.py", METHOD.format(name="inner-method", cls="InnerConfig"))
    monkeypatch.chdir(tmp_path)
    assert import_methods("own_package.inner") == ["inner-method"]
    assert imported() == ["own_package.inner"]
    assert sources_of("inner-method")["inner-method"].to_dict()["file"] == "own_package/inner.py"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("no_method.py", "x = 1\n", "no_method.py registers no method"),
        ("wrong.py", "\n1 / 0\n", "wrong.py, line 2: ZeroDivisionError"),
        ("wrong.py", "\n\ndef (\n", "wrong.py, line 3: SyntaxError"),
        ("wrong.py", "raise SystemExit(3)\n", "wrong.py, line 1: SystemExit"),
        ("wrong.py", "import not_there_at_all\n", "line 1: ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("wrong.py", METHOD.format(name="half", cls="Half") + "\n1 / 0\n", "ZeroDivisionError"),
        ("json.py", METHOD.format(name="j", cls="J"), "a module is called 'json' already"),
        ("colorsys.py", METHOD.format(name="c", cls="C"), "a module is called 'colorsys' already"),
        ("taken.py", METHOD.format(name="lora", cls="Lora"), "'lora' is already taken by LoraConfig"),
        ("taken.py", METHOD.format(name="lora", cls="LoraConfig"), "method name 'lora' is taken already"),
    ],
)
def test_what_cannot_be_imported_leaves_nothing(
    file: str, text: str, message: str, tmp_path: Path, forget: Forget
) -> None:
    before, modules = methods(), set(sys.modules)
    path = write(tmp_path, file, text)
    for _ in range(2):  # the second time as the first
        with pytest.raises(SoftPromptError) as error:
            import_methods(path)
        assert message in str(error.value) and "\n" not in str(error.value)
    assert methods() == before and not imported()
    assert Path(file).stem in modules or Path(file).stem not in sys.modules


@pytest.mark.parametrize("given", ["nowhere.py", "no_such_module", "softprompts.no_such", "a folder/x", ""])
def test_what_is_not_there(given: str) -> None:
    with pytest.raises(SoftPromptError):
        import_methods(given)


@pytest.mark.parametrize(
    "name", ["Low", "low_rank", "low--rank", "-low", "3d", "low+rank", "", "ä", "lora", "json", "class"]
)
def test_names_of_new_methods(name: str, tmp_path: Path) -> None:
    with pytest.raises(SoftPromptError, match="method"):
        write_method(name, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file", ["low_rank_one.py", "test_low_rank_one.py", "low_rank_one.yaml"])
def test_new_files_never_take_the_place_of_others(file: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text("mine")
    with pytest.raises(SoftPromptError, match=f"{file} is there already"):
        write_method("low-rank-one", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [file] and (tmp_path / file).read_text() == "mine"
