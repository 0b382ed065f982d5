"""A λ for every parameter: the ranks against Tr F (F + Λ)⁻¹ of dense matrices, values and gradients."""

from __future__ import annotations

import oracles
import pytest
import torch
import zoo
from laws import on_batch_is_reduce, one_batch_is_many, value_of, vmap_is_loop
from torch import nn

import flattrain
from flattrain.core.functional import see
from flattrain.core.kfac import factors
from flattrain.core.losses import cross_entropy, recognise
from flattrain.core.ridge import by_name
from flattrain.measures.block_rank import block_rank
from flattrain.measures.fisher_rank import fisher_rank
from flattrain.measures.fisher_rank_probes import fisher_rank_probes
from flattrain.measures.soft_rank import soft_rank
from flattrain.ranges import Refused
from flattrain.regularizers import FisherRank, Regularized, SoftRank
from flattrain.training.objective import layers_of

LOSS = nn.CrossEntropyLoss()


def own(params):
    """{name: λ}, all different, over a factor of a hundred."""
    spread = torch.logspace(-2.5, -0.5, len(params)).tolist()
    return dict(zip(params, spread, strict=True))


def diagonal(params, table):
    return torch.cat([torch.full((p.numel(),), table[name]) for name, p in params.items()])


def rank(f, lam):
    return torch.trace(torch.linalg.solve(f + torch.diag(lam), f))


def logdet(f, lam):
    return torch.logdet(torch.eye(len(f)) + f / lam[:, None])


def diagonal_rank(f, lam):
    return (f.diagonal() / (f.diagonal() + lam)).sum()


def compare(measure, net, x, y, definition, noise=None):
    """`definition(params) -> scalar` differentiably; the measure's value and gradient are its."""
    live = {k: p.detach().clone().requires_grad_() for k, p in oracles.trainable(net).items()}
    value = value_of(measure, net, recognise(LOSS), x, y, live, noise)
    mine = torch.autograd.grad(value, list(live.values()), materialize_grads=True)
    other = {k: p.detach().clone().requires_grad_() for k, p in live.items()}
    wanted = definition(other)
    slopes = torch.autograd.grad(wanted, list(other.values()), materialize_grads=True)
    torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-12)
    scale = max(float(g.abs().max()) for g in slopes)
    assert scale > 1e-4
    for g, w, name in zip(mine, slopes, live, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-8, atol=1e-9 * scale, msg=lambda m, n=name: f"{n}: {m}")


WHOLE = {
    "soft": (lambda lam: fisher_rank(lam=lam), rank),
    "logdet": (lambda lam: fisher_rank(lam=lam, phi="logdet"), logdet),
    "diagonal": (lambda lam: block_rank(lam=lam, approximation="diagonal"), diagonal_rank),
}


@pytest.mark.parametrize("case", WHOLE)
@pytest.mark.parametrize("name", zoo.BUILD)
def test_of_the_dense_fisher(name, case):
    net, x = zoo.build(name)
    y = zoo.targets(net, x, LOSS)
    make, definition = WHOLE[case]
    table = own(oracles.trainable(net))
    compare(
        make(table),
        net,
        x,
        y,
        lambda p: definition(oracles.fisher(net, LOSS, x, y, p), diagonal(p, table)),
    )


def test_of_parameters_taken_densely():
    net, x = zoo.build("transformer")
    y = zoo.targets(net, x, LOSS)
    table = own(oracles.trainable(net))
    compare(
        fisher_rank(lam=table, uncovered="dense"),
        net,
        x,
        y,
        lambda p: rank(oracles.fisher(net, LOSS, x, y, p), diagonal(p, table)),
    )


def test_of_the_blocks_of_layers():
    net, x = zoo.build("mlp")
    y = zoo.targets(net, x, LOSS)
    table = own(oracles.trainable(net))

    def blocks(p):
        f, lam, cut = oracles.fisher(net, LOSS, x, y, p), diagonal(p, table), 25
        return rank(f[:cut, :cut], lam[:cut]) + rank(f[cut:, cut:], lam[cut:])

    compare(block_rank(lam=table), net, x, y, blocks)


def test_in_the_adaptive_metric():
    """Λ_p = λ_p / θ² entry by entry."""
    net, x = zoo.build("mlp")
    y = zoo.targets(net, x, LOSS)
    table = own(oracles.trainable(net))
    compare(
        fisher_rank(lam=table, metric="adaptive"),
        net,
        x,
        y,
        lambda p: rank(oracles.fisher(net, LOSS, x, y, p), diagonal(p, table) / oracles.flat(p).square()),
    )


