"""Measures of a small language model against the dense Fisher and Hessian of its loss over tokens."""

from __future__ import annotations

import oracles
import pytest
import torch
import zoo
from laws import on_batch_is_reduce, one_batch_is_many, value_of, vmap_is_loop
from torch import nn
from torch.nn import functional as F

from flattrain import Regularized, measured
from flattrain.core.functional import see
from flattrain.core.kfac import factors
from flattrain.core.layers import covered_layers
from flattrain.core.losses import cross_entropy, recognise, squared_error
from flattrain.core.probes import stream
from flattrain.measures.block_rank import block_rank
from flattrain.measures.calibration import calibration_error, temperature, tempered_loss
from flattrain.measures.connectivity_trace import connectivity_trace
from flattrain.measures.fisher_rank import fisher_rank
from flattrain.measures.fisher_rank_probes import fisher_rank_probes
from flattrain.measures.fisher_rao import fisher_rao
from flattrain.measures.gauss_newton import gauss_newton_frobenius
from flattrain.measures.gauss_newton_trace import gauss_newton_trace
from flattrain.measures.generalisation_gap import gap_estimate
from flattrain.measures.gradient_covariance import gradient_covariance_trace
from flattrain.measures.gradient_norm import gradient_norm
from flattrain.measures.hessian_trace import hessian_trace
from flattrain.measures.loss import error, loss
from flattrain.measures.margins import margin_quantile, mean_margin
from flattrain.measures.neural_collapse import neural_collapse
from flattrain.measures.relative_flatness import relative_flatness
from flattrain.measures.relative_flatness_variants import normalised_relative_flatness, published_fam
from flattrain.measures.risk import risk
from flattrain.measures.soft_rank import soft_rank
from flattrain.measures.top_eigenvalue import top_eigenvalue
from flattrain.ranges import Refused
from flattrain.regularizers import RelativeFlatness, SoftRank

LAM = 0.02
IGNORED = nn.CrossEntropyLoss(ignore_index=1)
LOSSES = {
    "weighted": nn.CrossEntropyLoss(
        weight=torch.linspace(0.3, 2, 5, dtype=torch.float64), label_smoothing=0.2, ignore_index=2
    ),
    "squared": nn.MSELoss(),
}


def rank(matrix):
    eye = torch.eye(len(matrix))
    return torch.linalg.solve(matrix + LAM * eye, matrix).trace()


def by_layer(net):
    """The places of each layer's parameters, tied ones once."""
    where, start = {}, 0
    for name, p in net.named_parameters():
        where.setdefault(name.rpartition(".")[0], []).extend(range(start, start + p.numel()))
        start += p.numel()
    return where


def signs(net):
    generator = stream(11)
    return {k: torch.randn(p.shape, generator=generator).sign() for k, p in net.named_parameters()}


def along(net):
    z = oracles.flat(signs(net))
    return lambda matrix: z @ matrix @ torch.linalg.solve(matrix + LAM * torch.eye(len(z)), z)


DENSE = {
    "trace": (gauss_newton_trace, lambda net: torch.trace),
    "frobenius": (gauss_newton_frobenius, lambda net: torch.linalg.matrix_norm),
    "rank": (lambda: fisher_rank(lam=LAM), lambda net: rank),
    "block": (
        lambda: block_rank(lam=LAM),
        lambda net: lambda f: sum(rank(f[w][:, w]) for w in by_layer(net).values()),
    ),
    "diagonal": (
        lambda: block_rank(lam=LAM, approximation="diagonal"),
        lambda net: lambda f: (f.diagonal() / (f.diagonal() + LAM)).sum(),
    ),
    "probe": (lambda: fisher_rank_probes(lam=LAM, iterations=80), along),
}


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize(("name", "fn"), [("gpt", "weighted"), ("tied gpt", "squared")])
def test_value_and_gradient_are_those_of_the_dense_fisher(name, fn, kind):
    net, x = zoo.build(name)
    y = zoo.targets(net, x, LOSSES[fn])
    make, definition = DENSE[kind]
    live = oracles.live(net)
    noise = {f"0.{k}": v for k, v in signs(net).items()}
    value = value_of(make(), net, recognise(LOSSES[fn]), x, y, live, noise if kind == "probe" else None)
    slopes = torch.autograd.grad(value, list(live.values()), materialize_grads=True)
    wanted, wanted_slopes = oracles.of_flat(net, definition(net), x, y, LOSSES[fn], 5)
    torch.testing.assert_close(value.detach(), wanted, rtol=1e-9, atol=0)
    mine, whole = oracles.flat(dict(zip(live, slopes, strict=True))), oracles.flat(wanted_slopes)
    assert list(wanted_slopes) == list(live)
    torch.testing.assert_close(mine, whole, rtol=1e-9, atol=1e-9 * float(whole.norm()))


