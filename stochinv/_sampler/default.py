from .._objective.base import AbstractObjective
from .ancestral import Ancestral
from .base import AbstractSampler
from .exponential_adams import ExponentialAdams


def default_sampler(objective: AbstractObjective) -> AbstractSampler:
    """The sampler that suits what an objective trains: bridges of exact draws, or few steps of the ODE."""
    return Ancestral() if objective.stochastic else ExponentialAdams()
