"""What is resampled: a statistic is a function of which seeds are looked at, so that what belongs to a seed
stays together. Paired differences stay paired, the runs of a sweep stay clustered.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Seeds = NDArray[np.int64]
Statistic = Callable[[Seeds], float]
