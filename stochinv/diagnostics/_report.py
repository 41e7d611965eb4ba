r"""A report of whether posteriors can be trusted, that anyone can read."""

import dataclasses
import math
import os
from pathlib import Path
from typing import Any, final

import jax
import jax.numpy as jnp
import jax.random as jr

from .._check import as_held_out
from .._checks import check_instance, check_key, check_path
from .._custom_types import Key
from .._pairs import Pairs
from .._problem import StochasticInverseProblem
from .._training.records import as_masked, check_pairs, check_same_signal
from .._view import View, structure
from ._findings import Findings, Test, judge
from ._held_out import look
from ._joint import JointCalibration
from ._report_page import page
from ._report_pictures import pictures
from ._residuals import PredictiveResiduals

# The fewest draws of a posterior that ranks are told of.
FEWEST_DRAWS = 8


@final
@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """Whether posteriors can be trusted: a page for readers, and its figures for scripts.

    **Arguments:**

    - `html`: one page with everything in it, pictures included.
    - `figures`: what it says, of dictionaries, lists, strings and numbers alone, as for JSON; `None` for what is not
        known. `verdict` is one sentence, `passed` whether all tests together find nothing wrong at level 5 %, and
        `warnings` are sentences.
    """

    html: str
    figures: dict[str, Any]

    def __repr__(self) -> str:
        lines = [self.figures["verdict"], *(f"Warning: {x}" for x in self.figures["warnings"])]
        return "\n".join(["Report:", *(f"  {x}" for x in lines)])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the page.

        **Arguments:**

        - `path`: the file, by custom one that ends in `.html`; an existing one is replaced.
        """
        check_path("`path`", path)
        Path(path).write_text(self.html, encoding="utf-8")


def report(problem: StochasticInverseProblem, held_out: View | Pairs, *, key: Key, num_samples: int = 32) -> Report:
    """Tests posteriors on held-out records, in signal space, and writes down what was found in plain words.

    Of every record one measurement is held out at random, and predicted from the others; from nothing, if it is the
    only one. Draws given all measurements of a record are compared with these, and with the signal where it is known.
    All tests make one decision at level 5 %; warnings tell of records unlike those of training, of a forward model that
    is not the data's, and of too few records.

    **Arguments:**

    - `problem`: a trained problem, such as `fit.problem`.
    - `held_out`: records that training has not seen, like those of training and independent of them and of each other,
        at least 8: a [`stochinv.View`][] with leading (record, views) axes, or [`stochinv.Pairs`][] of these and their
        signals.
    - `key`: a PRNG key.
    - `num_samples`: how many draws there are of each posterior, at least 8.

    **Returns:**

    A [`stochinv.diagnostics.Report`][].

    **Raises:**

    `ValueError` in measurement space, for which there is [`stochinv.diagnostics.measurement_calibration`][], and for
    records that are not like those of training; `ImportError` without Matplotlib.
    """
    check_instance("`problem`", problem, StochasticInverseProblem, "a trained problem, such as `fit.problem`")
    check_instance("`held_out`", held_out, View | Pairs, "a `View` with leading (record, views) axes, or `Pairs`")
    check_key(key)
    view, signals = _as_records(problem, held_out)
    views = as_masked(as_held_out("report", problem, view, num_samples, FEWEST_DRAWS))
    look_key, judge_key = jr.split(key)
    found = look(problem.noised, views, signals, num_samples, look_key)
    findings = judge(found, judge_key)
    return Report(page(findings, pictures(found, findings)), _figures(findings))


def _as_records(problem, held_out):
    """The measurements, and the signals or `None`."""
    if isinstance(held_out, View):
        return held_out, None
    check_pairs("held_out", held_out, problem, 1)
    check_same_signal(structure(jax.tree.map(lambda x: x[0], held_out.signal)), problem.signal)
    problem.coordinates.check("held_out.signal", held_out.signal)
    return held_out.view, problem.coordinates.from_signal(jax.tree.map(jnp.asarray, held_out.signal))


def _figures(findings: Findings) -> dict[str, Any]:
    """All findings as what JSON can hold."""
    shares = lambda known: None if known is None else [x._asdict() for x in known]
    return {
        "verdict": findings.verdict,
        "passed": not any(x.wrong for x in findings.tests.values()),
        "warnings": findings.warnings,
        "records": findings.records,
        "draws": findings.draws,
        "tests": {name: _test(x) for name, x in findings.tests.items()},
        "predictions": _joint(findings.predictions),
        "signals": None if findings.signals is None else _joint(findings.signals),
        "residuals": None if findings.residuals is None else _residuals(findings.residuals),
        "coverage": shares(findings.coverage),
        "signal_coverage": shares(findings.signal_coverage),
        "effective": findings.effective,
        "unusual_records": findings.unusual,
        "unusual_p_value": findings.unusual_p_value,
    }


def _test(test: Test) -> dict[str, Any]:
    return test._asdict() | {"wrong": test.wrong, "found": test.found if test.wrong else None}


def _joint(found: JointCalibration) -> dict[str, Any]:
    numbers = {"bias": found.bias, "spread": found.spread, "missed": found.missed}
    return {"p_value": found.p_value, "p_values": found.p_values} | numbers


def _residuals(found: PredictiveResiduals) -> dict[str, Any]:
    known = None if math.isnan(found.correlation) else found.correlation
    p_values = {"size": found.size_p_value, "offset": found.offset_p_value}
    if known is not None:
        p_values["correlation"] = found.correlation_p_value
    return {"rms": found.rms, "rms_error": found.rms_error, "correlation": known, "p_values": p_values}
