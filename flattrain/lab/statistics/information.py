"""Conditional mutual information of signs (Jiang et al. 2020, arXiv 1912.02178).

For an ordered pair of runs let V_x and V_y be the signs of their differences in x and in y, and U_S the
values that the two have on the axes in S. Then

    K(x, y) = min over S, |S| ≤ 2, of I(V_x; V_y | U_S) / H(V_y | U_S),

0 where x says nothing about the order in y once two axes are known, 1 where it settles it. Pairs are of
runs of one seed; the frequencies are over all pairs and seeds. The plug-in value is biased upwards by few
pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from flattrain.lab.statistics.granulated import Setting
from flattrain.lab.statistics.interval import Values

MOST = 2


def conditional_information(x: Values, y: Values, settings: Sequence[Setting], axes: Sequence[str]) -> Values:
    """The normalised information of x and y `(P, n)` for every set of at most two axes; K is the smallest."""
    return np.array([normalised_information(x, y, settings, chosen) for chosen in _subsets(axes)])


def normalised_information(x: Values, y: Values, settings: Sequence[Setting], given: Sequence[str]) -> float:
    """I(V_x; V_y | U)/H(V_y | U) of one conditioning set; 0 where nothing is left to know about V_y."""
    first, second = (~np.eye(len(settings), dtype=bool)).nonzero()
    v_x = np.sign(x[first] - x[second]).astype(int) + 1
    v_y = np.sign(y[first] - y[second]).astype(int) + 1
    cells = {u: k for k, u in enumerate(dict.fromkeys(_both(settings, given)))}
    code = np.array(
        [cells[_at(settings[i], given), _at(settings[j], given)] for i, j in _pairs(first, second)]
    )
    counts = np.zeros((len(cells), 3, 3))
    np.add.at(counts, (np.broadcast_to(code[:, None], v_x.shape), v_x, v_y), 1.0)
    left = _entropy(counts.sum(1)) - _entropy(counts.sum((1, 2)))
    joint = _entropy(counts) - _entropy(counts.sum(2))
    return float(max(0.0, 1 - joint / left)) if left > 1e-12 else 0.0


def _subsets(axes: Sequence[str]) -> Iterable[tuple[str, ...]]:
    return (chosen for size in range(MOST + 1) for chosen in combinations(axes, size))


def _pairs(first: NDArray[np.int64], second: NDArray[np.int64]) -> Iterable[tuple[int, int]]:
    return zip(first.tolist(), second.tolist(), strict=True)


def _at(setting: Setting, given: Sequence[str]) -> tuple[str, ...]:
    return tuple(setting.get(axis, "") for axis in given)


def _both(
    settings: Sequence[Setting], given: Sequence[str]
) -> Iterable[tuple[tuple[str, ...], tuple[str, ...]]]:
    return ((_at(a, given), _at(b, given)) for a in settings for b in settings)


def _entropy(counts: Values) -> float:
    """−Σ p log p of a table of counts."""
    p = counts[counts > 0] / counts.sum()
    return float(-np.sum(p * np.log(p)))
