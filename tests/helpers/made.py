"""Made tasks: small frozen models and rows on which a mechanism has to show, and how forms of a method do there."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification

import softprompts as sp
from softprompts.injection.prompt import Prompt
from softprompts.training import Evaluation, Lane, TrainConfig, train

SEEDS = 5
HEAD_RATE = 1e-2  # of the task head, whatever a method's rate
FIRST, WIDTH, WORDS = 1, 32, 64  # the id of every row's first token, width of the model, size of its vocabulary
Row = tuple[list[int], int]  # token ids behind the first one, and the label


@dataclass(frozen=True)
class Arm:
    """One form of a method.

    Attributes:
        config: the method and its settings.
        rate: learning rate of the main component; others follow in proportion.
        rates: rates of single components in its place.
        change: what is done to each new prompt, such as cutting its mechanism off.
    """

    config: sp.MethodConfig
    rate: float
    rates: Mapping[str, float] = field(default_factory=dict)
    change: Callable[[Prompt], None] | None = None


@dataclass(frozen=True)
class MadeTask:
    """A made task.

    Attributes:
        title: what it shows, for tables.
        model: makes the frozen model, before it is attached.
        row: draws one row.
        arms: by name; "on", "off" (another form, which lacks the mechanism) and "disconnected" (the same form, in
            which it is cut off), and maybe more.
        steps: of every run.
        batch_size: rows of a step.
        search: factors of the rates that tables try, where another rate might give what a mechanism does.
        also: other numbers of an outcome, for tables.
    """

    title: str
    model: Callable[[], Any]
    row: Callable[[random.Random], Row]
    arms: Mapping[str, Arm]
    steps: int = 150
    batch_size: int = 32
    search: Sequence[float] = (1.0,)
    also: Mapping[str, Callable[[Outcome], float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How an arm did.

    Attributes:
        rate: of its main component; of several, the one that was best on validation rows.
        scores: accuracy in percent on test rows, one a seed.
        prompts: the trained prompts.
    """

    rate: float
    scores: list[float]
    prompts: list[Prompt]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.scores)

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {statistics.stdev(self.scores):.1f}"


def bert(width: int = WIDTH, layers: int = 2, seed: int = 0) -> Any:
    """A small random BERT that tells two classes."""
    torch.manual_seed(seed)
    config = BertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * width,
        vocab_size=WORDS,
        max_position_embeddings=32,
        initializer_range=0.2,  # at the usual 0.02 a model this small hardly looks at its input
        num_labels=2,
        classifier_dropout=0.0,
    )
    return BertForSequenceClassification(config)


def rows(count: int, seed: int, draw_row: Callable[[random.Random], Row]) -> list[dict[str, Any]]:
    """So many rows, as `Lane` takes them."""
    draw = random.Random(seed)
    return [{"input_ids": [FIRST, *ids], "label": label} for ids, label in (draw_row(draw) for _ in range(count))]


def outcomes(
    task: MadeTask, search: Sequence[float] = (1.0,), names: Sequence[str] | None = None
) -> dict[str, Outcome]:
    """Trains arms with `SEEDS` seeds each, in shared passes: all start from the same rows, in each seed's own order.

    Args:
        task: the task.
        search: factors of each arm's rates, of which the best is taken by its mean score on validation rows.
        names: the arms to train; None for all.
    """
    model = sp.attach(task.model())
    learned, validation, test = rows(512, 1, task.row), Evaluation(rows(128, 2, task.row)), rows(256, 3, task.row)
    arms = {name: task.arms[name] for name in names or task.arms}

    def named(arm: str, place: int, seed: int) -> str:
        return f"{arm.replace(' ', '-')}-{place}-{seed}"

    lanes = []
    for name, arm in arms.items():
        for place, factor in enumerate(search):
            for seed in range(SEEDS):
                prompt = named(name, place, seed)
                model.add_prompt(prompt, arm.config, num_labels=2, seed=seed)
                if arm.change is not None:
                    arm.change(model.prompts[prompt])
                config = TrainConfig(
                    max_steps=task.steps,
                    batch_size=task.batch_size,
                    eval_every=task.steps,
                    learning_rate=factor * arm.rate,
                    learning_rates={"head": HEAD_RATE} | {part: factor * rate for part, rate in arm.rates.items()},
                    seed=seed,
                )
                lanes.append(Lane(prompt, config, learned, validation=validation, test=Evaluation(test)))
    results = {result.name: result for result in train(model, lanes, pad_id=0, progress=False)}
    if not all(result.done for result in results.values()):
        raise KeyboardInterrupt

    def outcome(name: str, arm: Arm) -> Outcome:
        tried = [[named(name, place, seed) for seed in range(SEEDS)] for place in range(len(search))]
        means = [statistics.fmean(results[prompt].score or 0.0 for prompt in prompts) for prompts in tried]
        best = means.index(max(means))
        scores = [100 * (results[prompt].test_metrics.get("accuracy") or 0.0) for prompt in tried[best]]
        return Outcome(search[best] * arm.rate, scores, [model.prompts[prompt] for prompt in tried[best]])

    return {name: outcome(name, arm) for name, arm in arms.items()}
