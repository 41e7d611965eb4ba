from typing import Any

from .ancestral import Ancestral
from .base import AbstractSampler
from .exponential_adams import ExponentialAdams


def default_sampler(problem: Any) -> AbstractSampler:
    """The sampler that suits what an objective trains: bridges of exact draws, or few steps of the ODE."""
    if callable(problem.noise):
        return Ancestral(1)
    return Ancestral() if problem.objective.stochastic else ExponentialAdams()
