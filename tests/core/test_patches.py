"""The patches' second moment from autocorrelations against F.unfold."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flattrain.core.patches import has_autocorrelation, patch_moment

CASES = [(3, 1), (3, 0), (5, 2), (5, 1), (1, 0), ((3, 2), (1, 1)), (3, 2), (4, 1)]


@pytest.mark.parametrize(("kernel", "padding"), CASES)
def test_moment_and_gradient_are_those_of_unfolded_patches(kernel, padding):
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, kernel, padding=padding)
    assert has_autocorrelation(layer)
    x = torch.randn(3, 2, 6, 5, requires_grad=True)
    rows = F.unfold(x, layer.kernel_size, padding=layer.padding).transpose(1, 2).flatten(0, 1)
    rows = torch.cat([rows, torch.ones(len(rows), 1)], 1)
    weight = torch.randn(rows.shape[1], rows.shape[1])
    wanted = rows.T @ rows
    for ones in (0, 1):
        mine, positions = patch_moment(layer, x, ones)
        part = wanted if ones else wanted[:-1, :-1]
        torch.testing.assert_close(mine, part, rtol=1e-11, atol=1e-11)
        assert positions * 3 == len(rows)
        w = weight if ones else weight[:-1, :-1]
        (a,) = torch.autograd.grad((mine * w).sum(), x)
        (b,) = torch.autograd.grad((part * w).sum(), x, retain_graph=True)
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_other_convolutions_are_left_to_patches():
    for settings in ({"stride": 2}, {"dilation": 2}, {"groups": 2}, {"padding": "same"}):
        assert not has_autocorrelation(nn.Conv2d(2, 4, 3, **settings))
    assert not has_autocorrelation(nn.Conv1d(2, 4, 3)) and not has_autocorrelation(nn.Linear(2, 2))
