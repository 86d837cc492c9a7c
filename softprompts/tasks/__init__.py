"""Labelled data: built-in tasks, the user's own files, and their way into a model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softprompts.tasks.batches import collate as collate
    from softprompts.tasks.batches import length_bucketed_batches as length_bucketed_batches
    from softprompts.tasks.catalog import load_task as load_task
    from softprompts.tasks.catalog import task_names as task_names
    from softprompts.tasks.encode import encode_examples as encode_examples
    from softprompts.tasks.encode import label_ids as label_ids
    from softprompts.tasks.encode import marker as marker
    from softprompts.tasks.encode import new_tokens as new_tokens
    from softprompts.tasks.encode import padding_id as padding_id
    from softprompts.tasks.example import Example as Example
    from softprompts.tasks.form import Form as Form
    from softprompts.tasks.kinds.encoded import Encoded as Encoded
    from softprompts.tasks.metrics import compute as compute
    from softprompts.tasks.spec import Spec as Spec
    from softprompts.tasks.task import Task as Task
    from softprompts.tasks.user_files import load_files as load_files

# Where each public name lives. Imported when first used: the list of tasks need not wait for torch and scikit-learn.
_HOMES = {
    "catalog": ("load_task", "task_names"),
    "batches": ("collate", "length_bucketed_batches"),
    "encode": ("encode_examples", "label_ids", "marker", "new_tokens", "padding_id"),
    "example": ("Example",),
    "form": ("Form",),
    "kinds.encoded": ("Encoded",),
    "metrics": ("compute",),
    "spec": ("Spec",),
    "task": ("Task",),
    "user_files": ("load_files",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value
