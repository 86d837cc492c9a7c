"""`softprompts methods`."""

from __future__ import annotations

import pytest
from saved import Cli

from softprompts.methods import methods


def test_methods_lists_each_method_once_in_a_group_and_80_columns(cli: Cli) -> None:
    out = cli.fine("methods").out
    starts = [line.split()[0] for line in out.splitlines() if line.startswith("  ") and line[2:3].strip()]
    listed = [
        name for name, config in methods().items() if config.listed and config.__module__.startswith("softprompts.")
    ]
    assert sorted(starts) == sorted(listed)
    marked = {line.split()[0] for line in out.splitlines() if line.split()[1:2] == ["*"]}
    assert {"multi-mask", "smop", "dept"} <= marked and not {"prefix-tuning", "lora", "head-only", "mpt"} & marked
    assert all(len(line) <= 80 for line in out.splitlines())  # a line each
    assert sum(line.startswith("  ") and bool(line.strip()) for line in out.splitlines()) == len(listed)
    places = [out.index(title) for title in ("Start here", "Prefixes", "Input prompts", "To compare with")]
    assert places == sorted(places)
    assert places[0] < out.index("  prefix-tuning") < places[1] < out.index("  multi-mask") < places[2]


def test_one_method_with_settings_rates_and_what_it_exports_as(cli: Cli) -> None:
    out = cli.fine("methods", "multi-mask").out
    words = " ".join(out.split())
    assert (
        "folds to prefix, with one mask or uniform routes only" in words and "peft no: it depends on the input" in words
    )
    assert "num_masks 4 k. With a single mask" in words
    rates = {line.split()[0]: line.split()[1:] for line in out.splitlines() if len(line.split()) == 3}
    assert rates["prefix"][1] == "46,080" and rates["router"][1] == "1,536" and rates["head"] == ["0.01", "770"]


def test_a_method_that_cannot_be_made_without_files_says_what_it_needs(cli: Cli) -> None:
    out = " ".join(cli.fine("methods", "mpt").out.split())
    assert "paper Wang et al., Multitask Prompt Tuning" in out and "Settings" in out


@pytest.mark.parametrize("name", ["ekt", "folded"])
def test_an_unknown_method_is_an_error(cli: Cli, name: str) -> None:
    done = cli("methods", name)
    assert done.code == 2 and f"unknown method '{name}'" in done.err


def test_a_model_that_is_not_there_is_an_error_and_nothing_else(cli: Cli) -> None:
    done = cli("methods", "lora", "--model", "./nowhere")
    assert done.code == 2 and not done.out and "no such model './nowhere'" in done.err
