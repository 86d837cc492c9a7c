"""What the threads of a server pass to each other: loaded prompts, rows of requests, and jobs for the model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from softprompts.injection.prompt import Prompt
from softprompts.serving.decoding import StoppedText, TokenDecoder
from softprompts.serving.errors import FailedError
from softprompts.serving.sampling import Sampler
from softprompts.tasks.batches import inputs_of, length_of
from softprompts.tasks.task_reader import TaskReader

Answers = list[dict[str, Any]]


@dataclass(eq=False)
class LoadedPrompt:
    """A prompt in memory."""

    name: str  # in requests
    # Its name in the model, empty for none; never reused, so that it can be replaced while its rows are answered.
    key: str
    model: Any  # of the class whose head the prompt has
    module: Prompt | None  # None: the model without a prompt
    reader: TaskReader
    config: Mapping[str, Any]  # of the saved prompt
    max_input_tokens: int | None  # beside the prompt; None for no limit
    stamp: Any  # state of its files when they were read, see `PromptStore.stamp`
    in_flight: int = 0  # number of its rows that are being answered; changed by the event loop only
    retired: bool = False  # whether it is removed from the model once these rows are answered

    @property
    def input_tokens(self) -> int:
        """Virtual tokens that the prompt puts into the input."""
        return 0 if self.module is None else self.module.config.input_tokens

    @property
    def writes(self) -> bool:
        """Whether its model generates text."""
        return self.reader.kind != "encoder" and bool(self.model.can_generate())


@dataclass(eq=False)
class RequestRow:
    """A row of a request."""

    prompt: LoadedPrompt
    content: Any  # a text, a pair, or a mapping with some of text, text_pair, fields, words, choices
    continuations: Sequence[str] = ()


@dataclass(eq=False)
class ScoringRow:
    """A row that the model scores."""

    prompt: LoadedPrompt
    feature: Mapping[str, Any]  # its token ids, see `softprompts.tasks.batches.collate`
    answers: Sequence[Sequence[int]] | None = None  # token ids of what a language model scores; None: a head scores

    @property
    def width(self) -> int:
        """Tokens of its input and longest answer, without the prompt."""
        return length_of(self.feature) + max(map(len, self.answers or [[]]))

    @property
    def count(self) -> int:
        """Number of rows that it takes in a batch of the model."""
        return len(inputs_of(self.feature)) if self.answers is None else len(self.answers)


@dataclass(frozen=True)
class TokenScore:
    """The log-probability of a generated token, and the likeliest tokens in its place with theirs."""

    logprob: float
    top: Sequence[tuple[int, float]]


@dataclass(eq=False)
class GenerationRow:
    """A row for which the model generates text."""

    prompt: LoadedPrompt
    input_ids: list[int]
    max_new_tokens: int
    sampler: Sampler | None = None  # None takes the likeliest tokens
    emit: Callable[[int], None] | None = None  # called in the model's thread with each token
    ends: frozenset[int] = frozenset()  # tokens that end the text, beside the model's own
    stops: Sequence[str] = ()  # texts that end it too, and are not part of it
    before: Sequence[int] = ()  # tokens that the text continues
    top_logprobs: int | None = None  # how many of the likeliest tokens are noted in `scores`; None notes nothing
    scores: list[TokenScore] = field(default_factory=list)  # of each token, and of the one that ended the text
    tokens: list[int] = field(default_factory=list)  # the generated ones, without the end-of-text token
    ended: bool = False  # whether the model generated an end-of-text token or a stop string
    job: Job = field(init=False)

    def text(self, tokenizer: Any) -> StoppedText:
        """What decodes its tokens by a tokenizer that no other thread uses."""
        return StoppedText(TokenDecoder(tokenizer, self.before), self.stops)

    @property
    def unfinished(self) -> bool:
        """Whether there are more tokens to generate."""
        return not (self.ended or self.job.request.dropped or len(self.tokens) >= self.max_new_tokens)


@dataclass(eq=False)
class Job:
    """Rows of a request that are answered together; either all are scored or all are generated."""

    indices: Sequence[int]  # numbers of its rows in the request
    read: Callable[[list[Any]], Answers]  # turns the results into one answer for each row
    scoring: Sequence[ScoringRow] = ()
    generation: Sequence[GenerationRow] = ()
    cut: int = 0  # number of rows that were cut to their prompt's longest input
    request: PendingRequest = field(init=False)
    results: Sequence[Tensor | FailedError | list[int]] = ()  # the scores, or the tokens, of each row
    error: Exception | None = None  # why there are no results

    def __post_init__(self) -> None:
        self.count = sum(row.count for row in self.scoring)
        self.remaining = len(self.generation)  # rows that are not generated yet
        for row in self.generation:
            row.job = self


@dataclass(eq=False)
class PendingRequest:
    """A request that is being answered."""

    rows: Sequence[RequestRow]
    future: asyncio.Future[Answers]
    deadline: float  # time of the event loop at which the request is given up
    dropped: bool = False  # whether nobody waits for the answers any more; rows that have not run are skipped
    jobs: Sequence[Job] = ()  # empty until the rows are encoded
    remaining: int = 0  # number of jobs that are not done
    answers: Answers = field(default_factory=list)  # one for each row, filled in as jobs are done
    error: Exception | None = None  # the first error of a job