def test_probes_over_a_basis():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 3, bias=False))
    x, y = torch.randn(5, 2), torch.tensor([0, 1, 2, 1, 0])
    params = oracles.trainable(net)
    count, table = sum(p.numel() for p in params.values()), own(params)
    noise = {}
    for k, row in enumerate(count**0.5 * torch.eye(count)):
        noise |= {f"{k}.{name}": v for name, v in oracles.rebuild(row, params).items()}
    compare(
        fisher_rank_probes(lam=table, probes=count, iterations=4 * count),
        net,
        x,
        y,
        lambda p: rank(oracles.fisher(net, LOSS, x, y, p), diagonal(p, table)),
        noise,
    )


def columns_of(tap, lam_of):
    """λ of each column of a layer's right side, or of each entry of a normalisation."""
    weight, bias = lam_of[id(tap.weight)], None if tap.bias is None else lam_of[id(tap.bias)]
    if type(tap.module).__name__ in ("LayerNorm", "GroupNorm", "BatchNorm2d"):
        return torch.cat([torch.full((tap.weight.numel(),), weight), torch.full((tap.bias.numel(),), bias)])
    width = tap.input.shape[-1] if isinstance(tap.module, nn.Linear) else tap.weight[0].numel()
    ends = [torch.full((width,), weight)] + ([torch.full((1,), bias)] if bias is not None else [])
    return torch.cat(ends)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("name", ["mlp", "convolution", "padded", "residual", "groups", "recurrent"])
def test_of_the_dense_kronecker_products(name, sharing):
    """Σ over layers (and groups) of Tr K (K + Λ)⁻¹, K = B ⊗ A: a different λ for weight and bias is exact."""
    net, x = zoo.build(name)
    y = zoo.targets(net, x, LOSS)
    table = own(oracles.trainable(net))
    measure = soft_rank(lam=table, sharing=sharing)

    def kronecker(params):
        seen = see(net, recognise(LOSS), x, y, layers=layers_of(net, measure), params=params)
        lam_of = {id(p): table[n] for n, p in params.items()}
        total = torch.zeros(())
        for run, (a, b) in factors(seen, sharing=sharing).items():
            columns = columns_of(seen.taps[run], lam_of)
            for one, other in zip(a.matrix(), b.matrix(), strict=True):
                total = total + rank(torch.kron(other, one), columns.repeat(len(other)))
        return total

    compare(measure, net, x, y, kronecker)
    on_batch_is_reduce(measure, net, x, y)


def test_gradient_of_the_kronecker_rank_by_differences():
    from test_soft_rank import explicit

    net, (x, y) = oracles.small_net(sizes=(3, 4, 3)), oracles.data(inputs=3)
    one = value_of(soft_rank(lam={"": 0.05}), net, cross_entropy, x, y)
    torch.testing.assert_close(one.detach(), explicit(net, x, 0.05), rtol=1e-10, atol=0)
    table = {"": 0.3, "hidden1": 0.02, "head.bias": 0.7}
    live = {k: p.detach().clone().requires_grad_() for k, p in net.named_parameters()}
    value = value_of(soft_rank(lam=table), net, cross_entropy, x, y, live)
    mine = oracles.flat(dict(zip(live, torch.autograd.grad(value, list(live.values())), strict=True)))
    wanted = oracles.finite_difference(
        lambda v: value_of(soft_rank(lam=table), net, cross_entropy, x, y, oracles.rebuild(v, live)).detach(),
        oracles.flat({k: v.detach() for k, v in live.items()}),
        1e-4,
    )
    torch.testing.assert_close(mine, wanted, rtol=1e-6, atol=1e-8)


MEASURES = {
    "fisher_rank": fisher_rank,
    "soft_rank": soft_rank,
    "block": block_rank,
    "ekfac": lambda lam: block_rank(lam=lam, approximation="ekfac"),
    "probes": lambda lam: fisher_rank_probes(lam=lam, probes=3, iterations=60),
}


@pytest.mark.parametrize("make", MEASURES.values(), ids=MEASURES)
def test_the_same_function_in_other_units_has_the_same_rank(make):
    """A ReLU net with its first layer times α and its last divided by it, with Λ along."""
    net, (x, y) = oracles.small_net("relu", (4, 6, 3)), oracles.data()
    alpha, found, alike = 7.0, [], []
    for c in (1.0, alpha):
        with torch.no_grad():
            for p in net.hidden1.parameters():
                p *= c
            net.head.weight /= c
        table = {"hidden1": 0.02 / c**2, "head.weight": 0.1 * c**2, "": 0.3}
        found.append(value_of(make(lam=table), net, cross_entropy, x, y).detach())
        alike.append(value_of(make(lam=0.05), net, cross_entropy, x, y).detach())
    torch.testing.assert_close(*found, rtol=1e-7, atol=0)
    assert abs(alike[0] / alike[1] - 1) > 1e-3


