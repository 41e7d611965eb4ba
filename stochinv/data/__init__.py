"""Where training records come from."""

from ._simulate import simulate as simulate
from ._video import (
    random_crops as random_crops,
    read_clips as read_clips,
    read_video as read_video,
    split_clips as split_clips,
    split_shots as split_shots,
)
