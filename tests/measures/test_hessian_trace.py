"""Traces against an explicit Hessian: Hutchinson, the two-layer closed form, Gauss–Newton."""

from __future__ import annotations

import oracles
import pytest
import torch
import zoo
from laws import one_batch_is_many, value_of, vmap_is_loop
from torch.nn import functional as F

from flattrain.core.losses import cross_entropy, recognise, squared_error
from flattrain.core.probes import stream
from flattrain.measures.gauss_newton_trace import gauss_newton_trace
from flattrain.measures.hessian_trace import hessian_trace
from flattrain.measures.two_layer_trace import two_layer_trace
from flattrain.problems.parity import parity
from flattrain.problems.two_layer import generalising, memorising, two_layer
from flattrain.ranges import Refused


def basis_probes(net):
    """√P e_k for every parameter: the mean of the quadratic forms is the trace, exactly."""
    params = dict(net.named_parameters())
    total = sum(p.numel() for p in params.values())
    rows = total**0.5 * torch.eye(total)
    return {
        f"{k}.{name}": part for k in range(total) for name, part in oracles.rebuild(rows[k], params).items()
    }


@pytest.mark.parametrize("kind", ["tanh", "relu"])
def test_hutchinson_over_a_basis_is_the_trace_and_so_is_its_gradient(kind):
    net, (x, y) = oracles.small_net(kind, (3, 4, 3)), oracles.data(inputs=3)
    total = sum(p.numel() for p in net.parameters())
    measure = hessian_trace(probes=total)
    live = {k: p.detach().requires_grad_() for k, p in net.named_parameters()}
    value = value_of(measure, net, cross_entropy, x, y, live, basis_probes(net))
    h = oracles.full_hessian(net, F.cross_entropy, x, y)
    torch.testing.assert_close(value, torch.trace(h), rtol=1e-10, atol=0)

    def definition(vector):
        torch.nn.utils.vector_to_parameters(vector, net.parameters())
        return torch.trace(oracles.full_hessian(net, F.cross_entropy, x, y))

    mine = oracles.flat(dict(zip(live, torch.autograd.grad(value, list(live.values())), strict=True)))
    at = oracles.flat({k: v.detach() for k, v in live.items()})
    wanted = oracles.finite_difference(definition, at, 1e-4)
    torch.testing.assert_close(mine, wanted, rtol=1e-6, atol=1e-7)
    with torch.no_grad():
        torch.nn.utils.vector_to_parameters(at, net.parameters())
    exact = oracles.gradient_of(lambda h, params: torch.trace(h), net, F.cross_entropy, x, y)
    torch.testing.assert_close(mine, exact, rtol=1e-10, atol=1e-12)


def test_hutchinson_standard_error_is_calibrated():
    """Var zᵀHz = 2 Σ_{i≠j} H_ij² for Rademacher probes."""
    net, (x, y) = oracles.small_net(), oracles.data()
    h = oracles.full_hessian(net, F.cross_entropy, x, y)
    per_probe = (2 * (h.square().sum() - h.diagonal().square().sum())).sqrt()
    from flattrain.core.functional import see
    from flattrain.core.probes import draw

    measure = hessian_trace(probes=600)
    seen = see(net, cross_entropy, x, y)
    found = measure.reduce(measure.statistic(seen, draw(measure.draws(seen), stream(1), x.dtype)))
    assert float(found.standard_error) == pytest.approx(float(per_probe) / 600**0.5, rel=0.15)
    assert abs(found.value - torch.trace(h)) < 4 * found.standard_error


def test_gauss_newton_trace_is_the_hessian_trace_of_a_relu_net_and_not_of_a_tanh_net():
    x, y = oracles.data()
    for kind, equal in (("relu", True), ("tanh", False)):
        net = oracles.small_net(kind, (4, 5, 4, 3))
        trace = torch.trace(oracles.full_hessian(net, F.cross_entropy, x, y)).item()
        mine = value_of(gauss_newton_trace(), net, cross_entropy, x, y).item()
        assert (mine == pytest.approx(trace, rel=1e-10)) is equal
        fisher = oracles.dense_fisher_blocks(net, x)
        assert mine == pytest.approx(sum(torch.trace(b).item() for b in fisher.values()), rel=1e-10)


