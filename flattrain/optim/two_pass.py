"""A rule of two passes as a real `torch.optim.Optimizer` around any other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim import LBFGS, Optimizer

from flattrain.optim.displacement import Displacement
from flattrain.optim.gradients import own, spend, unspent
from flattrain.optim.groups import each, gradients, named, radii
from flattrain.optim.processes import Perturbation, Processes
from flattrain.optim.second_pass import Randomness, Undo, keep_statistics
from flattrain.optim.sharded import length
from flattrain.ranges import Refused, refusal
from flattrain.rules.sam import SAM, USAM
from flattrain.rules.two_pass import TwoPass, nothing
from flattrain.types import Memory, Params

Closure = Callable[[], Any]
Parameters = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]

# What copies of an optimizer carry beside what torch's own do.
_OWN = ["base", "member", "processes", "steps", "memory", "_stage", "_second_due", "_loss_scale"]
_OWN += ["_first", "_displacement", "_statistics", "_watched"]


class TwoPassOptimizer(Optimizer):
    """θ ← base step with combine(g, g̃),   g = ∇L(θ),   g̃ = ∇L(θ + ρ d(θ, g))     (flattrain.rules.two_pass)

    Three ways to take a step, alike in what they do:

        optimizer.step(closure)              the closure computes the loss, calls backward(), returns the loss

        loss = optimizer.backward(closure)   in place of loss.backward(): adds the rule's gradient to .grad,
        optimizer.step()                     to be accumulated, clipped, or handed to a GradScaler

        loss.backward()                      the passes by hand: ascend() says whether the second is due
        if optimizer.ascend(): again.backward()
        optimizer.descend()

    The closure runs twice and sees the same random numbers both times. Afterwards the weights are back bit
    for bit, whatever happened, and so are the running statistics of BatchNorm: only the unperturbed pass
    moves them. A gradient that is not finite, in either pass, skips the step. State, groups and learning rate
    are those of the base optimizer.

    A group may have its own "rho". The direction is that of the groups with rho > 0 as one vector; with
    rho = 0 everywhere a step is the base optimizer's and takes one pass.

    perturbation : across processes, "global" ascends along the gradient of the whole batch, which
                   DistributedDataParallel and FSDP average; "local" lets each process ascend along its own
                   (m-sharpness, m the local batch), and needs `ddp`, the wrapped model.
    """

    def __init__(
        self,
        params: Parameters,
        base_optimizer: type[Optimizer],
        member: TwoPass,
        *,
        rho: float,
        base: dict[str, Any],
        perturbation: Perturbation = "global",
        ddp: DistributedDataParallel | None = None,
    ) -> None:
        if not isinstance(base_optimizer, type) or issubclass(base_optimizer, LBFGS):
            raise self._refused(
                "base_optimizer must be an optimizer class that steps without a closure, such as "
                f"torch.optim.SGD; got {base_optimizer!r}"
            )
        given: list[Any] = list(params)
        groups: list[dict[str, Any]] = given if given and isinstance(given[0], dict) else [{"params": given}]
        for group in groups:
            self._check_radius(group.setdefault("rho", rho))
        self.member, self.processes = member, Processes(perturbation, ddp, member)
        self.steps = 0
        self.memory: Memory = {}
        self._stage: Literal["idle", "ascended", "ready"] = "idle"
        self._second_due = False
        self._loss_scale = 1.0
        self._first: Params = {}
        self._displacement = Displacement()
        self._statistics: Undo | None = None
        self._watched: list[nn.Module] = []
        self.base = base_optimizer(groups, **base)
        super().__init__(self.base.param_groups, {**self.base.defaults, "rho": rho})
        self._share()

    def step(self, closure: Closure | None = None, *, scaler: GradScaler | None = None) -> Any:
        """One step; returns the loss of the first, unperturbed pass.

        scaler : with a closure that calls scaler.scale(loss).backward(); call scaler.update() afterwards.
        """
        loss = None
        if closure is not None:
            if unspent(gradients(self.param_groups)):
                raise self._refused(
                    "step(closure) would throw away gradients of an earlier backward(); call zero_grad() "
                    "first, or accumulate with backward(closure) and then step()"
                )
            self._clear()
            loss = self._both_passes(closure, scaler)
            if scaler is not None:
                scaler.unscale_(self)
        grads = gradients(self.param_groups)
        size = float(length(grads)) if grads else math.nan
        # A gradient of zero is the same in both passes; with it, torch's checkpoints create states.
        if self._stage != "ready" and not (self._stage == "idle" and size == 0):
            raise self._refused(
                "step has no gradient of two passes; use step(closure), or take the gradient with "
                "backward(closure) in place of loss.backward()"
            )
        self._stage = "idle"
        if math.isfinite(size):
            self.base.step()
        spend(grads)
        return loss

    def backward(self, closure: Closure, *, scaler: GradScaler | None = None) -> Any:
        """Both passes in place of `loss.backward()`: the rule's gradient is added to .grad.

        The closure computes the loss, calls backward() and returns the loss; it must not clear gradients.
        """
        before = [(p, own(p.grad)) for p in each(self.param_groups) if p.grad is not None]
        self._clear()
        with self.processes.averaging():
            loss = self._both_passes(closure, scaler)
        for p, g in before:
            p.grad = g if p.grad is None else g + p.grad
        return loss

    @torch.no_grad()
    def ascend(self, *, scaler: GradScaler | None = None) -> bool:
        """Move to θ + ρ d(θ, .grad) and clear the gradients; False where no second pass is due."""
        if self._stage == "ascended":
            raise self._refused("ascend was called twice; call descend() or restore() in between")
        self._stage, self._second_due = "ascended", False
        self._loss_scale = 1.0 if scaler is None else scaler.get_scale()
        params, number = named(self.param_groups), self.steps
        self.steps += 1
        grads = {k: self._unscaled(g) for k, g in self.processes.gradients(params).items()}
        if not grads:
            return False
        size = length(list(grads.values()))
        if not self.processes.agree(math.isfinite(size)):
            spoilt = next(p for p in params.values() if p.requires_grad)
            spoilt.grad = torch.full_like(spoilt, math.nan)  # on every process
            return False
        if not self.memory and self.member.init is not nothing:
            self.memory = self.member.init({k: p.detach() for k, p in params.items()})
        radius = {k: rho for k, rho in radii(self.param_groups).items() if rho > 0 and k in grads}
        if not radius:
            return False
        if self.member.between is not None and number % self.member.every:
            self._set(self.member.between(grads, size, self.memory))
            return False
        if len(radius) < len(grads):
            size = length([grads[k] for k in radius])
        along = {k: grads[k] for k in radius}
        if self.member not in (SAM, USAM) and any(g.is_sparse for g in grads.values()):
            raise self._refused("sparse gradients are taken by SAM and USAM only; use sparse=False")
        direction, memory = self.member.direction({k: params[k] for k in radius}, along, size, self.memory)
        self.memory = {**self.memory, **memory}
        self._first = {k: own(g) for k, g in grads.items()} if self.member.combine else {}
        self._displacement.move(params, direction, radius)
        self._statistics = keep_statistics(list(params.values()), self._watched)
        self._clear()
        self._second_due = True
        return True

    @torch.no_grad()
    def restore(self) -> None:
        """Put the weights back and leave the rule's gradient in .grad; `step()` then takes the step."""
        if self._stage != "ascended":
            raise self._refused("descend and restore come after ascend()")
        self._put_back()
        if self._second_due and self.member.combine is not None:
            params = named(self.param_groups)
            second = {k: self._unscaled(p.grad) for k, p in params.items() if p.grad is not None}
            both = {**self._first, **second}  # a gradient of None is one of zero
            first = {k: self._first.get(k, torch.zeros_like(g)) for k, g in both.items()}
            second = {k: second.get(k, torch.zeros_like(g)) for k, g in both.items()}
            combined, memory = self.member.combine(first, second, self.memory)
            self.memory = {**self.memory, **memory}
            self._set(combined)
        self._first = {}
        self._stage = "ready"

    def descend(self) -> None:
        """The base optimizer's step with the rule's gradient, from the weights before `ascend`."""
        self.restore()
        self.step()

    def watch(self, model: nn.Module) -> None:
        """Name a model whose running statistics the second pass must leave alone.

        Models are found as they are called, but for those that run inside of compiled code: in a compiled
        function, or after `model.compile()`. When one is named, all with BatchNorm must be.
        """
        self._watched.append(model)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if any(param_group is group for group in self.base.param_groups):
            return  # called by the constructor with the base's own groups
        if self.memory:
            raise self._refused("a parameter group cannot join after the first step, the rule has a memory")
        self._check_radius(param_group.setdefault("rho", self.defaults["rho"]))
        self.base.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's, and under "two_pass" what the rule remembers, if it does."""
        state = self.base.state_dict()
        if self._remembers():
            state["two_pass"] = {"steps": self.steps, "memory": dict(self.memory)}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = state_dict.get("two_pass")
        if self._remembers() and own is None:
            raise self._refused("this state_dict has no memory of the rule; it is of another optimizer")
        self.base.load_state_dict({k: v for k, v in state_dict.items() if k != "two_pass"})
        if own is not None:
            self.steps, self.memory = own["steps"], {k: v.clone() for k, v in own["memory"].items()}
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in _OWN}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def _both_passes(self, closure: Closure, scaler: GradScaler | None) -> Any:
        randomness = Randomness(each(self.param_groups))
        ascends = any(rho > 0 for rho in radii(self.param_groups).values())
        with torch.enable_grad(), self.processes.first_pass(ascends):
            loss = closure()
        if not gradients(self.param_groups) and self.processes.ddp is None:
            raise self._refused(
                "the closure left no gradient; it must call backward(), and FSDP must average every pass"
            )
        try:
            if self.ascend(scaler=scaler):
                with torch.enable_grad(), randomness.again():
                    closure()
        except BaseException:
            self._put_back()
            self._clear()
            self._stage = "idle"
            raise
        self.restore()
        return loss

    def _put_back(self) -> None:
        self._displacement.undo()
        if self._statistics is not None:
            self._statistics()
            self._statistics = None

    def _clear(self) -> None:
        for p in each(self.param_groups):
            p.grad = None

    def _set(self, grads: Params) -> None:
        params = named(self.param_groups)
        for key, g in grads.items():
            params[key].grad = g if self._loss_scale == 1 else g * self._loss_scale

    def _unscaled(self, g: Tensor) -> Tensor:
        return g if self._loss_scale == 1 else g / self._loss_scale

    def _remembers(self) -> bool:
        return self.member.init is not nothing or self.member.between is not None

    def _share(self) -> None:
        self.param_groups, self.state = self.base.param_groups, self.base.state

    def _check_radius(self, rho: float) -> None:
        problem = refusal("NonNegative", rho)
        if problem:
            raise self._refused(f"rho {problem}")

    def _refused(self, why: str) -> Refused:
        return Refused(f"{type(self).__name__}: {why}")
