"""Real layers, penalties and curvature in two processes."""

from __future__ import annotations

import pytest
import torch
from parallel import BASES, STEPS, agreed, closure_for, data, flat, small_net
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from flattrain import curvature, optim
from flattrain.core.lanczos import largest
from flattrain.core.operators import averaged
from flattrain.core.probes import stream
from flattrain.ranges import Refused
from flattrain.regularizers import Regularized, RelativeFlatness


class Residual(nn.Module):
    """A small convolutional net with BatchNorm and a skip."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv, self.after = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x.reshape(len(x), 1, 4, 4))))
        return self.head((x + F.relu(self.after(self.conv(x)))).mean((2, 3)))


class Sequence(nn.Module):
    """A small transformer with dropout."""

    def __init__(self):
        super().__init__()
        self.mix = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.mix(x.reshape(len(x), 4, 4)).mean(1))


def half_precision(rank, kind, perturbation):
    torch.manual_seed(0)
    net = DistributedDataParallel(kind().float())
    local = {"perturbation": "local", "ddp": net} if perturbation == "local" else {}
    optimizer = optim.SAM(net.parameters(), torch.optim.AdamW, rho=0.05, lr=0.02, **local)
    torch.manual_seed(rank)
    x = torch.randn(24, 16).float()
    y = x[:, :3].argmax(1)
    losses = []

    def closure():
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(net(x), y)
        loss.backward()
        return loss

    for _ in range(30):
        losses.append(float(optimizer.step(closure).detach()))
    agreed(net)
    counted = [int(b) for name, b in net.named_buffers() if name.endswith("num_batches_tracked")]
    return losses, counted


@pytest.mark.parametrize("perturbation", ["global", "local"])
@pytest.mark.parametrize("kind", [Residual, Sequence])
def test_real_layers_train_in_half_precision(ranks, kind, perturbation):
    for losses, counted in ranks(half_precision, kind, perturbation):
        assert losses[-1] < 0.8 * losses[0]
        assert all(count == 30 for count in counted)


def statistics(rank, broadcast):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    plain = nn.BatchNorm1d(4)
    x, y = data(rank, 0)
    plain(net[0](x))
    ddp = DistributedDataParallel(net, broadcast_buffers=broadcast)
    optim.SAM(net.parameters(), torch.optim.SGD, rho=0.3, lr=0.1).step(closure_for(ddp, x, y))
    torch.testing.assert_close(net[1].running_mean, plain.running_mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(net[1].running_var, plain.running_var, rtol=1e-14, atol=0)
    return int(net[1].num_batches_tracked)


@pytest.mark.parametrize("broadcast", [True, False])
def test_each_processes_statistics_move_once(ranks, broadcast):
    assert ranks(statistics, broadcast) == [1, 1]


def average_gradients(net):
    for p in net.parameters():
        distributed.all_reduce(p.grad)
        p.grad /= distributed.get_world_size()


def regularized(rank):
    """No wrapper: the closure averages, and so do both passes."""
    net = small_net()
    objective = Regularized(net, F.cross_entropy, [RelativeFlatness("2", weight=0.1)])
    optimizer = BASES["adamw"](net.parameters(), rho=0.3)
    for step in range(STEPS):

        def closure(step=step):
            loss = objective(*data(rank, step), step=step)
            loss.backward()
            if rank is not None:
                average_gradients(net)
            return loss

        optimizer.step(closure)
    return flat(net)


def test_penalties_with_gradients_averaged_by_hand(ranks):
    one, other = ranks(regularized)
    assert torch.equal(one, other)
    torch.testing.assert_close(one, regularized(None), rtol=1e-10, atol=1e-10)


def product(rank, seed):
    """The first 4 of 12 examples on process 0, the rest on process 1."""
    x, y = data(None, 0)
    mine = slice(0, 4) if rank == 0 else slice(4, 12) if rank == 1 else slice(0, 12)
    net = DistributedDataParallel(small_net()) if rank is not None else small_net()
    if rank is not None:
        with pytest.raises(Refused, match=r"pass model\.module.*averaged\(operator, examples\)"):
            curvature(net, F.cross_entropy, [(x[mine], y[mine])])
    operator = curvature(getattr(net, "module", net), F.cross_entropy, [(x[mine], y[mine])])
    if rank is not None:
        operator = averaged(operator, len(y[mine]))
    vector = torch.randn(operator.dim, generator=torch.Generator().manual_seed(seed))
    return operator(vector), largest(operator, stream(0), tolerance=1e-8).value


def test_a_product_with_the_hessian_is_that_on_all_examples(ranks):
    wanted, top = product(None, 5)
    for found, value in ranks(product, 5):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)
        assert value == pytest.approx(top, rel=1e-10)


def different(rank):
    operator = averaged(curvature(small_net(), F.cross_entropy, [data(rank, 0)]), 6)
    with pytest.raises(Refused, match="the processes multiply different vectors"):
        operator(torch.randn(operator.dim, generator=torch.Generator().manual_seed(rank)))


def test_products_with_different_vectors_are_refused(ranks):
    ranks(different)