@pytest.mark.parametrize("make", MEASURES.values(), ids=MEASURES)
def test_one_number_for_all_is_that_number(make):
    net, (x, y) = oracles.small_net(), oracles.data()
    named = value_of(make(lam={"": 0.05}), net, cross_entropy, x, y)
    plain = value_of(make(lam=0.05), net, cross_entropy, x, y)
    # The solver of the probes sees the same system in other units.
    torch.testing.assert_close(named, plain, rtol=1e-9, atol=0)


def test_the_longest_name_that_fits_counts():
    names = ["a.weight", "a.bias", "a.b.weight", "ab.weight"]
    table = {"": 1.0, "a": 2.0, "a.b": 3.0, "a.bias": 4.0}
    assert by_name("m", table, names, names) == {
        "a.weight": 2.0,
        "a.bias": 4.0,
        "a.b.weight": 3.0,
        "ab.weight": 1.0,
    }


def test_laws_and_definition():
    net, (x, y) = oracles.small_net(), oracles.data()
    table = {"": 0.1, "head": 0.02, "hidden1.bias": 0.5}
    for measure in (fisher_rank(lam=table), soft_rank(lam=table), block_rank(lam=table)):
        one_batch_is_many(measure, net, x, y)
        vmap_is_loop(measure, net, x, y)
    # Solved to the end: conjugate gradients stopped half-way amplify rounding, which vmap orders otherwise.
    vmap_is_loop(fisher_rank_probes(lam=table, iterations=50), net, x, y)
    assert "0.02 for head" in fisher_rank(lam=table).definition
    assert "0.1 for the rest" in soft_rank(lam=table).definition


def test_by_the_faces():
    net, (x, y) = oracles.small_net(), oracles.data()
    table = {"": 0.1, "head": 0.02}
    direct = flattrain.measured(net, LOSS, [(x, y)], fisher_rank(lam=table)).value
    for face in (FisherRank(weight=1.0, lam=table, columns="exact"), SoftRank(weight=1.0, lam=table)):
        objective = Regularized(net, LOSS, [face])
        objective(x, y).backward()
        if face.measure.name == "fisher_rank":
            assert float(objective.logs["fisher_rank"]) == pytest.approx(float(direct), rel=1e-12)


@pytest.mark.parametrize("make", [fisher_rank, soft_rank, block_rank, fisher_rank_probes])
def test_refusals(make):
    net, (x, y) = oracles.small_net(), oracles.data()
    with pytest.raises(Refused, match=r"lam names 'heed', which is no .*; did you mean 'head'"):
        value_of(make(lam={"": 1.0, "heed": 2.0}), net, cross_entropy, x, y)
    with pytest.raises(Refused, match=r"lam has no value for hidden1.weight, head.bias; .* '' for the rest"):
        value_of(make(lam={"hidden1.bias": 1.0, "head.weight": 2.0}), net, cross_entropy, x, y)
    with pytest.raises(Refused, match="lam of 'head' must be a number > 0, got 0"):
        make(lam={"": 1.0, "head": 0})
    with pytest.raises(Refused, match="lam must be a number > 0 or a table of names, a number > 0 for each"):
        make(lam={})
    with pytest.raises(Refused, match="must have texts as its names, got 0; quote it"):
        make(lam={0: 1.0})
    if make is not fisher_rank_probes:
        with pytest.raises(Refused, match="phi='trace' has no λ"):
            make(lam={"": 1.0}, phi="trace")


def test_only_the_layers_that_are_taken_need_a_value():
    net, (x, y) = oracles.small_net(), oracles.data()
    one = value_of(fisher_rank(lam={"head": 0.1}, layers=("head",)), net, cross_entropy, x, y)
    plain = value_of(fisher_rank(lam=0.1, layers=("head",)), net, cross_entropy, x, y)
    torch.testing.assert_close(one, plain, rtol=1e-12, atol=0)


def test_a_convolution_used_at_two_sizes():
    """More positions than channels in one use and fewer in the other: the two come in one form."""
    torch.manual_seed(0)
    net = zoo.Functional(
        lambda m, x: m.head(m.one(torch.max_pool2d(m.one(x).tanh(), 5)).flatten(1)),
        one=nn.Conv2d(4, 4, 2, padding=1),
        head=nn.Linear(16, 2),
    )
    x, y = torch.randn(3, 4, 4, 4), torch.tensor([0, 1, 0])
    sizes = [net.one(x)[0, 0].numel(), net.one(torch.max_pool2d(net.one(x), 5))[0, 0].numel()]
    assert sizes[0] > 4 >= sizes[1]
    table = own(oracles.trainable(net))
    compare(
        fisher_rank(lam=table),
        net,
        x,
        y,
        lambda p: rank(oracles.fisher(net, LOSS, x, y, p), diagonal(p, table)),
    )
