"""Labelled data: built-in tasks, the user's own files, and their way into a model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from softprompts.tasks.catalog import load_task as load_task
from softprompts.tasks.catalog import task_names as task_names
from softprompts.tasks.collate import collate as collate
from softprompts.tasks.collate import length_bucketed_batches as length_bucketed_batches
from softprompts.tasks.form import Form as Form
from softprompts.tasks.spec import Spec as Spec
from softprompts.tasks.task import Example as Example
from softprompts.tasks.task import Task as Task
from softprompts.tasks.user_files import load_files as load_files

if TYPE_CHECKING:
    from softprompts.tasks.encode import Encoded as Encoded
    from softprompts.tasks.encode import encode_examples as encode_examples
    from softprompts.tasks.encode import label_ids as label_ids
    from softprompts.tasks.encode import marker as marker
    from softprompts.tasks.encode import new_tokens as new_tokens
    from softprompts.tasks.encode import padding_id as padding_id
    from softprompts.tasks.metrics import compute as compute

# Imported when first used: transformers and scikit-learn take seconds.
_HOMES = {
    "compute": "softprompts.tasks.metrics",
    **dict.fromkeys(
        ("Encoded", "encode_examples", "label_ids", "marker", "new_tokens", "padding_id"), "softprompts.tasks.encode"
    ),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
