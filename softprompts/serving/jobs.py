"""What the threads of a server pass to each other: loaded prompts, rows of requests, and jobs for the model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from softprompts.injection.prompt import Prompt
from softprompts.serving.errors import FailedError
from softprompts.serving.sampling import Sampler
from softprompts.tasks.batches import inputs_of, length_of
from softprompts.tasks.task_reader import TaskReader

Answers = list[dict[str, Any]]


@dataclass(eq=False)
class LoadedPrompt:
    """A prompt in memory.

    Attributes:
        name: the name that requests use.
        key: its name in the model; never reused, so that a prompt can be replaced while its rows are being answered.
        model: the model of the class whose head it has.
        module: the prompt itself.
        reader: encodes rows and reads answers by the prompt's task.
        config: of the saved prompt.
        max_input_tokens: most tokens of an input beside the prompt; None for no limit.
        stamp: state of its files when they were read, see `PromptStore.stamp`.
        in_flight: number of its rows that are being answered; changed by the event loop only.
        retired: whether it is removed from the model once these rows are answered.
    """

    name: str
    key: str
    model: Any
    module: Prompt
    reader: TaskReader
    config: Mapping[str, Any]
    max_input_tokens: int | None
    stamp: Any
    in_flight: int = 0
    retired: bool = False

    @property
    def input_tokens(self) -> int:
        """Virtual tokens that the prompt puts into the input."""
        return self.module.config.input_tokens


@dataclass(eq=False)
class RequestRow:
    """A row of a request.

    Attributes:
        prompt: its prompt.
        content: a text, a pair, or a mapping with some of ``text``, ``text_pair``, ``fields``, ``words``, ``choices``.
        continuations: texts that are scored as its continuation.
    """

    prompt: LoadedPrompt
    content: Any
    continuations: Sequence[str] = ()


@dataclass(eq=False)
class ScoringRow:
    """A row that the model scores.

    Attributes:
        prompt: its prompt.
        feature: its token ids, see `softprompts.tasks.batches.collate`.
        answers: token ids of the answers that a language model scores; None where a head scores.
    """

    prompt: LoadedPrompt
    feature: Mapping[str, Any]
    answers: Sequence[Sequence[int]] | None = None

    @property
    def width(self) -> int:
        """Tokens of its input and longest answer, without the prompt."""
        return length_of(self.feature) + max(map(len, self.answers or [[]]))

    @property
    def count(self) -> int:
        """Number of rows that it takes in a batch of the model."""
        return len(inputs_of(self.feature)) if self.answers is None else len(self.answers)


@dataclass(eq=False)
class GenerationRow:
    """A row for which the model generates text.

    Attributes:
        prompt: its prompt.
        input_ids: token ids of the input.
        max_new_tokens: most tokens to generate.
        sampler: draws tokens; None takes the likeliest.
        emit: called in the model's thread with each token.
        tokens: the generated tokens, without the end-of-text token.
        ended: whether the model generated the end-of-text token.
        job: the job that the row belongs to.
    """

    prompt: LoadedPrompt
    input_ids: list[int]
    max_new_tokens: int
    sampler: Sampler | None = None
    emit: Callable[[int], None] | None = None
    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    job: Job = field(init=False)

    @property
    def unfinished(self) -> bool:
        """Whether there are more tokens to generate."""
        return not (self.ended or self.job.request.dropped or len(self.tokens) >= self.max_new_tokens)


@dataclass(eq=False)
class Job:
    """Rows of a request that are answered together; either all are scored or all are generated.

    Attributes:
        indices: numbers of its rows in the request.
        read: turns the results into one answer for each row.
        scoring: the rows to score.
        generation: the rows to generate.
        cut: number of rows that were cut to their prompt's longest input.
        request: the request that the job belongs to.
        results: the scores, or the tokens, of each row.
        error: why there are no results.
    """

    indices: Sequence[int]
    read: Callable[[list[Any]], Answers]
    scoring: Sequence[ScoringRow] = ()
    generation: Sequence[GenerationRow] = ()
    cut: int = 0
    request: PendingRequest = field(init=False)
    results: Sequence[Tensor | FailedError | list[int]] = ()
    error: Exception | None = None

    def __post_init__(self) -> None:
        self.count = sum(row.count for row in self.scoring)
        self.remaining = len(self.generation)  # rows that are not generated yet
        for row in self.generation:
            row.job = self


@dataclass(eq=False)
class PendingRequest:
    """A request that is being answered.

    Attributes:
        rows: its rows.
        future: resolves to the answers.
        deadline: time of the event loop at which it is given up.
        dropped: whether nobody waits for the answers any more; rows that have not run are skipped.
        jobs: its jobs; empty until the rows are encoded.
        remaining: number of jobs that are not done.
        answers: one for each row, filled in as jobs are done.
        error: the first error of a job.
    """

    rows: Sequence[RequestRow]
    future: asyncio.Future[Answers]
    deadline: float
    dropped: bool = False
    jobs: Sequence[Job] = ()
    remaining: int = 0
    answers: Answers = field(default_factory=list)
    error: Exception | None = None
