"""Training: the loop on Accelerate, optimizer groups, lanes, evaluation and run folders."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from softprompts.storage.run_folder import is_done as is_done
from softprompts.storage.run_folder import load_result as load_result
from softprompts.storage.run_folder import open_run as open_run
from softprompts.storage.run_folder import run_id as run_id
from softprompts.training.config import TrainConfig as TrainConfig

if TYPE_CHECKING:
    from softprompts.training.evaluation import Evaluation as Evaluation
    from softprompts.training.lane import Lane as Lane
    from softprompts.training.loop import train as train
    from softprompts.training.optim import build_optimizer as build_optimizer
    from softprompts.training.pass_size import lanes_that_fit as lanes_that_fit
    from softprompts.training.prediction import Prediction as Prediction
    from softprompts.training.prediction import predict as predict
    from softprompts.training.result import LaneResult as LaneResult

# Imported when first used: the command line reads `TrainConfig` and need not wait for torch.
_HOMES = {
    "Evaluation": "evaluation", "Lane": "lane", "LaneResult": "result", "train": "loop", "build_optimizer": "optim",
    "lanes_that_fit": "pass_size", "Prediction": "prediction", "predict": "prediction",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
