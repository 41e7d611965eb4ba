r"""The law of the signals that rounds have drawn, where the forward model is not affine.

Measurements alone do not tell it in closed form there, but the signals drawn last do: before the long last round the
best mixture of Gaussians of them, where it is better than one Gaussian, becomes the law that the network corrects. What
the network alone is to tell of narrow or separate modes is then little.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from .._custom_types import Key, Signal
from .._denoiser.evidence import LEAST_NOISE
from .._mixture import MOST_COMPONENTS, Mixture
from .._sampler.guidance import guides
from .._sampling import corrects_rounds
from .._structure import count_entries, zeros_of
from .gaussian_start import gaussian_of_signals
from .mixture import best_mixture, fit_mixture, may_be_mixed

_mixture_of = lambda problem: problem.denoiser.mixture.value


def room_for_law(problem: Any, number: int) -> Any:
    """A problem whose denoiser has room for a mixture, of no components so far, where one may be found.

    **Arguments:**

    - `problem`: a prepared problem of signals.
    - `number`: how many records there are whose signals are drawn once each.
    """
    size = count_entries(problem.signal)
    if not (corrects_rounds(problem) and guides(problem.denoiser) and may_be_mixed(size, number)):
        return problem
    return problem if _mixture_of(problem) is not None else _put(problem, _empty(zeros_of(problem.signal)[0]))


def no_law(problem: Any) -> Mixture | None:
    """No components of any weight, as many as there may be; `None` where a denoiser has no room for them."""
    roomy = guides(problem.denoiser) and corrects_rounds(problem) and _mixture_of(problem) is not None
    return _filled(_empty(zeros_of(problem.signal)[0])) if roomy else None


def find_law(problem: Any, signals: Signal, key: Key) -> Mixture:
    """The best mixture of signals in raw units, in the coordinates of a problem's denoiser, filled up as `no_law`."""
    gaussian, coordinates = gaussian_of_signals(signals), problem.denoiser.coordinates
    rest = jax.vmap(lambda x: ravel_pytree(gaussian.standardise(x))[0])(signals) / LEAST_NOISE
    rows = jnp.broadcast_to(jnp.eye(rest.shape[1], dtype=rest.dtype) / LEAST_NOISE, (*rest.shape, rest.shape[1]))
    found = best_mixture(rows, rest, key)
    if found is None:
        return _filled(_empty(rest[0]))
    found = fit_mixture(rows, rest, jnp.arange(len(rest)), found)[0]
    turn = coordinates.inverse @ gaussian.root
    means = found.means @ turn.T + coordinates.inverse @ (gaussian.mean - coordinates.mean)
    roots = turn @ found.vectors * jnp.sqrt(found.variances)[:, None]
    values, vectors = jnp.linalg.eigh(roots @ jnp.swapaxes(roots, 1, 2))
    return _filled(Mixture(found.log_weights, means, vectors, jnp.maximum(values, 1e-12)))


def with_law(problem: Any, found: Mixture | None) -> Any:
    """A problem whose denoiser corrects the mixture that was found, if any was."""
    number = 0 if found is None else int(jnp.sum(jnp.isfinite(found.log_weights)))
    return problem if not number else _put(problem, jax.tree.map(lambda x: x[:number], found))


def told(user: Any, trained: Any, info: Any) -> Any:
    """The user's problem with the denoiser that was trained for it, and what is known of signals."""
    if guides(trained.denoiser) and _mixture_of(trained) is not None:
        mixture = _mixture_of(trained)
        mixture = mixture if mixture.log_weights.size else None
        trained, info = _put(trained, mixture), dataclasses.replace(info, mixture=mixture)
    return dataclasses.replace(user, denoiser=trained.denoiser, data_info=info)


def _put(problem, mixture):
    is_mixture = lambda x: x is None or x is _mixture_of(problem)
    return eqx.tree_at(_mixture_of, problem, mixture, is_leaf=is_mixture)


def _empty(flat):
    shapes = (0,), (0, flat.size), (0, flat.size, flat.size), (0, flat.size)
    return Mixture(*(jnp.zeros(shape, flat.dtype) for shape in shapes))


def _filled(mixture):
    """With as many components as there may be: what a checkpoint holds is of one shape."""
    more = lambda x, value: jnp.concatenate([x, jnp.full((MOST_COMPONENTS - len(x), *x.shape[1:]), value, x.dtype)])
    logs, *rest = mixture.log_weights, mixture.means, mixture.vectors, mixture.variances
    return Mixture(more(logs, -jnp.inf), *(more(x, 0) for x in rest))
