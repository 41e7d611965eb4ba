"""Pictures of posteriors, of training and of calibration, as Matplotlib figures."""

from ._calibration import calibration as calibration
from ._entries import corner as corner, recovery as recovery
from ._history import history as history
from ._images import images as images
from ._predicted import predicted as predicted
