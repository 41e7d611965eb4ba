"""Whether samples have the law they should have: distances, calibration, identifiability."""

from ._calibration import Calibration as Calibration, sbc_ranks as sbc_ranks, tarp as tarp
from ._distances import (
    c2st as c2st,
    energy_distance as energy_distance,
    sliced_wasserstein as sliced_wasserstein,
)
from ._identifiability import (
    Identifiability as Identifiability,
    SpreadSplit as SpreadSplit,
    identifiability as identifiability,
)
from ._measurement import (
    MeasurementCalibration as MeasurementCalibration,
    measurement_calibration as measurement_calibration,
)
from ._reference import ReferencePosterior as ReferencePosterior, reference_posterior as reference_posterior
from ._reweighting import ReweightedPosterior as ReweightedPosterior, reweighted_posterior as reweighted_posterior
from ._scores import crps as crps, energy_score as energy_score, fractional_ranks as fractional_ranks