@pytest.mark.parametrize("fn", ["weighted", "squared"])
def test_relative_flatness_of_the_head_is_the_definition_on_the_dense_hessian(fn):
    net, x = zoo.build("gpt")
    y = zoo.targets(net, x, LOSSES[fn])
    live = oracles.live(net)
    value = value_of(relative_flatness(layer="head", form="head"), net, recognise(LOSSES[fn]), x, y, live)
    slopes = torch.autograd.grad(value, list(live.values()), materialize_grads=True)
    flat, of_rows = oracles.Flat(net), oracles.of_tokens(LOSSES[fn], 5)

    def definition(matrix, params):
        return oracles.kappa_of(matrix, params, "net.head")

    matrix = oracles.full_hessian(flat, of_rows, x, y)
    torch.testing.assert_close(
        value.detach(), definition(matrix, dict(flat.named_parameters())).detach(), rtol=1e-9, atol=0
    )
    wanted = oracles.gradient_of(definition, flat, of_rows, x, y)
    mine = torch.cat([g.flatten() for g in slopes])
    torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-9 * float(wanted.norm()))
    for form in ("auto", "relu", "exact"):
        other = value_of(relative_flatness(layer="head", form=form), net, recognise(LOSSES[fn]), x, y)
        torch.testing.assert_close(other, value, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", zoo.TOKENS)
def test_probes_and_lanczos_see_the_hessian_of_the_mean_over_tokens(name):
    net, x = zoo.build(name)
    fn = LOSSES["weighted"]
    y = zoo.targets(net, x, fn)
    flat, of_rows = oracles.Flat(net), oracles.of_tokens(fn, 5)
    h = oracles.full_hessian(flat, of_rows, x, y)
    g = oracles.fisher(flat, of_rows, x, y, oracles.trainable(flat))
    z = oracles.flat(signs(net))
    noise = {f"0.{k}": v for k, v in signs(net).items()}
    quadratic = value_of(hessian_trace(), net, recognise(fn), x, y, noise=noise)
    torch.testing.assert_close(quadratic.detach(), z @ h @ z, rtol=1e-9, atol=0)
    control = value_of(hessian_trace(form="control"), net, recognise(fn), x, y, noise=noise)
    torch.testing.assert_close(control.detach(), g.trace() + z @ (h - g) @ z, rtol=1e-9, atol=0)
    top = measured(net, fn, [(x[:3], y[:3]), (x[3:], y[3:])], top_eigenvalue(tolerance=1e-9))
    assert float(top.value) == pytest.approx(float(torch.linalg.eigvalsh(h)[-1]), rel=1e-9)


def explicit_factors(net, x, y, fn, sharing):
    """{layer: (A, B)} of linear layers: weights on positions, roots of torch's Hessian by eigenvectors."""
    seen = see(net, recognise(fn), x, y, layers=[k for k, m in net.named_modules() if type(m) is nn.Linear])
    flat = seen.outputs.detach().flatten(1)
    hessian = torch.func.hessian(lambda f: len(x) * oracles.of_tokens(fn, 5)(f, y))(flat)
    w = recognise(fn).weights(y)
    out = {}
    for name, tap in seen.taps.items():
        phi, b = tap.input, 0
        if tap.bias is not None:
            phi = torch.cat([phi, torch.ones_like(phi[..., :1])], -1)
        for i in range(len(x)):
            values, vectors = torch.linalg.eigh(hessian[i, :, i])
            for c in range(len(values)):
                v = torch.zeros_like(flat)
                v[i] = vectors[:, c] * values[c].clamp(min=0).sqrt()
                g = torch.autograd.grad(
                    seen.outputs, tap.output, v.reshape_as(seen.outputs), retain_graph=True
                )[0]
                rows = g[i] if sharing == "expand" else g[i].sum(0, keepdim=True)
                b = b + rows.T @ rows / len(x)
        if sharing == "expand":
            a = torch.einsum("nt, ntd, nte -> de", w, phi, phi) / w.sum()
        else:
            a = torch.einsum("n, nd, ne -> de", w.sum(1), phi.mean(1), phi.mean(1)) / w.sum()
        out[name] = a, b
    return out


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_kronecker_factors_are_their_definitions(sharing):
    net, x = zoo.build("gpt")
    y = zoo.targets(net, x, LOSSES["weighted"])
    wanted = explicit_factors(net, x, y, LOSSES["weighted"], sharing)
    mine = factors(
        see(net, recognise(LOSSES["weighted"]), x, y, layers=list(wanted)),
        sharing=sharing,
        uncovered="ignore",
    )
    assert set(mine) == set(wanted) and len(wanted) == 7
    for layer, sides in wanted.items():
        for found, want in zip(mine[layer], sides, strict=True):
            torch.testing.assert_close(found.matrix()[0], want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", zoo.TOKENS)
def test_sketches_have_the_exact_factors_and_trace_in_the_mean(name):
    """Over the rows of a Hadamard matrix, for which mean ε εᵀ is the identity: no chance involved."""
    net, x = zoo.build(name)
    criterion = recognise(LOSSES["weighted"])
    y = zoo.targets(net, x, LOSSES["weighted"])
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    rows = torch.kron(torch.kron(two, two), torch.kron(two, two))[:, :15]
    designs = [row.reshape(1, 3, 5).expand(4, 3, 5) for row in rows]
    seen = see(net, criterion, x, y, layers=covered_layers(net))
    exact = factors(seen)
    sketched = [factors(seen, eps) for eps in designs]
    for layer, sides in exact.items():
        for k, side in enumerate(sides):
            mean = torch.stack([found[layer][k].matrix() for found in sketched]).mean(0)
            torch.testing.assert_close(mean, side.matrix(), rtol=1e-9, atol=1e-12)
    live = oracles.live(net)
    value = value_of(gauss_newton_trace(), net, criterion, x, y, live)
    noise = {str(k): eps for k, eps in enumerate(designs)}
    measure = gauss_newton_trace(columns="sketch", probes=16)
    mean = value_of(measure, net, criterion, x, y, live, noise)
    torch.testing.assert_close(mean, value, rtol=1e-9, atol=0)
    slopes = [torch.cat([g.flatten() for g in torch.autograd.grad(v, live.values())]) for v in (mean, value)]
    torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-9 * float(slopes[1].norm()))


def test_expand_is_exact_for_a_deep_linear_net_on_tokens():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))
    x, y = torch.randn(5, 3, 3), torch.randn(5, 3, 2)
    criterion = recognise(nn.MSELoss())
    exact = value_of(block_rank(lam=0.05), net, criterion, x, y)
    torch.testing.assert_close(value_of(soft_rank(lam=0.05), net, criterion, x, y), exact, rtol=1e-10, atol=0)
    reduced = value_of(soft_rank(lam=0.05, sharing="reduce"), net, criterion, x, y)
    assert abs(reduced / exact - 1) > 0.05


