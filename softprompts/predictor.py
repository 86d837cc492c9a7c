"""A trained prompt as a function from texts to labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer

from softprompts import packaged
from softprompts.backbone import quiet
from softprompts.errors import SoftPromptError
from softprompts.saving import CONFIG_FILE, load, read
from softprompts.tasks import Example, Task, encode_examples, label_ids, padding_id
from softprompts.tasks.rows import check_columns, read_rows
from softprompts.training.evaluate import predict
from softprompts.training.runs import PROMPT

Text = tuple[str, str | None]


@dataclass(frozen=True)
class Answer:
    """What was predicted for a text.

    Attributes:
        label: the label's name, or the value of a regression.
        probability: of that label; None for values.
    """

    label: str
    probability: float | None


def prompt_folder(source: str | Path) -> Path | str:
    """The saved prompt behind a run folder, a prompt folder or a hub id.

    Raises:
        SoftPromptError: a run folder without a prompt.
    """
    folder = Path(source)
    if not folder.is_dir() or (folder / CONFIG_FILE).is_file():
        return str(source)
    if (folder / PROMPT / CONFIG_FILE).is_file():
        return folder / PROMPT
    if (folder / "config.yaml").is_file():
        raise SoftPromptError(f"{folder}: this run has not saved a prompt yet; go on with --resume")
    return str(source)


class Predictor:
    """Loads a prompt and the backbone it names, and labels texts as the training texts were written.

    Args:
        source: run folder, prompt folder or hub id.

    Raises:
        SoftPromptError: nothing usable there.
    """

    def __init__(self, source: str | Path):
        place = prompt_folder(source)
        config, _ = read(place)
        meta = config["metadata"]
        with quiet():
            self.model = load(place)
            self.tokenizer = AutoTokenizer.from_pretrained(packaged.resolve_model(config["backbone"]["name"]))
        self.name: str = self.model.active_prompt
        kind = self.model.backbone_kind
        form = meta.get("task_form")
        if form is None and kind != "encoder":
            raise SoftPromptError(f"{source} does not say how its texts are written out; it was not trained by 'train'")
        form = form or {"kind": "classification", "labels": config["labels"] or [], "fields": ["sentence"]}
        self.task = Task(
            name=str(meta.get("task", source)),
            label_names=tuple(form["labels"]),
            train=[],
            validation=[],
            kind=form["kind"],
            label_words=tuple(form.get("label_words", ())),
            fields=tuple(form["fields"]),
            word=form.get("word", ""),
        )
        self.max_length = int(meta.get("max_length", 256))
        self.label_ids = None if kind == "encoder" else label_ids(self.task, self.tokenizer, kind)

    def read(self, file: str | Path, text: str, text_pair: str | None = None) -> list[Text]:
        """The texts of a file.

        Args:
            file: CSV, TSV or JSONL; or ``.txt`` with one text a line.
            text: column of the text.
            text_pair: column of the second text.

        Raises:
            SoftPromptError: no such file or column, or nothing in it.
        """
        path = Path(file)
        if not path.is_file():
            raise SoftPromptError(f"{path}: no such file")
        if path.suffix == ".txt":
            rows: list[Text] = [(line, None) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        else:
            columns = [text] if text_pair is None else [text, text_pair]
            rows = []
            for line, row in read_rows(path):
                check_columns(path, row, columns, line)
                rows.append((str(row[text]), None if text_pair is None else str(row[text_pair])))
        if not rows:
            raise SoftPromptError(f"{path} holds no texts")
        return rows

    def __call__(self, texts: Sequence[str | Text], batch_size: int = 32) -> list[Answer]:
        """Labels texts.

        Args:
            texts: single texts, or pairs.
            batch_size: rows per forward pass.
        """
        rows = [text if isinstance(text, tuple) else (text, None) for text in texts]
        wanted = len(self.task.fields)
        for text, pair in rows:
            given = 1 if pair is None else 2
            if self.label_ids is not None and given != wanted:
                raise SoftPromptError(f"{self.task.name} reads {wanted} texts a row, not {given}")
            if not text.strip():
                raise SoftPromptError("an empty text cannot be labelled")
        examples = [Example(text, pair) for text, pair in rows]
        kind = self.model.backbone_kind
        encoded = encode_examples(examples, self.task, self.tokenizer, kind, self.max_length, with_answer=False)
        found = predict(
            self.model,
            encoded.features,
            self.name,
            pad_id=padding_id(self.tokenizer),
            batch_size=batch_size,
            label_ids=self.label_ids,
        )
        answers = []
        for index, label in enumerate(found.labels):
            chance = None if found.probabilities is None else max(found.probabilities[index])
            if self.task.kind == "regression":
                value = label if self.label_ids is None else self.task.label_value(int(label))
                answers.append(Answer(f"{value:.4g}", None))
            else:
                names = self.task.label_names or tuple(self.model.prompts[self.name].labels)
                answers.append(Answer(names[int(label)], chance))
        return answers
