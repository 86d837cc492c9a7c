"""``softprompts demo``."""

from __future__ import annotations

from typing import Annotated

import typer

from softprompts.commands.compare import show_comparison
from softprompts.commands.messages import describe, tell_run, telling_how_to_go_on
from softprompts.commands.options import Lanes, Out, report_folder


def demo(
    out_: Out = "runs",
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 2,
    lanes: Lanes = None,
    report: Annotated[str | None, typer.Option(help="Folder for table and plot.")] = None,
) -> None:
    """Tune six methods on real film reviews with a packaged 22M-parameter encoder and compare them."""
    from softprompts.experiments.demo import run_demo
    from softprompts.storage.files import require_folder

    folder = report_folder(report, out_, "demo")
    require_folder(folder, "the report")  # before anything trains for minutes
    with telling_how_to_go_on("the same command goes on from there"):
        comparison = run_demo(out_, range(seeds), lanes=lanes, tell=tell_run, describe=describe)
    show_comparison(comparison, folder)
