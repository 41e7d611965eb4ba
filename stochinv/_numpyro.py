r"""A posterior as NumPyro distributions.

NumPyro wants events that are arrays, and distributions that are PyTrees of arrays: events are raveled, and what is no
array in a posterior (functions, settings, shapes) goes into the static part of the PyTree.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from ._log_prob import sample_measurement


class _Static:
    """In the place of an array among the static leaves of a PyTree."""


def _is_array(x):
    return eqx.is_array(x) or isinstance(x, np.ndarray | np.generic)


class RaveledDistribution(dist.Distribution):
    """The raveled draws of something whose draws are PyTrees: `owner`, with one `struct` per draw."""

    support: Any = dist.constraints.real_vector
    pytree_data_fields = ("arrays",)
    pytree_aux_fields = ("static", "struct")

    def __init__(self, owner: Any, struct: Any, *, validate_args: bool | None = None) -> None:
        leaves, treedef = jax.tree.flatten(owner)
        self.arrays = [x for x in leaves if _is_array(x)]
        self.static = (treedef, tuple(_Static if _is_array(x) else x for x in leaves))
        leaves, treedef = jax.tree.flatten(struct)
        self.struct = (treedef, tuple((x.shape, x.dtype) for x in leaves))
        size = sum(x.size for x in leaves)
        super().__init__(event_shape=(size,), validate_args=validate_args)

    @property
    def owner(self) -> Any:
        """What is drawn from, put together again."""
        treedef, static = self.static
        arrays = iter(self.arrays)
        return treedef.unflatten([next(arrays) if x is _Static else x for x in static])

    def unravel(self, flat: Any) -> Any:
        """The PyTree behind a vector, or behind an array of vectors along its last axis."""
        treedef, struct = self.struct
        leaves, start = [], 0
        for shape, dtype in struct:
            end = start + int(np.prod(shape))
            leaves.append(flat[..., start:end].reshape(flat.shape[:-1] + shape).astype(dtype))
            start = end
        return treedef.unflatten(leaves)

    def ravel(self, tree: Any, sample_shape: tuple[int, ...]) -> Any:
        """The inverse of `unravel`, for leaves with the leading axes `sample_shape`."""
        return jnp.concatenate([x.reshape((*sample_shape, -1)) for x in jax.tree.leaves(tree)], -1)


class SignalDistribution(RaveledDistribution):
    """The law of the signal: it can be sampled, and has no density."""

    def sample(self, key, sample_shape=()):
        return self.ravel(self.owner.sample(key, sample_shape), sample_shape)

    def log_prob(self, value, intermediates=None):
        raise NotImplementedError(
            "This posterior is known by its samples and has no `log_prob`, so MCMC cannot run on it; "
            "draw from it with `numpyro.infer.Predictive` or `sample`. The law of a measurement has a density: "
            'see `Posterior.to_numpyro("observation")`.'
        )


class DensityDistribution(RaveledDistribution):
    """The law of what is noised, with its density; `owner` is a posterior, a key for `log_prob`, and its options."""

    def sample(self, key: Any, sample_shape=()):
        posterior, draws_key, options = self.owner
        shared = {name: options[name] for name in options if name != "num_probes"}

        def draw(key: Any):
            return sample_measurement(
                posterior.problem, posterior.context, posterior.params, key=key, draws_key=draws_key, **shared
            )

        if not sample_shape:
            return self.ravel(draw(key), ())
        draws = jax.vmap(draw)(jax.random.split(key, int(np.prod(sample_shape))))
        draws = jax.tree.map(lambda x: x.reshape(sample_shape + x.shape[1:]), draws)
        return self.ravel(draws, sample_shape)

    def log_prob(self, value, intermediates=None):
        posterior, key, options = self.owner
        log_prob = lambda flat: posterior.log_prob(self.unravel(flat), key=key, **options)
        value = jnp.asarray(value)
        if value.ndim == 1:
            return log_prob(value)
        return jax.vmap(log_prob)(value.reshape(-1, value.shape[-1])).reshape(value.shape[:-1])
