"""The face of per-example SAM; its exactness is tested with `core.ghost_sam`."""

from __future__ import annotations

import oracles
import pytest
import torch
from torch.nn import functional as F

from flattrain.optim import per_example_sam
from flattrain.ranges import Refused
from flattrain.rules.sam import m_sam
from flattrain.training.objective import build
from flattrain.types import Batch


def test_its_gradient_is_that_of_the_rule():
    from flattrain.core.losses import cross_entropy

    net, (x, y) = oracles.small_net(), oracles.data()
    per_example_sam(net, F.cross_entropy, x, y, rho=0.3).backward()
    params = {k: p.detach() for k, p in net.named_parameters()}
    wanted, _ = m_sam(rho=0.3, m=1)(build(net, cross_entropy, []).gradient())(params, Batch(x, y))
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.grad, wanted[name], rtol=1e-10, atol=1e-13)


def test_refusals():
    net, (x, y) = oracles.small_net(), oracles.data()
    with pytest.raises(Refused, match="rho must be a number >= 0, got -1"):
        per_example_sam(net, F.cross_entropy, x, y, rho=-1)
