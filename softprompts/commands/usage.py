"""What the command line says of options, arguments and verbs that it cannot use, in one line."""

from __future__ import annotations

import difflib
import re
from typing import Any

import typer

# The base of all complaints of the parser: typer brings its own copy of click, or imports it, as its version has it.
UsageError: Any = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")
# What an option is called elsewhere, in other tools or as a setting in Python.
_ELSEWHERE = {
    "--dev": "--validation", "--val": "--validation", "--valid": "--validation", "--eval": "--validation",
    "--validation-file": "--validation", "--dev-file": "--validation", "--train": "--data", "--dataset": "--data",
    "--train-file": "--data", "--input": "--file", "--test-file": "--test", "--text-column": "--text",
    "--label-column": "--label", "--learning-rate": "--lr", "--max-steps": "--steps", "--num-epochs": "--epochs",
    "--num-train-epochs": "--epochs", "--per-device-train-batch-size": "--batch-size", "--bs": "--batch-size",
    "--gradient-accumulation-steps": "--accumulate", "--warmup-steps": "--warmup", "--max-seq-length": "--max-length",
    "--output-dir": "--out", "--delimiter": "--separator", "--sep": "--separator", "--model-name-or-path": "--model",
    "--peft": "--method", "--model-name": "--model", "--delim": "--separator", "--num-virtual-tokens": "--set",
}  # fmt: skip
# What pydantic says of a value that typer lets it check, in words of ours.
_WANTED = (
    (r"Input should be greater than or equal to (\S+)", r"it must be at least \1"),
    (r"Input should be less than or equal to (\S+)", r"it must be at most \1"),
    (r"Input should be a valid integer.*", "it must be a whole number"),
    (r"Input should be a valid number.*", "it must be a number"),
    (r"is not a valid int(eger)?$", "is not a whole number"),
)


def complaint(error: Any) -> str:
    """A complaint of the parser in a line: what is wrong, and the nearest name of what there is."""
    said = " ".join(str(error.format_message()).split()).rstrip(".")
    said = re.sub(r" \(Possible options: .*\)$|\.? Did you mean .*\?$", "", said)
    for wanted, words in _WANTED:
        said = re.sub(wanted, words, said)
    said = said[:1].lower() + said[1:]
    context = getattr(error, "ctx", None)
    if context is None:
        return said
    hint = f"see '{context.command_path} --help'"
    wrong = getattr(error, "option_name", None)
    if wrong is not None and said.startswith("no such option"):
        known = [name for parameter in context.command.params for name in (*parameter.opts, *parameter.secondary_opts)]
        hint = _did_you_mean(wrong, [name for name in known if name.startswith("--")]) or hint
        return f"{context.info_name} has no option {wrong}; {hint}"
    verb = re.match(r"no such command '(.*)'", said)
    if verb is not None:
        hint = _did_you_mean(verb[1], list(context.command.commands)) or hint
    return f"{said}; {hint}"


def _did_you_mean(name: str, known: list[str]) -> str:
    there = _ELSEWHERE.get(name.replace("_", "-"))
    close = [there] if there in known else difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    return f"did you mean {close[0]}?" if close else ""