@pytest.mark.parametrize(
    ("settings", "clamp"),
    [
        ({"bias": False}, None),
        ({"bias": True}, None),
        ({"normalisation": "layer"}, 1e-6),
        ({"normalisation": "layer", "clamp": 3.0}, 3.0),
    ],
)
def test_two_layer_closed_form_is_the_trace_away_from_interpolation(settings, clamp):
    split = parity(dim=5, train=12, test=5)(3)
    x, y = split.train_x.double(), split.train_y.double()
    model = two_layer(width=7, **settings)
    module = model.build(split).double()
    params = model.start(module, split, stream(0))
    with torch.no_grad():
        for k, p in module.named_parameters():
            p.copy_(3 * params[k])
    h = oracles.full_hessian(module, squared_error.mean, x, y)
    mine = value_of(two_layer_trace(clamp=clamp), module, squared_error, x, y)
    torch.testing.assert_close(mine, torch.trace(h), rtol=1e-10, atol=0)

    def closed(vector):
        torch.nn.utils.vector_to_parameters(vector, module.parameters())
        return torch.trace(oracles.full_hessian(module, squared_error.mean, x, y))

    live = {k: p.detach().clone().requires_grad_() for k, p in module.named_parameters()}
    value = value_of(two_layer_trace(clamp=clamp), module, squared_error, x, y, live)
    exact = oracles.gradient_of(lambda h, params: torch.trace(h), module, squared_error.mean, x, y)
    mine = oracles.flat(dict(zip(live, torch.autograd.grad(value, list(live.values())), strict=True)))
    at = oracles.flat({k: v.detach() for k, v in live.items()})
    torch.testing.assert_close(mine, exact, rtol=1e-10, atol=1e-10)
    wanted = oracles.finite_difference(closed, at, 1e-5)
    torch.testing.assert_close(mine, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dim", [6, 30])
def test_the_exact_pair_reaches_the_floor(dim):
    split = oracles.distinct(parity(dim=dim, train=20, test=200)(0))
    x, y = split.train_x, split.train_y
    floor = 4 * (dim + 1) ** 0.5
    for model in (memorising(), generalising()):
        module = model.build(split).double()
        params = model.start(module, split, stream(0))
        outputs = torch.func.functional_call(module, params, (x,)).reshape(-1)
        torch.testing.assert_close(outputs, y, rtol=0, atol=1e-12)
        mine = value_of(
            two_layer_trace(),
            module,
            squared_error,
            x,
            y,
            {k: v.clone().requires_grad_() for k, v in params.items()},
        )
        assert float(mine) == pytest.approx(floor, rel=1e-8)


def test_coupled_nets_are_refused_and_hutchinson_serves_them():
    from flattrain.training.evaluate import evaluate
    from flattrain.types import Network

    split = oracles.distinct(parity(dim=5, train=12, test=5)(3))
    model = two_layer(width=6, normalisation="batch")
    module = model.build(split).double()
    params = {k: v.double() for k, v in model.start(module, split, stream(0)).items()}
    network = Network(module, squared_error, params, model.buffers(module, split))
    x, y = split.train_x, split.train_y
    for measure in (two_layer_trace(), gauss_newton_trace()):
        with pytest.raises(Refused, match="norm"):
            evaluate(measure, network, x, y, (0,))
    with torch.no_grad():
        for k, p in module.named_parameters():
            p.copy_(params[k])
    h = oracles.full_hessian(module, squared_error.mean, x, y, network.buffers)
    found = evaluate(hessian_trace(probes=300), network, x, y, (0,))
    assert 0 < found.standard_error < abs(torch.trace(h))
    assert abs(found.value - torch.trace(h)) < 4 * found.standard_error


@pytest.mark.parametrize("kind", ["tanh", "softplus", "relu"])
@pytest.mark.parametrize("loss", ["ce", "mse"])
@pytest.mark.parametrize("form", ["hutchinson", "control"])
def test_both_forms_over_a_basis_are_the_trace_and_so_are_their_gradients(kind, loss, form):
    net, (x, y) = oracles.small_net(kind, (3, 4, 3)), oracles.data(n=7, inputs=3)
    criterion, mean = cross_entropy, F.cross_entropy
    if loss == "mse":
        criterion, mean, y = squared_error, squared_error.mean, F.one_hot(y, 3).double()
    total = sum(p.numel() for p in net.parameters())
    live = {k: p.detach().requires_grad_() for k, p in net.named_parameters()}
    value = value_of(hessian_trace(probes=total, form=form), net, criterion, x, y, live, basis_probes(net))
    torch.testing.assert_close(value, torch.trace(oracles.full_hessian(net, mean, x, y)), rtol=1e-10, atol=0)
    mine = oracles.flat(dict(zip(live, torch.autograd.grad(value, list(live.values())), strict=True)))
    exact = oracles.gradient_of(lambda h, params: torch.trace(h), net, mean, x, y)
    torch.testing.assert_close(mine, exact, rtol=1e-9, atol=1e-11)


def test_the_control_form_probes_only_what_gauss_newton_leaves():
    from flattrain.training.evaluate import evaluate
    from flattrain.types import Network

    net, (x, y) = oracles.small_net("softplus"), oracles.data()
    h = oracles.full_hessian(net, F.cross_entropy, x, y)
    g = h * 0
    like = {k: p.detach() for k, p in net.named_parameters()}
    for row in x:
        j = torch.func.jacrev(
            lambda v, row=row: torch.func.functional_call(net, oracles.rebuild(v, like), (row[None],))[0]
        )(oracles.flat(like))
        p = net(row).detach().softmax(-1)
        g += j.T @ (torch.diag(p) - torch.outer(p, p)) @ j / len(x)
    rest = h - g
    per_probe = (2 * (rest.square().sum() - rest.diagonal().square().sum())).sqrt()
    network = Network(net, cross_entropy, like, {})
    found = evaluate(hessian_trace(probes=500, form="control"), network, x, y, (0,))
    assert float(found.standard_error) == pytest.approx(float(per_probe) / 500**0.5, rel=0.15)
    assert abs(found.value - torch.trace(h)) < 4 * found.standard_error


def test_where_there_is_no_forward_mode_double_backward_takes_its_place_and_says_so():
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return 2 * x * g

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(4, 3)

        def forward(self, x):
            return Square.apply(self.head(x))

    torch.manual_seed(0)
    net, (x, y) = Net(), oracles.data()
    probes = basis_probes(net)
    with pytest.warns(UserWarning, match="hessian_trace takes double backward"):
        value = value_of(hessian_trace(probes=15), net, cross_entropy, x, y, noise=probes)
    rows = torch.autograd.functional.hessian(
        lambda w, b: F.cross_entropy((x @ w.T + b).square(), y), tuple(p.detach() for p in net.parameters())
    )
    trace = rows[0][0].reshape(12, 12).trace() + rows[1][1].trace()
    torch.testing.assert_close(value, trace, rtol=1e-10, atol=0)
    mine = torch.autograd.grad(value, net.head.weight)[0]
    assert torch.isfinite(mine).all() and mine.abs().max() > 0
    with pytest.raises(Refused, match="form='control' needs forward mode"):
        value_of(hessian_trace(form="control"), net, cross_entropy, x, y)


def test_batch_norm_in_eval_mode_and_convolutions():
    torch.manual_seed(0)
    nn = torch.nn
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(2, 3)
    ).eval()
    net[1].running_mean.normal_()
    net[1].running_var.uniform_(0.5, 2)
    x, y = torch.randn(6, 1, 4, 4), torch.arange(6) % 3
    total = sum(p.numel() for p in net.parameters())
    live = {k: p.detach().requires_grad_() for k, p in net.named_parameters()}
    value = _at_buffers(hessian_trace(probes=total), net, x, y, live, basis_probes(net))
    buffers = dict(net.named_buffers())
    h = oracles.full_hessian(net, F.cross_entropy, x, y, buffers)
    torch.testing.assert_close(value, torch.trace(h), rtol=1e-10, atol=0)
    mine = oracles.flat(dict(zip(live, torch.autograd.grad(value, list(live.values())), strict=True)))
    exact = oracles.gradient_of(lambda h, params: torch.trace(h), net, F.cross_entropy, x, y)
    torch.testing.assert_close(mine, exact, rtol=1e-9, atol=1e-11)


