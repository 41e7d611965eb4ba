r"""The objective of a problem that names none."""

from typing import Any

from .._checks import check_instance, plain
from .base import AbstractObjective
from .proper_score import ProperScore


def as_objective(objective: Any) -> AbstractObjective:
    """The objective that a user gave; `ProperScore()` for `None`, which is right for every forward model.

    **Raises:**

    `ValueError` if it is none, or a class.
    """
    if objective is None:
        return ProperScore()
    check_instance("`objective`", objective, AbstractObjective, "an objective such as `ProperScore()`, or None")
    return plain(objective)
