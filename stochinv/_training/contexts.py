r"""The contexts that a denoiser of signals is trained with."""

from typing import Any

from .._pairs import SimulatedContext
from .._sampling import LARGEST_CORRECTED
from .._structure import count_entries

# How often nothing is given: more often where draws are weighted by the density of the prior, whose modes have the
# right share only where the denoiser is right at every noise level.
SHARE_OF_PRIOR, SHARE_OF_WEIGHTED_PRIOR = 0.1, 0.3


# Made where a program is traced, of a problem that is its argument: constants of the data would be compiled into it.
def simulated_context(problem: Any) -> SimulatedContext:
    """What makes contexts for a problem of signals."""
    share = SHARE_OF_WEIGHTED_PRIOR if count_entries(problem.signal) <= LARGEST_CORRECTED else SHARE_OF_PRIOR
    return SimulatedContext(problem.measure, problem.measurement_noise, share)
