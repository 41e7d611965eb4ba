r"""A network that corrects the exact denoiser of a Gaussian signal, or of a mixture of Gaussians.

With what a context says of a Gaussian signal, `Λ` and `b` (see `evidence`), and the noised signal `z_t = α z + σ ε`

`P = I + Λ + (α²/σ²) I`,  `E[z | z_t, c] = g = P⁻¹ (b + (α/σ²) z_t)`,

if `z` is Gaussian. The denoised signal is `g + P^(−1/2) r` with the network's output `r`, whose last layer starts at
zero: an untrained network is the Gaussian's exact answer, and errors `P^(1/2) (ẑ − z)` have size 1 at all noise levels,
given any context. What is measured well is repeated, whatever the network. Errors of whitened images count as they are
seen in pixels: `W (ẑ − z)`, over the root mean square that those of a Gaussian image have.

For a mixture of Gaussians (see `_mixture`) `g` is its mean given both, and all else stays.

A network that has learned some signals by heart does worse on others than none. `r` is multiplied by a factor between 0
and 1 for each noise level, with which it does best on signals that it was not trained on.
"""

from typing import final

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from .._custom_types import AnyCallable, Context, Key, Observation, Params, PyTree, Signal, Structure
from .._data_info import AbstractUnits
from .._forward.base import AbstractForwardModel
from .._frozen import Found, Frozen
from .._mixture import Mixture
from .._noise import AbstractNoise, is_sized
from .._schedule import NoiseLevel
from .._structure import zeros_of
from .._view import View
from .base import AbstractSignalDenoiser
from .correction import AbstractCorrection
from .evidence import AbstractEvidence, Form, Measured, as_rows, nothing

# At how many noise levels it is found by how much a network's correction is to be shrunk.
NUM_LEVELS = 9


@final
class GaussianResidual(AbstractSignalDenoiser):
    """The exact denoiser of a Gaussian signal, or of a mixture of Gaussians, corrected by a network.

    For a signal of `n` entries and `m` entries measured, a context costs some `m² n + 10 m³` operations and `n m`
    numbers where `m < n`, and otherwise `n² m + 10 n³` operations and `n²` numbers; where each measures one entry of
    the signal alone, `n` of each. A forward model that is not affine is linearised where Gauss-Newton steps find the
    most likely signal. Noise of unknown size leaves `Λ` and `b` at zero, as the form `"nothing"` does: then the network
    alone says what the context says.

    **Arguments:**

    - `coordinates`: those in which the signal is noised.
    - `signal`: the `jax.ShapeDtypeStruct`s of a signal.
    - `forward`, `noise`, `units`: the forward model, the noise, and the units of measurements.
    - `form`: `"diagonal"` where each entry measured is one of the signal, `"dense"` for any affine forward model,
        `"laplace"` for others, and `"nothing"` for those whose measurements several signals explain alike.
    - `network`: a [`stochinv.VectorCorrection`][] or a [`stochinv.ImageCorrection`][].
    - `embedding`: a callable from the log-SNR to a vector.
    - `mixture`: the law of signals in these coordinates if it is a mixture of Gaussians, for signals of few entries.
    """

    known: Frozen
    mixture: Frozen
    signal: Structure
    form: Form = eqx.field(static=True)
    network: AbstractCorrection
    embedding: AnyCallable
    shrinkage: Found

    def __init__(
        self,
        coordinates: AbstractUnits,
        signal: Structure,
        forward: AbstractForwardModel,
        noise: AbstractNoise,
        units: AbstractUnits,
        *,
        form: Form,
        network: AbstractCorrection,
        embedding: AnyCallable,
        mixture: Mixture | None = None,
    ) -> None:
        self.mixture = Frozen(mixture)
        self.known = Frozen((coordinates, Measured(forward, noise, units)))
        self.signal = signal
        self.form = form
        self.network = network
        self.embedding = embedding
        self.shrinkage = Found((jnp.arange(NUM_LEVELS, dtype=float), jnp.ones(NUM_LEVELS)))

    @property
    def coordinates(self) -> AbstractUnits:
        """Those in which the signal is noised."""
        return self.known.value[0]

    def _signal(self, flat):
        """The signal in raw units behind raveled coordinates."""
        return self.coordinates.destandardise(zeros_of(self.signal)[1](flat))

    def encode(self, context: Context) -> PyTree:
        _, measured = self.known.value
        if not is_sized(measured.noise, jax.tree.map(lambda x: x[0], context.observation)):
            return nothing(context, zeros_of(self.signal)[0])
        return self.evidence(measured, self.form, context)

    def evidence(self, measured: Measured, form: Form, views: View) -> AbstractEvidence:
        """What views by any instrument say of a Gaussian signal, their measurements in that instrument's units."""
        return measured.evidence(form, self._signal, zeros_of(self.signal)[0], views, self.network.weights)

    def encode_again(self, context: PyTree, view: View) -> PyTree:
        """What `encode` makes of measurements that differ from those of `context` in their values alone, for an affine
        forward model and noise whose size does not depend on these."""
        return context.update(view, self.known.value[1].shift(self._signal, zeros_of(self.signal)[0], view))

    def _estimate(self, noisy, level, context):
        """`g`, the mean of the signal given its noised version and the context."""
        mixture, ratio = self.mixture.value, level.alpha / level.sigma
        if mixture is None or not mixture.log_weights.size:
            return context.estimate(1 + ratio**2, ratio / level.sigma * noisy)
        return mixture.noised(noisy / level.alpha, 1 / ratio**2).measured(*as_rows(context, noisy.size)).mean

    def _residual(self, noisy, level, context):
        """`g`, the scalar part of `P`, and `r`."""
        precision = 1 + (level.alpha / level.sigma) ** 2
        estimate = self._estimate(noisy, level, context)
        given = context.estimate(jnp.ones_like(precision), jnp.zeros_like(noisy))
        spread = lambda p: 0.5 * jnp.log(context.diagonal(lambda values: 1 / (p + values)))
        size = jnp.sqrt(level.alpha**2 + level.sigma**2)
        parts = jnp.stack([noisy / size, estimate, spread(precision), given, spread(jnp.ones_like(precision))])
        return estimate, precision, self.network(parts, context, self.embedding(level.log_snr))

    def __call__(
        self, noisy: Observation, level: NoiseLevel, context: Context, params: Params, *, key: Key | None = None
    ) -> Signal:
        estimate, precision, output = self._residual(ravel_pytree(noisy)[0], level, context)
        output = jnp.interp(level.log_snr, *self.shrinkage.value).astype(output.dtype) * output
        return self._signal(estimate + context.apply(lambda values: 1 / jnp.sqrt(precision + values), output))

    def normalised_error(
        self, noisy: Observation, level: NoiseLevel, context: PyTree, clean: Observation
    ) -> Float[Array, " n"]:
        """That of the network's full correction, as it is trained."""
        output, needed = self.corrections(noisy, level, context, clean)
        return output - needed

    def corrections(
        self, noisy: Observation, level: NoiseLevel, context: PyTree, clean: Observation
    ) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
        """The network's correction, and the one that would make the clean signal, as errors are weighed; the arguments
        are those of `normalised_error`."""
        estimate, precision, output = self._residual(ravel_pytree(noisy)[0], level, context)
        needed = context.apply(lambda values: jnp.sqrt(precision + values), ravel_pytree(clean)[0] - estimate)
        weigh = lambda error: self.network.weigh(error, context, jnp.asarray(precision))
        return weigh(output), weigh(needed)