def test_gradients_of_sequences_have_their_covariance_and_fisher_rao_norm():
    net, x = zoo.build("gpt")
    y = zoo.targets(net, x, IGNORED)
    w, rows = (y != 1).sum(1).double(), []
    for i in range(4):
        own = oracles.of_tokens(IGNORED, 5)(net(x[i : i + 1]).flatten(1), y[i : i + 1])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(own, list(net.parameters()))]))
    g, w = torch.stack(rows), w / w.sum()
    covariance = (w @ g.square()).sum() - (w @ g).square().sum()
    found = value_of(gradient_covariance_trace(), net, recognise(IGNORED), x, y)
    torch.testing.assert_close(found.detach(), covariance, rtol=1e-9, atol=0)
    theta = oracles.flat(oracles.trainable(net))
    norm = (w @ (g @ theta).square()).sqrt()
    found = value_of(fisher_rao(), net, recognise(IGNORED), x, y)
    torch.testing.assert_close(found.detach(), norm, rtol=1e-9, atol=0)


def test_connectivity_sums_over_tokens():
    net, x = zoo.build("tied gpt")
    y = zoo.targets(net, x, IGNORED)
    jacobians = oracles.parameter_jacobians(oracles.Flat(net), x)
    theta = oracles.flat(oracles.trainable(net))
    wanted = (jacobians * theta).square().sum((1, 2)).mean()
    criterion = recognise(IGNORED)
    found = value_of(connectivity_trace(form="exact"), net, criterion, x, y)
    torch.testing.assert_close(found.detach(), wanted, rtol=1e-9, atol=0)


