"""Concave penalties of a Gram matrix against its spectrum: values, first and second derivatives."""

from __future__ import annotations

import pytest
import torch

from flattrain.core.concave import Concave, of_gram


@pytest.mark.parametrize("kind", ["soft", "logdet", "trace"])
def test_value_and_two_derivatives(kind):
    torch.manual_seed(0)
    x = torch.randn(5, 7, requires_grad=True)
    phi = Concave(kind, 0.3, 0.5)

    def mine(x):
        return of_gram(phi, x @ x.T)

    values = torch.linalg.eigvalsh(x.detach() @ x.detach().T)
    wanted = {"soft": values / (values + 0.3), "logdet": (1 + values / 0.3).log(), "trace": values}[kind]
    torch.testing.assert_close(mine(x).detach(), wanted.sum(), rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(mine, x)
    if kind != "trace":
        assert torch.autograd.gradgradcheck(mine, x)


def test_soft_rank_of_a_diagonal():
    gram = torch.diag(torch.tensor([1.0, 0.1, 0.0]))
    assert float(of_gram(Concave("soft", 0.1, 0.5), gram)) == pytest.approx(1.4090909090909092, rel=1e-14)


def test_under_vmap():
    torch.manual_seed(0)
    x = torch.randn(3, 4, 6)
    phi = Concave("soft", 0.3, 0.5)
    together = torch.func.vmap(torch.func.grad(lambda x: of_gram(phi, x @ x.T)))(x)
    alone = torch.stack([torch.func.grad(lambda x: of_gram(phi, x @ x.T))(part) for part in x])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-14)
