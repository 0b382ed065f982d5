"""Sharpness-aware minimisation as a real `torch.optim.Optimizer` around any other.

optimizer = SAM(model.parameters(), torch.optim.AdamW, rho=0.05, lr=3e-4)

def closure():
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    return loss

optimizer.step(closure)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from flattrain.ranges import Refused, refusal

__all__ = ["SAM"]


class SAM(Optimizer):
    """θ ← base step with ∇L(θ + ρ ∇L(θ)/‖∇L(θ)‖)      (Foret et al. 2021)

    The norm is over all parameters of all groups; a group may have its own "rho". Weights are saved and put
    back bit for bit, also when the closure fails. A non-finite gradient in either pass skips the step. State,
    groups and learning rate are those of the base optimizer, so `state_dict` and schedulers see all of it.

    The closure runs twice; BatchNorm's running statistics then update twice, once at the ascended weights.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        base_optimizer: type[Optimizer],
        *,
        rho: float = 0.05,
        **base: Any,
    ) -> None:
        if not isinstance(base_optimizer, type) or issubclass(base_optimizer, LBFGS):
            raise Refused(
                "SAM: base_optimizer must be an optimizer class that steps without a closure, such as "
                f"torch.optim.SGD; got {base_optimizer!r}"
            )
        given: list[Any] = list(params)
        groups: list[dict[str, Any]] = given if given and isinstance(given[0], dict) else [{"params": given}]
        for group in groups:
            _check_radius(group.setdefault("rho", rho))
        self.base = base_optimizer(groups, **base)
        super().__init__(self.base.param_groups, {**self.base.defaults, "rho": rho})
        self._share()

    def _share(self) -> None:
        self.param_groups = self.base.param_groups
        self.state = self.base.state

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "base": self.base}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if any(param_group is group for group in self.base.param_groups):
            return  # called by the constructor with the base's own groups
        param_group.setdefault("rho", self.defaults["rho"])
        _check_radius(param_group["rho"])
        self.base.add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.base.load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns the loss of the first, unperturbed pass."""
        if closure is None:
            raise Refused(
                "SAM: step needs a closure that clears gradients, computes the loss and calls "
                "backward(): optimizer.step(closure)"
            )
        with torch.enable_grad():
            loss = closure()
        norm = self._gradient_norm()
        if not torch.isfinite(norm):
            return loss
        saved = self._ascend(norm)
        try:
            with torch.enable_grad():
                closure()
        finally:
            for p, value in saved:
                p.copy_(value)
        if torch.isfinite(self._gradient_norm()):
            self.base.step()
        return loss

    def _ascend(self, norm: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Move to θ + ρ g/‖g‖; what to put back. A zero gradient has no direction."""
        saved = []
        for group in self.param_groups:
            if group["rho"] == 0 or norm == 0:
                continue
            for p in group["params"]:
                if p.grad is not None:
                    saved.append((p, p.clone()))
                    p.add_(p.grad * (group["rho"] / norm).to(p.dtype))
        return saved

    def _gradient_norm(self) -> Tensor:
        grads = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        if not grads:
            return torch.zeros(())
        first = grads[0].device
        norms = [torch.linalg.vector_norm(g.float() if g.dtype in _SHORT else g) for g in grads]
        return torch.linalg.vector_norm(torch.stack([n.to(first) for n in norms]))


_SHORT = (torch.float16, torch.bfloat16)


def _check_radius(rho: float) -> None:
    problem = refusal("NonNegative", rho)
    if problem:
        raise Refused(f"SAM: rho {problem}")
