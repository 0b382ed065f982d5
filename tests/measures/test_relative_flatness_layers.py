"""Relative flatness of convolutions, sequences and coupled layers against the dense Hessian of the weight."""

from __future__ import annotations

import oracles
import pytest
import torch
import zoo
from laws import value_of, vmap_is_loop
from torch import nn
from torch.func import functional_call, grad, hessian

from flattrain.core.eager import BatchNorm1d
from flattrain.core.functional import see
from flattrain.core.losses import recognise
from flattrain.core.probes import draw, stream
from flattrain.measures.relative_flatness import relative_flatness
from flattrain.ranges import Refused

CASES = [
    ("mlp", "0", 1),
    ("mlp", "2", 1),
    ("convolution", "one", 1),
    ("convolution", "two", 2),
    ("convolution", "head", 1),
    ("residual", "two", 1),
    ("groups", "one", 1),
    ("transformer", "up", 1),
    ("transformer", "attend.mix", 1),
]


def kappa(net, loss, x, y, layer, groups, params):
    """Σ_{s,t in one group} ⟨w_s, w_t⟩ Tr H_{s,t} from the dense Hessian of the weight."""
    name = f"{layer}.weight"

    def value(weight):
        return loss(functional_call(net, params | {name: weight.reshape(params[name].shape)}, (x,)), y)

    w = params[name].flatten(1)
    h = hessian(value)(w)
    total = torch.zeros(())
    size = len(w) // groups
    for s in range(len(w)):
        for t in range(len(w)):
            if s // size == t // size:
                total = total + (w[s] @ w[t]) * torch.trace(h[s, :, t, :])
    return total


@pytest.mark.parametrize("loss", ["smoothed", "squared"])
@pytest.mark.parametrize(("name", "layer", "groups"), CASES)
def test_exact_form_is_the_definition_in_value_and_gradient(name, layer, groups, loss):
    net, x = zoo.build(name)
    criterion = zoo.LOSSES[loss]
    y = zoo.targets(net, x, criterion)
    params = oracles.trainable(net)
    live = {k: p.clone().requires_grad_() for k, p in params.items()}
    value = value_of(relative_flatness(layer=layer, form="exact"), net, recognise(criterion), x, y, live)
    dense = lambda p: kappa(net, criterion, x, y, layer, groups, p)  # noqa: E731
    torch.testing.assert_close(value.detach(), dense(params), rtol=1e-9, atol=1e-12)
    mine = torch.autograd.grad(value, list(live.values()), materialize_grads=True)
    wanted = grad(dense)(params)
    scale = max(float(g.abs().max()) for g in wanted.values())
    for g, (k, w) in zip(mine, wanted.items(), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-9 * scale, msg=lambda m, k=k: f"{k}: {m}")


@pytest.mark.parametrize("layer", ["one", "two"])
def test_relu_form_of_a_convolution(layer):
    torch.manual_seed(3)
    net = zoo.Functional(
        lambda m, x: m.head(m.two(m.one(x).relu()).relu().flatten(1)),
        one=nn.Conv2d(2, 4, 2, stride=2),
        two=nn.Conv2d(4, 4, 2, groups=2),
        head=nn.Linear(4, 3),
    )
    x, y = torch.randn(5, 2, 4, 4), torch.tensor([0, 1, 2, 1, 0])
    groups = net.get_submodule(layer).groups
    wanted = kappa(net, nn.CrossEntropyLoss(), x, y, layer, groups, oracles.trainable(net))
    mine = value_of(relative_flatness(layer=layer, form="relu"), net, recognise(nn.CrossEntropyLoss()), x, y)
    torch.testing.assert_close(mine.detach(), wanted, rtol=1e-9, atol=0)


def _coupled():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(3, 3), BatchNorm1d(3, track_running_stats=False), nn.Tanh(), nn.Linear(3, 3)
    ).train()


@pytest.mark.parametrize("case", ["convolution", "batch norm in training"])
def test_weight_space_probes_are_unbiased_in_value_and_gradient(case):
    if case == "convolution":
        (net, x), layer, groups = zoo.build(case), "two", 2
    else:
        net, x, layer, groups = _coupled(), torch.randn(6, 3), "0", 1
    loss = nn.CrossEntropyLoss()
    y = torch.arange(len(x)) % 3
    params = oracles.trainable(net)
    buffers = {k: b.clone() for k, b in net.named_buffers()}

    def dense(p):
        return kappa(net, loss, x, y, layer, groups, p | {k: b.clone() for k, b in buffers.items()})

    wanted = [dense(params), *grad(dense)(params).values()]
    measure = relative_flatness(layer=layer, form="auto")
    found = []
    for k in range(1500):
        live = {n: p.clone().requires_grad_() for n, p in params.items()}
        copies = {n: b.clone() for n, b in buffers.items()}
        seen = see(net, recognise(loss), x, y, layers=(layer,), params=live, buffers=copies)
        noise = draw(measure.draws(seen), stream(k), x.dtype)
        value = measure.reduce(measure.statistic(seen, noise)).value
        grads = torch.autograd.grad(value, list(live.values()), materialize_grads=True)
        found.append([value.detach(), *grads])
    assert next(iter(noise.values())).shape == (groups, *2 * (params[f"{layer}.weight"][0].numel(),))
    for mine, want in zip(zip(*found, strict=True), wanted, strict=True):
        stacked = torch.stack(mine)
        error = stacked.std(0) / len(found) ** 0.5
        assert torch.all((stacked.mean(0) - want).abs() < 4.8 * error + 1e-12)
    # The noise is small enough for an error of 15 % of the gradient to be seen.
    grads = [torch.stack(m) for m in list(zip(*found, strict=True))[1:]]
    noise2 = sum(float(g.var(0).sum()) for g in grads) / len(found)
    assert noise2**0.5 < 0.1 * sum(float(w.square().sum()) for w in wanted[1:]) ** 0.5


def test_forms_refuse_what_they_do_not_hold_for():
    net, x = zoo.build("tied")
    criterion = recognise(nn.CrossEntropyLoss())

    def value(net, x, **settings):
        y = torch.arange(len(x)) % 3
        measure = relative_flatness(**settings)
        return value_of(measure, net, criterion, x, y)

    with pytest.raises(Refused, match="the weight of layer 'out' is used in 'table' too"):
        value(net, x, layer="out")
    with pytest.raises(Refused, match="'norm' is a LayerNorm"):
        value(net, x, layer="norm")
    with pytest.raises(Refused, match="use form='weights'"):
        value(net, x, layer="mix", form="probe")
    recurrent, x = zoo.build("recurrent")
    with pytest.raises(Refused, match="'step' is used again in a forward pass"):
        value(recurrent, x, layer="step")
    coupled = _coupled()
    for form in ("probe", "relu", "exact"):
        with pytest.raises(Refused, match="ties the examples"):
            value(coupled, torch.randn(7, 3), layer="0", form=form)


def test_laws_hold_for_convolutions():
    net, x = zoo.build("convolution")
    y = zoo.targets(net, x, nn.CrossEntropyLoss())
    for form in ("exact", "weights", "relu"):
        vmap_is_loop(relative_flatness(layer="two", form=form), net, x, y)
