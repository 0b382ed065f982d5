"""Descent on the ascended loss: against the derivative of that loss, written out, and against SAM."""

from __future__ import annotations

import pytest
import torch
from explicit import Explicit, close, far

from flattrain.rules.ascended_loss import ascended_loss
from flattrain.rules.sam import sam


@pytest.mark.parametrize("rho", [0.1, 0.3])
def test_it_is_the_gradient_of_the_ascended_loss(rho):
    it = Explicit()

    def ascended(vector):
        g = it.gradient(vector)
        return it.value(vector + rho * g / g.norm())

    mine, wanted = it.ruled(ascended_loss(rho=rho)), torch.func.grad(ascended)(it.at)
    close(mine, wanted)
    far(it.ruled(sam(rho=rho)), wanted)


def test_it_agrees_with_finite_differences():
    it, rho, h = Explicit(), 0.2, 1e-5
    direction = torch.randn(it.at.shape, generator=torch.Generator().manual_seed(3))

    def ascended(vector):
        g = it.gradient(vector)
        return it.value(vector + rho * g / g.norm())

    slope = (ascended(it.at + h * direction) - ascended(it.at - h * direction)) / (2 * h)
    assert float(it.ruled(ascended_loss(rho=rho)) @ direction) == pytest.approx(float(slope), rel=1e-7)


def test_without_a_radius_or_a_gradient_it_is_the_gradient():
    it = Explicit()
    assert torch.equal(it.ruled(ascended_loss(rho=0)), it.ruled(sam(rho=0)))

    def flat(params, batch):
        return {"w": 2 * params["w"]}, {}

    found, _ = ascended_loss(rho=0.1)(flat)({"w": torch.zeros(3)}, it.batch())
    assert torch.equal(found["w"], torch.zeros(3))
