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
from softprompts.experiments.workbench import Workbench
from softprompts.methods.contract import MethodConfig
from softprompts.storage import run_folder
from softprompts.tasks.data import Data
from softprompts.training import TrainConfig


def train_together(
    bench: Workbench,
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
        bench: the backbone; its task may be any.
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
    benches = [bench.on(data) for data in tasks]
    methods = [method] * len(tasks) if isinstance(method, MethodConfig) else list(method)
    if len(methods) != len(tasks):
        raise SoftPromptError(f"train_together: there are {len(methods)} methods for {len(tasks)} tasks")
    names = [one.task.name.replace("/", "-").replace(".", "-") for one in benches]
    if len(set(names)) < len(names):
        raise SoftPromptError("train_together: a task is named twice")
    resolved = [one.resolved(config, training) for one, config in zip(benches, methods, strict=True)]
    group = run_folder.run_id({"together": resolved})
    paths = [Path(root) / group / name for name in names]
    for one, config, path in zip(benches, methods, paths, strict=True):
        one.check(config, training, folder=path, resume=True, reuse=True)
    _check_sharing(bench, methods)
    lanes = [
        one._lane(name, config, training, root, True, path)
        for one, config, name, path in zip(benches, methods, names, paths, strict=True)
        if not run_folder.is_done(path)
    ]
    if lanes:
        first, *others = [bench.model.prompts[lane.name].method for lane in lanes]
        for other in others:
            other.share_with(first)
        bench._train(lanes, progress, None)
    return [(path, run_folder.load_result(path)) for path in paths]


def _check_sharing(bench: Workbench, methods: Sequence[MethodConfig]) -> None:
    """Finds out whether prompts can share a part, before any folder is made."""
    names = [f"check-{index}" for index in range(len(methods))]
    for name, method in zip(names, methods, strict=True):
        bench.model.add_prompt(name, method, tokenizer=bench.tokenizer, seed=0)
    try:
        for name in names[1:]:
            bench.model.prompts[name].method.share_with(bench.model.prompts[names[0]].method)
    finally:
        for name in names:
            bench.model.delete_prompt(name)
