"""The members of the SAM family, each around any base optimizer; `**base` is what that one takes.

Formulas and sources in full are those of the rules of the same names in `flattrain.rules`.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from flattrain.core.layers import normalisation_parameters
from flattrain.optim.processes import Perturbation
from flattrain.optim.two_pass import Parameters, TwoPassOptimizer
from flattrain.ranges import Refused
from flattrain.rules import adaptive, friendly, gradient_pair, looksam, sam

Base = type[Optimizer]


class SAM(TwoPassOptimizer):
    """g̃ = ∇L(θ + ρ g/‖g‖)      (Foret et al. 2021)"""

    def __init__(
        self,
        params: Parameters,
        base_optimizer: Base,
        *,
        rho: float = 0.05,
        perturbation: Perturbation = "global",
        ddp: DistributedDataParallel | None = None,
        **base: Any,
    ) -> None:
        member = sam.SAM
        super().__init__(
            params, base_optimizer, member, rho=rho, base=base, perturbation=perturbation, ddp=ddp
        )


class USAM(TwoPassOptimizer):
    """g̃ = ∇L(θ + ρ g): SAM without normalisation      (Andriushchenko & Flammarion 2022)"""

    def __init__(
        self,
        params: Parameters,
        base_optimizer: Base,
        *,
        rho: float = 0.05,
        perturbation: Perturbation = "global",
        ddp: DistributedDataParallel | None = None,
        **base: Any,
    ) -> None:
        member = sam.USAM
        super().__init__(
            params, base_optimizer, member, rho=rho, base=base, perturbation=perturbation, ddp=ddp
        )


class ASAM(TwoPassOptimizer):
    """g̃ = ∇L(θ + ρ T²g/‖Tg‖), T = |θ| + η, and 1 on biases      (Kwon et al. 2021; `rules.adaptive`)

    Biases are known by their names: give `model.named_parameters()`, or say `biases="scaled"`, which treats
    them as all others and needs another ρ (about 2 where this one takes 0.5).
    """

    def __init__(
        self,
        params: Parameters,
        base_optimizer: Base,
        *,
        rho: float = 0.5,
        eta: float = 0.01,
        scale: Literal["elementwise", "layerwise"] = "elementwise",
        biases: Literal["identity", "scaled"] = "identity",
        perturbation: Perturbation = "global",
        ddp: DistributedDataParallel | None = None,
        **base: Any,
    ) -> None:
        member = adaptive.adaptive(eta=eta, scale=scale, biases=biases)
        super().__init__(
            params, base_optimizer, member, rho=rho, base=base, perturbation=perturbation, ddp=ddp
        )
        if biases == "identity" and not all("param_names" in group for group in self.param_groups):
            raise Refused(
                "ASAM: biases are known by their names; give model.named_parameters(), or biases='scaled'"
            )


class GSAM(TwoPassOptimizer):
    """g̃ − α g⊥, g⊥ the part of g that is orthogonal to g̃      (Zhuang et al. 2022; `rules.gradient_pair`)"""

    def __init__(
        self, params: Parameters, base_optimizer: Base, *, rho: float = 0.04, alpha: float = 0.01, **base: Any
    ) -> None:
        member = gradient_pair.surrogate_gap(alpha=alpha)
        super().__init__(params, base_optimizer, member, rho=rho, base=base)


class WSAM(TwoPassOptimizer):
    """g + γ/(1 − γ) (g̃ − g), the coupled form      (Yue et al. 2023; `rules.gradient_pair`)"""

    def __init__(
        self, params: Parameters, base_optimizer: Base, *, rho: float = 0.05, gamma: float = 0.9, **base: Any
    ) -> None:
        member = gradient_pair.weighted(gamma=gamma)
        super().__init__(params, base_optimizer, member, rho=rho, base=base)


class GradientNormPenalty(TwoPassOptimizer):
    """(1 − α) g + α g̃: penalises α ρ ‖g‖      (Zhao et al. 2022; `rules.gradient_pair`)"""

    def __init__(
        self, params: Parameters, base_optimizer: Base, *, rho: float = 0.1, alpha: float = 0.8, **base: Any
    ) -> None:
        member = gradient_pair.mixed(share=alpha)
        super().__init__(params, base_optimizer, member, rho=rho, base=base)


class StableSAM(TwoPassOptimizer):
    """(‖g‖/‖g̃‖) g̃: SAM with steps as long as plain ones      (Tan et al. 2025; `rules.gradient_pair`)"""

    def __init__(self, params: Parameters, base_optimizer: Base, *, rho: float = 0.05, **base: Any) -> None:
        super().__init__(params, base_optimizer, gradient_pair.STABLE, rho=rho, base=base)


class LookSAM(TwoPassOptimizer):
    """SAM at every k-th step, in between g + α (‖g‖/‖g_v‖) g_v      (Liu et al. 2022; `rules.looksam`)

    Costs 1 + 1/k gradients per step, and one copy of the weights, which `state_dict` holds.
    """

    def __init__(
        self,
        params: Parameters,
        base_optimizer: Base,
        *,
        rho: float = 0.1,
        alpha: float = 0.7,
        every: int = 5,
        **base: Any,
    ) -> None:
        member = looksam.reused(alpha=alpha, every=every)
        super().__init__(params, base_optimizer, member, rho=rho, base=base)


class FriendlySAM(TwoPassOptimizer):
    """Ascends along g − σ m, m a running mean of gradients      (Li, T. et al. 2024; `rules.friendly`)"""

    def __init__(
        self,
        params: Parameters,
        base_optimizer: Base,
        *,
        rho: float = 0.2,
        sigma: float = 1.0,
        lam: float = 0.9,
        perturbation: Perturbation = "global",
        ddp: DistributedDataParallel | None = None,
        **base: Any,
    ) -> None:
        member = friendly.friendly(sigma=sigma, lam=lam)
        super().__init__(
            params, base_optimizer, member, rho=rho, base=base, perturbation=perturbation, ddp=ddp
        )


def normalisation_groups(model: nn.Module, *, rho: float) -> list[dict[str, Any]]:
    """Parameter groups for SAM-ON (Mueller et al. 2023): ρ on γ and β of normalisations, 0 on all others.

        optimizer = SAM(normalisation_groups(model, rho=0.5), torch.optim.SGD, lr=0.1)

    Normalisations are found by their types (`core.layers.normalisation_parameters`).
    """
    chosen = set(normalisation_parameters(model))
    if not chosen:
        raise Refused("normalisation_groups: the model has no normalisation layer with trainable parameters")
    live = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [(name, p) for name, p in live if (name in chosen) == inside], "rho": rho * inside}
        for inside in (True, False)
    ]
