"""Networks, and the layers they are made of.

Every network is an `equinox.Module` for one example, `network(x, embedding) -> y`, where `embedding` is a vector that
carries the noise level and whatever else conditions the network. Batches are the caller's, by `jax.vmap`. Images are
channels-last. A network computes in the type of its parameters, and a fresh one returns zeros.
"""

from ._default import default_denoiser as default_denoiser
from ._embedding import NoiseEmbedding as NoiseEmbedding
from ._flow import FlowDenoiser as FlowDenoiser
from ._gan import DCGANGenerator as DCGANGenerator, MLPGenerator as MLPGenerator
from ._image_encoder import ImageEncoder as ImageEncoder
from ._lifting import LiftingDenoiser as LiftingDenoiser
from ._linear import Linear as Linear
from ._mlp import MLP as MLP
from ._signal_default import signal_denoiser as signal_denoiser
from ._stylegan2 import StyleGAN2Generator as StyleGAN2Generator
from ._transformer import PatchTransformer as PatchTransformer
from ._unet import UNet as UNet
from ._weights import load_weights as load_weights
