"""``softprompts demo``."""

from __future__ import annotations

from typing import Annotated

import typer

from softprompts.commands.compare import show_comparison
from softprompts.commands.messages import hint_when_interrupted, run_counter, show_workbench
from softprompts.commands.options import Lanes, Out, Report, report_folder
from softprompts.commands.terminal import typed_command


def demo(
    out_: Out = "runs",
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 2,
    lanes: Lanes = None,
    report: Report = None,
) -> None:
    """Tune six methods on real film reviews with a packaged 22M-parameter encoder and compare them."""
    from softprompts.experiments.demo import METHODS, run_demo

    folder = report_folder(report, out_, "demo")
    counter = run_counter(seeds * len(METHODS))
    with hint_when_interrupted():
        comparison = run_demo(
            out_, range(seeds), lanes=lanes, on_load=show_workbench, on_result=counter, command=typed_command()
        )
    show_comparison(comparison, folder)
