"""Where training records come from."""

from ._posed.base import PosedImages as PosedImages, SceneBatches as SceneBatches
from ._posed.npz import load_posed_npz as load_posed_npz
from ._simulate import simulate as simulate
from ._video import (
    random_crops as random_crops,
    read_clips as read_clips,
    read_video as read_video,
    split_clips as split_clips,
    split_shots as split_shots,
)
