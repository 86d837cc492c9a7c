"""What is said of a method on a workbench before it trains: what it exports as, and what looks like a mistake."""

from __future__ import annotations

from softprompts.experiments.workbench import Workbench
from softprompts.methods.contract import MethodConfig
from softprompts.model.exports import export_refusals
from softprompts.tasks.doubts import doubts
from softprompts.training import TrainConfig
from softprompts.training.optim import rate_doubts


def exports(bench: Workbench, method: MethodConfig) -> dict[str, str | None]:
    """Why prompts of a method on this backbone cannot be exported, by form, see `export_refusals`."""
    with bench.backbone.trial("exports", method, bench.task):
        return export_refusals(bench.model, "exports")


def mistakes(bench: Workbench, method: MethodConfig, training: TrainConfig) -> list[str]:
    """Sentences on settings and rows that look like a mistake; empty for none."""
    own = bench.data.train is not None or bench.data.declared
    named, few = bool(bench.data.labels), bench.data.few_shot is not None
    rates, usual = (bench.outline(method, one)[0] for one in (training, TrainConfig()))
    return [*(doubts(bench.task, named=named, few=few) if own else []), *rate_doubts(rates, usual)]
