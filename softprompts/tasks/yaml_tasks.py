"""Tasks that users declare in YAML files.

All but ``train`` may be left out::

    name: commands               # the file's name
    about: is it an order        # a line for `tasks show`
    kind: classification         # or regression, choice, ranking, span, tagging, text, chat
    fields: [text, context]      # columns; or the column of each field, {text: utterance}
    label: intent                # column
    labels: [no, yes]            # names, which rows may have by index too; or the name of each value, {0: no, 4: yes}
    choices: options             # column of a list; or columns; or texts: ["{first}", "{second}"]
    reading: ["{text}", "{context}"]
    source: "order? {text} context: {context}"
    words: ["no", "yes"]
    cut: [context]
    answering: rank
    invalid: mismatch
    metrics: [accuracy, f1]
    templates: {short: {source: "{text}"}}
    train: train.csv             # files lie beside this one
    validation: dev.csv
    test: test.csv
    sep: ";"
    quoting: false

Texts need no quotes: "no" is a name here, not a truth value.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import yaml

from softprompts.errors import SoftPromptError
from softprompts.tasks.file_readers import read_text
from softprompts.tasks.task import Task
from softprompts.tasks.user_files import FileTask, file_task

_ENDINGS = (".yaml", ".yml")


def is_declaration(name: str | PathLike[str]) -> bool:
    """Whether the name of a task is that of a YAML file."""
    return str(name).lower().endswith(_ENDINGS)


def load_declared(
    path: str | PathLike[str], data_dir: str | PathLike[str] | None = None, template: str | None = None, seed: int = 0
) -> Task:
    """Loads a task that a YAML file declares (see the module), from files in ``data_dir``, or else beside it.

    Raises:
        SoftPromptError: anything wrong with the declaration or the files; names the file.
    """
    path = Path(path)
    task = declared(path)
    folder = path.parent if data_dir is None else Path(data_dir)
    try:
        return task.load(task.name or path.stem, folder, template, seed)
    except SoftPromptError as error:
        if str(error).startswith(tuple(map(str, task.files(folder).values()))):
            raise
        raise SoftPromptError(f"{path}: {error}") from error


def declared(path: Path) -> FileTask:
    """Reads the declaration in a YAML file, not yet the files that it names.

    Raises:
        SoftPromptError: no such file, no YAML, an unknown key, or a value that is none for its key.
    """
    try:
        # This loader makes nothing but texts, lists and mappings: "no" and 0 are names of labels.
        said = yaml.load(read_text(path), yaml.BaseLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f" line {mark.line + 1}:"
        raise SoftPromptError(f"{path}:{line} broken YAML ({getattr(error, 'problem', None) or error})") from error
    if not isinstance(said, Mapping) or not said:
        raise SoftPromptError(f"{path}: not a task: write 'kind: classification', 'train: FILE' and so on")
    return file_task(str(path), said)
