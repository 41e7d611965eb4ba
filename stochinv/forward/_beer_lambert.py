from typing import final

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .._checks import check_arrays, is_traced, shown
from .._custom_types import Params, Structure
from .._forward.base import AbstractForwardModel


@final
class BeerLambert(AbstractForwardModel):
    """The photons that are expected behind an absorber: `photons · exp(−line integral)`. It takes no parameters.

    After a tomography, with [`stochinv.PoissonNoise`][], it is one with a low dose:

    ```python
    problem = si.StochasticInverseProblem(
        si.Composed(si.forward.ParallelBeam((32, 32)), si.forward.BeerLambert(1000.0)),
        noise=si.PoissonNoise(),
        signal=jax.ShapeDtypeStruct((32, 32), jnp.float32),
    )
    data = si.View(counts, (angles, None))
    ```

    The signal then is the attenuation per width of a pixel.

    **Arguments:**

    - `photons`: how many are expected where nothing absorbs, positive: a number, or an array that broadcasts against
        the line integrals, such as one number for each bin.

    **Raises:**

    `ValueError` if `photons` is not positive and finite.

    ??? cite "Source"

        Kak & Slaney 1988, "Principles of computerized tomographic imaging", section 4.1.
    """

    photons: ArrayLike

    def __check_init__(self) -> None:
        if is_traced(self.photons):
            return
        check_arrays("photons", self.photons)
        if not np.all(np.isfinite(self.photons)) or not np.all(np.asarray(self.photons) > 0):
            raise ValueError(
                f"BeerLambert: `photons` must be positive and finite, got {shown(self.photons)}; give the expected "
                "counts where nothing absorbs."
            )

    def __call__(self, signal: Float[Array, "..."], params: Params) -> Float[Array, "..."]:
        return jnp.asarray(self.photons, signal.dtype) * jnp.exp(-signal)

    def signal_structure(self, observation: Structure, params: Params) -> Structure:
        """The structure of the measurement, which is that of the line integrals."""
        return observation
