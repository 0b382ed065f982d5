"""The Lanczos of a fixed number of products: exhausted spaces, hard spectra, stacked."""

from __future__ import annotations

import pytest
import torch

from flattrain.core.lanczos import top_ritz_vector


def matrix_of(values, seed=0):
    values = values.double()  # made at import, before the tests' precision is set
    torch.manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values)))
    return q @ torch.diag(values) @ q.T


SPECTRA = {
    "spread": torch.linspace(-1, 2, 30),
    "negative": -torch.logspace(-2, 1, 30),
    "two values": torch.tensor([1.0] * 12 + [3.0] * 18),
    "rank one": torch.tensor([0.0] * 29 + [5.0]),
    "negative and exhausted": torch.tensor([-7.0] * 20 + [-2.0] * 10),
    "decaying": torch.logspace(-14, 1, 30),
    "one more than zero": torch.tensor([-3.0] * 29 + [1e-8]),
    "alike": torch.full((30,), -4.0),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_the_top_pair_of_a_matrix(name):
    values = SPECTRA[name]
    matrix = matrix_of(values)
    v = top_ritz_vector(lambda v: matrix @ v, torch.randn(30), 60)
    scale = float(values.abs().max())
    assert float(v.norm()) == pytest.approx(1, abs=1e-14)
    assert float(v @ matrix @ v) == pytest.approx(float(values.max()), abs=1e-11 * scale)
    assert float((matrix @ v - values.max() * v).norm()) < 1e-10 * scale


def test_of_zero_and_of_one_entry():
    v = top_ritz_vector(torch.zeros_like, torch.randn(4), 9)
    assert float(v.norm()) == pytest.approx(1, abs=1e-14)
    v = top_ritz_vector(lambda v: -3 * v, torch.tensor([2.0]), 9)
    assert float(v) == pytest.approx(1)


def test_single_precision_keeps_its_digits():
    matrix = matrix_of(SPECTRA["decaying"]).float()
    v = top_ritz_vector(lambda v: matrix @ v, torch.randn(30, dtype=torch.float32), 30)
    assert v.dtype == torch.float32 and float(v @ matrix @ v) == pytest.approx(10, rel=1e-5)


def test_stacked_is_one_after_the_other():
    matrices = torch.stack([matrix_of(SPECTRA[k]) for k in ("spread", "two values", "rank one")])
    starts = torch.randn(3, 30)

    def top(matrix, start):
        return top_ritz_vector(lambda v: matrix @ v, start, 12)

    together = torch.func.vmap(top)(matrices, starts)
    alone = torch.stack([top(m, s) for m, s in zip(matrices, starts, strict=True)])
    value = torch.einsum("bi,bij,bj->b", together, matrices, together)
    wanted = torch.einsum("bi,bij,bj->b", alone, matrices, alone)
    torch.testing.assert_close(value, wanted, rtol=1e-10, atol=0)