OF_THE_LOSS = {
    "loss": loss,
    "error": error,
    "gradient_norm": gradient_norm,
    "gauss_newton_trace": gauss_newton_trace,
    "fisher_rank": lambda: fisher_rank(lam=LAM),
    "block": lambda: block_rank(lam=LAM),
    "soft_rank": lambda: soft_rank(lam=LAM),
    "head": lambda: relative_flatness(layer="head"),
    "covariance": gradient_covariance_trace,
    "fisher_rao": fisher_rao,
    "calibration": lambda: calibration_error(bins=4),
    "margin": mean_margin,
    "median": margin_quantile,
    "tempered": tempered_loss,
    "risk": risk,
}


@pytest.mark.parametrize("measure", OF_THE_LOSS)
def test_ragged_batches_are_padded_ones_and_what_is_ignored_is_not_there(measure):
    """Batches of lengths 2, 4 and 3; the same padded in one batch; and that with sequences ignored."""
    net, generator = zoo.build("gpt" if measure == "head" else "tied gpt")[0], stream(5)
    sizes = ((3, 2), (2, 4), (2, 3))
    batches = [
        (torch.randint(5, size, generator=generator), torch.randint(5, size, generator=generator))
        for size in sizes
    ]
    assert all((y != 1).any() for _, y in batches)
    padded = tuple(
        torch.cat([F.pad(batch[k], (0, 4 - batch[k].shape[1]), value=1) for batch in batches]) for k in (0, 1)
    )
    nothing = (torch.zeros(2, 4, dtype=torch.long), torch.ones(2, 4, dtype=torch.long))
    more = tuple(torch.cat([a, b]) for a, b in zip(padded, nothing, strict=True))
    one = OF_THE_LOSS[measure]()
    wanted = float(measured(net, IGNORED, [more], one).value)
    assert wanted > 0 or measure in ("margin", "median")
    for loader in (batches, [padded], [*batches, nothing]):
        assert float(measured(net, IGNORED, loader, one).value) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("criterion", [cross_entropy, squared_error])
def test_ragged_batches_of_a_loss_without_weights_count_by_their_tokens(criterion):
    net, generator = zoo.build("gpt")[0], stream(6)
    sizes = ((3, 2), (2, 4))
    xs = [torch.randint(5, size, generator=generator) for size in sizes]
    if criterion is cross_entropy:
        ys = [torch.randint(5, size, generator=generator) for size in sizes]
    else:
        ys = [torch.randn(*size, 5, generator=generator) for size in sizes]
    batches = list(zip(xs, ys, strict=True))
    for measure in (loss(), risk(), gauss_newton_trace(), gradient_covariance_trace()):
        own = [measured(net, criterion, [batch], measure).value for batch in batches]
        found = measured(net, criterion, batches, measure).value
        if measure.name != "gradient_covariance_trace":
            assert float(found) == pytest.approx((6 * float(own[0]) + 8 * float(own[1])) / 14, rel=1e-12)
    rows, w = [], []
    for x, y in batches:
        for i in range(len(x)):
            own = criterion.mean(net(x[i : i + 1]), y[i : i + 1])
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(own, list(net.parameters()))]))
            w.append(x.shape[1] / 14)
    g, w = torch.stack(rows), torch.tensor(w)
    wanted = (w @ g.square()).sum() - (w @ g).square().sum()
    assert float(found) == pytest.approx(float(wanted), rel=1e-9)


