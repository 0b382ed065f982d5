"""The members of the SAM family, each around any base optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from flattrain.optim.processes import Perturbation
from flattrain.optim.two_pass import TwoPassOptimizer
from flattrain.rules import sam

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]]


class SAM(TwoPassOptimizer):
    """θ ← base step with ∇L(θ + ρ g/‖g‖), g = ∇L(θ)      (Foret et al. 2021)"""

    def __init__(
        self,
        params: Parameters,
        base_optimizer: type[Optimizer],
        *,
        rho: float = 0.05,
        perturbation: Perturbation = "global",
        ddp: DistributedDataParallel | None = None,
        **base: Any,
    ) -> None:
        super().__init__(
            params, base_optimizer, sam.SAM, rho=rho, perturbation=perturbation, ddp=ddp, base=base
        )


class USAM(TwoPassOptimizer):
    """θ ← base step with ∇L(θ + ρ g): SAM without normalisation (Andriushchenko & Flammarion 2022)"""

    def __init__(
        self,
        params: Parameters,
        base_optimizer: type[Optimizer],
        *,
        rho: float = 0.05,
        perturbation: Perturbation = "global",
        ddp: DistributedDataParallel | None = None,
        **base: Any,
    ) -> None:
        super().__init__(
            params, base_optimizer, sam.USAM, rho=rho, perturbation=perturbation, ddp=ddp, base=base
        )
