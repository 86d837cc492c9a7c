"""docs/methods.md: made by the code, and true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from methods_page import BACKBONES, _prose, about, count, example, known, prompt_of, table, value

import softprompts as sp

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


@pytest.mark.parametrize("name", sorted(known()))
def test_every_method_says_what_it_is(name: str) -> None:
    assert known()[name].about is not None, f"{name} has no 'about', of which docs/methods.md is made"
    said = about(name)
    assert all((said.equation, said.trained, said.count))
    assert "\n" not in said.equation
    with prompt_of(example(name), BACKBONES[0]) as prompt:
        folds = prompt.method.cannot_fold() is None
    # What only some settings fold says so: "prefix, with one mask only".
    assert folds == (said.folds_to != "" and "only" not in said.folds_to)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", sorted(known()))
def test_a_formula_gives_the_number_that_a_prompt_has(name: str, backbone: str) -> None:
    config = example(name)
    counted = count(config, backbone)
    assert counted is not None
    assert value(about(name).count, config, counted.sizes) in (counted.trained, None)


def test_a_formula_is_worked_out_by_its_symbols() -> None:
    sizes = {"l": 3, "d": 5, "S": 7, "w": 11}
    config = sp.MultiMaskConfig(num_virtual_tokens=3, num_masks=2)
    assert value("2*S*l*w + k*l*S + k*d", config, sizes) == 2 * 7 * 3 * 11 + 2 * 3 * 7 + 2 * 5
    assert value("(num_masks + 1)*d", config, sizes) == 15
    for words in ("one for every bias", "d*k (mlp)", "d**k", "len(d)", "1.5*d"):
        assert value(words, config, sizes) is None
    with pytest.raises(
        sp.SoftPromptError, match="multi-mask: 'q' in the formula 'q[*]d' is neither one of l d S w L nor"
    ):
        value("q*d", config, sizes)


def test_a_method_that_says_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sp.SuperPosConfig, "about", None)
    with pytest.raises(sp.SoftPromptError, match="superpos: .*'about'"):
        table()


def test_the_page_is_what_the_code_makes() -> None:
    page = table()
    assert PAGE.read_text(encoding="utf-8") == page, "python docs/tools/methods_page.py > docs/methods.md"
    cards = page.split('<div class="method" markdown>')[1:]
    assert sorted(re.search(r"### (\S+)", card)[1] for card in cards) == sorted(known())
    for card in cards:
        name = re.search(r"### (\S+)", card)[1]
        assert f"```text\n{about(name).equation}\n```" in card and f"[`{name}`](#{name})" in page
    # On a phone, tables of at most four columns are read without squeezing.
    assert max(line.count(" | ") for line in page.splitlines() if line.startswith("|")) <= 3
    assert not re.search(r"(?<!\w)--[a-z]", page)


def test_prose_is_no_markup() -> None:
    assert _prose("2*S and `2*S`, P~ <b>") == "2\\*S and `2*S`, P\\~ \\<b>"
