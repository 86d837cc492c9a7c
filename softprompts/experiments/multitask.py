"""Several tasks trained at once with a part in common: one prompt for each, their rows mixed in every pass.

Each task is a lane (see `softprompts.training.lane`) with its own prompt, head and order of rows. The common part,
``P*`` of mpt or the attention of attempt, belongs to the first prompt: the gradients of all tasks add up in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from softprompts.errors import SoftPromptError
from softprompts.experiments.run_record import Run
from softprompts.experiments.workbench import Workbench
from softprompts.methods.contract import MethodConfig
from softprompts.storage import run_folder
from softprompts.tasks.data import Data
from softprompts.training import TrainConfig


def train_together(
    workbench: Workbench,
    tasks: Sequence[Data],
    method: MethodConfig | Sequence[MethodConfig],
    training: TrainConfig,
    *,
    root: str | Path = "runs",
    progress: bool = True,
) -> list[tuple[Path, dict[str, Any]]]:
    """Trains a prompt for each task, all with one part in common; what is done already is not done again.

    Every step takes ``batch_size`` rows of each task. The prompts are scored and saved after the last step only: the
    best of each would have another common part.

    Args:
        workbench: the backbone; its task may be any.
        tasks: the tasks, at least two.
        method: of all prompts; one with a part to share. Or one for each task, where they differ in something else,
            such as the teacher of each (``replace(method, teacher=folder)``).
        training: how they train; ``max_steps`` must be set, as the tasks have to end together.
        root: where run folders live; a folder named by the hash of all settings gets one for each task, by its name.
        progress: show a progress bar on a terminal.

    Returns:
        Run folder and result of each, in their order. Prompts that were trained stay on the model, named as the
        folders.

    Raises:
        SoftPromptError: the method has no part to share, or something does not fit; nothing is trained then.
        KeyboardInterrupt: interrupted; the same call goes on where it was.
    """
    if len(tasks) < 2:
        raise SoftPromptError("train_together: name at least two tasks")
    if training.max_steps is None:
        raise SoftPromptError("train_together: say for how many steps (max_steps): the tasks have to end together")
    training = replace(training, eval_every=training.max_steps, patience=None)
    targets = [workbench.on(data) for data in tasks]
    methods = [method] * len(tasks) if isinstance(method, MethodConfig) else list(method)
    if len(methods) != len(tasks):
        raise SoftPromptError(f"train_together: there are {len(methods)} methods for {len(tasks)} tasks")
    runs = [Run(config, training) for config in methods]
    names = [target.task.name.replace("/", "-").replace(".", "-") for target in targets]
    if len(set(names)) < len(names):
        raise SoftPromptError("train_together: a task is named twice")
    resolved = [target.resolved(run.method, training) for target, run in zip(targets, runs, strict=True)]
    folder = Path(root) / run_folder.run_id({"together": resolved})
    paths = [folder / name for name in names]
    for target, run, path in zip(targets, runs, paths, strict=True):
        target.check(run.method, training, folder=path, resume=True, reuse=True)
    _check_sharing(workbench, methods)
    lanes = [
        target.lane(name, run, path)
        for target, run, name, path in zip(targets, runs, names, paths, strict=True)
        if not run_folder.is_done(path)
    ]
    if lanes:
        first, *others = [workbench.model.prompts[lane.name].method for lane in lanes]
        for other in others:
            other.share_with(first)
        workbench.train_lanes(lanes, progress)
    return [(path, run_folder.load_result(path)) for path in paths]


def _check_sharing(workbench: Workbench, methods: Sequence[MethodConfig]) -> None:
    """Finds out whether prompts can share a part, before any folder is made."""
    model, names = workbench.model, [f"check-{index}" for index in range(len(methods))]
    for name, method in zip(names, methods, strict=True):
        model.add_prompt(name, method, tokenizer=workbench.tokenizer, seed=0)
    try:
        for name in names[1:]:
            model.prompts[name].method.share_with(model.prompts[names[0]].method)
    finally:
        for name in names:
            model.forget_prompt(name)
