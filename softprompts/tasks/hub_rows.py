"""Loads the rows of a built-in task, from a local folder or from the hub, with the same columns."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from pathlib import Path

from softprompts.errors import SoftPromptError
from softprompts.tasks.example import Row
from softprompts.tasks.file_readers import read_rows

# Where the hub has what a local folder calls <benchmark>/<task>, and the name of the configuration there; by benchmark
# or by task.
HUB: dict[str, tuple[str, str | None]] = {
    "glue": ("nyu-mll/glue", "{task}"),
    "super_glue": ("aps/super_glue", "{task}"),
    "squad/squad": ("rajpurkar/squad", None),
    "ner/conll2003": ("eriktks/conll2003", None),
}
MISMATCHED = "validation_mismatched"  # of MNLI
Rows = tuple[Path, Iterable[tuple[int, Row]]]
_ENDINGS = (".jsonl", ".jsonl.gz")
# The hub's own copy of data sets that come as a script, which `datasets` no longer runs.
_COPY = "refs/convert/parquet"


def rows_of(name: str, split: str, data_dir: str | PathLike[str] | None = None) -> Rows:
    """Loads a split of a task, see `load_task`: its place (for errors), and its rows with the line each is on.

    Raises:
        SoftPromptError: no such file, one that cannot be read, or no way to the hub.
    """
    if data_dir is None:
        return _from_hub(name, split)
    path = local_file(Path(data_dir) / name, split)
    return path, read_rows(path)


def on_hub(name: str) -> tuple[str, str | None] | None:
    """Where the hub has a task, and the name of the configuration there; None: it has not."""
    return HUB.get(name) or HUB.get(name.partition("/")[0])


def has_split(name: str, split: str, data_dir: str | PathLike[str] | None) -> bool:
    """Whether a split beyond train and validation can be had: the hub has those that tasks name."""
    return data_dir is None or any((Path(data_dir) / name / f"{split}{ending}").is_file() for ending in _ENDINGS)


def check_there(name: str, data_dir: str | PathLike[str] | None = None) -> None:
    """Makes sure that the files of a task are there; what the hub has is asked for only offline, where a copy is kept.

    Raises:
        SoftPromptError: they are not, or the hub cannot have them.
    """
    import huggingface_hub  # takes a while

    for split in ("train", "validation"):
        if data_dir is not None:
            local_file(Path(data_dir) / name, split)
        elif on_hub(name) is None or huggingface_hub.constants.HF_HUB_OFFLINE:
            rows_of(name, split)


def local_file(folder: Path, split: str) -> Path:
    """The file of a split.

    Raises:
        SoftPromptError: there is none.
    """
    for ending in _ENDINGS:
        if (path := folder / f"{split}{ending}").is_file():
            return path
    raise SoftPromptError(f"{folder}: neither {split}.jsonl nor {split}.jsonl.gz is there")


def _from_hub(name: str, split: str) -> Rows:
    if (hub_place := on_hub(name)) is None:
        raise SoftPromptError(f"'{name}' is not on the hub: give data_dir, a folder with its files")
    import datasets  # type: ignore[import-untyped]  # takes a second, and only the hub needs it

    task = name.partition("/")[2]
    place, config = hub_place[0], hub_place[1] and hub_place[1].format(task=task)
    hub_split = "validation_matched" if (task, split) == ("mnli", "validation") else split
    try:
        try:
            rows = datasets.load_dataset(place, config, split=hub_split)
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            rows = datasets.load_dataset(place, config, split=hub_split, revision=_COPY)
    except Exception as error:  # the hub's client raises many kinds; all mean that there is no data
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise SoftPromptError(
            f"cannot load '{name}' from the hub ({reason}): "
            f"go online, or give data_dir, a folder with {name}/{split}.jsonl"
        ) from error
    return Path(place, task, hub_split), enumerate(rows, start=1)
