"""A schedule of ρ for optimizers, in the manner of torch's learning-rate schedulers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from flattrain.ranges import Refused, refusal


class RhoSchedule:
    """ρ_t = ρ · share(t) for every group, t counted by `step()`.

        late = RhoSchedule(optimizer, lambda t: float(t >= 9_000))     # late-phase SAM (Zhou et al. 2025)
        optimizer.step(closure); late.step()

    With ρ = 0 a step takes one pass. `state_dict` has t; the groups' ρ are the optimizer's.
    """

    def __init__(self, optimizer: Optimizer, share: Callable[[int], float]) -> None:
        if not all("rho" in group for group in optimizer.param_groups):
            raise Refused(
                f"RhoSchedule: {type(optimizer).__name__} has no rho; give an optimizer of flattrain.optim"
            )
        self.optimizer, self.share, self.steps = optimizer, share, 0
        self.full = [group["rho"] for group in optimizer.param_groups]
        self._set()

    def step(self) -> None:
        """Go on to the next t."""
        self.steps += 1
        self._set()

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "full": list(self.full)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps, self.full = state_dict["steps"], list(state_dict["full"])
        self._set()

    def _set(self) -> None:
        share = self.share(self.steps)
        problem = refusal("NonNegative", share)
        if problem:
            raise Refused(f"RhoSchedule: share({self.steps}) {problem}")
        for group, rho in zip(self.optimizer.param_groups, self.full, strict=True):
            group["rho"] = rho * share
