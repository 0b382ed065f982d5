"""Per-example SAM against a loop over the examples, on every kind of layer."""

from __future__ import annotations

import copy

import pytest
import torch
import zoo
from torch import nn

from flattrain.core.ghost_sam import functional_too, per_example_sam
from flattrain.core.losses import recognise
from flattrain.ranges import Refused

RHO = 0.3


def loop(net, loss, x, y):
    """The mean over examples of the gradient at that example's own ascended weights."""
    trainable = [p for p in net.parameters() if p.requires_grad]
    total = [torch.zeros_like(p) for p in trainable]
    value = 0.0
    for i in range(len(x)):
        other = copy.deepcopy(net)
        params = [p for p in other.parameters() if p.requires_grad]
        g = torch.autograd.grad(loss(other(x[i : i + 1]), y[i : i + 1]), params, materialize_grads=True)
        size = torch.stack([v.square().sum() for v in g]).sum().sqrt()
        with torch.no_grad():
            for p, v in zip(params, g, strict=True):
                p += RHO * v / size
        ascended = loss(other(x[i : i + 1]), y[i : i + 1])
        value += float(ascended) / len(x)
        after = torch.autograd.grad(ascended, params, materialize_grads=True)
        total = [t + v / len(x) for t, v in zip(total, after, strict=True)]
    return value, total


@pytest.mark.parametrize("loss", ["smoothed", "squared"])
@pytest.mark.parametrize("name", zoo.BUILD)
def test_loss_and_gradient_are_those_of_a_loop(name, loss):
    net, x = zoo.build(name)
    criterion = zoo.LOSSES[loss]
    y = zoo.targets(net, x, criterion)
    value, wanted = loop(net, criterion, x, y)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    found = per_example_sam(net, recognise(criterion), x, y, rho=RHO)
    assert float(found.loss) == pytest.approx(value, rel=1e-11)
    assert float(found.before) == pytest.approx(float(criterion(net(x), y)), rel=1e-12)
    mine = torch.autograd.grad(found.loss, [p for p in net.parameters() if p.requires_grad])
    for g, w in zip(mine, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-12)
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())
    assert not any("forward" in vars(part) for part in net.modules())


@pytest.mark.parametrize("name", [name for name in zoo.BUILD if functional_too(zoo.build(name)[0])])
def test_stacked_weights_are_a_loop_of_those_of_the_module(name):
    """At other weights than the module's, under vmap, as seeds train side by side."""
    net, x = zoo.build(name)
    y = zoo.targets(net, x, nn.MSELoss())
    generator = torch.Generator().manual_seed(3)
    own = {k: p for k, p in net.named_parameters() if p.requires_grad}
    moved = {k: p.detach() + 0.1 * torch.randn(2, *p.shape, generator=generator) for k, p in own.items()}

    def at(params):
        return per_example_sam(net, recognise(nn.MSELoss()), x, y, rho=RHO, params=params).loss

    stacked = torch.func.vmap(torch.func.grad(at))(moved)
    for k in range(2):
        other = copy.deepcopy(net)
        other.load_state_dict({name: v[k] for name, v in moved.items()}, strict=False)
        _, wanted = loop(other, nn.MSELoss(), x, y)
        for name, w in zip(own, wanted, strict=True):
            torch.testing.assert_close(stacked[name][k], w, rtol=1e-9, atol=1e-12)


def test_which_nets_take_other_weights():
    assert functional_too(zoo.build("mlp")[0])
    assert not functional_too(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 2)))
    assert not functional_too(nn.Sequential(nn.Linear(2, 2), nn.MultiheadAttention(2, 1)))


def test_radius_zero_is_the_plain_gradient_and_a_flat_example_stays():
    net, x = zoo.build("mlp")
    y = zoo.targets(net, x, nn.MSELoss())
    y[2] = net(x)[2].detach()
    plain = torch.autograd.grad(nn.MSELoss()(net(x), y), list(net.parameters()))
    still = per_example_sam(net, recognise(nn.MSELoss()), x, y, rho=0.0).loss
    for g, w in zip(torch.autograd.grad(still, list(net.parameters())), plain, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-12, atol=1e-14)
    moved = per_example_sam(net, recognise(nn.MSELoss()), x, y, rho=RHO).loss
    assert torch.isfinite(moved) and moved > still


def test_layers_are_restored_when_the_pass_fails():
    net, x = zoo.build("mlp")
    y = zoo.targets(net, x, nn.CrossEntropyLoss())
    calls = []

    def forward(model, x):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no")
        return model(x)

    with pytest.raises(RuntimeError, match="no"):
        per_example_sam(net, recognise(nn.CrossEntropyLoss()), x, y, rho=RHO, forward=forward)
    assert not any("forward" in vars(part) for part in net.modules())


def test_what_is_not_covered_is_refused():
    net, x = zoo.build("transformer")
    y = zoo.targets(net, x, nn.CrossEntropyLoss())
    with pytest.raises(Refused, match="per-example SAM: no structure is known for place"):
        per_example_sam(net, recognise(nn.CrossEntropyLoss()), x, y, rho=RHO)


@pytest.mark.parametrize("frozen", ["nothing", "weights", "biases"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_convolutions_of_every_kind(ndim, frozen):
    torch.manual_seed(0)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[ndim - 1]
    net = nn.Sequential(
        conv(4, 6, 3, stride=2, padding=1, groups=2),
        nn.Tanh(),
        conv(6, 6, 3, padding="same", dilation=2, padding_mode="circular"),
        nn.Tanh(),
        conv(6, 4, 1, bias=False),
        nn.Flatten(),
        nn.Linear(4 * 3**ndim, 3),
    )
    for name, p in net[:5].named_parameters():
        p.requires_grad_(frozen == "nothing" or name.endswith("weight") != (frozen == "weights"))
    x, y = torch.randn(3, 4, *[5] * ndim), torch.tensor([0, 2, 1])
    value, wanted = loop(net, nn.CrossEntropyLoss(), x, y)
    found = per_example_sam(net, recognise(nn.CrossEntropyLoss()), x, y, rho=RHO)
    assert float(found.loss) == pytest.approx(value, rel=1e-11)
    mine = torch.autograd.grad(found.loss, [p for p in net.parameters() if p.requires_grad])
    for g, w in zip(mine, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-12)


def test_a_convolution_that_runs_twice():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 3, 3, padding=1)
    net = nn.Sequential(conv, nn.Tanh(), conv, nn.Flatten(), nn.Linear(48, 3))
    x, y = torch.randn(4, 3, 4, 4), torch.tensor([0, 2, 1, 1])
    value, wanted = loop(net, nn.CrossEntropyLoss(), x, y)
    found = per_example_sam(net, recognise(nn.CrossEntropyLoss()), x, y, rho=RHO)
    assert float(found.loss) == pytest.approx(value, rel=1e-11)
    mine = torch.autograd.grad(found.loss, list(net.parameters()))
    for g, w in zip(mine, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-12)
