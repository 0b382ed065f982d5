"""Estimates of the generalisation gap of the loss, E[R(θ̂) − R_n(θ̂)] in nats, from training data alone.

At the minimiser of the mean loss plus (λ/2)‖θ‖², to first order in 1/n (Takeuchi's criterion with a ridge;
our derivation, consistent with the abstract of arXiv 2506.17809, whose full text we have not read):

    tic         Tr[C (F + λ)⁻¹]/n,           C = Cov_i[∇ℓ_i] centred, F the Fisher in place of the Hessian
    rank        rank_λ(F)/n                  what tic is when C = F: calibrated, residuals unrelated to J
    kappa_rank  (Tr C/Tr F) rank_λ(F)/n      what tic is when C is proportional to F

λ is the weight_decay of SGD with a mean loss; AdamW's decoupled decay is not of this form. Everything comes
from one Gram matrix of the columns of L and the loss's slopes pulled back (core.ghost): with K = J̃J̃ᵀ and
b_i = J̃ ĝ_i for the centred slopes,

    Tr[C (F + λ)⁻¹] = (1/nλ) Σ_i [‖ĝ_i‖² − b_iᵀ (K + nλ)⁻¹ b_i]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flattrain.core import ghost
from flattrain.core.labels import need_one_row
from flattrain.core.losses import example_slopes, root_vectors
from flattrain.core.rows import pack, unpack
from flattrain.ranges import Positive, Refused, checked
from flattrain.types import Estimate, Measure, Seen, Statistic

Kind = Literal["tic", "rank", "kappa_rank"]


@dataclass(frozen=True)
class GapReport:
    """The three estimates and what to look at before believing them."""

    tic: float
    rank: float
    kappa_rank: float
    kappa: float  # Tr C / Tr F: 1 when calibrated, small when over-confident on the data it was fitted to
    stationarity: float  # ‖∇(loss + (λ/2)‖θ‖²)‖, 0 at a minimiser
    relative_lam: float  # λ / ‖F‖₂
    most: int  # min(P, n C), which n · rank cannot exceed; C = K − 1 under cross entropy

    @property
    def cautions(self) -> tuple[str, ...]:
        """Why the estimates may be off, in sentences; from our own pilots."""
        found = []
        if self.kappa < 0.3:
            found.append(f"over-confident: Tr C / Tr F = {self.kappa:.2g} < 0.3, estimates are low")
        if self.stationarity > 1e-4:
            found.append(f"not at a minimiser: the gradient's norm is {self.stationarity:.2g} > 1e-4")
        if self.relative_lam < 1e-6:
            found.append(f"λ is {self.relative_lam:.1g} of ‖F‖: a ratio of rounding errors below that")
        return tuple(found)


def gap_report(statistic: Statistic, lam: float) -> GapReport:
    """All estimates from the statistic of a whole data set."""
    n, pieces = unpack({k: v for k, v in statistic.items() if k not in ("radial", "theta", "entries")})
    gram = ghost.gram(pieces).to(torch.float64)
    columns = gram.shape[0] // n
    blocks = gram.reshape(n, columns, n, columns)
    fisher = blocks[:, :-1, :, :-1].reshape(n * (columns - 1), -1)
    cross = blocks[:, :-1, :, -1].reshape(n * (columns - 1), n)
    slopes = blocks[:, -1, :, -1]
    mean_square = slopes.mean()
    centred = slopes.diagonal() - 2 * slopes.mean(0) + mean_square
    b = cross - cross.mean(1, keepdim=True)
    eye = torch.eye(len(fisher), dtype=gram.dtype, device=gram.device)
    root = torch.linalg.cholesky(fisher + n * lam * eye)
    solved = torch.linalg.solve_triangular(root, b, upper=False)
    tic = (centred.sum() - solved.square().sum()) / (n * lam) / n
    rank = (len(fisher) - n * lam * torch.cholesky_inverse(root).diagonal().sum()) / n
    kappa = float(centred.mean() / (fisher.diagonal().sum() / n))
    theta2, entries = float(statistic["theta"].mean()), int(statistic["entries"][0])
    pulled = float(statistic["radial"].mean())
    stationary = max(float(mean_square) + 2 * lam * pulled + lam**2 * theta2, 0.0)
    return GapReport(
        float(tic),
        float(rank),
        kappa * float(rank),
        kappa,
        stationary**0.5,
        lam / float(torch.linalg.eigvalsh(fisher)[-1] / n),
        min(entries, len(fisher)),
    )


@checked
def gap_estimate(
    *,
    kind: Literal["tic", "rank", "kappa_rank"] = "kappa_rank",
    lam: Positive = 1e-3,
    uncovered: Literal["refuse", "ignore", "dense"] = "refuse",
) -> Measure:
    """The estimated gap of the loss at λ = `lam`; see `gap_report` for what to check beside it."""

    def reduce(s: Statistic) -> Estimate:
        return Estimate(getattr(gap_report(s, lam), kind))

    return Measure(
        "gap_estimate",
        lambda seen, noise: gap_statistic(seen, noise, uncovered),
        reduce,
        f"estimated generalisation gap of the loss, {kind}, at λ = {lam:g}",
        combine="rows",
        layers=None,
        order=2,
    )


def gap_statistic(seen: Seen, noise: Mapping[str, Tensor], uncovered: ghost.Uncovered) -> Statistic:
    """What `gap_report` needs, a row per example."""
    need_one_row(seen, "gap_estimate")
    weights = None if seen.criterion.weights is None else seen.criterion.weights(seen.target)
    if weights is not None and bool((weights != 1).any()):
        raise Refused("gap_estimate: examples must weigh the same; drop class weights and ignored labels")
    vectors = [
        *root_vectors(seen, None, "gap_estimate"),
        example_slopes(seen.criterion, seen.loss, seen.outputs, seen.target),
    ]
    parts = ghost.pieces(seen, vectors, "gap_estimate", uncovered)
    column, values = torch.ones_like(seen.outputs[:, :1]), [part.value() for part in parts]
    return {
        **pack(seen, [part.piece for part in parts]),
        "radial": torch.stack([ghost.radial(part) for part in parts]).sum(0)[:, -1:],
        "theta": column * torch.stack([value.square().sum() for value in values]).sum(),
        "entries": column * sum(value.numel() for value in values),
    }
