r"""Saved problems: one file with the arrays that training determined, and the rest of the configuration as data."""

import importlib.metadata
import os
from typing import Any, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from ._archive import read_archive, write_archive
from ._checks import check_path
from ._coordinates import Coordinates, RealForward, told_support
from ._custom_types import summary
from ._data_info import DataInfo, Units, Witness, describe as shapes
from ._denoiser.base import encode
from ._denoiser.evidence import Form
from ._describe import describe, differences, rebuild
from ._frozen import Frozen, owned_arrays
from ._mixture import MOST_COMPONENTS, Mixture
from ._noise import AbstractNoise, GaussianNoise
from ._noising import middle_log_snr, mostly_noise, pure_noise, uniform_log_snr, uniform_time
from ._objective.base import AbstractObjective
from ._objective.proper_score import ProperScore
from ._objective.rules import EnergyRule, KernelRule, Patches, PerView, Scales, SumOfRules
from ._objective.squared_error import SquaredError, snr_weight, unit_weight
from ._poisson import PoissonNoise
from ._poisson_gaussian import PoissonGaussianNoise
from ._problem_base import AbstractProblem, trained_denoiser
from ._schedule import (
    AbstractNoiseSchedule,
    CosineSchedule,
    NoiseLevel,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
)
from ._space import AbstractSpace, MeasurementSpace, SignalSpace
from ._structure import count_entries, decode_structure, encode_structure, is_opaque, named_leaves, same_structure
from ._view import View, structure
from ._whitening import Whitening
from .forward import Camera, Rays, Rendering, TriPlaneField, VoxelField
from .nn import signal_denoiser

# What a file may name; nothing else is ever looked up, and all of it is cheap and without side effects.
KINDS = {
    kind.__name__: kind
    for kind in (
        *(CosineSchedule, RectifiedFlow, VarianceExploding, VariancePreserving),
        *(GaussianNoise, PoissonNoise, PoissonGaussianNoise),
        *(SignalSpace, MeasurementSpace),
        *(SquaredError, ProperScore, EnergyRule, KernelRule, PerView, Patches, Scales, SumOfRules),
        *(snr_weight, unit_weight, uniform_time, uniform_log_snr, middle_log_snr, pure_noise, mostly_noise),
    )
}
CONTAINERS = {kind.__name__: kind for kind in (View, Camera, Rays, Rendering, TriPlaneField, VoxelField)}
PARTS = {
    "schedule": AbstractNoiseSchedule,
    "objective": AbstractObjective,
    "noise": AbstractNoise,
    "space": AbstractSpace | None,
}


def save(problem: Any, path: str | os.PathLike[str]):
    """Writes a trained problem, see [`stochinv.StochasticInverseProblem.save`][]."""
    check_path("`path`", path)
    denoiser = trained_denoiser(problem)
    arrays = _named(eqx.filter(denoiser, owned_arrays(denoiser)), "denoiser")
    numbers = {name: x for name, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.inexact)}
    bad = [name for name, x in numbers.items() if not bool(jnp.all(jnp.isfinite(x)))]
    if bad:
        raise ValueError(
            f"`denoiser` has NaN or infinite parameters ({bad[0]}), which are not worth saving; train it anew."
        )
    info = problem.data_info
    content = {name: describe(getattr(problem, name), KINDS) for name in PARTS}
    content |= {"stochinv": importlib.metadata.version("stochinv"), "denoiser": _without_arrays(denoiser)}
    content["signal"] = encode_structure(problem.signal, CONTAINERS)
    content["support"] = told_support(problem.support)
    content["data_info"] = None
    if info is not None:
        kept = {
            name: encode_structure(getattr(info, name), CONTAINERS) for name in ("observation", "params", "context")
        }
        content["data_info"] = kept | {
            "affine": info.affine,
            "witness": info.witness is not None,
            "form": info.form,
            "components": 0 if info.mixture is None else info.mixture.log_weights.size,
        }
        arrays |= _units(info)
        if info.witness is not None:
            arrays |= _named(info.witness.params, "params") | {"witness": info.witness.values}
    write_archive(path, content, arrays)


def _units(info: Any) -> dict[str, Any]:
    """The arrays of the units, by their names."""
    units, arrays = info.units, {}
    if info.form == "diagonal":
        arrays = _named(info.units.mean, "signal_mean") | _named(info.units.std, "signal_std")
    elif info.form is not None:
        arrays = {"signal_mean": info.units.mean, "root": info.units.root, "inverse": info.units.inverse}
    if info.mixture is not None:
        arrays |= _named(info.mixture, "mixture")
    units = units if info.form is None else info.context_units
    return arrays | _named(units.mean, "mean") | _named(units.std, "std")


