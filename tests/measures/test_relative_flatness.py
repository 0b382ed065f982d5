"""κ against its definition by an explicit Hessian, its gradient against finite differences, invariances."""

from __future__ import annotations

import oracles
import pytest
import torch
from laws import one_batch_is_many, value_of, vmap_is_loop
from torch import nn
from torch.nn import functional as F

from flattrain.core.losses import cross_entropy, squared_error
from flattrain.measures.relative_flatness import relative_flatness
from flattrain.ranges import Refused


def gradient(measure, module, criterion, x, y, noise=None):
    live = {k: p.detach().requires_grad_() for k, p in module.named_parameters()}
    value = value_of(measure, module, criterion, x, y, live, noise)
    return oracles.flat(
        dict(
            zip(
                live,
                torch.autograd.grad(value, list(live.values()), materialize_grads=True),
                strict=True,
            )
        )
    )


def all_probes(n, width):
    """Σ over ±1 vectors is not needed: unit vectors √D e_k, one per feature, make the probe exact."""
    return {
        str(k): width**0.5 * F.one_hot(torch.tensor(k), width).double().expand(n, width) for k in range(width)
    }


@pytest.mark.parametrize("kind", ["tanh", "relu", "softplus"])
def test_head_form_is_the_definition(kind):
    net, (x, y) = oracles.small_net(kind), oracles.data()
    h = oracles.full_hessian(net, F.cross_entropy, x, y)
    mine = value_of(relative_flatness(layer="head"), net, cross_entropy, x, y)
    torch.testing.assert_close(mine, oracles.kappa(net, h, "head"), rtol=1e-10, atol=0)


def test_head_form_under_squared_error():
    net, (x, _) = oracles.small_net(sizes=(4, 5, 2)), oracles.data()
    y = torch.randn(len(x), 2)
    h = oracles.full_hessian(net, squared_error.mean, x, y)
    mine = value_of(relative_flatness(layer="head"), net, squared_error, x, y)
    torch.testing.assert_close(mine, oracles.kappa(net, h, "head"), rtol=1e-10, atol=0)


@pytest.mark.parametrize("kind", ["tanh", "relu", "softplus"])
@pytest.mark.parametrize("layer", ["hidden1", "hidden2"])
def test_probe_form_summed_over_a_basis_is_the_definition(kind, layer):
    net, (x, y) = oracles.small_net(kind, (4, 5, 4, 3)), oracles.data()
    h = oracles.full_hessian(net, F.cross_entropy, x, y)
    width = {"hidden1": 4, "hidden2": 5}[layer]
    measure = relative_flatness(layer=layer, form="probe", probes=width)
    mine = value_of(measure, net, cross_entropy, x, y, noise=all_probes(len(x), width))
    torch.testing.assert_close(mine, oracles.kappa(net, h, layer), rtol=1e-10, atol=1e-12)


def test_relu_form_is_the_definition_for_relu_and_not_for_tanh():
    x, y = oracles.data()
    measure = relative_flatness(layer="hidden1", form="relu")
    ratios = {}
    for kind in ("relu", "tanh"):
        net = oracles.small_net(kind)
        h = oracles.full_hessian(net, F.cross_entropy, x, y)
        ratios[kind] = value_of(measure, net, cross_entropy, x, y) / oracles.kappa(net, h, "hidden1")
    torch.testing.assert_close(ratios["relu"], torch.tensor(1.0), rtol=1e-10, atol=0)
    assert abs(ratios["tanh"] - 1) > 0.05


