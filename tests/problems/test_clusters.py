"""Labels that are those of the clusters, or vary inside of them with a frequency."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from flattrain.problems.clusters import clusters


def test_at_frequency_zero_labels_are_locally_constant():
    split = clusters(frequency=0, train=4000, test=10, spread=6.0)(0)
    near = torch.cdist(split.train_x, split.train_x).fill_diagonal_(torch.inf).argmin(1)
    assert torch.equal(split.train_y, split.train_y[near])
    assert set(split.train_y.tolist()) == {0, 1} and split.outputs == 2


@pytest.mark.parametrize("nu", [0.4, 1.0, 3.0])
def test_the_share_of_the_other_class_is_that_of_the_bands(nu):
    still, turned = (clusters(frequency=f, train=20_000, test=10)(1) for f in (0.0, nu))
    assert torch.equal(still.train_x, turned.train_x) and torch.equal(still.test_x, turned.test_x)
    found = float((still.train_y != turned.train_y).double().mean())
    wanted = 2 * sum((-1) ** j * stats.norm.sf((j + 0.5) / nu) for j in range(200))
    assert abs(found - wanted) < 4 * (wanted * (1 - wanted) / 20_000) ** 0.5


def test_bands_lie_across_one_direction_of_each_cluster():
    still, turned = (clusters(frequency=f, train=20_000, test=10, count=1, dim=3)(2) for f in (0.0, 0.5))
    other = still.train_y != turned.train_y
    centred = still.train_x - still.train_x.mean(0)
    along = torch.linalg.eigh(torch.cov(centred[other].T).double())[1][:, -1]  # where the far points lie
    t = centred.double() @ along
    wrong = (t.abs() > 1) != other  # |t| > 1/(2ν); the centre and the direction are those of the sample
    assert wrong.double().mean() < 0.03


def test_seeds_and_parts_are_independent():
    one, two = clusters()(0), clusters()(1)
    assert not torch.equal(one.train_x, two.train_x)
    assert not torch.equal(one.train_x, one.test_x[: len(one.train_x)])
    assert one.train_x.shape == (200, 10) and one.test_x.shape == (2000, 10)