@pytest.mark.parametrize("measure", [*OF_THE_LOSS, "connectivity", "columns of soft_rank"])
def test_one_batch_is_many(measure):
    makes = OF_THE_LOSS | {
        "connectivity": lambda: connectivity_trace(form="exact"),
        "columns of soft_rank": lambda: soft_rank(lam=LAM, sharing="reduce"),
    }
    net, x = zoo.build("tied gpt" if measure != "head" else "gpt")
    generator = stream(2)
    x, y = (torch.randint(5, (7, 3), generator=generator) for _ in range(2))
    if measure == "tempered":  # a temperature exists where predictions are better than chance
        y[::2] = net(x).argmax(-1)[::2]
    one_batch_is_many(makes[measure](), net, x, y, recognise(IGNORED))


@pytest.mark.parametrize("measure", ["fisher_rank", "soft_rank", "block"])
def test_on_batch_is_reduce(measure):
    net, x = zoo.build("tied gpt")
    one = block_rank(lam=LAM) if measure == "block" else OF_THE_LOSS[measure]()
    on_batch_is_reduce(one, net, x, zoo.targets(net, x, IGNORED), recognise(IGNORED))


@pytest.mark.parametrize(
    "measure",
    [
        gauss_newton_trace(columns="sketch"),
        soft_rank(lam=LAM, columns="sketch"),
        fisher_rank(lam=LAM, columns="sketch"),
        relative_flatness(layer="head"),
    ],
    ids=lambda measure: measure.name,
)
def test_stacked_seeds_are_a_loop(measure):
    net, x = zoo.build("gpt")
    vmap_is_loop(measure, net, x, zoo.targets(net, x, IGNORED), recognise(IGNORED), seeds=2)


def test_predictions_are_judged_token_by_token():
    net, x = zoo.build("gpt")
    y = net(x).argmax(-1)
    y[0], y[1, 1], y[2, 0] = torch.tensor([0, 1, 3]), 1, (y[2, 0] + 1) % 5
    kept = y != 1
    z, labels = net(x)[kept].detach(), y[kept]
    own = z.gather(1, labels[:, None])[:, 0]
    rest = z.scatter(1, labels[:, None], -torch.inf).amax(1)
    flat = nn.Identity()
    wanted = {
        error: (z.argmax(-1) != labels).double().mean(),
        mean_margin: (own - rest).mean(),
        margin_quantile: (own - rest).quantile(0.5),
        temperature: value_of(temperature(), flat, recognise(F.cross_entropy), z, labels, {}),
        calibration_error: value_of(calibration_error(), flat, recognise(F.cross_entropy), z, labels, {}),
    }
    for make, value in wanted.items():
        found = measured(net, IGNORED, [(x, y)], make()).value
        assert float(found) == pytest.approx(float(value), rel=1e-12) and float(found) != 0


def test_what_has_no_meaning_token_by_token_is_refused():
    net, x = zoo.build("gpt")
    y = zoo.targets(net, x, IGNORED)
    for measure in (neural_collapse(layer="head"), gap_estimate(), published_fam(layer="head")):
        with pytest.raises(Refused, match=f"{measure.name} needs one row of outputs per example"):
            measured(net, IGNORED, [(x, y)], measure)
    with pytest.raises(Refused, match="one row of features per example"):
        measured(net, IGNORED, [(x, y)], normalised_relative_flatness(layer="head"))
    with pytest.raises(Refused, match="batches have different shapes; pad them to one length"):
        measured(net, IGNORED, [(x, y), (x[:, :2], y[:, :2])], gauss_newton_frobenius())


def test_a_language_model_trains_with_penalties_through_the_face():
    net, x = zoo.build("gpt")
    y = zoo.targets(net, x, IGNORED)
    penalties = [RelativeFlatness("head", weight=0.1), SoftRank(weight=0.01, columns="sketch")]
    objective = Regularized(net, F.cross_entropy, penalties)
    value = objective(x, y)
    value.backward()
    assert torch.isfinite(value) and all(p.grad is not None for p in net.parameters())
    torch.testing.assert_close(objective.logs["loss"], F.cross_entropy(net(x).movedim(-1, 1), y).detach())
