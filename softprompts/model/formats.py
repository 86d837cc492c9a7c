"""A saved prompt onto an attached model: one of ours or an adapter of PEFT's, from a folder or the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from softprompts.errors import SoftPromptError
from softprompts.model import saving
from softprompts.model.interop import peft_adapter, peft_reading
from softprompts.storage import saved_prompt


def adapter_folder(path: str | Path, revision: str | None = None, subfolder: str | None = None) -> Path | None:
    """The folder of what is saved there if that is a PEFT adapter and not a prompt of ours; a hub id is fetched."""
    folder = saved_prompt.located(path, revision, subfolder)
    ours = (folder / saved_prompt.CONFIG_FILE).is_file()
    return folder if not ours and peft_adapter.is_adapter(folder) else None


def load_prompt(
    model: Any,
    path: str | Path,
    name: str | None = None,
    *,
    revision: str | None = None,
    subfolder: str | None = None,
    task_id: int | None = None,
) -> str:
    """Adds a saved prompt to an attached model; see `PromptModel.load_prompt`. Returns its name."""
    folder = adapter_folder(path, revision, subfolder)
    if folder is not None:
        return peft_reading.load_adapter(model, folder, name, task_id)
    require_no_task(path, task_id)
    return saving.load_prompt(model, path, name, revision, subfolder)


def require_no_task(path: str | Path, task_id: int | None) -> None:
    """Makes sure that no task was chosen of a prompt of ours, which is of one.

    Raises:
        SoftPromptError: one was.
    """
    if task_id is not None:
        raise SoftPromptError(f"{path}: task_id is for multitask adapters of PEFT; this is a prompt of one task")
