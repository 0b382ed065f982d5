"""The ball of Wen et al.: uniform, its target, prefixes."""

from __future__ import annotations

import pytest
import torch

from flattrain.problems.ball import ball
from flattrain.ranges import Refused


def test_points_fill_the_ball_uniformly():
    split = ball(dim=10, train=4000, test=10)(0)
    radius = split.train_x.double().norm(dim=1) / 10**0.5
    # (‖x‖/√d)ᵈ is uniform on [0, 1]: its mean is known to 1/√(12 n), and so is that of every coordinate
    inside = radius.pow(10)
    assert inside.max() <= 1 and abs(inside.mean() - 0.5) < 4 / (12 * 4000) ** 0.5
    # E x_k² = 1/(d + 2) of a unit ball
    assert (split.train_x.square().mean(0) / (10 / 12) - 1).abs().max() < 0.1
    x = split.train_x
    assert torch.equal(split.train_y, x[:, 0].abs() - x[:, 1].abs())


def test_a_smaller_set_is_a_prefix_and_the_test_set_stays():
    small, large = ball(dim=10, train=70, test=5)(3), ball(dim=10, train=200, test=5)(3)
    assert torch.equal(small.train_x, large.train_x[:70]) and torch.equal(small.test_x, large.test_x)
    assert not torch.equal(small.train_x, ball(dim=10, train=70, test=5)(4).train_x)
    with pytest.raises(Refused, match="dim must be >= 2"):
        ball(dim=1)
