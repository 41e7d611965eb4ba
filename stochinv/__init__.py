"""Stochastic inverse problems without direct supervision.

A signal is never observed; measurements of it through a known forward model are. From measurements
alone, stochinv trains a conditional diffusion model that samples the posterior of the signal.
"""

import importlib.metadata

from . import (
    data as data,
    diagnostics as diagnostics,
    forward as forward,
    nn as nn,
    plot as plot,
    trackers as trackers,
)
from ._check import Check as Check, Figure as Figure
from ._coordinates import Coordinates as Coordinates
from ._data_info import AbstractUnits as AbstractUnits, DataInfo as DataInfo, Units as Units
from ._denoiser.amortised_gaussian import AmortisedGaussian as AmortisedGaussian
from ._denoiser.back_projection import BackProjection as BackProjection
from ._denoiser.base import (
    AbstractDenoiser as AbstractDenoiser,
    AbstractEncodingDenoiser as AbstractEncodingDenoiser,
    AbstractMixtureDenoiser as AbstractMixtureDenoiser,
    AbstractSignalDenoiser as AbstractSignalDenoiser,
    AbstractStandardisedDenoiser as AbstractStandardisedDenoiser,
)
from ._denoiser.correction import (
    AbstractCorrection as AbstractCorrection,
    ImageCorrection as ImageCorrection,
    VectorCorrection as VectorCorrection,
)
from ._denoiser.flatten import Flatten as Flatten
from ._denoiser.gaussian import GaussianDenoiser as GaussianDenoiser
from ._denoiser.gaussian_residual import GaussianResidual as GaussianResidual
from ._denoiser.guided import GuidedDenoiser as GuidedDenoiser
from ._denoiser.network import (
    AbstractEncoder as AbstractEncoder,
    Features as Features,
    NetworkDenoiser as NetworkDenoiser,
)
from ._denoiser.prediction import PredictionDenoiser as PredictionDenoiser
from ._fit import Fit as Fit
from ._forward.base import (
    AbstractForwardModel as AbstractForwardModel,
    AbstractLinearForwardModel as AbstractLinearForwardModel,
    Composed as Composed,
    ForwardFunction as ForwardFunction,
    MultiView as MultiView,
)
from ._frozen import Frozen as Frozen
from ._load import load as load
from ._noise import (
    AbstractNoise as AbstractNoise,
    GaussianNoise as GaussianNoise,
    NoiseLaw as NoiseLaw,
)
from ._noising import (
    half_middle_log_snr as half_middle_log_snr,
    middle_log_snr as middle_log_snr,
    mostly_noise as mostly_noise,
    pure_noise as pure_noise,
    uniform_log_snr as uniform_log_snr,
    uniform_time as uniform_time,
)
from ._objective.base import AbstractObjective as AbstractObjective
from ._objective.denoising import DenoisingError as DenoisingError
from ._objective.proper_score import ProperScore as ProperScore
from ._objective.rules import (
    AbstractScoringRule as AbstractScoringRule,
    EnergyRule as EnergyRule,
    KernelRule as KernelRule,
    Patches as Patches,
    PerView as PerView,
    Scales as Scales,
    SumOfRules as SumOfRules,
)
from ._objective.squared_error import SquaredError as SquaredError, snr_weight as snr_weight
from ._pairs import Pairs as Pairs
from ._poisson import PoissonNoise as PoissonNoise
from ._poisson_gaussian import PoissonGaussianNoise as PoissonGaussianNoise
from ._posterior import Posterior as Posterior
from ._problem import StochasticInverseProblem as StochasticInverseProblem
from ._sampler.ancestral import Ancestral as Ancestral
from ._sampler.autoregressive import Autoregressive as Autoregressive
from ._sampler.base import (
    AbstractIndependentSampler as AbstractIndependentSampler,
    AbstractSampler as AbstractSampler,
    Sample as Sample,
)
from ._sampler.crank_nicolson import CrankNicolson as CrankNicolson
from ._sampler.exponential_adams import ExponentialAdams as ExponentialAdams
from ._sampler.grid import (
    AbstractTimeGrid as AbstractTimeGrid,
    Karras as Karras,
    UniformLogSNR as UniformLogSNR,
    UniformTime as UniformTime,
)
from ._sampler.guidance import Guidance as Guidance
from ._sampler.importance import ImportanceSampling as ImportanceSampling
from ._sampler.probability_flow import ProbabilityFlow as ProbabilityFlow
from ._sampler.reverse_sde import ReverseSDE as ReverseSDE
from ._schedule import (
    AbstractNoiseSchedule as AbstractNoiseSchedule,
    CosineSchedule as CosineSchedule,
    NoiseLevel as NoiseLevel,
    RectifiedFlow as RectifiedFlow,
    VarianceExploding as VarianceExploding,
    VariancePreserving as VariancePreserving,
)
from ._space import (
    AbstractSpace as AbstractSpace,
    MeasurementSpace as MeasurementSpace,
    SignalSpace as SignalSpace,
)
from ._training.ema import AbstractEMA as AbstractEMA, ExponentialEMA as ExponentialEMA, PowerEMA as PowerEMA
from ._training.history import History as History, Progress as Progress
from ._training.state import State as State, init as init, step as step
from ._view import Example as Example, RandomViews as RandomViews, View as View
from ._whitening import Whitening as Whitening

__version__ = importlib.metadata.version("stochinv")
