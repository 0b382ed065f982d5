"""Gram matrices, their diagonals and eigenvalues: values, two derivatives, repeated eigenvalues, vmap."""

from __future__ import annotations

import pytest
import torch

from flattrain.core.gram import gram_eigenvalues, gram_matrix, squared_rows


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (2, 3, 4)])
def test_eigenvalues_and_two_derivatives(shape):
    torch.manual_seed(0)
    x = torch.randn(shape, requires_grad=True)
    wanted = torch.linalg.svdvals(x.detach()).square().flip(-1)
    found = gram_eigenvalues(x)
    torch.testing.assert_close(found[..., -wanted.shape[-1] :].detach(), wanted, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gram_eigenvalues(x.detach()), found.detach(), rtol=1e-12, atol=1e-14)
    assert torch.all(found >= 0)
    assert torch.autograd.gradcheck(gram_eigenvalues, x)
    if shape[-2] <= shape[-1]:  # repeated eigenvalues have no second derivatives
        assert torch.autograd.gradgradcheck(
            lambda x: (gram_eigenvalues(x) / (gram_eigenvalues(x) + 0.3)).sum(), x
        )


def test_gradient_at_repeated_and_vanishing_eigenvalues():
    x = torch.zeros(4, 6)
    x[:3, :3] = torch.eye(3)
    x.requires_grad_()
    (found,) = torch.autograd.grad((gram_eigenvalues(x) / (gram_eigenvalues(x) + 0.5)).sum(), x)
    torch.testing.assert_close(found, x.detach() * 2 * 0.5 / 1.5**2, rtol=1e-12, atol=1e-14)


def test_single_precision_rows_have_eigenvalues_in_double():
    torch.manual_seed(0)
    x = torch.randn(3, 5, dtype=torch.float32, requires_grad=True)
    found = gram_eigenvalues(x)
    assert found.dtype == torch.float64
    (gradient,) = torch.autograd.grad(found.log().sum(), x)
    wanted = 2 * torch.linalg.pinv(x.detach().double()).T  # of log det X Xᵀ
    torch.testing.assert_close(gradient, wanted.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("quantity", [gram_eigenvalues, gram_matrix, squared_rows])
def test_under_vmap_in_both_orders(quantity):
    torch.manual_seed(0)
    x, weight = torch.randn(3, 4, 6), torch.randn(3, 1)

    def value(x, w):
        return (quantity(w * x) * torch.arange(4.0)).sum()

    alone = torch.stack([torch.func.grad(value)(part, w) for part, w in zip(x, weight, strict=True)])
    together = torch.func.vmap(torch.func.grad(value))(x, weight)
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)
    summed = torch.func.grad(lambda x: torch.func.vmap(value)(x, weight).sum())(x)
    torch.testing.assert_close(summed, alone, rtol=1e-10, atol=1e-12)
