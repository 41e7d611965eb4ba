r"""Problems from files."""

import os
from typing import Any

from ._custom_types import AnyCallable, PyTree
from ._denoiser.base import AbstractDenoiser
from ._forward.base import AbstractForwardModel
from ._noise import AbstractNoise
from ._objective.base import AbstractObjective
from ._problem import StochasticInverseProblem
from ._save import read
from ._schedule import AbstractNoiseSchedule
from ._space import AbstractSpace
from .nn import default_denoiser


def load(
    path: str | os.PathLike[str],
    forward: AbstractForwardModel | AnyCallable,
    denoiser: AbstractDenoiser | AnyCallable | None = None,
    *,
    space: AbstractSpace | None = None,
    schedule: AbstractNoiseSchedule | None = None,
    objective: AbstractObjective | None = None,
    noise: AbstractNoise | AnyCallable | PyTree = None,
    signal: PyTree = None,
    support: PyTree = None,
) -> StochasticInverseProblem:
    """The problem that was trained and saved.

    Everything but the forward model is in the file, unless it is code of the user's: a denoiser that was given to the
    problem, an objective with a function of one's own, noise by NumPyro, and constraints. Those have to be given again.
    What is given is compared with the file, the forward model by a measurement of a signal that is always the same.

    A file is data: nothing in it is looked up by its name, called or unpickled, whoever made it.

    **Arguments:**

    - `path`: a file written by `save`.
    - `forward`: the forward model that the problem was trained with.
    - `denoiser`: one like the trained denoiser, whose arrays are replaced; `None` if `fit` made it.
    - `space`, `schedule`, `objective`, `noise`, `signal`: as in [`stochinv.StochasticInverseProblem`][]; `None`
        takes that of the file.
    - `support`: that of the problem.

    **Returns:**

    The trained problem.

    **Raises:**

    `ValueError` if the file is damaged, if it differs from what is given, or if it needs something that is not given;
    `FileNotFoundError` if it is missing.
    """
    options: dict[str, Any] = {"space": space, "schedule": schedule, "objective": objective, "noise": noise}
    given = {name: x for name, x in options.items() if x is not None}
    problem = StochasticInverseProblem(forward, denoiser, signal=signal, support=support, **given)
    parts = read(path, problem, given, default_denoiser)
    return StochasticInverseProblem(forward, **parts)
