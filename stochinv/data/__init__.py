"""Where training records come from."""

from .._simulated import Simulated as Simulated
from ._posed.base import (
    PosedImages as PosedImages,
    SceneBatches as SceneBatches,
    measurements as measurements,
)
from ._posed.co3d import load_co3d as load_co3d
from ._posed.colmap import load_colmap as load_colmap
from ._posed.llff import load_llff as load_llff
from ._posed.nerf_synthetic import load_nerf_synthetic as load_nerf_synthetic
from ._posed.npz import load_posed_npz as load_posed_npz
from ._posed.realestate10k import load_realestate10k as load_realestate10k
from ._readers import (
    read_dicom as read_dicom,
    read_fastmri as read_fastmri,
    read_fits as read_fits,
    read_nifti as read_nifti,
)
from ._splitting import split_gaussian as split_gaussian, thin_counts as thin_counts
from ._video import (
    random_crops as random_crops,
    read_clips as read_clips,
    read_video as read_video,
    split_clips as split_clips,
    split_shots as split_shots,
)
