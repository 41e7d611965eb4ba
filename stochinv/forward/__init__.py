"""Ready-made forward models.

Images are channels-last, `(height, width, channels)`.
"""

from ._beer_lambert import BeerLambert as BeerLambert
from ._blur import Blur as Blur
from ._camera import Camera as Camera, Rays as Rays, look_at as look_at
from ._channel_mix import ChannelMix as ChannelMix
from ._darcy import Darcy as Darcy
from ._downsample import Downsample as Downsample
from ._generator import Generator as Generator
from ._linear import Linear as Linear
from ._lines import equispaced_lines as equispaced_lines, random_lines as random_lines
from ._mask import Mask as Mask, Window as Window
from ._mri import CartesianMRI as CartesianMRI, MRIScan as MRIScan, NonCartesianMRI as NonCartesianMRI
from ._phase_retrieval import (
    CodedDiffraction as CodedDiffraction,
    FourierIntensity as FourierIntensity,
    Ptychography as Ptychography,
)
from ._psf import gaussian_psf as gaussian_psf, moffat_psf as moffat_psf, pupil_psf as pupil_psf
from ._smoothness import FlowSmoothness as FlowSmoothness
from ._tomography import FanBeam as FanBeam, ParallelBeam as ParallelBeam
from ._volume import Rendering as Rendering, VolumeRenderer as VolumeRenderer
from ._volume_base import AbstractField as AbstractField
from ._volume_triplane import TriPlaneField as TriPlaneField
from ._volume_voxels import VoxelField as VoxelField
from ._warp import Warp as Warp
