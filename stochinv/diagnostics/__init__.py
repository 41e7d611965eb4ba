"""Whether samples have the law they should have: distances, calibration, identifiability."""

from .._pareto import pareto_k as pareto_k
from .._ranks import fractional_ranks as fractional_ranks
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
from ._joint import JointCalibration as JointCalibration, joint_calibration as joint_calibration
from ._local_c2st import LocalC2ST as LocalC2ST, local_c2st as local_c2st
from ._measurement import (
    MeasurementCalibration as MeasurementCalibration,
    measurement_calibration as measurement_calibration,
)
from ._pqmass import PQMass as PQMass, pqmass as pqmass
from ._reference import ReferencePosterior as ReferencePosterior, reference_posterior as reference_posterior
from ._report import Report as Report, report as report
from ._residuals import PredictiveResiduals as PredictiveResiduals, predictive_residuals as predictive_residuals
from ._reweighting import ReweightedPosterior as ReweightedPosterior, reweighted_posterior as reweighted_posterior
from ._scores import crps as crps, energy_score as energy_score
from ._two_sample import TwoSampleTest as TwoSampleTest, two_sample_test as two_sample_test
