"""Every member: against its rule, through a checkpoint, under a scaled loss, at its identities."""

from __future__ import annotations

import copy

import oracles
import pytest
import torch
from stepping import close, closure_for, same, weights
from torch import nn
from torch.nn import functional as F

from flattrain import optim
from flattrain.core.losses import cross_entropy
from flattrain.ranges import Refused
from flattrain.rules import adaptive, compose, friendly, gradient_pair, looksam, sam
from flattrain.training.objective import build
from flattrain.types import Batch, Moment

MEMBERS = {
    "SAM": (optim.SAM, {"rho": 0.2}, lambda: sam.sam(rho=0.2)),
    "USAM": (optim.USAM, {"rho": 0.2}, lambda: sam.usam(rho=0.2)),
    "ASAM": (optim.ASAM, {"rho": 0.7, "eta": 0.1}, lambda: adaptive.asam(rho=0.7, eta=0.1)),
    "GSAM": (optim.GSAM, {"rho": 0.2, "alpha": 0.4}, lambda: gradient_pair.gsam(rho=0.2, alpha=0.4)),
    "WSAM": (optim.WSAM, {"rho": 0.2, "gamma": 0.7}, lambda: gradient_pair.wsam(rho=0.2, gamma=0.7)),
    "GNP": (optim.GradientNormPenalty, {"rho": 0.2}, lambda: gradient_pair.gnp(rho=0.2)),
    "stable": (optim.StableSAM, {"rho": 0.2}, lambda: gradient_pair.stable_sam(rho=0.2)),
    "LookSAM": (optim.LookSAM, {"rho": 0.2, "every": 3}, lambda: looksam.looksam(rho=0.2, every=3)),
    "friendly": (optim.FriendlySAM, {"rho": 0.2}, lambda: friendly.friendly_sam(rho=0.2)),
}
RATE = 0.3


def fresh(name):
    kind, settings, _ = MEMBERS[name]
    net = oracles.small_net()
    return net, kind(net.named_parameters(), torch.optim.SGD, lr=RATE, momentum=0.9, **settings)


def parts():
    """Another part of the data at every step."""
    x, y = oracles.data()
    return [(x[k : k + 5], y[k : k + 5]) for k in range(7)]


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_is_its_rule(name):
    net, optimizer = fresh(name)
    grad_fn = compose.compose([MEMBERS[name][2]()])(build(net, cross_entropy, []).gradient())
    params = {k: p.detach().clone() for k, p in net.named_parameters()}
    memory = compose.compose([MEMBERS[name][2]()]).init(params)
    momentum = {k: torch.zeros_like(p) for k, p in params.items()}
    plain = copy.deepcopy(params)
    for step, (x, y) in enumerate(parts()):
        optimizer.step(closure_for(net, x, y))
        g, _, memory = grad_fn(params, Batch(x, y, {}, Moment(step)), memory)
        momentum = {k: 0.9 * v + g[k] for k, v in momentum.items()}
        params = {k: v - RATE * momentum[k] for k, v in params.items()}
    close(weights(net), list(params.values()), 1e-10)
    other, reference = fresh("SAM")
    reference.param_groups[0]["rho"] = 0.0
    for x, y in parts():
        reference.step(closure_for(other, x, y))
    assert max(float((p - q).abs().max()) for p, q in zip(weights(net), weights(other), strict=True)) > 1e-3
    assert plain.keys() == params.keys()


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_goes_on_where_it_stopped(name, tmp_path):
    net, optimizer = fresh(name)
    for step, (x, y) in enumerate(parts()):
        if step == 4:
            torch.save([net.state_dict(), optimizer.state_dict()], tmp_path / "half.pt")
        optimizer.step(closure_for(net, x, y))
    again, resumed = fresh(name)
    state, memory = torch.load(tmp_path / "half.pt", weights_only=True)
    again.load_state_dict(state)
    resumed.load_state_dict(memory)
    for x, y in parts()[4:]:
        resumed.step(closure_for(again, x, y))
    assert same(weights(net), weights(again))


@pytest.mark.parametrize("name", MEMBERS)
def test_a_scaled_loss_changes_nothing(name):
    net, optimizer = fresh(name)
    other, reference = fresh(name)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    for x, y in parts():
        optimizer.step(closure_for(net, x, y, scaler), scaler=scaler)
        scaler.update()
        reference.step(closure_for(other, x, y))
    assert scaler.get_scale() > 2.0**10  # it has grown under way, and what is remembered does not feel it
    close(weights(net), weights(other), 1e-11)


def test_a_state_without_memory_is_refused():
    _, look = fresh("LookSAM")
    _, plain = fresh("SAM")
    with pytest.raises(Refused, match="LookSAM: this state_dict has no memory of the rule"):
        look.load_state_dict(plain.state_dict())
    net, look = fresh("LookSAM")
    look.step(closure_for(net, *parts()[0]))
    with pytest.raises(Refused, match="cannot join after the first step"):
        look.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})


def test_looksam_takes_the_second_pass_at_every_kth_step():
    net, optimizer = fresh("LookSAM")
    calls = []
    for x, y in parts():

        def closure(x=x, y=y):
            calls.append(1)
            return closure_for(net, x, y)()

        optimizer.step(closure)
    assert len(calls) == 7 + 3  # of 7 steps, those with numbers 0, 3 and 6


def test_biases_need_names():
    net = oracles.small_net()
    with pytest.raises(Refused, match=r"give model.named_parameters\(\), or biases='scaled'"):
        optim.ASAM(net.parameters(), torch.optim.SGD, lr=0.1)
    optim.ASAM(net.parameters(), torch.optim.SGD, lr=0.1, biases="scaled")


def test_sam_on_moves_normalisations_only_and_steps_all():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3))
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    groups = optim.normalisation_groups(net, rho=0.7)
    optimizer = optim.SAM(groups, torch.optim.SGD, lr=0.1)
    before = {k: p.detach().clone() for k, p in net.named_parameters()}
    optimizer.zero_grad()
    F.cross_entropy(net(x), y).backward()
    assert optimizer.ascend()
    moved = {k: float((p - before[k]).norm()) for k, p in net.named_parameters()}
    assert {k for k, size in moved.items() if size} == {"1.weight", "1.bias"}
    assert sum(v**2 for v in moved.values()) ** 0.5 == pytest.approx(0.7, rel=1e-12)
    F.cross_entropy(net(x), y).backward()
    optimizer.descend()
    assert all(not torch.equal(p, before[k]) for k, p in net.named_parameters())
    with pytest.raises(Refused, match="no normalisation layer"):
        optim.normalisation_groups(oracles.small_net(), rho=0.5)


def test_sparse_gradients_are_refused_where_they_are_not_understood():
    net = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.Linear(8, 3))
    optimizer = optim.GSAM(net.parameters(), torch.optim.SGD, lr=0.1)
    with pytest.raises(Refused, match="sparse gradients are taken by SAM and USAM only"):
        optimizer.step(closure_for(net, torch.tensor([[0, 1]]), torch.tensor([2])))
