"""A trained prompt as a function from texts to labels, tags or answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from transformers import AutoTokenizer

from softprompts.backbones import packaged
from softprompts.backbones.backbone import quiet
from softprompts.backbones.loading import context_room
from softprompts.errors import SoftPromptError
from softprompts.model.load import load
from softprompts.storage.hub import quiet_hub
from softprompts.storage.saved_prompt import prompt_folder, read
from softprompts.tasks import Task, padding_id
from softprompts.tasks.encode import say_cut
from softprompts.tasks.example import Row
from softprompts.tasks.task_reader import Answer as Answer
from softprompts.tasks.task_reader import TaskReader, Text
from softprompts.tasks.task_reader import marked as marked
from softprompts.training.prediction import predict

Fields = Mapping[str, str]


class Predictor:
    """Loads a prompt and the backbone that it names, and labels texts, written out as in training.

    Args:
        source: run folder, prompt folder or hub id.

    Attributes:
        reader: encodes rows and reads answers by the prompt's task.
        max_length: most tokens of an input.
        truncated: number of rows that the last call cut to them.
        cut: the same in words, with the fields that were cut; empty where none was.

    Raises:
        SoftPromptError: there is no usable prompt.
    """

    def __init__(self, source: str | Path):
        folder = prompt_folder(source)
        config, _ = read(folder)
        backbone = packaged.resolve_model(str(config["backbone"].get("name") or ""))
        with quiet(), quiet_hub(backbone) as offline:
            self.model = load(folder, local_files_only=offline)
            try:
                self.tokenizer = AutoTokenizer.from_pretrained(backbone, local_files_only=offline)
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
        self, file: str | Path, text: str | None = None, text_pair: str | None = None, fields: Fields | None = None
    ) -> list[Row]:
        """The rows of a file.

        Args:
            file: CSV, TSV, JSONL or JSON with a column for each field of the task; ``.txt`` with one text a line; or
                ``.conll``, for tagging.
            text: column of the first field, where it has another name there.
            text_pair: column of the second field.
            fields: columns of fields by name.

        Raises:
            SoftPromptError: no such file or column, or nothing in it; names the file and the line.
        """
        return self.reader.read_file(file, text, text_pair, fields)

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
                texts, cut at white space, or mappings with ``words``, a list.
            batch_size: rows per forward pass.

        Returns:
            An `Answer` for one text or mapping, a list of them for a list: ``label``, ``probability`` (of that label;
            None where the task has none), and ``tags`` for tasks that label words.

        Raises:
            SoftPromptError: an empty text, or not a text for each field.
        """
        if isinstance(texts, str | Mapping):
            return self([texts], batch_size)[0]
        self.reader = self.reader.fitting(texts)
        rows = self.reader.encode(texts)
        self.truncated = rows.encoded.truncated
        self.cut = say_cut([rows.encoded], len(rows.examples), self.max_length)
        prediction = predict(
            self.model,
            rows.encoded.features,
            self.name,
            pad_id=padding_id(self.tokenizer),
            batch_size=batch_size,
            label_ids=self.reader.label_ids,
            new_tokens=self.reader.new_tokens,
        )
        return self.reader.answers(rows, prediction)
