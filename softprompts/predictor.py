"""A trained prompt as a function from texts to labels, tags or answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from softprompts.backbones import packaged
from softprompts.backbones.backbone import quiet
from softprompts.backbones.loading import context_room, tokenizer_of
from softprompts.errors import SoftPromptError
from softprompts.model.load import load
from softprompts.storage import run_folder
from softprompts.storage.hub import quiet_hub
from softprompts.storage.saved_prompt import prompt_folder, read
from softprompts.tasks import Task, padding_id
from softprompts.tasks.data import recorded_data
from softprompts.tasks.decision import Decision, rows_digest
from softprompts.tasks.encode import encode_examples, marker, say_cut
from softprompts.tasks.example import Example, Row
from softprompts.tasks.kinds import KINDS
from softprompts.tasks.task_reader import Answer as Answer
from softprompts.tasks.task_reader import ReadRows, TaskReader, Text
from softprompts.tasks.task_reader import marked as marked
from softprompts.tasks.text_metrics import NEG_LOSS
from softprompts.training.generation import Sampling
from softprompts.training.prediction import Prediction, predict

if TYPE_CHECKING:
    from softprompts.tasks.errors_made import Errors

Fields = Mapping[str, str]


@dataclass(frozen=True)
class Evaluated:
    """What a prompt gets right and wrong on some rows, what these are called, and how many had to be cut, in words."""

    errors: Errors
    rows_of: str
    cut: str


class _Scored(NamedTuple):
    """Answers and metrics of labelled rows, probabilities before calibration, and whether these rows chose it."""

    answers: list[Answer]
    metrics: dict[str, float]
    uncalibrated: list[list[float]] | None = None
    again: bool = False


class Predictor:
    """Loads a prompt and the backbone that it names, and labels texts, written out as in training.

    Args:
        source: run folder, prompt folder or hub id.
        model: folder or hub id of the backbone, where it is not where the prompt says, see `softprompts.load`.
        max_new_tokens: most tokens that are written for a text, by prompts that write; None: as many as the longest
            answer that it was trained on has.
        sampling: how these tokens are chosen; None: greedily.

    Attributes:
        folder: of the prompt.
        reader: encodes rows and reads answers by the prompt's task.
        max_length: most tokens of an input.
        truncated: number of rows that the last call cut to them.
        cut: the same in words, with the fields that were cut; empty where none was.

    Raises:
        SoftPromptError: there is no usable prompt.
    """

    def __init__(
        self,
        source: str | Path,
        model: str | Path | None = None,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
    ):
        folder = self.folder = prompt_folder(source)
        config, _ = read(folder)
        backbone = packaged.resolve_model(str(model or config["backbone"].get("name") or ""))
        with quiet(), quiet_hub(backbone) as offline:
            self.model = load(folder, model=model and backbone, local_files_only=offline)
            try:
                self.tokenizer = tokenizer_of(backbone, offline)
            except Exception as error:  # a damaged or foreign folder fails anywhere
                raise SoftPromptError(
                    f"{source}: the tokenizer of its backbone '{backbone}' cannot be loaded"
                ) from error
        self.name: str = self.model.active_prompt
        self.kind: str = self.model.backbone_kind
        prompt = self.model.prompts[self.name]
        room = context_room(self.model, self.tokenizer, prompt.config.input_tokens)
        self.reader = TaskReader(config, prompt.labels, self.tokenizer, self.kind, room, str(source))
        if not self.reader.reads:
            raise SoftPromptError(f"{source} does not say how its texts are written out; it was not trained by 'train'")
        self.reader.writing(max_new_tokens)
        if sampling is not None and sampling.temperature and self.reader.new_tokens is None:
            raise SoftPromptError(f"{source} chooses its answers: there is nothing to draw at a temperature")
        self.sampling = sampling
        self.max_length, self.truncated, self.cut = self.reader.max_length, 0, ""

    @property
    def task(self) -> Task:
        """How texts are written out, and the labels' names."""
        return self.reader.task

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of the task that the model reads."""
        return self.reader.fields

    def read(
        self,
        file: str | Path,
        text: str | None = None,
        text_pair: str | None = None,
        fields: Fields | None = None,
        sep: str | None = None,
    ) -> list[Row]:
        """The rows of a file.

        Args:
            file: CSV, TSV, JSONL or JSON with a column for each field of the task; ``.txt`` with one text a line; or
                ``.conll``, for tagging.
            text: column of the first field, where it has another name there.
            text_pair: column of the second field.
            fields: columns of fields by name.
            sep: column separator; None: by the file's ending, or found in its rows.

        Raises:
            SoftPromptError: no such file or column, or nothing in it; names the file and the line.
        """
        return self.reader.read_file(file, text, text_pair, fields, sep)

    def row(
        self,
        text: str | None = None,
        text_pair: str | None = None,
        fields: Fields | None = None,
        choices: Sequence[str] = (),
    ) -> Row:
        """A row of the task's fields, see `TaskReader.row`."""
        return self.reader.row(text, text_pair, fields, choices)

    @overload  # a str is a sequence of str too, and comes first
    def __call__(self, texts: str | Mapping[str, Any], batch_size: int = 32) -> Answer: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, texts: Sequence[str | Text | Row], batch_size: int = 32) -> list[Answer]: ...

    def __call__(
        self, texts: str | Mapping[str, Any] | Sequence[str | Text | Row], batch_size: int = 32
    ) -> Answer | list[Answer]:
        """Labels a text, or a list of texts.

        Args:
            texts: one text, or a list of texts; of pairs, ``("first", "second")``; or of mappings with a text for each
                field of the task, and with ``choices`` where each row brings its own. A task that labels words takes
                texts, cut at white space, or mappings with ``words``, a list; a chat texts, as what the user says, or
                mappings with ``messages``, a list.
            batch_size: rows per forward pass.

        Returns:
            An `Answer` for one text or mapping, a list of them for a list: ``label`` (or the text that was written),
            ``probability`` (of that label; None where the task has none), and ``tags`` for tasks that label words.

        Raises:
            SoftPromptError: an empty text, or not a text for each field.
        """
        if isinstance(texts, str | Mapping):
            return self([texts], batch_size)[0]
        self.reader = self.reader.fitting(texts)
        rows = self.reader.encode(texts)
        return self.reader.answers(rows, self._predict(rows, batch_size))

    def score(self, examples: Sequence[Example], batch_size: int = 32) -> tuple[list[Answer], dict[str, float]]:
        """Labels rows whose labels are known, such as those of a task or of `TaskReader.labelled`.

        Returns:
            An answer for each row, and the task's metrics of all of them.
        """
        scored = self._score(examples, batch_size)
        return scored.answers, scored.metrics

    def _score(self, examples: Sequence[Example], batch_size: int) -> _Scored:
        losses = NEG_LOSS in self.task.metrics
        encoded = encode_examples(examples, self.task, self.tokenizer, self.kind, self.max_length, with_answer=losses)
        rows = ReadRows(self.task, list(examples), encoded)
        prediction = self._predict(rows, batch_size, losses)
        decision, form = self.reader.decision, self.task.form
        if decision is None:
            metrics = marker(self.task, examples, encoded, self.tokenizer, self.kind)(prediction)
            return _Scored(self.reader.answers(rows, prediction), metrics)
        decided, again = decision.decide(form, prediction.scores), decision.rows == rows_digest(examples)
        if again:  # the rows that it was chosen on must not be its judge
            from softprompts.tasks.fitting import Fit  # here: scikit-learn takes a while to import

            truths = KINDS[form.kind].references(examples, form)
            decided = Fit(decision.threshold, decision.calibrate).cross_fitted(form, prediction.scores, truths)
        metrics = marker(self.task, examples, encoded, self.tokenizer, self.kind, lambda *_: decided)(prediction)
        plain = Decision().decide(form, prediction.scores).chances if decision.calibrate else None
        return _Scored(self.reader.decided(rows, decided), metrics, plain, again)

    def evaluate(
        self,
        file: str | Path | None = None,
        *,
        text: str | None = None,
        text_pair: str | None = None,
        fields: Fields | None = None,
        label: str | None = None,
        label_separator: str | None = None,
        data_dir: str | None = None,
        batch_size: int = 32,
    ) -> Evaluated:
        """What the prompt gets right and wrong on labelled rows.

        Args:
            file: the rows, each with its label by name or by index; None: the test rows of the run that the prompt is
                from, or its validation rows where it has none.
            text: column of the first field.
            text_pair: column of the second field.
            fields: columns of fields by name.
            label: column of the label.
            label_separator: what stands between several labels in that column; None: as in training.
            data_dir: folder with a local copy of the task's data; None: where the run says that it lay.
            batch_size: rows per forward pass.

        Raises:
            SoftPromptError: the rows cannot be had or used.
        """
        # Here and not on top: scikit-learn takes a while to import.
        from softprompts.tasks.errors_made import errors_made

        if file is not None:
            examples = self.reader.labelled(file, text, text_pair, fields, label, label_separator)
            rows_of = Path(file).name
        else:
            examples, rows_of = self._own_rows(data_dir)
        scored = self._score(examples, batch_size)
        if scored.again:
            rows_of += " (each decided by what was chosen on the others)"
        errors = errors_made(self.task.form, examples, scored.answers, scored.metrics, scored.uncalibrated)
        return Evaluated(errors, rows_of, self.cut)

    def _own_rows(self, data_dir: str | None) -> tuple[list[Example], str]:
        """The rows that the run of this prompt was scored on, and what they are called."""
        run = self.folder.parent
        if self.folder.name != run_folder.PROMPT or not (run / run_folder.CONFIG).is_file():
            raise SoftPromptError(f"{self.folder} is in no run folder, so there are no rows of its own: name a file")
        try:
            task = recorded_data(run, data_dir).load()
        except SoftPromptError as error:
            raise SoftPromptError(f"{run}: its rows cannot be read again ({error})") from error
        if task.form.labels != self.task.form.labels:
            raise SoftPromptError(f"{run}: the labels of its rows are not those that it was trained with")
        split, rows_of = task.scored_rows()
        return getattr(task, split), rows_of

    def _predict(self, rows: ReadRows, batch_size: int, losses: bool = False) -> Prediction:
        self.truncated = rows.encoded.truncated
        self.cut = say_cut([rows.encoded], len(rows.examples), self.max_length)
        return predict(
            self.model,
            rows.encoded.features,
            self.name,
            pad_id=padding_id(self.tokenizer),
            batch_size=batch_size,
            label_ids=self.reader.label_ids,
            new_tokens=self.reader.new_tokens,
            losses=losses,
            ends=self.reader.ends,
            sampling=self.sampling,
        )
