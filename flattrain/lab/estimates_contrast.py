"""The test of a claim that weighs several arms against one another: an effect among more than four."""

from __future__ import annotations

from typing import Any

import numpy as np

from flattrain.lab.results import Table
from flattrain.lab.selection import Void, values
from flattrain.lab.statistics.interval import Interval
from flattrain.lab.statistics.mean import mean


def contrast(spec: dict[str, Any], table: Table, level: float) -> Interval:
    """Σ weight · quantity over the arms in each seed, the mean over seeds."""
    arms = spec["weights"]
    found = [values(table, spec["quantity"], arm, spec.get("at"), spec) for arm in arms]
    if len({len(each) for each in found}) > 1:
        raise Void("the arms do not have the same seeds")
    return mean(np.array(list(arms.values())) @ np.array(found), level)
