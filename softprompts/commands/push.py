"""``softprompts push``."""

from __future__ import annotations

from typing import Annotated

import typer

from softprompts.commands.options import Source
from softprompts.commands.terminal import err, out


def push(
    source: Source,
    repo: Annotated[str, typer.Argument(metavar="USER/NAME", help="Repository on the hub; made when it is missing.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    message: Annotated[str | None, typer.Option("--message", help="Of the commit.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to.")] = None,
    licence: Annotated[str | None, typer.Option("--license", help="The hub's name of a licence, such as mit.")] = None,
) -> None:
    """Upload a trained prompt, with its card, to the model hub. Logging in is up to 'hf auth login'."""
    from softprompts.model.push import push_saved

    with err.status("uploading"):
        address = push_saved(source, repo, licence, private=private or None, commit_message=message, revision=revision)
    out.print(f"uploaded: {address}", soft_wrap=True)
