r"""Training records from a NumPyro model.

A model that draws a signal, parameters and noise, and *returns* the measurements, is a simulator. The signals that it
drew stay with the caller, for checks: `fit` sees the measurements alone.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from .._custom_types import AnyCallable, Key
from .._lazy import numpyro
from .._view import Example, View


def simulate(
    model: AnyCallable, *model_args: Any, key: Key, num_records: int, return_sites: bool = False
) -> View | Example | tuple[View | Example, dict[str, Any]]:
    """Simulates training records with a NumPyro model.

    **Arguments:**

    - `model`: a NumPyro model that returns one record in raw units: a [`stochinv.View`][] that stacks several views
        along the leading axis of all its leaves, or an [`stochinv.Example`][]. It is run seeded, under `jax.vmap` and
        `jax.jit`.
    - `model_args`: what it is called with, the same for all records.
    - `key`: a PRNG key; the same one gives the same records.
    - `num_records`: how many, at least 1.
    - `return_sites`: whether to return the latent and the deterministic sites of the model too, for checks.

    **Returns:**

    The records, with a leading record axis on every leaf, as `fit` takes them; with `return_sites` a pair of the
    records and a dictionary from the name of a site to its values, with the same leading axis.

    **Raises:**

    `ValueError` if the model returns anything else, or if the views of a record do not share one views axis.
    """
    if num_records < 1:
        raise ValueError(f"`num_records` must be at least 1, got {num_records}.")
    records, sites = _simulate(model, model_args, jr.split(key, num_records))
    return (records, sites) if return_sites else records


@eqx.filter_jit
def _simulate(model, model_args, keys):
    def draw(key):
        with numpyro.handlers.trace() as trace, numpyro.handlers.seed(rng_seed=key):
            record = model(*model_args)
        _check_record(record)
        return jax.tree.map(jnp.asarray, (record, _unobserved(trace)))

    return jax.vmap(draw)(keys)


def _unobserved(trace):
    """The values of the latent and the deterministic sites of a NumPyro trace."""
    latent = lambda site: site["type"] == "sample" and not site["is_observed"]
    return {name: site["value"] for name, site in trace.items() if latent(site) or site["type"] == "deterministic"}


def _check_record(record):
    if isinstance(record, Example):
        return
    if not isinstance(record, View):
        raise ValueError(
            f"`model` must return a `stochinv.View` of several views or a `stochinv.Example`, got a value of type "
            f"`{type(record).__name__}`; put the measurements and their parameters into `View(observation, params)`."
        )
    shapes = [jnp.shape(x) for x in jax.tree.leaves((record.observation, record.params))]
    if not shapes or any(len(shape) == 0 for shape in shapes) or len({shape[0] for shape in shapes}) > 1:
        raise ValueError(
            "The `View` that `model` returns must stack its views along the leading axis of all leaves of "
            f"`observation` and `params`, got leaves of shapes {shapes}; give each leaf that "
            "axis, or return an `Example`."
        )