def _at_buffers(measure, net, x, y, live, noise):
    from flattrain.core.functional import see

    seen = see(net, cross_entropy, x, y, params=live, buffers=dict(net.named_buffers()))
    return measure.reduce(measure.statistic(seen, noise)).value


def test_laws():
    net, (x, y) = oracles.small_net(), oracles.data()
    vmap_is_loop(hessian_trace(probes=2, form="control"), net, x, y)
    vmap_is_loop(hessian_trace(), oracles.small_net("softplus"), x, y)
    vmap_is_loop(hessian_trace(probes=2), net, x, y)
    vmap_is_loop(gauss_newton_trace(), net, x, y)
    one_batch_is_many(gauss_newton_trace(), net, x, y)


@pytest.mark.parametrize("form", ["hutchinson", "control"])
@pytest.mark.parametrize("name", ["convolution", "padded", "groups", "tied", "recurrent"])
def test_over_a_basis_of_probes_it_is_the_trace_on_every_layer(name, form):
    net, x = zoo.build(name)
    loss = zoo.class_weights(net, x)
    y = zoo.targets(net, x, loss)
    params = oracles.trainable(net)
    count = sum(p.numel() for p in params.values())
    # √P e_k in the place of signs: the mean of the quadratic forms is the trace itself.
    noise = {
        f"{k}.{key}": v
        for k, row in enumerate(count**0.5 * torch.eye(count))
        for key, v in oracles.rebuild(row, params).items()
    }
    measure = hessian_trace(probes=count, form=form)
    mine = value_of(measure, net, recognise(loss), x, y, noise=noise)
    live = [p for p in net.parameters() if p.requires_grad]
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss(net(x), y), live, create_graph=True)])
    wanted = torch.zeros(())
    for k, g in enumerate(gradient):
        row = torch.autograd.grad(g, live, retain_graph=True, materialize_grads=True)
        wanted = wanted + torch.cat([r.flatten() for r in row])[k]
    torch.testing.assert_close(mine.detach(), wanted, rtol=1e-9, atol=1e-11)
