"""`Regularized` against torch.func, finite differences and the contract of a loss."""

from __future__ import annotations

import copy

import oracles
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from flattrain.core.eager import LayerNorm, eager
from flattrain.core.losses import cross_entropy
from flattrain.core.probes import draw, stream
from flattrain.ranges import Refused
from flattrain.regularizers import HessianTrace, Regularized, RelativeFlatness, SoftRank
from flattrain.training.objective import build
from flattrain.types import Batch

PENALTIES = {
    "head": lambda: [RelativeFlatness("head", weight=0.3)],
    "hidden": lambda: [RelativeFlatness("hidden1", weight=0.3, probes=2)],
    "soft rank": lambda: [SoftRank(weight=0.1, lam=0.05)],
    "sketch": lambda: [SoftRank(weight=0.1, lam=0.05, columns="sketch")],
    "trace": lambda: [HessianTrace(weight=0.2, probes=2)],
    "all": lambda: [
        RelativeFlatness("head", weight=0.3),
        SoftRank(weight=0.1),
        HessianTrace(weight=0.2),
    ],
}


class Counted(nn.Module):
    """A module that counts its forward passes and takes a dict."""

    def __init__(self, net):
        super().__init__()
        self.net, self.calls = net, 0

    def forward(self, inputs):
        self.calls += 1
        return self.net(inputs["x"])


@pytest.mark.parametrize("name", PENALTIES)
def test_backward_is_torch_func_grad_of_the_functional_form_in_one_forward(name):
    net, (x, y) = oracles.small_net(), oracles.data()
    model = Counted(net)
    penalties = [
        p
        if p.measure.name != "relative_flatness"
        else RelativeFlatness(
            f"net.{p.measure.layers[0]}", weight=p.weight, probes=2 if name == "hidden" else 1
        )
        for p in PENALTIES[name]()
    ]
    objective = Regularized(model, F.cross_entropy, penalties, seed=4)
    loss = objective({"x": x}, y, step=7)
    # the trace runs the network again for each probe, with jets
    assert model.calls == 1 + {"trace": 2, "all": 1}.get(name, 0)
    loss.backward()
    plain = F.cross_entropy(net(x), y)
    assert abs(loss - plain) > 1e-4

    functional = build(net, cross_entropy, PENALTIES[name]())
    params = {k: p.detach() for k, p in net.named_parameters()}
    wanted = functional.draws(functional.see(x, y))
    noise = draw(wanted, stream(4, "penalty", 7), x.dtype)
    grads, _ = functional.gradient()(params, Batch(x, y, noise))
    for k, p in net.named_parameters():
        torch.testing.assert_close(p.grad, grads[k], rtol=1e-10, atol=1e-12)


def test_probes_move_on_with_the_calls_and_stand_still_with_step():
    net, (x, y) = oracles.small_net(), oracles.data()
    objective = Regularized(net, F.cross_entropy, [HessianTrace(weight=1.0)])
    first, second = objective(x, y).item(), objective(x, y).item()
    assert first != second
    assert objective(x, y, step=0).item() == first
    assert set(objective.logs) == {"loss", "hessian_trace"}


def test_batchnorm_statistics_move_once_and_frozen_parts_stay():
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    other = copy.deepcopy(net)
    x, y = oracles.data()
    net[0].weight.requires_grad_(False)
    objective = Regularized(
        net,
        F.cross_entropy,
        [RelativeFlatness("2", weight=0.1), SoftRank(weight=0.1, layers=["2"])],
    )
    objective(x, y).backward()
    other(x)
    torch.testing.assert_close(net[1].running_mean, other[1].running_mean)
    assert net[0].weight.grad is None
    assert net[0].bias.grad is not None
    with pytest.raises(Refused, match="the soft rank of '0': 1 behind it ties the examples"):
        Regularized(net, F.cross_entropy, [SoftRank(weight=0.1, layers=["0"])])(x, y)
    net[1].eval()
    Regularized(net, F.cross_entropy, [SoftRank(weight=0.1, layers=["0", "2"])])(x, y)


def test_layers_that_are_frozen_up_to_the_tap_are_fine():
    net, (x, y) = oracles.small_net(), oracles.data()
    for p in net.hidden1.parameters():
        p.requires_grad_(False)
    Regularized(net, F.cross_entropy, [RelativeFlatness("hidden1", weight=1.0)])(x, y).backward()
    assert net.hidden1.weight.grad is None
    assert net.head.weight.grad.abs().sum() > 0


