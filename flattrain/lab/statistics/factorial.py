"""Effects of a two-by-two design, seed by seed. Cells y[r, c]: rows r and columns c at their low and high
level.

rows         mean over columns of y[high, c] − y[low, c]
columns      mean over rows of y[r, high] − y[r, low]
interaction  (y[high, high] − y[low, high]) − (y[high, low] − y[low, low])
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from flattrain.lab.statistics.interval import Values

Effect = Literal["rows", "columns", "interaction"]
_SIGNS = {
    "rows": [[-0.5, -0.5], [0.5, 0.5]],
    "columns": [[-0.5, 0.5], [-0.5, 0.5]],
    "interaction": [[1.0, -1.0], [-1.0, 1.0]],
}


def effect(cells: Values, of: Effect) -> Values:
    """The effect in each seed, of cells `(2, 2, n)`."""
    return np.asarray(np.einsum("rc,rcn->n", np.array(_SIGNS[of]), cells))
