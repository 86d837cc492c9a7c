"""The pictures by name, and writing them as files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from softprompts.analysis.drawing import Picture
from softprompts.analysis.gates import draw_gates
from softprompts.analysis.masks import draw_masks
from softprompts.analysis.norms import draw_norms
from softprompts.analysis.routes import draw_router
from softprompts.analysis.saved import DoesNotApplyError, Saved, open_prompts
from softprompts.analysis.selective import alpha_of, draw_mass, draw_selective
from softprompts.analysis.similarity import draw_similarity
from softprompts.analysis.superposition import draw_superposition, superposition_of
from softprompts.analysis.tokens import draw_tokens
from softprompts.errors import SoftPromptError, nearest, require_whole
from softprompts.plotting import empty_figure, write_files
from softprompts.storage import run_folder
from softprompts.storage.files import require_folder

Made = TypeVar("Made")


class Drawn(NamedTuple):
    """One picture that was written, or the reason why there is none.

    Attributes:
        what: one of `WHAT`.
        files: the files of a picture; none where it does not apply.
        text: the picture's caption, or why there is none.
        applies: False where the prompts have nothing that it shows.
    """

    what: str
    files: list[Path]
    text: str
    applies: bool = True


# Each takes the prompts, most rows of a task, and the folder with a local copy of the tasks' data.
_DRAWN: dict[str, Callable[[list[Saved], int, str | None], list[Picture]]] = {
    "masks": lambda prompts, *_: _where_it_applies(prompts, draw_masks),
    "gates": lambda prompts, *_: _where_it_applies(prompts, draw_gates),
    "superposition": lambda prompts, *_: [draw_superposition(_fitting(prompts, superposition_of))],
    "selective": lambda prompts, *rows: draw_selective(_fitting(prompts, alpha_of), *rows),
    "router": lambda prompts, *rows: _where_it_applies(prompts, lambda saved: draw_router(saved, *rows)),
    "tokens": lambda prompts, *_: _where_it_applies(prompts, draw_tokens),
    "norms": lambda prompts, *rows: _where_it_applies(prompts, lambda saved: draw_norms(saved, *rows)),
    "attention": lambda prompts, *rows: _where_it_applies(prompts, lambda saved: draw_mass(saved, *rows)),
    "similarity": lambda prompts, *_: draw_similarity(prompts),
}
WHAT = tuple(_DRAWN)


def figures(
    what: str,
    prompts: Sequence[str | Path | Saved],
    *,
    names: Sequence[str] | None = None,
    data_dir: str | None = None,
    rows: int = 64,
) -> list[Picture]:
    """Pictures of what trained prompts learned. Those to which ``what`` does not apply are left out.

    Args:
        what: one of `WHAT`: "superposition" and "similarity" are one picture of all prompts together, "selective" the
            curves of all, and for each its attention on real rows; the others are a picture for each prompt.
        prompts: run folders, prompt folders or hub ids, or what `open_prompts` made of them.
        names: what to call each; None: by task and method.
        data_dir: folder with a local copy of the tasks' data, for what needs rows; None: where each run says that they
            lay, else the hub.
        rows: most rows of each task.

    Returns:
        The pictures, each with a name, a caption and the numbers behind it.

    Raises:
        SoftPromptError: it applies to none of them (and why), an unknown ``what``, or matplotlib is missing.
    """
    if what not in _DRAWN:
        raise SoftPromptError(f"unknown analysis '{what}'; {nearest(what, WHAT)}")
    require_whole("analysis", "rows", rows, 1)
    empty_figure(1, 1)  # before any backbone is loaded
    return _DRAWN[what](open_prompts(prompts, names), rows, data_dir)


def write_figures(
    prompts: Sequence[str | Path | Saved], folder: str | Path, *, data_dir: str | None = None, rows: int = 64
) -> Iterator[Drawn]:
    """Writes all pictures that some prompts have, each as PNG and SVG with its numbers as CSV.

    Files of the same names are replaced; nothing else in the folder is touched.

    Args:
        prompts: see `figures`.
        folder: where; made when it is missing.
        data_dir: see `figures`.
        rows: see `figures`.

    Yields:
        What was written, one picture after the other, and what does not apply.

    Raises:
        SoftPromptError: no saved prompt, matplotlib is missing, or the folder is a file.
    """
    require_folder(folder, "the pictures")
    empty_figure(1, 1)
    opened = open_prompts(prompts)
    for what in WHAT:
        if what == "similarity" and len(opened) == 1:
            yield Drawn(what, [], "give several prompts to compare", applies=False)
            continue
        try:
            pictures = figures(what, opened, data_dir=data_dir, rows=rows)
        except SoftPromptError as error:
            yield Drawn(what, [], str(error), not isinstance(error, DoesNotApplyError))
            continue
        for picture in pictures:
            yield Drawn(what, save(picture, folder), picture.caption)


def plots_folder(sources: Sequence[str | Path]) -> Path:
    """The default folder of pictures: ``plots`` in the run folder, or beside the files of a prompt folder.

    Those of several prompts, or of one from the hub, go to ``plots`` in the working folder.
    """
    folder = Path(sources[0])
    if len(sources) > 1 or not folder.is_dir():
        return Path("plots")
    within_run = folder.name == run_folder.PROMPT and (folder.parent / run_folder.CONFIG).is_file()
    return (folder.parent if within_run else folder) / "plots"


def save(picture: Picture, folder: str | Path) -> list[Path]:
    """Writes a picture's files; returns them."""
    return write_files(picture.figure, Path(folder), picture.name, picture.csv)


def _fitting(prompts: Sequence[Saved], applies: Callable[[Saved], object]) -> list[Saved]:
    """The prompts for which ``applies`` raises no error; raises the errors of all where there is none."""
    return [saved for saved, _ in _tried(prompts, applies)[0]]


def _where_it_applies(prompts: Sequence[Saved], draw: Callable[[Saved], Picture]) -> list[Picture]:
    drawn, missing = _tried(prompts, draw)
    pictures = [picture for _, picture in drawn]
    if missing:  # not that a method has nothing to show, but that its rows or its backbone could not be had
        pictures[-1] = pictures[-1]._replace(caption=f"{pictures[-1].caption} Left out: {'; '.join(missing)}.")
    return pictures


def _tried(prompts: Sequence[Saved], make: Callable[[Saved], Made]) -> tuple[list[tuple[Saved, Made]], list[str]]:
    """Calls ``make`` with each prompt; returns what it made, and the errors that are not `DoesNotApplyError`.

    Raises:
        SoftPromptError: of none; reasons that several share are told once.
    """
    made: list[tuple[Saved, Made]] = []
    missing: list[str] = []
    reasons: Counter[str] = Counter()
    for saved in prompts:
        try:
            made.append((saved, make(saved)))
        except SoftPromptError as error:
            reasons[str(error).removeprefix(f"{saved.name}: ")] += 1
            if not isinstance(error, DoesNotApplyError):
                missing.append(str(error))
    if not made:
        lines = (f"{reason} ({count} prompts)" if count > 1 else reason for reason, count in reasons.items())
        kind = SoftPromptError if missing or not reasons else DoesNotApplyError
        raise kind("; ".join(lines) or "there are no prompts to look at")
    return made, missing
