"""All built-in tasks by name."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from softprompts.errors import SoftPromptError, nearest
from softprompts.tasks.glue import GLUE
from softprompts.tasks.hub_rows import MISMATCHED, check_there, has_split, on_hub, rows_of
from softprompts.tasks.ner import NER
from softprompts.tasks.reviews import REVIEWS, load_reviews
from softprompts.tasks.reviews_archive import reviews_archive
from softprompts.tasks.spec import DEFAULT, Spec
from softprompts.tasks.splits import OFFICIAL
from softprompts.tasks.squad import SQUAD
from softprompts.tasks.superglue import SUPERGLUE
from softprompts.tasks.task import Task
from softprompts.tasks.yaml_tasks import declared, is_declaration, load_declared

SPECS: dict[str, Spec] = {**GLUE, **SUPERGLUE, **SQUAD, **NER}  # of the tasks with files, or on the hub
_BUILT_IN: dict[str, Spec] = {**REVIEWS, **SPECS}


def task_names() -> list[tuple[str, str]]:
    """Every built-in task with a one-line description."""
    return [(name, spec.about) for name, spec in _BUILT_IN.items()]


def task_kinds() -> dict[str, str]:
    """The kind of every built-in task."""
    return {name: spec.form.kind for name, spec in _BUILT_IN.items()}


def task_outline(name: str) -> tuple[str, list[str]]:
    """A task's one-line description and the names of its templates.

    Args:
        name: as for `load_task`.

    Raises:
        SoftPromptError: unknown task, or a YAML file that cannot be used.
    """
    task = declared(Path(name)) if is_declaration(name) else _spec(name)
    return task.about, [DEFAULT, *task.templates]


def task_metrics(name: str, template: str | None = None) -> tuple[str, ...]:
    """The metrics of a task, the main one first.

    Args:
        name: as for `load_task`.
        template: a template may have its own.

    Raises:
        SoftPromptError: unknown task or template, or a YAML file that cannot be used.
    """
    if is_declaration(name):
        task = declared(Path(name))
        if template is not None and template not in (DEFAULT, *task.templates):
            raise SoftPromptError(f"{name}: no template '{template}'; {nearest(template, [DEFAULT, *task.templates])}")
        changed = task.templates[template].metrics if template in task.templates else ()
        return changed or task.expected_metrics() or load_task(name, template=template).metrics
    return _spec(name).under(name, template if name in SPECS else None).metrics


def check_data(name: str, data_dir: str | PathLike[str] | None = None) -> None:
    """Makes sure that a task's data are there, without reading more than it takes to know.

    Args:
        name: as for `load_task`.
        data_dir: as for `load_task`.

    Raises:
        SoftPromptError: unknown task, or its data are not there.
    """
    if is_declaration(name):
        path = Path(name)
        for file in declared(path).files(path.parent if data_dir is None else Path(data_dir)).values():
            if not file.is_file():
                raise SoftPromptError(f"{file}: no such file")
    elif name in REVIEWS:
        reviews_archive()
    else:
        _spec(name)
        check_there(name, data_dir)


def load_task(
    name: str,
    data_dir: str | PathLike[str] | None = None,
    *,
    template: str | None = None,
    split: str = OFFICIAL,
    max_train: int | None = None,
    max_validation: int | None = None,
    seed: int = 0,
    cache_dir: str | PathLike[str] | None = None,
) -> Task:
    """Loads a built-in task, or a task that a YAML file declares.

    Args:
        name: as in `task_names`: "reviews", "glue/rte", "super_glue/boolq"; or a YAML file, see
            `softprompts.tasks.yaml_tasks`.
        data_dir: folder with ``<benchmark>/<task>/{train,validation}.jsonl[.gz]``, columns named as on the hub; None:
            ask the hub. The reviews need neither. For a YAML file: the folder of the files it names, None: its own.
        template: how rows are put to a model; None: the task's own way.
        split: how rows are parted, a key of `softprompts.tasks.splits.PROTOCOLS`.
        max_train: use at most so many training rows.
        max_validation: use at most so many validation rows.
        seed: draws these rows.
        cache_dir: where the reviews' archive is kept, see `reviews_archive`.

    Raises:
        SoftPromptError: unknown task, template or split, or its data cannot be had.
    """
    if is_declaration(name):
        return load_declared(name, data_dir, template, seed).under(split).limited(max_train, max_validation, seed)
    if name in REVIEWS:
        return load_reviews(name, cache_dir).under(split).limited(max_train, max_validation, seed)
    spec = _spec(name).under(name, template)
    rows = {split: spec.examples(*rows_of(name, split, data_dir)) for split in ("train", "validation")}
    benchmark, _, word = name.partition("/")
    place = (on_hub(name) or (benchmark,))[0]
    source = f"{place} ({word}){'' if data_dir is None else ', local copy'}"
    task = Task(name, spec.form, rows["train"], rows["validation"], metrics=spec.metrics, source=source)
    more = MISMATCHED in spec.more and split != OFFICIAL and has_split(name, MISMATCHED, data_dir)
    mismatched = spec.examples(*rows_of(name, MISMATCHED, data_dir)) if more else []
    return task.under(split, mismatched).limited(max_train, max_validation, seed)


def _spec(name: str) -> Spec:
    if name not in _BUILT_IN:
        raise SoftPromptError(f"unknown task '{name}': {nearest(name, _BUILT_IN)}")
    return _BUILT_IN[name]
