"""Posteriors that are learned from measurements alone are as near to the truth as the library claims.

The problems, their references and their bars are those of `benchmarks/posterior_accuracy.py`, trained as there.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import posterior_accuracy
from signal_case import Sizes


@pytest.mark.guarantee
@pytest.mark.parametrize("name", ["pendulum", "jumps", "spectra", "concentrations"])
def test_posteriors_meet_their_bars(name):
    """A nonlinear solver, many dimensions, counts, and a bent posterior."""
    result = posterior_accuracy.run(name, Sizes(quick=False, seed=0))
    posterior_accuracy.print_table([result])
    missed = [
        f"{x['measured']} is {x['value']:.4g}, but should lie between {x['bar'][0]:g} and {x['bar'][1]:g}"
        for x in result["figures"]
        if not x["met"]
    ]
    assert not missed, f"{name}: {'; '.join(missed)} ({result['history']})"
