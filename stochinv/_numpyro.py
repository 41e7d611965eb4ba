r"""A posterior as a NumPyro distribution."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist


class SampledDistribution(dist.Distribution):
    """A distribution over raveled signals that can be sampled, and has no density."""

    support: Any = dist.constraints.real_vector
    pytree_data_fields = ("posterior",)
    pytree_aux_fields = ("unravel",)

    def __init__(self, posterior: Any, size: int, unravel: Any, *, validate_args: bool | None = None):
        self.posterior = posterior
        self.unravel = unravel
        super().__init__(event_shape=(size,), validate_args=validate_args)

    def sample(self, key, sample_shape=()):
        signals = self.posterior.sample(key, sample_shape)
        flat = [x.reshape(sample_shape + (-1,)) for x in jax.tree.leaves(signals)]
        return jnp.concatenate(flat, -1)

    def log_prob(self, value, intermediates=None):
        raise NotImplementedError(
            "This posterior is known by its samples and has no `log_prob`, so MCMC cannot run on it; "
            "draw from it with `numpyro.infer.Predictive` or `sample`."
        )
