"""The settings of labelled data. This is the only place of their types, bounds and defaults."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from softprompts.errors import SoftPromptError
from softprompts.storage import run_folder
from softprompts.tasks.catalog import load_task
from softprompts.tasks.splits import OFFICIAL
from softprompts.tasks.task import Task
from softprompts.tasks.user_files import load_files
from softprompts.tasks.yaml_tasks import is_declaration
from softprompts.validation import settings

MAX_LENGTH = 256  # most tokens of an input, the prompt not counted, where nothing else is asked for
_PLACES = ("data_dir", "train", "validation", "test")  # where data lie, which does not decide what they are
_PLACE = "#   "  # begins the line of a config.yaml that says where one of them was
_USUAL_COLUMNS = (("text", "text"), ("label", "label"))  # names of columns where none are given, by setting
_OF_FILES = (
    "test", "text", "text_pair", "label", "label_separator", "label_columns", "choices", "kind", "labels",
    "label_words", "metrics", "sep",
)  # fmt: skip
_OF_FEW = ("few_shot_seed", "few_shot_protocol")
_Text = str | None
_Names = tuple[str, ...]
_Count = Annotated[int | None, Field(ge=1)]
_Seed = Annotated[int, Field(ge=0)]


def doc(text: str) -> Any:
    """The description of a setting, which the command line shows."""
    return Field(description=text)


@settings
class Data:
    """Where labelled texts come from: a task by name, or the user's own files."""

    owner: ClassVar[str] = "data"

    task: Annotated[_Text, doc("Task by name, see 'softprompts tasks', or your own as a YAML file.")] = None
    data_dir: Annotated[_Text, doc("Folder with a local copy of the task's data; default: the hub.")] = None
    template: Annotated[
        _Text, doc("How the task's rows are written out, by name; see 'softprompts tasks show TASK'.")
    ] = None
    split: Annotated[
        str, doc("How rows are parted into train, validation and test: official, smop, dept, residual or halves.")
    ] = OFFICIAL
    answering: Annotated[_Text, doc("How a language model answers: rank (label words) or generate (freely).")] = None
    invalid: Annotated[
        _Text, doc("What a generated answer that is no label counts as: mismatch, opposite or zero.")
    ] = None
    train: Annotated[_Text, doc("Your own file to train on: CSV, TSV, JSONL, JSON or (tagging) CoNLL.")] = None
    kind: Annotated[
        str,
        doc("What your file is about: classification, multi-label, regression, choice, span, tagging, text or chat."),
    ] = "classification"
    validation: Annotated[_Text, doc("Your own file to score on; default: a part of the first one.")] = None
    test: Annotated[_Text, doc("Your own file for the last score, not to choose by.")] = None
    text: Annotated[
        _Text, doc("Column of the text, the words, the question, the input or the messages; default: its usual name.")
    ] = None
    text_pair: Annotated[_Text, doc("Column of the second text or the context.")] = None
    label: Annotated[
        _Text, doc("Column of the label, the tags, the answers or the text to write; default: its usual name.")
    ] = None
    label_separator: Annotated[
        _Text, doc("What stands between several labels in their column (multi-label); default: they are a list.")
    ] = None
    label_columns: Annotated[_Names, doc("Columns of several labels (multi-label), a 0 or 1 in each.")] = ()
    choices: Annotated[_Names, doc("Columns of the choices, or the one of a list of them.")] = ()
    labels: Annotated[
        _Names, doc("Names of the labels or tags, where the file has numbers; default: as it has them.")
    ] = ()
    label_words: Annotated[
        _Names,
        doc(
            "What a language model answers for each label of your file (multi-label: and for none); default: its name."
        ),
    ] = ()
    metrics: Annotated[
        _Names,
        doc("What your file is scored by, the first one chooses: accuracy, exact_match, rougeL, chrf, neg_loss, ..."),
    ] = ()
    max_new_tokens: Annotated[
        _Count, doc("Most tokens that a language model writes for a row; default: those of the longest answer.")
    ] = None
    sep: Annotated[
        _Text, doc("What separates the columns of your files, 'tab' for one; default: by name and rows of the file.")
    ] = None
    max_train: Annotated[_Count, doc("At most so many rows to train on.")] = None
    max_validation: Annotated[_Count, doc("At most so many rows to score on.")] = None
    max_test: Annotated[int | None, Field(ge=0), doc("At most so many test rows; 0: none.")] = None
    few_shot: Annotated[_Count, doc("Train on so many rows in all, about evenly many of each label.")] = None
    few_shot_seed: Annotated[_Seed, doc("Draws the few rows; the training's seed does not.")] = 0
    few_shot_protocol: Annotated[str, doc("How the few rows are drawn: even, or dept (as DePT's authors do).")] = "even"
    seed: Annotated[_Seed, doc("Of what else is drawn or held out.")] = 0

    def load(self) -> Task:
        """The task.

        Raises:
            SoftPromptError: unknown task, or a file that cannot be used; the file and the row are named.
        """
        task = self._load()
        if self.max_test == 0:
            task = replace(task, test=[])
        elif self.max_test is not None:
            task = task.limited(max_test=self.max_test, seed=self.seed)
        named = ("answering", "invalid", "max_new_tokens")
        changes = {name: getattr(self, name) for name in named if getattr(self, name) is not None}
        task = task.with_form(**changes)
        if self.few_shot is None:
            return task
        return task.few_shot(self.few_shot, self.few_shot_seed, self.few_shot_protocol)

    def _load(self) -> Task:
        given = {name: getattr(self, name) for name in ("split", "max_train", "max_validation", "seed")}
        if self.train is not None:
            given |= {name: getattr(self, name) for name in _OF_FILES}
            return load_files(self.train, self.validation, **given)
        if self.task is None:
            raise SoftPromptError("name a task (--task) or a file of your own (--data)")
        return load_task(self.task, self.data_dir, template=self.template, **given)

    def to_dict(self) -> dict[str, Any]:
        """The settings that were given, as plain values, without the places where files lie."""
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        unused = {*_PLACES, *(_OF_FEW if self.few_shot is None else ())}
        unused |= {name for name, out in (("split", self.split == OFFICIAL), ("task", self.declared)) if out}
        plain.update({key: plain[key] or usual for key, usual in _USUAL_COLUMNS})
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
    """What identifies a task's rows in a run's settings: a hash of the rows, and how they are used."""
    return {
        "task": task.name,
        "data": data.to_dict(),
        **({"metrics": list(task.metrics)} if data.declared else {}),
        "rows": task.fingerprint,
        "form": task.form.to_dict(),
    }


def recorded_data(run: str | Path, data_dir: str | None = None) -> Data:
    """The settings of the rows of a run, read from its folder.

    Args:
        run: the run folder.
        data_dir: folder with a local copy of the task's data; None: where it lay when the run was made, else the hub.

    Raises:
        SoftPromptError: it is no run folder, or does not tell.
    """
    recorded = run_folder.load_config(run).get("data")
    if not isinstance(recorded, dict):
        raise SoftPromptError(f"{Path(run) / run_folder.CONFIG} does not say where its rows came from")
    names = {field.name for field in fields(Data)}
    # `Data.to_dict` writes out the usual names of columns; where they were not given, other names count as usual too.
    values = {key: value for key, value in recorded.items() if key in names and (key, value) not in _USUAL_COLUMNS}
    for line in (Path(run) / run_folder.CONFIG).read_text(encoding="utf-8").splitlines():
        key, _, place = line.removeprefix(_PLACE).partition(": ")
        if line.startswith(_PLACE) and key in ("task", *_PLACES):
            values[key] = place
    return Data(**(values if data_dir is None else {**values, "data_dir": data_dir}))
