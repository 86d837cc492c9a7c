"""TODO."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from softprompts.errors import SoftPromptError
from softprompts.storage import run_folder
from softprompts.tasks import (
    Task,
    load_files,
    load_task,
)
from softprompts.tasks.yaml_tasks import is_declaration

_PLACES = ("data_dir", "train", "validation", "test")  # where data lie, which does not decide what they are
_PLACE = "#   "  # begins the line of a config.yaml that says where one of them was
_OF_FEW = ("few_shot_seed", "few_shot_protocol")


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where labelled texts come from: a task by name, or the user's own files.

    Attributes:
        task: name of a task, or a YAML file that declares one (see `softprompts.tasks.yaml_tasks`); None: ``train`` is
            a file.
        data_dir: folder with a local copy of the task's data; None: the hub (or the package it comes in, or the
            YAML file's own folder).
        train: CSV, TSV, JSON or CoNLL file, see `softprompts.tasks.load_files`, also for what follows.
        validation: the same, to score on; None: a part of ``train`` is held out.
        test: the same, that nothing is chosen by.
        text: column of the text; None: its usual name.
        text_pair: column of the second text.
        label: column of the label; None: its usual name.
        choices: columns of the choices, or the one of a list of them; empty: their usual names.
        kind: of the files' task: "classification", "regression" (the labels are scores), "choice", "span", "tagging".
        labels: names of the files' labels or tags, which they may have by index; empty: learned.
        label_words: what a language model answers for each label of the files; empty: the labels' names.
        template: how the task's rows are put to a model, by name; None: the task's own way.
        answering: how a language model's answer is found, "rank" or "generate"; None: the task's own way.
        invalid: what a generated answer that is no label counts as, see `softprompts.tasks.answers`; None: "mismatch".
        split: how rows are parted into train, validation and test, a key of `softprompts.tasks.splits.PROTOCOLS`.
        max_train: at most so many rows to train on.
        max_validation: at most so many rows to score on.
        max_test: at most so many test rows.
        few_shot: so many training rows in all (see `softprompts.tasks.splits.few_shot`); None: all.
        few_shot_seed: draws these rows.
        few_shot_protocol: how, a key of `softprompts.tasks.splits.FEW_SHOT`.
        seed: of what else is drawn or held out.
    """

    task: str | None = None
    data_dir: str | None = None
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    choices: tuple[str, ...] = ()
    kind: str = "classification"
    labels: tuple[str, ...] = ()
    label_words: tuple[str, ...] = ()
    template: str | None = None
    answering: str | None = None
    invalid: str | None = None
    split: str = "official"
    max_train: int | None = None
    max_validation: int | None = None
    max_test: int | None = None
    few_shot: int | None = None
    few_shot_seed: int = 0
    few_shot_protocol: str = "even"
    seed: int = 0

    def load(self) -> Task:
        """The task.

        Raises:
            SoftPromptError: unknown task, or a file that cannot be used; the file and the row are named.
        """
        task = self._load()
        if self.max_test is not None:
            task = task.limited(max_test=self.max_test, seed=self.seed)
        asked = {"answering": self.answering, "invalid": self.invalid}
        changes = {name: value for name, value in asked.items() if value is not None}
        task = task.with_form(**changes) if changes else task
        if self.few_shot is None:
            return task
        return task.few_shot(self.few_shot, self.few_shot_seed, self.few_shot_protocol)

    def _load(self) -> Task:
        limits: dict[str, Any] = {
            "split": self.split,
            "max_train": self.max_train,
            "max_validation": self.max_validation,
            "seed": self.seed,
        }
        if self.train is not None:
            return load_files(
                self.train,
                self.validation,
                test=self.test,
                text=self.text,
                text_pair=self.text_pair,
                label=self.label,
                choices=self.choices,
                kind=self.kind,
                labels=self.labels,
                label_words=self.label_words,
                **limits,
            )
        if self.task is None:
            raise SoftPromptError("name a task (--task) or a file of your own (--data)")
        return load_task(self.task, self.data_dir, template=self.template, **limits)

    def to_dict(self) -> dict[str, Any]:
        """What was asked for, as plain values, without the places where files lie."""
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        unused = {
            *_PLACES,
            *(_OF_FEW if self.few_shot is None else ()),
            *(["split"] if self.split == "official" else []),
            *(["task"] if self.declared else []),
        }
        # The usual names are written out where none are given.
        plain.update({key: plain[key] or key for key in ("text", "label")})
        return {key: value for key, value in plain.items() if value not in (None, []) and key not in unused}

    @property
    def declared(self) -> bool:
        """Whether the task is a YAML file."""
        return self.task is not None and is_declaration(self.task)

    def places(self) -> dict[str, str]:
        """Where the files lie, as absolute paths; empty for a task that is fetched."""
        given = {key: getattr(self, key) for key in (*(["task"] if self.declared else []), *_PLACES)}
        return {key: str(Path(value).expanduser().resolve()) for key, value in given.items() if value is not None}


def rows_identity(data: Data, task: Task) -> dict[str, Any]:
    """What is told of a task's rows in all that decides a run's numbers; a hash stands for the rows, wherever they lie.

    Args:
        data: what was asked for.
        task: what it loaded.
    """
    return {
        "task": task.name,
        "data": data.to_dict(),
        **({"metrics": list(task.metrics)} if data.declared else {}),
        "rows": task.fingerprint,
        "form": task.form.to_dict(),
    }


def recorded_data(run: str | Path, data_dir: str | None = None) -> Data:
    """Where the rows of a run came from, as its folder tells.

    Args:
        run: the run folder.
        data_dir: folder with a local copy of the task's data; None: where it lay when the run was made, else the hub.

    Raises:
        SoftPromptError: it is no run folder, or does not tell.
    """
    asked = run_folder.load_config(run).get("data")
    if not isinstance(asked, dict):
        raise SoftPromptError(f"{Path(run) / run_folder.CONFIG} does not say where its rows came from")
    known = {field.name for field in fields(Data)}
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in asked.items() if key in known}
    # A column of the usual name need not have been asked for (see `Data.to_dict`), and then goes by others too.
    given = {key: value for key, value in given.items() if key not in ("text", "label") or value != key}
    for line in (Path(run) / run_folder.CONFIG).read_text(encoding="utf-8").splitlines():
        key, _, place = line.removeprefix(_PLACE).partition(": ")
        if line.startswith(_PLACE) and key in ("task", *_PLACES):
            given[key] = place
    return Data(**(given if data_dir is None else {**given, "data_dir": data_dir}))
