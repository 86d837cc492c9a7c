"""Training: the loop on Accelerate, optimizer groups, lanes, evaluation and run folders."""

from softprompts.training.config import TrainConfig as TrainConfig
from softprompts.training.evaluate import Prediction as Prediction
from softprompts.training.evaluate import predict as predict
from softprompts.training.lane import Lane as Lane
from softprompts.training.lane import LaneResult as LaneResult
from softprompts.training.loop import lanes_that_fit as lanes_that_fit
from softprompts.training.loop import train as train
from softprompts.training.optim import build_optimizer as build_optimizer
from softprompts.training.optim import learning_rates as learning_rates
from softprompts.training.optim import schedule_factor as schedule_factor
from softprompts.training.runs import is_done as is_done
from softprompts.training.runs import load_result as load_result
from softprompts.training.runs import open_run as open_run
from softprompts.training.runs import run_id as run_id
from softprompts.training.runs import write_json_atomic as write_json_atomic
