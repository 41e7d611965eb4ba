"""Where `fit` reports to: files, and the services of the field."""

from .._tracker import Tracker as Tracker
from ._csv import CSVTracker as CSVTracker
from ._mlflow import MLflowTracker as MLflowTracker
from ._tensorboard import TensorBoardTracker as TensorBoardTracker
from ._wandb import WandbTracker as WandbTracker
