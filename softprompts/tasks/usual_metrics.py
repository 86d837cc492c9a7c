"""What a task is scored by where nobody says."""

from __future__ import annotations

from collections.abc import Sequence

from softprompts.tasks.form import Form
from softprompts.tasks.tag_schemes import tags_entities

_DEFAULT_METRICS: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy", "macro_f1"),
    "multi-label": ("micro_f1", "macro_f1", "subset_accuracy"),
    "regression": ("pearson", "spearman"),
    "choice": ("accuracy",),
    "ranking": ("em", "token_f1"),
    "span": ("em", "token_f1"),
    "tagging": ("seqeval_f1", "seqeval_precision", "seqeval_recall"),
    "text": ("token_f1", "exact_match"),
    "chat": ("neg_loss",),
}


def default_metrics(form: Form) -> tuple[str, ...]:
    """Names for `compute` that suit a task."""
    return metrics_for(form.kind, form.labels)


def metrics_for(kind: str, labels: Sequence[str]) -> tuple[str, ...]:
    """Names for `compute` that suit a kind of task with these labels or tags."""
    if kind == "tagging" and not tags_entities(labels):
        return ("tag_accuracy",)
    return _DEFAULT_METRICS[kind]
