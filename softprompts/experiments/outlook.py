"""What is said of a method on a workbench before it trains: what it exports as, and what looks like a mistake."""

from __future__ import annotations

from collections.abc import Sequence

from softprompts.experiments.workbench import Workbench
from softprompts.methods.contract import MethodConfig
from softprompts.model.exports import export_refusals
from softprompts.tasks.doubts import doubts
from softprompts.training import TrainConfig
from softprompts.training.optim import learning_rates, rate_doubts


def exports(bench: Workbench, method: MethodConfig) -> dict[str, str | None]:
    """Why prompts of a method on this backbone cannot be exported, by form, see `export_refusals`."""
    with bench.backbone.trial("exports", method, bench.task):
        return export_refusals(bench.model, "exports")


def mistakes(bench: Workbench, methods: Sequence[MethodConfig], training: TrainConfig) -> list[str]:
    """Sentences on rows, and on settings of any of the methods, that look like a mistake, each once; empty for none."""
    found = []
    if bench.data.train is not None or bench.data.declared:
        found = doubts(bench.task, named=bool(bench.data.labels), few=bench.data.few_shot is not None)
    for method in methods:
        with bench.backbone.trial("mistakes", method, bench.task):
            components = bench.model.prompts["mistakes"].components()
            found += rate_doubts(*(learning_rates(components, one) for one in (training, TrainConfig())))
    return list(dict.fromkeys(found))
