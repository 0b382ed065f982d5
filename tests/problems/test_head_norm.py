"""A head whose norm is held, or capped, after every step of training."""

from __future__ import annotations

import pytest
import torch

from flattrain.core.probes import stream
from flattrain.problems.digits import digits
from flattrain.problems.networks import mlp
from flattrain.ranges import Refused


def after(model, factor):
    split = digits(train=20, test=10)(0)
    net = model.build(split)
    params = model.start(net, split, stream(0, "start"))
    free = {**params, "head.weight": factor * params["head.weight"]}
    return params, free, model.project(net, free)


def test_a_held_norm_is_that_norm_from_the_start():
    params, free, held = after(mlp(widths=(8,), head_norm=5.0), 3.0)
    for tree in (params, held):
        assert float(tree["head.weight"].norm()) == pytest.approx(5, rel=1e-6)
    torch.testing.assert_close(held["head.weight"] * 3, free["head.weight"])
    assert all(torch.equal(held[k], free[k]) for k in free if k != "head.weight")


def test_a_cap_leaves_what_is_below_it():
    _, free, capped = after(mlp(widths=(8,), head_norm_at_most=4.0), 0.5)
    assert torch.equal(capped["head.weight"], free["head.weight"])
    _, free, capped = after(mlp(widths=(8,), head_norm_at_most=4.0), 100.0)
    assert float(capped["head.weight"].norm()) == pytest.approx(4, rel=1e-6)
    torch.testing.assert_close(capped["head.weight"] / 4, free["head.weight"] / free["head.weight"].norm())


def test_both_at_once_are_refused():
    with pytest.raises(Refused, match="not both"):
        mlp(head_norm=1.0, head_norm_at_most=2.0)
