r"""Where training in signal space starts: the best Gaussian of the measurements, or the best mixture of Gaussians, and
draws of it given each record."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.flatten_util import ravel_pytree

from .._chunks import in_chunks
from .._custom_types import AnyCallable, FloatScalarLike, Key, Signal, Structure
from .._data_info import AbstractUnits, Units, standardise_view
from .._denoiser.evidence import LEAST_NOISE, Form, Measured, as_rows
from .._denoiser.least_squares import is_dear, levenberg_marquardt
from .._denoiser.network import signal_scale
from .._grid import LARGEST_VECTOR, smooth_covariance
from .._mixture import Mixture
from .._noise import is_sized
from .._sampling import LARGEST_CORRECTED
from .._structure import count_entries, zeros_of
from .._view import View, count, take_views, view_mask
from .._whitening import Whitening, whitening
from .gaussian import (
    GAUSSIAN_ROUNDS,
    IMAGE_ROUNDS,
    VECTOR_ROUNDS,
    best_gaussian,
    condition,
    condition_entries,
    condition_few,
    online_gaussian,
    pairwise_gaussian,
)
from .mixture import best_mixture, may_be_mixed
from .records import Records
from .rows import records_as_rows

# The most numbers that the evidence of the records may take from which the Gaussian is found.
LARGEST_EVIDENCE = 2**28
# As many records tell the Gaussian of small signals well enough, or as many as take so many numbers.
ENOUGH_RECORDS, ENOUGH_EVIDENCE = 2048, 2**26
# Up to how many measured entries for each of an image's the Gaussian is found online.
MOST_ROWS = 2
# The least noise, in standard deviations of measurements, that the first draws take measurements to have.
LEAST_NOISE_OF_START = 0.1
# From how many draws of Laplace's approximation the first signal of a record is chosen.
START_PROPOSALS = 16
# From how many other places signals are sought that explain a record, of how many records, how many at once; and from
# which share of records with several such signals on none of them is taken for the answer.
OTHER_STARTS, MOST_ASKED, CHUNK_ASKED, SHARE_OF_SEVERAL = 4, 64, 16, 0.1


class Start(eqx.Module):
    """Where training starts.

    **Arguments:**

    - `coordinates`: the units in which signals are noised.
    - `gaussian`: the coordinates in which the Gaussian is white from which the first signals are drawn given what was
        measured, or `None` to draw them given nothing.
    - `form`: how what is measured is told, see [`stochinv.GaussianResidual`][].
    - `mixture`: the mixture of Gaussians that they are drawn from instead, in these coordinates, or `None`.
    - `range`: the smallest and the largest values of each leaf of the signals, or `None` where they are not known.
    """

    coordinates: AbstractUnits
    gaussian: Whitening | None
    form: Form = eqx.field(static=True)
    mixture: Mixture | None = None
    range: tuple[Signal, Signal] | None = None

    def clip(self, signals: Signal) -> Signal:
        """Signals within their range."""
        return signals if self.range is None else jax.tree.map(jnp.clip, signals, *self.range)


def find_start(
    problem: Any, records: Records, signal: Structure, units: Units, guess: AnyCallable | None, affine: bool, key: Key
) -> Start:
    """The [`Start`][] for a forward model and data.

    **Arguments:**

    - `problem`: the problem.
    - `records`: the training records.
    - `signal`: the structure of a signal.
    - `units`: the units of measurements.
    - `guess`: a callable from a key to a signal, from whose law to start, or `None`.
    - `affine`: whether the forward model is.
    - `key`: a PRNG key.

    **Raises:**

    `ValueError` if the signal is too large for them.
    """
    measured = Measured(problem.forward, problem.noise, units)
    size = count_entries(signal)
    known = affine and problem.noise.every_level
    if size > LARGEST_VECTOR and not known:
        raise ValueError(
            f"`signal` has {size} entries, but signal space takes up to {LARGEST_VECTOR} where `forward` is not "
            "affine or `noise` not Gaussian; deal the views by `roles=RandomViews(...)`, to train in measurement space."
        )
    data = records.views
    params = jax.tree.map(lambda x: x[0, 0], data.params)
    scale = signal_scale(problem.forward, signal, params, units) if known else 1.0
    form: Form = "dense" if affine else "laplace"
    if known and size > LARGEST_VECTOR and _single_entries(measured, signal, scale, data, key):
        form = "diagonal"
    if guess is not None:
        gaussian = gaussian_of(guess, key)
    elif known and records.unknown:
        gaussian = gaussian_of_data(measured, signal, scale, records, form, key)
    elif records.signals is not None:
        gaussian = gaussian_of_signals(records.signals)
    else:
        gaussian = standard_normal(signal)
    if form == "laplace" and _tells_nothing(measured, gaussian, signal, data, key):
        form = "nothing"
    coordinates = _scalar_units(gaussian, signal) if form == "diagonal" else gaussian
    bounds = _range(measured, signal, scale, data) if form == "diagonal" else None
    if not known or guess is not None:
        return Start(coordinates, None, form, None, bounds)
    mixed = may_be_mixed(size, count(data))
    mixture = mixture_of_data(measured, signal, gaussian, records, key) if mixed else None
    return Start(coordinates, gaussian, form, mixture, bounds)


def standard_normal(signal: Structure) -> Whitening:
    """Signals as they are: the start where nothing is known."""
    flat, _ = zeros_of(signal)
    return whitening(flat, jnp.eye(flat.size, dtype=flat.dtype))


def gaussian_of(guess: AnyCallable, key: Key) -> Whitening:
    """The Gaussian with the moments of a law."""

    @jax.jit
    def find(key):
        draws = jax.vmap(lambda k: ravel_pytree(guess(k))[0])(jr.split(key, 4096))
        mean, scale = jnp.mean(draws, 0), jnp.max(jnp.std(draws, 0))
        return whitening(mean / scale, jnp.atleast_2d(jnp.cov((draws - mean) / scale, rowvar=False)), scale)

    return find(key)


@jax.jit
def gaussian_of_signals(signals: Signal) -> Whitening:
    """The Gaussian of known signals: their mean, and their covariance shrunk to a multiple of the identity.

    ??? cite "Source"

        Ledoit and Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices", section 3.2.
    """
    flat = jax.vmap(lambda x: ravel_pytree(x)[0])(signals)
    number, size = flat.shape
    mean, spread = jnp.mean(flat, 0), jnp.sqrt(jnp.mean(jnp.var(flat, 0)))
    spread = jnp.where(spread > 0, spread, 1)
    white = (flat - mean) / spread
    covariance = white.T @ white / number
    # In these units the mean variance is 1, unless nothing varies.
    ball = jnp.eye(size, dtype=flat.dtype)
    distance, norm = jnp.sum((covariance - ball) ** 2), jnp.sum(covariance**2)
    error = (jnp.mean(jnp.sum(white**2, 1) ** 2) - norm) / number
    share = jnp.where((norm > 0) & (distance > error), error / distance, 1)
    return whitening(mean / spread, share * ball + (1 - share) * covariance, spread)


def gaussian_of_data(
    measured: Measured, signal: Structure, scale: float, records: Records, form: Form, key: Key
) -> Whitening:
    """The best Gaussian of measurements through an affine forward model, `scale` being about the signal's size.

    A known signal counts as a measurement of all its entries, with next to no noise; of large ones, what was measured.
    """
    data, unknown = records.views, records.unknown
    flat, unravel = zeros_of(signal)
    number = count(data)
    entries = count_entries(data.observation) // number
    vector = form == "dense" and LARGEST_CORRECTED < flat.size <= LARGEST_VECTOR
    # Known signals are left out online, but not where so many entries are measured.
    bound = MOST_ROWS * flat.size if records.signals is None else flat.size - 1
    online = form == "dense" and flat.size > LARGEST_VECTOR and entries <= bound
    most = number if online else max(256, LARGEST_EVIDENCE // flat.size)
    if form == "dense" and not online:
        most = max(ENOUGH_RECORDS, ENOUGH_EVIDENCE // (flat.size * min(entries, flat.size)))

    @eqx.filter_jit
    def find(measured, scale, data, signals, key):
        sketch = lambda z: unravel(scale * z)

        def evidence(inputs):
            view, known, exact = inputs
            precision, shift = measured.precision(sketch, flat, view)
            sure = jnp.eye(flat.size, dtype=flat.dtype) / LEAST_NOISE**2
            return jnp.where(exact, sure, precision), jnp.where(exact, sure @ known, shift)

        chosen = jr.permutation(key, number)[: min(most, number)]
        views = standardise_view(measured.units, jax.tree.map(lambda x: x[chosen], data))
        if form == "diagonal":
            said = in_chunks(lambda view: _entries(measured, sketch, flat, view), views)
            return pairwise_gaussian(*said)
        if online:
            rows_of = lambda index: jax.vmap(lambda x: measured.rows(sketch, flat, x))(take_views(views, index))
            return online_gaussian(rows_of, number, smooth_covariance(signal), IMAGE_ROUNDS)
        if vector:
            rows, rest = records_as_rows(measured, _scaled(signal, scale), signal, views, signals, chosen - unknown)
            return online_gaussian(
                lambda index: (rows[index], rest[index]), len(rows), smooth_covariance(signal), VECTOR_ROUNDS
            )
        known = jnp.zeros((number, flat.size), flat.dtype)
        if signals is not None:
            known = known.at[unknown:].set(jax.vmap(lambda x: ravel_pytree(x)[0])(signals) / scale)
        precision, shift = in_chunks(evidence, (views, known[chosen], chosen >= unknown))
        return best_gaussian(precision, shift, GAUSSIAN_ROUNDS)

    size = jnp.asarray(scale)
    return jax.jit(whitening)(*find(measured, size, data, records.signals, key), size)


def mixture_of_data(
    measured: Measured, signal: Structure, gaussian: Whitening, records: Records, key: Key
) -> Mixture | None:
    """The best mixture of Gaussians of measurements through an affine forward model, in the coordinates of the best
    Gaussian; `None` where that is no worse.

    A known signal counts as in `gaussian_of_data`.
    """
    index = jnp.arange(count(records.views)) - records.unknown

    @eqx.filter_jit
    def find(measured, gaussian, data, signals):
        views = standardise_view(measured.units, data)
        return records_as_rows(measured, gaussian, signal, views, signals, index)

    rows, rest = find(measured, gaussian, records.views, records.signals)
    return best_mixture(rows, rest, key)


def first_signal(start: Start, measured: Measured, signal: Structure, view: View, key: Key) -> Signal:
    """A draw of the start given what was measured of a record, in raw units."""
    flat, unravel = zeros_of(signal)
    gaussian = start.gaussian
    z_key, noise_key = jr.split(key)
    z = jr.normal(z_key, flat.shape, flat.dtype)
    view = standardise_view(measured.units, view)
    if gaussian is None:
        white = lambda z: start.coordinates.destandardise(unravel(z))
        return white(_draw_by_laplace(measured, white, flat, view, key) if start.form == "laplace" else z)
    white = lambda z: gaussian.destandardise(unravel(z))
    if start.form == "diagonal":
        # In units of one number, in which the covariance is not too large or small to be squared.
        unit = jnp.max(jnp.linalg.norm(gaussian.root, axis=1))
        root = gaussian.root / unit
        sketch = lambda z: unravel(gaussian.mean + unit * z)
        values, shift = _entries(measured, sketch, flat, view)
        noise = jr.normal(noise_key, flat.shape, flat.dtype)
        drawn = condition_entries(root @ root, values, shift, root @ z, noise)
        # What was measured with less noise than was assumed is repeated as well as it was measured.
        known = measured.diagonal(sketch, flat, view)
        share = jnp.where(known.values > values, 1 - values / jnp.where(known.values > 0, known.values, 1), 0)
        exact = known.shift / jnp.where(known.values > 0, known.values, 1)
        return sketch(drawn + share * (exact - drawn))
    if start.mixture is not None:
        rows, rest = as_rows(measured.evidence("dense", white, flat, view), flat.size)
        return white(start.mixture.draw(rows, rest, key))
    if count_entries(view.observation) < flat.size:
        return white(condition_few(*measured.rows(white, flat, view), key))
    return white(condition(*measured.precision(white, flat, view), z))


def _draw_by_laplace(measured, signal, flat, view, key):
    """A draw of a standard normal `z` given views: of Laplace's approximation of its posterior, and chosen among some
    by how likely they make the views."""
    propose_key, choice_key = jr.split(key)
    precision, shift = measured.laplace(signal, flat, view)
    root = jnp.linalg.cholesky(jnp.eye(flat.size, dtype=flat.dtype) + precision)
    noise = jr.normal(propose_key, (START_PROPOSALS, flat.size), flat.dtype)
    centre = jax.scipy.linalg.cho_solve((root, True), shift)
    proposals = centre + jax.vmap(lambda x: jax.scipy.linalg.solve_triangular(root.T, x, lower=False))(noise)
    misfit = jax.vmap(measured.misfit(signal, view))(proposals)
    log_weights = -0.5 * (jnp.sum(misfit**2, (1, 2)) + jnp.sum(proposals**2, 1) - jnp.sum(noise**2, 1))
    log_weights = jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights)
    return proposals[jr.categorical(choice_key, log_weights)]


def _entries(measured, signal, flat, view):
    evidence = measured.diagonal(signal, flat, view, LEAST_NOISE_OF_START)
    return evidence.values, evidence.shift


def _range(measured: Measured, signal: Structure, scale: float, data: View) -> tuple[Signal, Signal]:
    """The smallest and the largest values that were measured of each leaf's entries; infinite where none was."""
    flat, unravel = zeros_of(signal)

    @eqx.filter_jit
    def find(measured, scale, data):
        def one(view):
            view = standardise_view(measured.units, view)
            evidence = measured.diagonal(lambda z: unravel(scale * z), flat, view)
            seen = evidence.values > 0
            value = scale * evidence.shift / jnp.where(seen, evidence.values, 1)
            ends = ((jnp.min, jnp.where(seen, value, jnp.inf)), (jnp.max, jnp.where(seen, value, -jnp.inf)))
            return tuple(jax.tree.map(end, unravel(x)) for end, x in ends)

        return in_chunks(one, data)

    lowest, highest = find(measured, jnp.asarray(scale), data)
    lowest, highest = jax.tree.map(jnp.min, lowest), jax.tree.map(jnp.max, highest)
    # Of a leaf that was never measured both are infinite, the wrong way round.
    return jax.tree.map(jnp.minimum, lowest, highest), jax.tree.map(jnp.maximum, lowest, highest)


