"""``softprompts check``."""

from __future__ import annotations

from typing import Annotated

import typer

from softprompts.commands.method_settings import method_configs
from softprompts.commands.options import Set
from softprompts.commands.parsing import pairs
from softprompts.commands.terminal import err, out
from softprompts.errors import SoftPromptError, nearest


def check(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A Python file or module that registers methods, a class in it (module.Class), or a method's name.",
        ),
    ],
    set_: Set = None,
) -> None:
    """Check a method against the contract, on small random models. Exit code 1: a check failed."""
    with err.status("loading"):
        from softprompts.model.method_check import check_method

        names = _names_in(source)
    failed = 0
    for name, config in method_configs(names, pairs(set_)).items():
        out.print(f"{name}, on small random models", style="bold")
        for one in check_method(config):
            state = "FAILED" if one.fault else "-" if one.left_out else "ok"
            said = one.fault or (f"not checked: {one.left_out}" if one.left_out else one.holds)
            out.print(
                f"{state:<7}{one.check:<14}{' '.join(said.split())}", soft_wrap=True, style="red" * bool(one.fault)
            )
            failed += bool(one.fault)
    if failed:
        out.print(f"{failed} {'check' if failed == 1 else 'checks'} failed")
        raise typer.Exit(1)


def _names_in(source: str) -> list[str]:
    """The methods that a file, a module or a class registers, or the one that has this name."""
    from softprompts.methods import methods
    from softprompts.methods.imports import import_methods

    known = methods()
    if source in known and known[source].listed:
        return [source]
    module, dot, last = source.rpartition(".")
    if not dot or source.endswith(".py") or not last[:1].isupper():
        return import_methods(source)
    names = import_methods(module)
    configs = {name: methods()[name] for name in names}
    of_class = {
        one.__name__: name for name, config in configs.items() for one in (config, getattr(config, "module", config))
    }
    if last not in of_class:
        raise SoftPromptError(f"{module} has no method or config '{last}'; {nearest(last, of_class)}")
    return [of_class[last]]
