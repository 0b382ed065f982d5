"""A small network as an explicit float64 vector, for rules written out by hand; shares no code with rules."""

from __future__ import annotations

import oracles
import torch
from torch.func import functional_call

from flattrain.core.losses import cross_entropy
from flattrain.training.objective import build
from flattrain.types import Batch, Moment


class Explicit:
    """The net's rule-side view (params, batch, grad_fn) and its vector-side one (at, gradient)."""

    def __init__(self, net=None, loss=cross_entropy, data=None):
        self.net = oracles.small_net() if net is None else net
        self.x, self.y = oracles.data() if data is None else data
        self.loss = loss
        self.objective = build(self.net, loss, [])
        self.grad_fn = self.objective.gradient()
        self.params = {k: p.detach() for k, p in self.net.named_parameters()}
        self.at = oracles.flat(self.params)

    def batch(self, step=0, noise=None, strength=1.0, rows=None):
        rows = torch.arange(len(self.y)) if rows is None else rows
        return Batch(self.x[rows], self.y[rows], noise or {}, Moment(step, strength))

    def value(self, vector, rows=None):
        rows = torch.arange(len(self.y)) if rows is None else rows
        return oracles.loss_of_vector(self.net, self.loss.mean, self.x[rows], self.y[rows])[0](vector)

    def gradient(self, vector, rows=None):
        return torch.func.grad(lambda v: self.value(v, rows))(vector)

    def outputs(self, vector):
        return functional_call(self.net, oracles.rebuild(vector, self.params), (self.x,))

    def ruled(self, rule, step=0, noise=None):
        """The rule's gradient as a vector, for a rule without memory."""
        return oracles.flat(rule(self.grad_fn)(self.params, self.batch(step, noise))[0])

    def mask(self, chosen):
        """1 at the entries of the named parameters, 0 elsewhere."""
        return torch.cat([torch.full((v.numel(),), float(chosen(k))) for k, v in self.params.items()])


def close(mine, wanted, rtol=1e-10):
    torch.testing.assert_close(mine, wanted, rtol=rtol, atol=rtol * float(wanted.norm()))


def far(one, other, share=1e-3):
    """The two differ by more than `share`: what is compared does something."""
    assert float((one - other).norm()) > share * float(other.norm())
