"""The list of tasks, and the public names of the room."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from softprompts import tasks
from softprompts.tasks.catalog import task_kinds, task_metrics, task_names, task_outline
from softprompts.tasks.form import KINDS


def test_every_built_in_task_is_described() -> None:
    names = [name for name, about in task_names() if about]
    assert len(names) == len(set(names)) == len(task_kinds()) and set(task_kinds().values()) <= set(KINDS)
    for name in names:
        about, templates = task_outline(name)
        assert (name, about) in task_names() and templates[0] == "default" and task_metrics(name)


def test_the_list_of_tasks_waits_for_no_large_library() -> None:
    code = (
        "import sys\n"
        "from softprompts.tasks.catalog import task_kinds, task_names\n"
        "from softprompts.tasks import load_task, load_files, Form, Spec, Task, Example\n"
        "assert task_names() and task_kinds()\n"
        "print({'torch', 'transformers', 'datasets', 'sklearn', 'scipy', 'numpy'} & set(sys.modules))\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "set()"


def test_public_names_are_what_they_say() -> None:
    for name in tasks._HOME_OF:
        assert getattr(tasks, name).__name__ == name
