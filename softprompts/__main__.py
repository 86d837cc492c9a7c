"""The command line, also as ``python -m softprompts``. Errors are one line on stderr and exit code 2."""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn

import typer

from softprompts.commands.bench import bench_app
from softprompts.commands.compare import compare
from softprompts.commands.demo import demo
from softprompts.commands.export import export
from softprompts.commands.inspect import inspect
from softprompts.commands.methods import methods
from softprompts.commands.predict import predict
from softprompts.commands.push import push
from softprompts.commands.search import search
from softprompts.commands.serve import serve
from softprompts.commands.tasks import tasks_app
from softprompts.commands.terminal import err, out
from softprompts.commands.train import train
from softprompts.commands.transfer import transfer
from softprompts.errors import SoftPromptError

app = typer.Typer(
    name="softprompts",
    help="Soft-prompt and prefix tuning of frozen transformers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (methods, train, compare, search, transfer, demo, predict, inspect, export, push, serve):
    app.command()(verb)
app.add_typer(tasks_app, name="tasks")
app.add_typer(bench_app, name="bench")


def main() -> None:
    """Runs the command line: 0 fine, 2 the caller's mistake, 130 interrupted."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Under a launcher all processes say the same; the main one says it.
    out.quiet = err.quiet = int(os.environ.get("RANK") or 0) > 0
    try:
        _quiet_libraries()
        app()
    except SoftPromptError as error:
        _fail(str(error))
    except OSError as error:  # no room on the disk, no right to write there
        _fail(f"{error.filename or 'file system'}: {error.strerror or error}")
    finally:
        if int(os.environ.get("WORLD_SIZE") or 1) > 1:
            from softprompts.processes import leave_group

            leave_group()


def _fail(message: str) -> NoReturn:
    err.print("error:", style="red", end=" ")
    err.print(" ".join(message.split()), soft_wrap=True)
    raise SystemExit(2)


def _quiet_libraries() -> None:
    if {"-h", "--help"} & set(sys.argv) or len(sys.argv) < 2:
        return  # help is quicker without loading it
    # Where torchao is installed, transformers imports it, and it has a line for each of its kernels that do not fit.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()


if __name__ == "__main__":
    main()
