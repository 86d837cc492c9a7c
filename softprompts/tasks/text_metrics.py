"""Scores of written texts by the libraries that the field uses: rouge-score and sacrebleu (the extra ``text``)."""

from __future__ import annotations

import importlib
import itertools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from softprompts.errors import SoftPromptError

NEG_LOSS = "neg_loss"  # of written texts: scored by the model's losses, not by what it wrote
Score = Callable[[Sequence[str], Sequence[Sequence[str]]], float]


def rouge(name: str) -> Score:
    """ROUGE's F-measure, "rouge1", "rouge2" or "rougeL": the mean over rows, of each the best of its references."""

    def score(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        scorer = _library(name, "rouge_score.rouge_scorer", "rouge-score").RougeScorer([name])
        rows = zip(predictions, references, strict=True)
        return statistics.fmean(scorer.score_multi(list(accepted), given)[name].fmeasure for given, accepted in rows)

    return score


def of_corpus(name: str) -> Score:
    """The "chrf" or "bleu" of sacrebleu, of all rows together, from 0 to 1."""

    def score(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
        library = _library(name, "sacrebleu", "sacrebleu")
        # One stream for the first references, one for the second: None where a row has no more.
        streams = [list(stream) for stream in itertools.zip_longest(*references)]
        return float(getattr(library, f"corpus_{name}")(list(predictions), streams).score) / 100

    return score


def _library(metric: str, module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise SoftPromptError(
            f"metric '{metric}' needs {package}, of the extra 'text': pip install {package}"
        ) from None
