r"""The result of a fit."""

from dataclasses import dataclass
from typing import Any

from ._check import Check, check
from ._custom_types import Key
from ._training.history import History
from ._view import View


@dataclass(frozen=True, repr=False)
class Fit:
    """The result of a `fit`.

    **Arguments:**

    - `problem`: the trained [`stochinv.StochasticInverseProblem`][]; its denoiser is the average over training.
    - `history`: the [`stochinv.History`][] of the training.
    """

    problem: Any
    history: History

    def __repr__(self) -> str:
        return f"Fit({self.history!r},\n{self.problem!r})"

    def check(self, held_out: View, *, key: Key | None = None, num_samples: int = 32) -> Check:
        """Compares posteriors with measurements that training has not seen, in signal space.

        Of every record one view is held out at random, and predicted from the others; from nothing, if it is the only
        one. Draws given all views of a record are compared with these.

        **Arguments:**

        - `held_out`: records like those of training, at least 8, with leading (record, views) axes.
        - `key`: a PRNG key; `None` for one that is always the same.
        - `num_samples`: how many predictions each unseen view is compared with.

        **Returns:**

        A [`stochinv.Check`][], which prints as a table and a verdict.

        **Raises:**

        `ValueError` in measurement space, for which there is [`stochinv.diagnostics.measurement_calibration`][], and
        for records that are not like those of training.
        """
        return check(self.problem, held_out, key, num_samples)
