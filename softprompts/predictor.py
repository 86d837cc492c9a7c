"""A trained prompt as a function from texts to labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from transformers import AutoTokenizer

from softprompts import packaged
from softprompts.backbone import quiet
from softprompts.errors import SoftPromptError
from softprompts.experiment import context_room
from softprompts.hub import asking
from softprompts.loading import load
from softprompts.saving import CONFIG_FILE, TENSOR_FILE, read
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
        self.max_length, self.truncated = int(meta.get("max_length", 256)), 0
        room = context_room(self.model, self.tokenizer, self.model.prompts[self.name].config)
        if room is not None:
            self.max_length = min(self.max_length, room)
        # None: it is not known whether it reads pairs.
        self.pairs: bool | None = form.get("pairs")
        self.label_ids = None if kind == "encoder" else label_ids(self.task, self.tokenizer, kind)

    def read(self, file: str | Path, text: str | None = None, text_pair: str | None = None) -> list[Text]:
        """The texts of a file.

        Args:
            file: CSV, TSV or JSONL; or ``.txt`` with one text a line.
            text: column of the text; None: the one it was trained on if the file has it, else "text".
            text_pair: column of the second text; None: the one it was trained on, for a prompt that reads pairs.

        Raises:
            SoftPromptError: no such file or column, or nothing in it; names the file and the line.
        """
        path = Path(file)
        if path.suffix.lower() == ".txt":
            rows: list[Text] = [(line, None) for line in _lines(path) if line.strip()]
        else:
            rows = []
            fields = self.task.fields
            for line, row in read_rows(path):
                first = text or (fields[0] if fields[0] in row else "text")
                second = text_pair or (fields[1] if self.pairs and len(fields) == 2 and fields[1] in row else None)
                check_columns(path, row, [first] if second is None else [first, second], line)
                values = [row[name] for name in (first, second) if name is not None]
                for name, value in zip((first, second), values, strict=False):
                    if not isinstance(value, str) or not value.strip():
                        raise SoftPromptError(f"{path}: line {line}: '{name}' is {value!r}, not a text")
                rows.append((values[0], values[1] if second is not None else None))
        if not rows:
            raise SoftPromptError(f"{path} holds no texts")
        return rows

    def __call__(self, texts: Sequence[str | Text], batch_size: int = 32) -> list[Answer]:
        """Labels texts.

        Args:
            texts: single texts, or pairs.
            batch_size: rows per forward pass.

        Raises:
            SoftPromptError: an empty text, or single texts where pairs are read, or the other way round.
        """
        rows = [text if isinstance(text, tuple) else (text, None) for text in texts]
        for text, pair in rows:
            if self.pairs and pair is None:
                raise SoftPromptError(f"'{self.task.name}' reads pairs of texts: give a second one (--text-pair)")
            if self.pairs is False and pair is not None:
                raise SoftPromptError(f"'{self.task.name}' reads single texts: leave out the second one (--text-pair)")
            given = 1 if pair is None else 2
            if self.label_ids is not None and given != len(self.task.fields):
                wanted = ", ".join(self.task.fields)
                raise SoftPromptError(f"'{self.task.name}' reads {len(self.task.fields)} texts ({wanted}), not {given}")
            if not text.strip():
                raise SoftPromptError("an empty text cannot be labelled")
        if len({pair is None for _, pair in rows}) > 1:
            raise SoftPromptError("give single texts or pairs, not both at once")
        examples = [Example(text, pair) for text, pair in rows]
        kind = self.model.backbone_kind
        encoded = encode_examples(examples, self.task, self.tokenizer, kind, self.max_length, with_answer=False)
        self.truncated = encoded.truncated
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


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise SoftPromptError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise SoftPromptError(f"{path}: not UTF-8 text, save the file as UTF-8") from error
