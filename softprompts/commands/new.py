"""``softprompts new`` and its verb."""

from __future__ import annotations

from typing import Annotated

import typer

from softprompts.commands.terminal import out

new = typer.Typer(help="Begin something of your own.", no_args_is_help=True)


@new.callback()
def _verbs() -> None:
    pass


@new.command("method")
def new_method(
    name: Annotated[str, typer.Argument(help="Its name: small letters, digits and '-', such as low-rank-prefix.")],
    folder: Annotated[str, typer.Option("--out", "-o", help="Where the files go.")] = ".",
) -> None:
    """Write a method that trains, its test and a recipe, to be changed into yours."""
    from softprompts.methods.new_method import write_method

    method, test, recipe = write_method(name, folder)
    for file, what in ((method, "the method"), (test, "its test"), (recipe, "a recipe that compares it")):
        out.print(f"{file}: {what}", soft_wrap=True)
    out.print("now:")
    for line in (
        f"softprompts check {method}",
        f"softprompts train --import {method} --method {name}",
        f"softprompts bench run {recipe} --import {method}",
        f"python -m pytest {test}",
    ):
        out.print(f"  {line}", soft_wrap=True)
