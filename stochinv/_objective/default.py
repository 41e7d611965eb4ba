r"""The objective of a problem that names none."""

from typing import Any

from .base import AbstractObjective
from .proper_score import ProperScore


def as_objective(objective: Any) -> AbstractObjective:
    """The objective that a user gave; `ProperScore()` for `None`, which is right for every forward model.

    **Raises:**

    `ValueError` if it is none, or a class.
    """
    if objective is None:
        return ProperScore()
    if isinstance(objective, AbstractObjective):
        return objective
    if isinstance(objective, type):
        raise ValueError(f"`objective` is the class {objective.__name__}; give an instance, `{objective.__name__}()`.")
    raise ValueError(f"`objective` must be an objective such as `ProperScore()`, or None, got {objective!r}.")
