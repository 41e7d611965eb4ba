from typing import Any, final

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from .._custom_types import Key
from .._noising import numbered_key


@final
class FixedStepBrownianPath(dfx.AbstractBrownianPath):
    """Brownian increments over consecutive fixed steps.

    It has the law of `diffrax.UnsafeBrownianPath`, and its restrictions, with one call of the random number generator
    per increment or Lévy area instead of two to four: on a CPU each takes about as long as a small layer.

    **Arguments:**

    - `shape`: the `jax.ShapeDtypeStruct` of the path, a vector.
    - `key`: a PRNG key.
    - `levy_area`: the diffrax class of increments that the solver asks for.
    """

    shape: jax.ShapeDtypeStruct = eqx.field(static=True)
    key: Key
    levy_area: type = eqx.field(static=True)

    @property
    def t0(self):
        return -jnp.inf

    @property
    def t1(self):
        return jnp.inf

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True, use_levy: bool = False) -> Any:
        """Implements `diffrax.AbstractBrownianPath.evaluate` for two times."""
        if t1 is None:
            raise ValueError("FixedStepBrownianPath: only increments can be had, give `t1`.")
        dt = jnp.asarray(t1 - t0).astype(self.shape.dtype)
        bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(jnp.asarray(t0)), jnp.uint32)
        if bits.ndim:  # double precision is two words
            bits = bits[0] ^ (bits[1] * jnp.uint32(2654435761))
        kinds = (dfx.BrownianIncrement, dfx.SpaceTimeLevyArea, dfx.SpaceTimeTimeLevyArea)
        # Not one draw of all: XLA on CPU takes three times as long for it.
        keys = jr.split(self.key, 1 + kinds.index(self.levy_area))
        draws = [jr.normal(numbered_key(key, bits), self.shape.shape, self.shape.dtype) for key in keys]
        # The variances of the increment and of its space-time(-time) Lévy areas: h, h/12, h/720.
        parts = [jnp.sqrt(dt / x) * draw for x, draw in zip((1, 12, 720), draws, strict=False)]
        return self.levy_area(dt, *parts) if use_levy else parts[0]
