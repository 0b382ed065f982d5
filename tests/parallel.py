"""What the tests of several processes share: a net, each process's data, and whether all agree."""

from __future__ import annotations

from functools import partial

import torch
from torch import distributed, nn
from torch.nn import functional as F

from flattrain import optim

BASES = {
    "sgd": partial(optim.SAM, base_optimizer=torch.optim.SGD, lr=0.1, momentum=0.9),
    "adamw": partial(optim.SAM, base_optimizer=torch.optim.AdamW, lr=0.01),
    "gsam": partial(optim.GSAM, base_optimizer=torch.optim.SGD, lr=0.1, alpha=0.4),
    "looksam": partial(optim.LookSAM, base_optimizer=torch.optim.SGD, lr=0.1, every=2),
}
STEPS = 4


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def data(rank, step):
    """The part of process `rank`, or all of it where that is None."""
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(12, 5, generator=generator), torch.randint(3, (12,), generator=generator)
    return (x, y) if rank is None else (x[6 * rank : 6 * rank + 6], y[6 * rank : 6 * rank + 6])


def closure_for(net, x, y):
    def closure():
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        return loss

    return closure


def flat(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def everywhere(vector):
    """What each process has, as rows: equal rows mean that the processes agree."""
    rows = [torch.empty_like(vector) for _ in range(distributed.get_world_size())]
    distributed.all_gather(rows, vector)
    return torch.stack(rows)


def agreed(net):
    rows = everywhere(flat(net))
    assert torch.equal(rows[0], rows[1]), "the weights of the processes differ"
    return rows[0]


def alone(base, rho=0.3):
    """The same steps by one process, on all data."""
    net = small_net()
    optimizer = BASES[base](net.parameters(), rho=rho)
    for step in range(STEPS):
        optimizer.step(closure_for(net, *data(None, step)))
    return flat(net)