@pytest.mark.parametrize(
    ("layer", "form", "kind"),
    [("head", "head", "tanh"), ("hidden1", "relu", "relu"), ("hidden1", "probe", "softplus")],
)
def test_gradient_is_that_of_the_definition(layer, form, kind):
    net, (x, y) = oracles.small_net(kind, (3, 4, 3)), oracles.data(inputs=3)
    measure = relative_flatness(layer=layer, form=form, probes=3 if form == "probe" else 1)
    noise = all_probes(len(x), 3) if form == "probe" else None
    mine = gradient(measure, net, cross_entropy, x, y, noise)
    wanted = oracles.gradient_of(
        lambda h, params: oracles.kappa_of(h, params, layer), net, F.cross_entropy, x, y
    )
    torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-12)
    like = {k: p.detach() for k, p in net.named_parameters()}

    def definition(vector):
        torch.nn.utils.vector_to_parameters(vector, net.parameters())
        return oracles.kappa(net, oracles.full_hessian(net, F.cross_entropy, x, y), layer)

    at = oracles.flat(like)
    wanted = oracles.finite_difference(definition, at, 1e-4)
    torch.testing.assert_close(mine, wanted, rtol=1e-7, atol=1e-8)
    assert wanted.norm() > 0.1


def test_gradient_reaches_the_layers_before_the_head():
    net, (x, y) = oracles.small_net(), oracles.data()
    g = gradient(relative_flatness(layer="head"), net, cross_entropy, x, y)
    before = sum(p.numel() for k, p in net.named_parameters() if not k.startswith("head"))
    assert g[:before].square().sum() / g.square().sum() > 0.1


def test_probes_are_unbiased_and_their_standard_error_is_right():
    net, (x, y) = oracles.small_net(), oracles.data()
    exact = oracles.kappa(net, oracles.full_hessian(net, F.cross_entropy, x, y), "hidden1")
    measure = relative_flatness(layer="hidden1", form="probe", probes=400)
    from flattrain.core.functional import see
    from flattrain.core.probes import draw, stream

    seen = see(net, cross_entropy, x, y, layers=("hidden1",))
    found = measure.reduce(measure.statistic(seen, draw(measure.draws(seen), stream(3), x.dtype)))
    assert found.standard_error > 0
    assert abs(found.value - exact) < 4 * found.standard_error


def test_invariance_under_layerwise_rescaling_of_a_relu_net():
    net, (x, y) = oracles.small_net("relu", bias=False), oracles.data()
    measures = [relative_flatness(layer="head"), relative_flatness(layer="hidden1", form="relu")]
    before = [value_of(m, net, cross_entropy, x, y).item() for m in measures]
    trace = torch.trace(oracles.full_hessian(net, F.cross_entropy, x, y))
    with torch.no_grad():
        net.hidden1.weight.mul_(7)
        net.head.weight.div_(7)
    after = [value_of(m, net, cross_entropy, x, y).item() for m in measures]
    assert after == pytest.approx(before, rel=1e-12)
    assert torch.trace(oracles.full_hessian(net, F.cross_entropy, x, y)) > 2 * trace


def test_laws():
    net, (x, y) = oracles.small_net("relu"), oracles.data()
    one_batch_is_many(relative_flatness(layer="head"), net, x, y)
    one_batch_is_many(relative_flatness(layer="hidden1", form="relu"), net, x, y)
    for form in ("relu", "probe"):
        vmap_is_loop(relative_flatness(layer="hidden1", form=form), net, x, y)
    vmap_is_loop(relative_flatness(layer="head"), net, x, y)


def test_refusals_name_the_layer_and_the_way_out():
    net, (x, y) = oracles.small_net(), oracles.data()
    with pytest.raises(Refused, match="no layer 'heed'; did you mean 'head'"):
        value_of(relative_flatness(layer="heed"), net, cross_entropy, x, y)
    with pytest.raises(Refused, match="use form='probe'"):
        value_of(relative_flatness(layer="hidden1", form="head"), net, cross_entropy, x, y)
    coupled = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    with pytest.raises(Refused, match="ties the examples"):
        value_of(relative_flatness(layer="0", form="probe"), coupled, cross_entropy, x, y)
    value_of(relative_flatness(layer="2"), coupled, cross_entropy, x, y)
    with pytest.raises(Refused, match="form must be one of"):
        relative_flatness(form="heads")
    with pytest.raises(Refused, match="probes must be a whole number >= 1"):
        relative_flatness(probes=0)
