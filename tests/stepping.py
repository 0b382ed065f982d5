"""What the tests of optimizers share: base optimizers, closures, and comparing weights."""

from __future__ import annotations

import torch
from torch.nn import functional as F

BASES = {
    "sgd": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "adamw": (torch.optim.AdamW, {"lr": 0.05}),
    "foreach": (torch.optim.AdamW, {"lr": 0.05, "foreach": True}),
}


def closure_for(net, x, y, scaler=None):
    def closure():
        loss = F.cross_entropy(net(x), y)
        (loss if scaler is None else scaler.scale(loss)).backward()
        return loss

    return closure


def weights(net):
    return [p.detach().clone() for p in net.parameters()]


def same(one, other):
    return all(torch.equal(p, q) for p, q in zip(one, other, strict=True))


def close(one, other, rtol):
    for p, q in zip(one, other, strict=True):
        torch.testing.assert_close(p, q, rtol=rtol, atol=rtol)
