"""A trained prompt as a function from texts to labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import AutoTokenizer

from softprompts import packaged
from softprompts.backbone import quiet
from softprompts.errors import SoftPromptError
from softprompts.experiment import context_room
from softprompts.hub import asking
from softprompts.loading import load
from softprompts.saving import CONFIG_FILE, TENSOR_FILE, read
from softprompts.tasks import Example, Form, Spec, Task, encode_examples, label_ids, new_tokens, padding_id
from softprompts.tasks.encode import reader
from softprompts.tasks.rows import check_columns, read_rows
from softprompts.training.evaluate import predict
from softprompts.training.runs import PROMPT

Text = tuple[str, str | None]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """What was predicted for a text.

    Attributes:
        label: the label's name, or the value of a regression.
        probability: of that label; None for values.
    """

    label: str
    probability: float | None


def prompt_folder(source: str | Path) -> Path:
    """The saved prompt behind a run folder, a prompt folder or a hub id, which is fetched.

    Raises:
        SoftPromptError: a run folder without a prompt, or nothing of that name.
    """
    folder = Path(source)
    if folder.is_dir():
        if not (folder / CONFIG_FILE).is_file():
            if (folder / PROMPT / CONFIG_FILE).is_file():
                return folder / PROMPT
            if (folder / "config.yaml").is_file():
                raise SoftPromptError(f"{folder}: this run has not saved a prompt yet; go on with --resume")
        return folder
    name = str(source)
    if folder.is_file():
        raise SoftPromptError(f"{name} is a file; name a run folder or a prompt folder")
    if name.startswith((".", "/", "~")) or name.count("/") != 1:  # no hub id
        raise SoftPromptError(f"{name}: no such folder")
    with asking(name) as offline:
        try:
            fetched = snapshot_download(
                name, allow_patterns=[CONFIG_FILE, TENSOR_FILE, "README.md"], local_files_only=offline
            )
        except Exception as error:  # the hub's client has a dozen kinds
            reason = "which cannot be reached" if offline else type(error).__name__
            raise SoftPromptError(f"{name}: no such folder, and no such prompt on the hub ({reason})") from error
    return Path(fetched)


class Predictor:
    """Loads a prompt and the backbone it names, and labels texts as the training texts were written.

    Args:
        source: run folder, prompt folder or hub id.

    Attributes:
        task: how texts are written out, and the labels' names.
        max_length: most tokens of an input.
        truncated: number of rows that the last call had to cut to them.

    Raises:
        SoftPromptError: nothing usable there.
    """

    def __init__(self, source: str | Path):
        place = prompt_folder(source)
        config, _ = read(place)
        meta = config.get("metadata") or {}
        backbone = packaged.resolve_model(str(config["backbone"].get("name") or ""))
        with quiet(), asking(backbone) as offline:
            self.model = load(place, local_files_only=offline)
            try:
                self.tokenizer = AutoTokenizer.from_pretrained(backbone, local_files_only=offline)
            except Exception as error:  # a damaged or foreign folder fails anywhere
                raise SoftPromptError(
                    f"{source}: the tokenizer of its backbone '{backbone}' cannot be loaded"
                ) from error
        self.name: str = self.model.active_prompt
        kind = self.model.backbone_kind
        form = meta.get("task_form")
        if form is None and kind != "encoder":
            raise SoftPromptError(f"{source} does not say how its texts are written out; it was not trained by 'train'")
        name = str(meta.get("task", source))
        self.task = Task(name, Form.from_dict(form or _unknown(config)), [], [])
        self._told = form is not None
        self.max_length, self.truncated = int(meta.get("max_length", 256)), 0
        room = context_room(self.model, self.tokenizer, self.model.prompts[self.name].config)
        if room is not None:
            self.max_length = min(self.max_length, room)
        self.kind: str = kind
        self.label_ids = label_ids(self.task, self.tokenizer, kind)
        self.new_tokens = new_tokens(self.task, self.tokenizer, kind)

    def read(self, file: str | Path, text: str | None = None, text_pair: str | None = None) -> list[Row]:
        """The rows of a file.

        Args:
            file: CSV, TSV or JSONL with a column for each field of the task; or ``.txt`` with one text a line.
            text: column of the first field, where it has another name there.
            text_pair: column of the second field.

        Raises:
            SoftPromptError: no such file or column, or nothing in it; names the file and the line.
        """
        path = Path(file)
        rows: list[Row] = []
        if path.suffix.lower() == ".txt":
            rows = [{self.task.form.fields[0]: line} for line in _lines(path) if line.strip()]
            self._require_fields(rows[0] if rows else {}, path)
        else:
            columns = {name: name for name in self.task.form.fields}
            for name, column in zip(self.task.form.fields, (text, text_pair), strict=False):
                columns[name] = column or columns[name]
            for line, row in read_rows(path):
                first = self.task.form.fields[0]
                if text is None and first not in row and "text" in row:
                    columns[first] = "text"
                check_columns(path, row, columns.values(), line)
                for column in columns.values():
                    if not _is_text(row[column]):
                        raise SoftPromptError(f"{path}: line {line}: '{column}' is {row[column]!r}, not a text")
                rows.append({**row, **{name: row[column] for name, column in columns.items()}})
        if not rows:
            raise SoftPromptError(f"{path} holds no texts")
        return rows

    def row(self, text: str, text_pair: str | None = None) -> Row:
        """A text, or a pair, as fields of the task.

        Raises:
            SoftPromptError: the task has more or fewer fields.
        """
        given = [text] if text_pair is None else [text, text_pair]
        if not self._told:
            return dict(zip(("text", "text_pair"), given, strict=False))
        fields = self.task.form.fields
        self._require_fields({}, None, len(given))
        return dict(zip(fields, given, strict=False))

    def __call__(self, texts: Sequence[str | Text | Row], batch_size: int = 32) -> list[Answer]:
        """Labels texts.

        Args:
            texts: single texts; pairs; or mappings with a text for each field of the task (a task that labels words
                takes texts, cut at white space, or lists of words).
            batch_size: rows per forward pass.

        Raises:
            SoftPromptError: an empty text, or not a text for each field.
        """
        if not self._told:  # then one text is read, or a pair
            paired = any(not isinstance(text, str) and len([v for v in text if v is not None]) > 1 for text in texts)
            form = replace(self.task.form, fields=("text", "text_pair")[: 1 + paired], reading=(), source="")
            self.task = replace(self.task, form=form)
        examples = [self._example(text) for text in texts]
        encoded = encode_examples(examples, self.task, self.tokenizer, self.kind, self.max_length, with_answer=False)
        self.truncated = encoded.truncated
        found = predict(
            self.model,
            encoded.features,
            self.name,
            pad_id=padding_id(self.tokenizer),
            batch_size=batch_size,
            label_ids=self.label_ids,
            new_tokens=self.new_tokens,
        )
        answers, _ = reader(self.task, examples, encoded, self.tokenizer, self.kind)(found)
        chances = found.probabilities if len(found.probabilities or []) == len(examples) else None
        return [
            Answer(self._named(example, answer), None if chances is None else max(chances[index]))
            for index, (example, answer) in enumerate(zip(examples, answers, strict=True))
        ]

    def _named(self, example: Example, answer: Any) -> str:
        """An answer in words."""
        form = self.task.form
        if form.kind == "regression":
            return f"{answer:.4g}"
        if form.kind == "tagging":
            return " ".join(answer)
        if isinstance(answer, str):
            return answer
        names = example.choices if form.kind == "choice" else form.labels or tuple(self.model.prompts[self.name].labels)
        return names[int(answer)] if answer >= 0 else ""

    def _example(self, text: str | Text | Row) -> Example:
        fields = self.task.form.fields
        if not isinstance(text, Mapping):
            values = (text,) if isinstance(text, str) else tuple(value for value in text if value is not None)
            text = dict(zip(fields, values, strict=False)) if len(values) <= len(fields) else {}
            self._require_fields(text, None, len(values))
        if self.task.kind == "tagging":
            words = text.get("words", text.get(fields[0]))
            words = words.split() if isinstance(words, str) else words
            if not words:
                raise SoftPromptError("an empty text cannot be labelled")
            return Spec("", self.task.form).example({"words": words}, labelled=False)
        self._require_fields(text, None)
        if not any(_is_text(text[name]) for name in fields[:1]):
            raise SoftPromptError("an empty text cannot be labelled")
        return Spec("", self.task.form).example(text, labelled=False)

    def _require_fields(self, row: Row, path: Path | None, given: int | None = None) -> None:
        fields = self.task.form.fields
        there = sum(name in row for name in fields) if given is None else given
        if self.task.kind != "tagging" and there != len(fields):
            place = "" if path is None else f"{path}: "
            wanted = ", ".join(fields)
            hint = " (--text-pair)" if len(fields) == 2 else ""
            raise SoftPromptError(
                f"{place}'{self.task.name}' reads {len(fields)} texts ({wanted}), not {there}: give each of them{hint}"
            )


def _unknown(config: Mapping[str, Any]) -> dict[str, Any]:
    """The form of a prompt that does not tell: a text, and the labels of its head."""
    labels = config["labels"] or []
    return {"labels": labels} if len(labels) > 1 else {"kind": "regression"}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise SoftPromptError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise SoftPromptError(f"{path}: not UTF-8 text, save the file as UTF-8") from error