def _single_entries(measured: Measured, signal: Structure, scale: float, data: View, key: Key) -> bool:
    """Whether each entry that is measured is one of the signal: then `Λ` is diagonal, and `Λ v = v · Λ 1`.

    It is looked at in the records with the most views.
    """
    flat, unravel = zeros_of(signal)

    @eqx.filter_jit
    def look(measured, scale, views, key):
        misfit = measured.misfit(lambda z: unravel(scale * z), standardise_view(measured.units, views))
        _, linear = jax.linearize(misfit, flat)
        transpose = jax.linear_transpose(linear, flat)
        signs = jr.rademacher(key, flat.shape, flat.dtype)
        diagonal, image = (transpose(linear(x))[0] for x in (jnp.ones_like(flat), signs))
        return jnp.max(jnp.abs(image - signs * diagonal)) < 1e-3 * jnp.max(jnp.abs(diagonal))

    keys = jr.split(key, 2)
    most = jnp.argsort(-jnp.sum(jax.vmap(view_mask)(data), 1))[: len(keys)]
    return bool(jnp.all(jax.lax.map(lambda x: look(measured, jnp.asarray(scale), *x), (take_views(data, most), keys))))


def _tells_nothing(measured: Measured, gaussian: Whitening, signal: Structure, data: View, key: Key) -> bool:
    """Whether the signal that explains a record best does not say what the record tells: it takes too long to find, or
    others far from it explain many records about as well."""
    flat, unravel = zeros_of(signal)
    first = jax.tree.map(lambda x: x[0], data)
    if not is_sized(measured.noise, jax.tree.map(lambda x: x[0], first.observation)):
        return False

    def misfit_of(measured, gaussian, view):
        view = standardise_view(measured.units, view)
        return lambda z: jnp.ravel(measured.misfit(lambda z: gaussian.destandardise(unravel(z)), view)(z))

    if is_dear(misfit_of(measured, gaussian, first), flat):
        return True

    def several(measured, gaussian, view, key):
        misfit = misfit_of(measured, gaussian, view)
        starts = jnp.concatenate([flat[None], 2 * jr.normal(key, (OTHER_STARTS, flat.size), flat.dtype)])
        found, rest, matrix = jax.lax.map(lambda start: levenberg_marquardt(misfit, start), starts)
        cost = jnp.sum(rest**2, 1) + jnp.sum(found**2, 1)
        apart = jnp.sum((matrix[0] @ (found - found[0]).T) ** 2, 0) + jnp.sum((found - found[0]) ** 2, 1)
        # Signals five standard deviations apart, whose probabilities differ by a factor of 20 at most.
        return jnp.any((apart > 25) & (jnp.abs(cost - cost[0]) < 6))

    @eqx.filter_jit
    def ask(measured, gaussian, few, keys):
        return jnp.sum(jax.vmap(lambda *x: several(measured, gaussian, *x))(few, keys))

    # A few at a time: where each has several answers, and the forward model is dear, the first say enough.
    number = min(MOST_ASKED, count(data))
    chunk = min(CHUNK_ASKED, number)
    number -= number % chunk
    keys, found = jr.split(key, number), 0
    for start in range(0, number, chunk):
        part = slice(start, start + chunk)
        found += int(ask(measured, gaussian, jax.tree.map(lambda x, part=part: x[part], data), keys[part]))
        if found > SHARE_OF_SEVERAL * number:
            return True
    return False


def _scalar_units(gaussian: Whitening, signal: Structure) -> Units:
    """One mean and one standard deviation for each leaf of a signal."""
    _, unravel = zeros_of(signal)
    mean = jax.tree.map(jnp.mean, unravel(gaussian.mean))
    variance = jax.tree.map(
        lambda x, v: jnp.var(x) + jnp.mean(v), *(unravel(x) for x in (gaussian.mean, jnp.sum(gaussian.root**2, 1)))
    )
    return Units(mean, jax.tree.map(jnp.sqrt, variance))


def _scaled(signal: Structure, scale: FloatScalarLike) -> Units:
    """Signals in units of a number."""
    leaves = jax.tree.map(lambda x: jnp.zeros((), x.dtype), signal)
    return Units(leaves, jax.tree.map(lambda x: x + scale, leaves))
