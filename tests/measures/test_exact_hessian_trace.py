"""The exact trace: against the explicit Hessian, over batches of unequal size."""

from __future__ import annotations

import oracles
import pytest
import torch

from flattrain.core.losses import cross_entropy
from flattrain.measures.exact_hessian_trace import exact_hessian_trace
from flattrain.training.measured import measured


def test_it_is_the_trace_of_the_explicit_hessian():
    net, (x, y) = oracles.small_net(), oracles.data(n=11)
    value, at = oracles.loss_of_vector(net, cross_entropy.mean, x, y)
    wanted = float(torch.func.hessian(value)(at).trace())
    for batches in ([(x, y)], [(x[:3], y[:3]), (x[3:], y[3:])]):
        found = measured(net, cross_entropy, batches, exact_hessian_trace())
        assert float(found.value) == pytest.approx(wanted, rel=1e-12) and found.standard_error == 0
    assert wanted > 0.1
