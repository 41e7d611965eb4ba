r"""The contexts that a denoiser of signals is trained with."""

from typing import Any

from .._pairs import SimulatedContext

# How often nothing is given: more often where several signals explain a measurement alike, as the density of the prior
# then tells them apart, and has the right share of each only where the denoiser is right at every noise level.
SHARE_OF_PRIOR, SHARE_OF_PRIOR_WITH_MODES = 0.1, 0.3


# Made where a program is traced, of a problem that is its argument: constants of the data would be compiled into it.
def simulated_context(problem: Any) -> SimulatedContext:
    """What makes contexts for a problem of signals."""
    info = problem.data_info
    share = SHARE_OF_PRIOR_WITH_MODES if info is not None and info.form == "nothing" else SHARE_OF_PRIOR
    return SimulatedContext(problem.measure, problem.measurement_noise, share)
