"""A user's own task as a YAML file.

All but ``train`` may be left out::

    name: commands               # the file's name
    about: is it an order        # a line for `tasks show`
    kind: classification         # or regression, choice, ranking, span, tagging
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
from typing import Any

import yaml

from softprompts.errors import SoftPromptError, nearest
from softprompts.tasks.task import Task
from softprompts.tasks.user_files import OwnTask

_SPLITS = ("train", "validation", "test")
_TEXTS = ("name", "about", "kind", "label", "source", "answering", "invalid", "sep", *_SPLITS)
_LISTS = ("reading", "words", "cut", "metrics")
_KEYS = (*_TEXTS, *_LISTS, "fields", "labels", "choices", "templates", "quoting")
_SETTINGS = ("reading", "source", "words", "cut", "answering", "invalid")  # of the form
_CHANGED = (*_SETTINGS, "metrics")  # by a template
_AS_SAID = ("about", "kind", "fields", "label", "choices", "labels", "metrics", "sep")
_ENDINGS = (".yaml", ".yml")


def is_declaration(name: str | PathLike[str]) -> bool:
    """Whether the name of a task is that of a YAML file."""
    return str(name).lower().endswith(_ENDINGS)


def load_declared(
    path: str | PathLike[str], data_dir: str | PathLike[str] | None = None, template: str | None = None, seed: int = 0
) -> Task:
    """Loads a task that a YAML file declares (see the module).

    Args:
        path: the YAML file.
        data_dir: folder of the files that it names; None: its own.
        template: a key of its ``templates``; None: as it is.
        seed: draws what is held out where no ``validation`` is named.

    Raises:
        SoftPromptError: anything wrong with the declaration or the files; names the file.
    """
    path = Path(path)
    return declared(path, data_dir).load(template, seed)


def declared(path: Path, data_dir: str | PathLike[str] | None = None) -> OwnTask:
    """What a YAML file says of a task; its files are not read yet.

    Raises:
        SoftPromptError: no such file, no YAML, an unknown key, or a value that is none for its key.
    """
    said = _read(path)
    for key in said:
        if key not in _KEYS:
            raise SoftPromptError(f"{path}: a task has no '{key}': {nearest(key, _KEYS)}")
    given = {key: _value(path, key, value) for key, value in said.items()}
    if "train" not in given:
        raise SoftPromptError(f"{path}: name the file to train on, train: FILE")
    folder = path.parent if data_dir is None else Path(data_dir)
    settings = {key: given[key] for key in _SETTINGS if key in given}
    templates = {name: _template(path, name, changes) for name, changes in given.get("templates", {}).items()}
    quoting = given.get("quoting", "true").lower()
    if quoting not in ("true", "false"):
        raise SoftPromptError(f"{path}: quoting is '{quoting}': true or false")
    return OwnTask(
        name=given.get("name", path.stem),
        files={split: folder / given[split] for split in _SPLITS if split in given},
        settings=settings,
        templates=templates,
        quoting=quoting == "true",
        origin=path,
        **{key: given[key] for key in _AS_SAID if key in given},
    )


def _read(path: Path) -> Mapping[str, Any]:
    try:
        # This loader makes nothing but texts, lists and mappings: "no" and 0 are names of labels.
        said = yaml.load(path.read_text(encoding="utf-8-sig"), yaml.BaseLoader)
    except FileNotFoundError:
        raise SoftPromptError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise SoftPromptError(f"{path}: not UTF-8 text, save the file as UTF-8") from error
    except OSError as error:
        raise SoftPromptError(f"{path}: cannot read it ({error.strerror or error})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f" line {mark.line + 1}:"
        raise SoftPromptError(f"{path}:{line} broken YAML ({getattr(error, 'problem', None) or error})") from error
    if not isinstance(said, Mapping) or not said:
        raise SoftPromptError(f"{path}: not a task: write 'kind: classification', 'train: FILE' and so on")
    return said


def _value(path: Path, key: str, value: Any) -> Any:
    if key in ("fields", "labels") and isinstance(value, Mapping):
        if value and all(map(_is_text, value.values())):
            return dict(value)
    elif key == "templates":
        if isinstance(value, Mapping) and all(isinstance(changes, Mapping) for changes in value.values()):
            return value
        raise SoftPromptError(f"{path}: 'templates' names templates, each with what it changes: short: {{source: ...}}")
    elif isinstance(value, str) and value:
        alone = key in (*_TEXTS, "choices", "quoting")
        return value if alone else (value,)
    elif isinstance(value, list) and value and key not in (*_TEXTS, "quoting") and all(map(_is_text, value)):
        return tuple(value)
    wanted = "a text" if key in (*_TEXTS, "quoting") else "a list of texts"
    raise SoftPromptError(f"{path}: '{key}' is {value!r:.80}, not {wanted}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _template(path: Path, name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    for key in changes:
        if key not in _CHANGED:
            raise SoftPromptError(f"{path}: the template '{name}' changes '{key}': {nearest(key, _CHANGED)}")
    return {key: _value(path, key, value) for key, value in changes.items()}