def read(
    path: str | os.PathLike[str], problem: AbstractProblem, given: dict[str, Any], make_denoiser: Any
) -> dict[str, Any]:
    """The parts of a saved problem, by the names of its fields.

    **Arguments:**

    - `path`: the file.
    - `problem`: what the caller says of the problem, its forward model above all.
    - `given`: those of its parts, by name, that the caller gave and did not leave to the file.
    - `make_denoiser`: makes the denoiser from forward model, signal and [`stochinv.DataInfo`][], where none is
        given.

    **Raises:**

    `ValueError` if the file is damaged, was written by another kind of problem, or contradicts what is given.
    """
    check_path("`path`", path)
    content, arrays = read_archive(path)
    path = os.fspath(path)
    try:
        return _Reader(path, content, arrays).parts(problem, given, make_denoiser)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"`path`: {path} is not a saved problem, or is damaged ({type(error).__name__}); use another copy."
        ) from error


class _Reader:
    """A file that was read, and the arrays of it that are not yet used."""

    def __init__(self, path: str, content: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        self._path, self._content, self._arrays = path, content, arrays

    def parts(self, problem, given, make_denoiser):
        """The fields of the saved problem."""
        found = {name: self._part(name, getattr(problem, name), name in given) for name in PARTS}
        signal = decode_structure(self._content["signal"], CONTAINERS, name="signal")
        if problem.signal is not None:
            if signal is not None and not same_structure(signal, problem.signal):
                self._refuse([f"`signal` is {shapes(signal)} in the file and {shapes(problem.signal)} here"])
            signal = problem.signal
        support = told_support(problem.support)
        if support != self._content["support"]:
            self._refuse([f"`support` is {self._content['support']} in the file and {support} here"])
        info = None if self._content["data_info"] is None else self._data_info(self._content["data_info"])
        forward, parts = problem.forward, signal
        if info is not None:
            if info.form is not None:
                coordinates = Coordinates(signal, problem.support)
                forward, parts = RealForward(problem.forward, coordinates), coordinates.structure()
            self._check_forward(forward, parts, info)
        denoiser = problem.denoiser
        if denoiser is None:
            if info is None:
                raise ValueError(f"`path`: {self._path} does not say what its denoiser was made for; give `denoiser=`.")
            # The arrays are overwritten; making them costs less than a second way to make a denoiser.
            key = jr.key(0)
            if info.form is None:
                denoiser = make_denoiser(forward, parts, info, key=key)
            else:
                denoiser = signal_denoiser(forward, parts, info, noise=found["noise"], key=key)
        different = differences(self._content["denoiser"], _without_arrays(denoiser), "denoiser")
        if different:
            self._refuse(different)
        owned, rest = eqx.partition(denoiser, owned_arrays(denoiser))
        denoiser = eqx.combine(self._fill(owned, "denoiser"), rest)
        if self._arrays:
            self._refuse([f"{next(iter(self._arrays))} is in the file and missing here"])
        if info is not None:
            self._check_denoiser(denoiser, parts, info)
        return found | {"signal": signal, "support": problem.support, "data_info": info, "denoiser": denoiser}

    def _check_forward(self, forward, signal, info):
        """Whether the forward model is the one that the problem was trained with.

        Containers of the user's own are known by their names alone, and cannot be given to it.
        """
        one = info.measurement
        if signal is None or is_opaque((signal, one.params)):
            return
        try:
            measured = eqx.filter_eval_shape(forward, signal, one.params)
            agrees = same_structure(measured, one.observation)
            agrees = agrees and (info.witness is None or info.witness.agrees(forward, signal))
        except Exception as error:
            raise ValueError(
                f"`forward` fails on the signal {shapes(signal)} of {self._path} ({summary(error)}); give the forward "
                "model that the problem was trained with."
            ) from error
        if not agrees:
            self._refuse(["`forward` measures a fixed signal otherwise than that of the file"])

    def _check_denoiser(self, denoiser, signal, info):
        """Whether the denoiser makes signals of what the file says of its arguments."""
        arguments = (info.observation, info.context, info.params)
        if signal is None or is_opaque(arguments):
            return
        like = jax.tree.leaves(info.observation)[0].dtype
        level = NoiseLevel(jnp.ones((), like), jnp.ones((), like))
        call = lambda noisy, context, params: denoiser(noisy, level, encode(denoiser, context), params, key=None)
        try:
            agrees = same_structure(eqx.filter_eval_shape(call, *arguments), signal)
        except Exception as error:
            raise ValueError(
                f"`path`: {self._path} has a denoiser that fails on what it says of its data ({summary(error)}); use "
                "another copy."
            ) from error
        if not agrees:
            self._refuse(["`denoiser` makes other signals than that of the file"])

    def _part(self, name, here, given):
        if not given:
            part = rebuild(self._content[name], KINDS, name)
            if not isinstance(part, PARTS[name]):
                raise ValueError(f"`path`: {self._path} has a `{name}` that is none; use another copy.")
            return part
        different = differences(self._content[name], describe(here, KINDS), name)
        if different:
            self._refuse(different)
        return here

    def _data_info(self, content):
        observation, params, context = (
            decode_structure(content[x], CONTAINERS, name=x) for x in ("observation", "params", "context")
        )
        affine, kept, form = content["affine"], content["witness"], content["form"]
        if not all(x is True or x is False for x in (affine, kept)):
            raise ValueError(f"`path`: {self._path} has no truth value where there must be one; use another copy.")
        if type(content["components"]) is not int or not 0 <= content["components"] <= MOST_COMPONENTS:
            raise ValueError(f"`path`: {self._path} has no number of components of a mixture; use another copy.")
        if form not in (None, *get_args(Form)):
            raise ValueError(f"`path`: {self._path} tells evidence in a form that there is not; use another copy.")
        one = View(observation, params)
        if form is not None:
            one = DataInfo(observation, params, context, Units(), affine, None, Units(), form).measurement
        units = self._scalar_units(one.observation, "")
        seen = Witness(self._fill(one.params, "params"), self._take("witness")) if kept else None
        if form is None:
            return DataInfo(observation, params, context, units, affine, seen)
        diagonal = form == "diagonal"
        coordinates = self._scalar_units(observation, "signal_") if diagonal else self._whitening(observation)
        mixture = self._mixture(content["components"], observation)
        return DataInfo(observation, params, context, coordinates, affine, seen, units, form, mixture)

    def _scalar_units(self, like, prefix):
        """One mean and one standard deviation for each leaf of `like`."""
        scalars = jax.tree.map(lambda x: jax.ShapeDtypeStruct((), x.dtype), like)
        units = Units(self._fill(scalars, prefix + "mean"), self._fill(scalars, prefix + "std"))
        values = jax.tree.leaves((units.mean, units.std))
        if not all(bool(jnp.isfinite(x)) for x in values) or any(bool(x <= 0) for x in jax.tree.leaves(units.std)):
            raise ValueError(f"`path`: {self._path} has a mean or standard deviation out of range; use another copy.")
        return units

    def _whitening(self, signal):
        """The coordinates in which a signal is noised."""
        size, dtype = count_entries(signal), jnp.result_type(*jax.tree.leaves(signal))
        vector, matrix = jax.ShapeDtypeStruct((size,), dtype), jax.ShapeDtypeStruct((size, size), dtype)
        return Whitening(
            *(self._fill(x, n) for x, n in ((vector, "signal_mean"), (matrix, "root"), (matrix, "inverse")))
        )

    def _mixture(self, components, signal):
        """The mixture of Gaussians that signals are like, if there is one."""
        if not components:
            return None
        size, dtype = count_entries(signal), jnp.result_type(*jax.tree.leaves(signal))
        of = lambda *shape: jax.ShapeDtypeStruct((components, *shape), dtype)
        shapes = {"log_weights": of(), "means": of(size), "vectors": of(size, size), "variances": of(size)}
        mixture = Mixture(**{name: self._fill(shape, f"mixture.{name}") for name, shape in shapes.items()})
        if not bool(jnp.all(mixture.variances > 0)):
            raise ValueError(f"`path`: {self._path} has a mixture whose variances are not positive; use another copy.")
        return mixture

    def _take(self, name):
        return jnp.asarray(self._arrays.pop(name))

    def _fill(self, tree, prefix):
        """`tree` with each leaf replaced by the stored array of its name."""

        def replace(name, leaf):
            kind = (leaf.shape, jnp.dtype(leaf.dtype))
            got = self._arrays.get(name)
            if got is None or (got.shape, got.dtype) != kind:
                found = "nothing" if got is None else f"{got.dtype}{list(got.shape)}"
                self._refuse([f"{name} is {found} in the file and {kind[1].name}{list(kind[0])} here"])
            x = self._take(name)
            if jnp.issubdtype(x.dtype, jnp.inexact) and not bool(jnp.all(jnp.isfinite(x))):
                raise ValueError(f"`path`: {self._path} has NaN or infinite values in {name}; use another copy.")
            return x

        leaves, treedef = jax.tree.flatten(tree)
        names = [prefix + path for path in named_leaves(tree)]
        return treedef.unflatten([replace(name, leaf) for name, leaf in zip(names, leaves, strict=True)])

    def _refuse(self, different):
        raise ValueError(
            f"`path`: {self._path} is of another problem: {'; '.join(different)}; load it with what it "
            "was trained with."
        )


def _named(tree, prefix):
    return dict(zip([prefix + path for path in named_leaves(tree)], jax.tree.leaves(tree), strict=True))


def _without_arrays(denoiser):
    """The description of a denoiser, structures in the place of its arrays and nothing in that of frozen parts."""
    is_frozen = lambda x: isinstance(x, Frozen)
    bare = jax.tree.map(lambda x: None if is_frozen(x) else x, denoiser, is_leaf=is_frozen)
    return describe(jax.tree.map(lambda x: structure(x) if eqx.is_array(x) else x, bare), KINDS)
