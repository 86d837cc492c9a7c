"""``softprompts methods``."""

from __future__ import annotations

import dataclasses
import gc
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.padding import Padding
from rich.table import Table

from softprompts.backbones.packaged import DEFAULT_MODEL
from softprompts.commands.options import with_imports
from softprompts.commands.terminal import err, number_table, out
from softprompts.errors import SoftPromptError, nearest

if TYPE_CHECKING:
    from softprompts.methods.contract import MethodConfig

_ASKED = "asked"  # name of the prompt that is made to look at
# Title of a group of methods, and whether one that is in none before belongs to it.
GROUPS: tuple[tuple[str, Callable[[type[MethodConfig]], bool]], ...] = (
    ("Start here", lambda config: config.about is not None and config.about.start_here),
    ("Prefixes: keys and values for every attention", lambda config: config.uses_prefix),
    ("Input prompts: embeddings among those of the input", lambda config: config.uses_tokens),
    ("To compare with", lambda config: True),
)


@with_imports
def methods(
    name: Annotated[str | None, typer.Argument(help="One method, for its settings, rates and size.")] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="The backbone that sizes are told for; default: the packaged one."),
    ] = None,
) -> None:
    """List the methods; with a NAME, one with its settings, learning rates and size."""
    gc.disable()  # looking for garbage while torch is imported takes an eighth of its time
    from softprompts.methods import methods as known
    from softprompts.methods.registry import listed

    gc.enable()
    if name is None:
        _list({name: config for name, config in known().items() if config.listed})
    elif name not in listed(known()):
        raise SoftPromptError(f"unknown method '{name}'; {nearest(name, listed(known()))}")
    else:
        _show(known()[name], model)


# --- all methods --------------------------------------------------------------------------------------------------


def _list(known: Mapping[str, type[MethodConfig]]) -> None:
    left = dict(sorted(known.items()))
    width = 2 + max(map(len, left))
    for title, belongs in GROUPS:
        table = Table(box=None, show_header=False, padding=(0, 1))
        table.add_column(min_width=width, no_wrap=True)
        table.add_column()
        for name in [name for name, config in left.items() if belongs(config)]:
            config = left.pop(name)
            table.add_row(f"{name} *" if _exports(config) == () else name, what_it_is(config))
        out.print(title, style="bold")
        out.print(Padding(table, (0, 0, 1, 1)))
    out.print("*: with its defaults it cannot be exported, and runs with this package only.")
    out.print("softprompts methods NAME: its settings, learning rates, size, and what can be exported.")


def _exports(config: type[MethodConfig]) -> tuple[str, ...] | None:
    """The forms that it can be exported as on some backbone; None where it does not say."""
    return None if config.about is None else config.about.exports


def what_it_is(config: type[MethodConfig]) -> str:
    """What a method is, in a line."""
    if config.about is not None and config.about.line:
        return config.about.line
    first = (sys.modules[config.__module__].__doc__ or "").strip().splitlines()[0]
    return (first.partition(": ")[2] or first).partition(";")[0].rstrip(".")


# --- one method ---------------------------------------------------------------------------------------------------


def _show(config: type[MethodConfig], model: str | None) -> None:
    from softprompts.model.exports import export_refusals

    about = config.about
    with err.status("loading the model"):
        made = _made(config, model)  # before anything is printed: there may be no such model
    out.print(f"{config.method}: {what_it_is(config)}", style="bold", soft_wrap=True)
    lines = Table(box=None, show_header=False, padding=(0, 1))
    lines.add_column(no_wrap=True)
    lines.add_column()
    if about is not None:
        lines.add_row("paper", about.paper)
        lines.add_row("equation", about.equation)
        lines.add_row("trained", about.trained)
        lines.add_row("folds to", about.folds_to or "nothing plain")
    out.print(lines)
    said, settable = dict(_said(config)), config.settable()
    rows = [
        (field.name, _text(field.default), said.get(field.name, ""))
        for field in dataclasses.fields(config)
        if field.name in settable
    ]
    if rows:
        table = Table("setting", "default", "what it is", box=None, padding=(0, 1))
        for row in rows:
            table.add_row(*row)
        out.print("\nSettings (--set NAME=VALUE)", style="bold")
        out.print(table)
    if isinstance(made, str):
        if (forms := _exports(config)) is not None:
            out.print(f"\nExports as: {', '.join(forms) or 'nothing, it runs with this package only'}")
        out.print(f"Its learning rates are told where it can be made: {made}", soft_wrap=True)
        return
    exports = Table(box=None, show_header=False, padding=(0, 1))
    for form, reason in export_refusals(made, _ASKED).items():
        exports.add_row(form, "yes" if reason is None else f"no: {reason.partition(': ')[2] or reason}")
    out.print(f"\nExports on {model or DEFAULT_MODEL} (softprompts export RUN --to FORM)", style="bold", soft_wrap=True)
    out.print(exports)
    out.print(
        f"\nLearning rates on {model or DEFAULT_MODEL}; --lr sets the first and moves the others with it, "
        "--lr-of NAME=RATE one",
        style="bold",
        soft_wrap=True,
    )
    components = made.prompts[_ASKED].components()
    rates = [
        (name, f"{part.learning_rate:g}", f"{sum(one.numel() for one in part.parameters):,}")
        for name, part in components.items()
    ]
    out.print(number_table(("name", "rate", "numbers"), rates, {"name"}))


def _made(config: type[MethodConfig], model: str | None) -> Any:
    """A backbone with a prompt of a method on it; why there is none, where it cannot be made.

    Raises:
        SoftPromptError: there is no model of the name that was given.
    """
    from softprompts.backbones.loading import load_backbone
    from softprompts.model.attach import attach

    try:
        _, backbone, _ = load_backbone(model or DEFAULT_MODEL)
    except SoftPromptError as error:
        if model is not None:
            raise
        return str(error)
    try:
        return attach(backbone, config(**({} if config.about is None else config.about.settings)), _ASKED)
    except SoftPromptError as error:
        return str(error)


def _said(config: type[MethodConfig]) -> Iterator[tuple[str, str]]:
    """What the docstrings say of the settings, by their names; a class's own words come after those of its bases."""
    for base in reversed(config.__mro__):
        text = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2].partition("\n\n")[0]
        for entry in re.split(r"\n(?=    \S)", "\n" + text):
            names, colon, words = " ".join(entry.split()).partition(": ")
            if colon:
                for name in names.split(", "):
                    yield name, words.replace("`", "")


def _text(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
