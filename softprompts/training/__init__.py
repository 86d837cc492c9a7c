"""Training: the loop on Accelerate, optimizer groups, lanes, evaluation and run folders."""

from softprompts.storage.files import write_json_atomic as write_json_atomic
from softprompts.storage.run_folder import is_done as is_done
from softprompts.storage.run_folder import load_result as load_result
from softprompts.storage.run_folder import open_run as open_run
from softprompts.storage.run_folder import run_id as run_id
from softprompts.training.config import TrainConfig as TrainConfig
from softprompts.training.evaluation import Evaluation as Evaluation
from softprompts.training.lane import Lane as Lane
from softprompts.training.lane import LaneResult as LaneResult
from softprompts.training.loop import train as train
from softprompts.training.optim import build_optimizer as build_optimizer
from softprompts.training.optim import learning_rates as learning_rates
from softprompts.training.optim import schedule_factor as schedule_factor
from softprompts.training.pass_size import lanes_that_fit as lanes_that_fit
from softprompts.training.prediction import Prediction as Prediction
from softprompts.training.prediction import predict as predict