def gradient_is_that_of_differences(net, objective, x, y):
    """The gradient of a penalised loss against central differences of its value, with the same probes."""
    net.zero_grad()
    objective(x, y, step=0).backward()
    mine = torch.cat([p.grad.reshape(-1) for p in net.parameters()])

    def value(vector):
        torch.nn.utils.vector_to_parameters(vector, net.parameters())
        return objective(x, y, step=0).detach()

    at = torch.nn.utils.parameters_to_vector(net.parameters()).detach().clone()
    torch.testing.assert_close(mine, oracles.finite_difference(value, at, 1e-3), rtol=1e-5, atol=1e-7)


def test_the_guard_refuses_wrong_third_derivatives_and_the_eager_layer_is_right():
    x, y = oracles.data()
    torch.manual_seed(0)
    wrong = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 3))
    right = nn.Sequential(wrong[0], LayerNorm(5), wrong[2], wrong[3])
    with pytest.raises(Refused, match=r"differentiates 1 three times.*eager\.eager\(model\)"):
        Regularized(wrong, F.cross_entropy, [HessianTrace(weight=1.0)])(x, y)
    with pytest.raises(Refused, match="three times"):
        Regularized(wrong, F.cross_entropy, [RelativeFlatness("0", weight=1.0)])(x, y)
    Regularized(wrong, F.cross_entropy, [RelativeFlatness("3", weight=1.0)])(x, y).backward()

    torch.testing.assert_close(right(x), wrong(x), rtol=1e-12, atol=1e-12)
    right.zero_grad()
    objective = Regularized(right, F.cross_entropy, [HessianTrace(weight=1.0)])
    gradient_is_that_of_differences(right, objective, x, y)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d])
def test_eager_batch_norm_is_torchs_and_right_to_third_order(kind):
    torch.manual_seed(0)
    flat = kind is nn.BatchNorm1d
    first = nn.Linear(4, 3) if flat else nn.Conv2d(1, 3, 2)
    net = nn.Sequential(first, kind(3), nn.Tanh(), nn.Flatten(), nn.Linear(3, 3))
    x, y = oracles.data()
    x = x if flat else x.reshape(-1, 1, 2, 2)
    other = eager(copy.deepcopy(net))
    torch.testing.assert_close(other(x), net(x), rtol=1e-12, atol=1e-12)
    for (k, mine), theirs in zip(other.state_dict().items(), net.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=0, msg=k)
    torch.testing.assert_close(other.eval()(x), net.eval()(x), rtol=1e-12, atol=1e-12)
    other.train()
    for penalty in (HessianTrace(weight=0.3), RelativeFlatness("0", weight=0.3)):
        gradient_is_that_of_differences(other, Regularized(other, F.cross_entropy, [penalty]), x, y)


def test_a_model_that_returns_no_tensor_and_losses_that_are_not_means_are_refused():
    net, (x, y) = oracles.small_net(), oracles.data()
    wrapped = nn.Module()
    wrapped.net, wrapped.forward = net, lambda x: {"logits": net(x)}
    with pytest.raises(Refused, match="returned a dict"):
        Regularized(wrapped, F.cross_entropy, [])(x, y)
    Regularized(wrapped, F.cross_entropy, [], forward=lambda m, x: m(x)["logits"])(x, y)
    with pytest.raises(Refused, match="reduction='mean'"):
        Regularized(net, nn.CrossEntropyLoss(reduction="sum"), [])
    with pytest.raises(Refused, match="weight must be a number >= 0"):
        Regularized(net, F.cross_entropy, [HessianTrace(weight=-1)])
    with pytest.raises(Refused, match="no layer 'haed'; did you mean 'head'"):
        Regularized(net, F.cross_entropy, [RelativeFlatness("haed", weight=1)])


class Attention(nn.Module):
    """One block of fused attention, which has no double backward of its own."""

    def __init__(self):
        super().__init__()
        self.mix, self.head = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x):
        q, k, v = self.mix(x.reshape(len(x), 2, 4)).chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v).mean(1))


def test_fused_attention_is_differentiated_right():
    torch.manual_seed(0)
    net, x, y = Attention(), torch.randn(6, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    objective = Regularized(net, F.cross_entropy, [HessianTrace(weight=1.0)])
    gradient_is_that_of_differences(net, objective, x, y)
    objective = Regularized(net, F.cross_entropy, [RelativeFlatness("mix", weight=1.0, probes=2)])
    gradient_is_that_of_differences(net, objective, x, y)
    objective = Regularized(net, F.cross_entropy, [SoftRank(weight=1.0)])
    gradient_is_that_of_differences(net, objective, x, y)
