"""All built-in tasks by name."""

from __future__ import annotations

from os import PathLike

from softprompts.errors import SoftPromptError, nearest
from softprompts.tasks.glue import LATER, SPECS, load_glue
from softprompts.tasks.reviews import DOMAINS, load_reviews
from softprompts.tasks.task import Task


def task_names() -> list[tuple[str, str]]:
    """Every built-in task with a one-line description."""
    reviews = [(name, about) for name, (_, about) in DOMAINS.items()]
    return reviews + [(name, spec.about) for name, spec in SPECS.items()]


def load_task(
    name: str,
    data_dir: str | PathLike[str] | None = None,
    *,
    max_train: int | None = None,
    max_validation: int | None = None,
    seed: int = 0,
    cache_dir: str | PathLike[str] | None = None,
) -> Task:
    """Loads a built-in task.

    Args:
        name: as in `task_names`: "reviews", "glue/rte", "super_glue/boolq".
        data_dir: local copy of GLUE and SuperGLUE, see `load_glue`; None: ask the hub. The reviews need neither.
        max_train: use at most so many training rows.
        max_validation: use at most so many validation rows.
        seed: draws these rows.
        cache_dir: where the reviews' archive is kept, see `reviews_archive`.

    Raises:
        SoftPromptError: unknown task, or its data cannot be had.
    """
    known = [known_name for known_name, _ in task_names()]
    if name not in known and name not in LATER:
        raise SoftPromptError(f"unknown task '{name}': {nearest(name, known)}")
    task = load_reviews(name, cache_dir) if name in DOMAINS else load_glue(name, data_dir)
    return task.limited(max_train, max_validation, seed)
