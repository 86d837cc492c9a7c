"""What is written of a run: all that decides its numbers, its folder, and what its result says beside the outcome."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml

from softprompts.backbones import packaged
from softprompts.errors import SoftPromptError
from softprompts.methods.contract import MethodConfig
from softprompts.methods.imports import sources_of
from softprompts.processes import shared_state
from softprompts.storage import run_folder
from softprompts.storage.files import write_text_atomic
from softprompts.tasks.data import _PLACE, Data
from softprompts.training import TrainConfig, open_run
from softprompts.version import __version__

# What tables are made of; a result without them was not written by a run, or was edited.
_NEEDED = (
    "metrics", "test_metrics", "eval_rows", "test_rows", "trained_parameters", "backbone_parameters", "steps",
    "best_step", "step_seconds", "seconds", "peak_memory", "lanes", "stop_reason", "message",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """An experiment to run: a method's config, and how it trains."""

    method: MethodConfig
    training: TrainConfig


def resolved(
    model: str,
    rows: Mapping[str, Any],
    method: MethodConfig,
    training: TrainConfig,
    max_length: int,
    evaluate: bool,
    quantize: str | None = None,
    start: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All that decides the numbers of a run, as plain values; its hash is the run's id.

    The arguments are those of a `Workbench`, which need not be loaded, the `rows_identity` of its task, and the
    identity of the prompt that it goes on from.
    """
    code = {name: source.sha256[:12] for name, source in sources_of(method.method).items()}
    return {
        "model": packaged.model_name(model),
        **({"quantize": quantize} if quantize is not None else {}),
        **rows,
        "method": method.method,
        "settings": method.identity(),
        **({"revision": method.revision} if method.revision else {}),
        **({"code": code} if code else {}),
        **({"start": dict(start)} if start is not None else {}),
        "max_length": max_length,
        "evaluate": evaluate,
        "training": training.to_dict(),
    }


def shared_by(run: Run) -> tuple[Any, ...]:
    """What experiments must have in common to share a pass well: the loop's conditions, and rows of similar length."""
    training = run.training
    return training.bf16, training.backbone_dropout, training.batch_size, run.method.input_tokens


def complete_settings(
    model: str,
    data: Data,
    run: Run,
    max_length: int,
    evaluate: bool,
    quantize: str | None,
    start: str | None = None,
) -> dict[str, Any]:
    """All settings of a run as plain values, from which ``train --config`` makes the run again; see `resolved`."""
    given = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(data).items()}
    return {
        "model": {"name": model, "quantize": quantize, "max_length": max_length},
        "data": {name: value for name, value in (given | data.places()).items() if value not in (None, [])},
        "method": run.method.method,
        "settings": run.method.to_dict(),
        "training": {**vars(run.training), "learning_rates": dict(run.training.learning_rates)},
        "evaluate": evaluate,
        **({} if start is None else {"start": start}),
    }


def open_folder(
    path: Path,
    config: Mapping[str, Any],
    data: Data,
    files: Sequence[str],
    resume: bool,
    complete: Mapping[str, Any],
) -> None:
    """Makes a run's folder; comments in the config.yaml of a new one say where what it was made from lay.

    Args:
        path: the folder.
        config: what the run is identified by.
        data: where its rows come from.
        files: that the method was built from.
        resume: see `open_run`.
        complete: its `complete_settings`.
    """
    files, start = (
        [*files, *(str(source.file) for source in sources_of(config["method"]).values())],
        complete.get("start"),
    )
    file = path / run_folder.CONFIG
    new = not file.is_file()
    open_run(path.parent, config, resume=resume, folder=path)
    note = ""
    if places := data.places():
        note += "# The files that the rows came from; 'rows' above is the hash of what was in them.\n"
        note += "".join(f"{_PLACE}{key}: {place}\n" for key, place in places.items())
    if files:
        note += "# What the method was built from; hashes of what was in it are among the values above.\n"
        note += "".join(f"#   {file}\n" for file in files)
    if start is not None:
        note += f"# The prompt that the run goes on from; its hash is 'start' above.\n#   {start}\n"
    if new and note:
        write_text_atomic(file, file.read_text(encoding="utf-8") + note)
    if new:
        text = yaml.safe_dump(json.loads(json.dumps(complete)), sort_keys=False, allow_unicode=True)
        how = (
            f"# Makes this run again: softprompts train --config {run_folder.SETTINGS}; flags go before what is here.\n"
        )
        write_text_atomic(path / run_folder.SETTINGS, how + text)


def load_checked(path: Path) -> dict[str, Any]:
    """The result of a finished run, which must have what tables need."""
    result = run_folder.load_result(path)
    for key in _NEEDED:
        if not isinstance(result, dict) or key not in result:
            raise SoftPromptError(f"{path / run_folder.RESULT} lacks '{key}'; delete the folder to train again")
    return result


def no_better_than_one_answer(result: Mapping[str, Any], commonest: str = "") -> str:
    """A sentence on a run that scores no better than one answer for all rows; empty for others.

    Args:
        result: of the run.
        commonest: the label that most of the rows that are scored have; "" where that is no one label.
    """
    constant: Mapping[str, float] = result.get("constant_scores") or {}
    scores = (result["test_metrics"] if result["test_rows"] else result["metrics"]) or {}
    metric = next(iter(scores), None)
    if metric is None or metric not in constant or scores[metric] is None or scores[metric] > constant[metric] + 1e-9:
        return ""
    answer = f"'{commonest}' for every row" if commonest else "one answer for every row"
    alike = all(scores.get(name) is not None and abs(scores[name] - value) < 1e-9 for name, value in constant.items())
    score = f"{metric} {scores[metric]:.4f}"
    what = f"as if it answered {answer} ({score})" if alike else f"no better than {answer} ({score})"
    return f"it scores {what}: give it more steps, another rate (--lr) or more rows"


def surroundings() -> dict[str, Any]:
    """Versions of the libraries, and where Accelerate trains: "cpu", or the kind of device and its name."""
    device = shared_state().device
    versions = {"softprompts": __version__, "torch": str(torch.__version__), "transformers": transformers.__version__}
    name = f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device.type)
    return {"versions": versions, "device": name}
