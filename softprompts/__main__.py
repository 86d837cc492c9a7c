"""The command line, also as ``python -m softprompts``. Errors are one line on stderr and exit code 2."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, NoReturn

import typer

from softprompts.commands.terminal import err, out
from softprompts.commands.usage import UsageError, complaint
from softprompts.errors import SoftPromptError
from softprompts.version import __version__

# Each is what its module in softprompts.commands calls by the same name: a function, or an app with verbs of its own.
VERBS = (
    *(
        "methods",
        "train",
        "runs",
        "compare",
        "search",
        "transfer",
        "demo",
        "predict",
        "evaluate",
        "inspect",
        "export",
        "push",
        "serve",
    ),
    *("tasks", "bench", "new", "check"),
)


def main() -> None:
    """Runs the command line: 0 fine, 2 the caller's mistake, 130 interrupted."""
    atexit.register(gc.freeze)  # to look for garbage among what torch holds would end the process half a second later
    # Under a launcher all processes print the same; the main one does it.
    out.quiet = err.quiet = int(os.environ.get("RANK") or 0) > 0
    _quiet_libraries()
    try:
        code = _app(sys.argv[1:])(prog_name="softprompts", standalone_mode=False)
    except SoftPromptError as error:
        _fail(str(error))
    except UsageError as error:
        if not sys.argv[1:] or type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # the help, where nothing is asked for
            raise SystemExit(2) from None
        _fail(complaint(error))
    except OSError as error:  # no room on the disk, no right to write there
        _fail(f"{error.filename or 'file system'}: {error.strerror or error}")
    finally:
        if int(os.environ.get("WORLD_SIZE") or 1) > 1:
            from softprompts.processes import leave_group

            leave_group()
    if code:
        raise SystemExit(code)


def _app(arguments: Sequence[str]) -> typer.Typer:
    """The command line with the verb that is called; with all verbs where none is, for the list of them."""
    app = typer.Typer(
        name="softprompts",
        help="Soft-prompt and prefix tuning of frozen transformers.",
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_top)  # with it a single verb is still called by its name
    for name in arguments[:1] if arguments and arguments[0] in VERBS else VERBS:
        verb = getattr(import_module(f"softprompts.commands.{name}"), name)
        if isinstance(verb, typer.Typer):
            app.add_typer(verb, name=name)
        else:
            app.command()(verb)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"softprompts {__version__}")
        raise typer.Exit


def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


def _fail(message: str) -> NoReturn:
    err.print("error:", style="red", end=" ")
    err.print(" ".join(message.split()), soft_wrap=True)
    raise SystemExit(2)


def _quiet_libraries() -> None:
    """Silences what libraries print when they are imported or load a model; the environment may say otherwise."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Where torchao is installed, transformers imports it, and it has a line for each of its kernels that do not fit.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
