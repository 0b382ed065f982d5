"""Losses of outputs with a row per token: what they are, their roots, and per-sequence gradients."""

from __future__ import annotations

import copy

import oracles
import pytest
import torch
import zoo
from torch import nn
from torch.nn import functional as F

from flattrain.core import ghost, losses
from flattrain.core.fisher import fisher, gauss_newton
from flattrain.core.functional import see
from flattrain.core.ghost_sam import per_example_sam
from flattrain.core.layers import covered_layers
from flattrain.core.losses import classes_last, example_slopes, recognise, root_vectors, sketch_of
from flattrain.core.probes import stream
from flattrain.core.weights import example_weights, mass
from flattrain.ranges import Refused

CLASSES = torch.linspace(0.3, 2, 5, dtype=torch.float64)
LOSSES = {
    "plain": nn.CrossEntropyLoss(),
    "ignored": nn.CrossEntropyLoss(ignore_index=1),
    "weighted": nn.CrossEntropyLoss(weight=CLASSES, label_smoothing=0.2, ignore_index=2),
    "squared": nn.MSELoss(),
    "binary": nn.BCEWithLogitsLoss(),
}


def problem(name="gpt", loss="ignored"):
    """A net on tokens, inputs (4, 3), targets, torch's loss and its value on a net with one row (n, T K)."""
    net, x = zoo.build(name)
    fn = LOSSES[loss]
    y = zoo.targets(net, x, fn)
    if loss == "binary":
        y = torch.rand(net(x).shape, generator=stream(3))
    return net, x, y, fn


def seen_by(net, loss, x, y):
    return see(net, recognise(loss), x, y, layers=covered_layers(net))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_is_torchs_with_the_classes_last(loss):
    net, x, y, fn = problem(loss=loss)
    mine = recognise(fn).mean(net(x), y)
    torch.testing.assert_close(mine, oracles.of_tokens(fn, 5)(net(x).flatten(1), y), rtol=1e-14, atol=0)


def test_target_distributions_have_the_shape_of_the_outputs():
    fn, generator = nn.CrossEntropyLoss(label_smoothing=0.1), stream(1)
    z, y = torch.randn(4, 3, 5, generator=generator), torch.rand(4, 3, 5, generator=generator)
    mine = classes_last(fn).mean(z, y)
    torch.testing.assert_close(mine, fn(z.movedim(-1, 1), y.movedim(-1, 1)), rtol=1e-14, atol=0)
    with pytest.raises(Refused, match="do not tell whether the classes are last"):
        recognise(fn).mean(z, y)


def test_the_layout_of_torch_is_refused_where_it_shows_and_where_both_would_fit():
    z, y = torch.randn(4, 3, 5), torch.zeros(4, 3, dtype=torch.long)
    with pytest.raises(Refused, match=r"classes come last.*movedim\(1, -1\)"):
        recognise(F.cross_entropy).mean(z.movedim(-1, 1), y)
    square = torch.randn(4, 3, 3)
    with pytest.raises(Refused, match=r"do not tell.*classes_last\(nn.CrossEntropyLoss\(\)\)"):
        recognise(F.cross_entropy).mean(square, y)
    wanted = F.cross_entropy(square.reshape(-1, 3), y.reshape(-1))
    for named in (classes_last(nn.CrossEntropyLoss()), losses.cross_entropy):
        torch.testing.assert_close(named.mean(square, y), wanted)
    with pytest.raises(Refused, match="classes_last: it takes"):
        classes_last(nn.CrossEntropyLoss(reduction="sum"))


def test_minus_100_is_ignored_where_torch_ignores_it_and_no_class_elsewhere():
    net, x, y, _ = problem(loss="plain")
    y[0, 1], y[3] = -100, -100
    seen = seen_by(net, F.cross_entropy, x, y)
    wanted = F.cross_entropy(net(x).movedim(-1, 1), y)
    torch.testing.assert_close(seen.loss, wanted)
    assert mass(seen.criterion, y) == 8
    with pytest.raises(IndexError, match="out of bounds"):
        losses.cross_entropy.mean(net(x), y)


@pytest.mark.parametrize("loss", LOSSES)
def test_roots_and_sketches_are_those_of_the_whole_output_hessian_of_a_sequence(loss):
    net, x, y, fn = problem(loss=loss)
    seen = seen_by(net, fn, x, y)
    flat = seen.outputs.detach().flatten(1)
    curvature = torch.func.hessian(lambda f: len(x) * oracles.of_tokens(fn, 5)(f, y))(flat)
    own = torch.stack([curvature[i, :, i] for i in range(4)])
    columns = torch.stack([v.flatten(1) for v in root_vectors(seen, None, "test")], -1).detach()
    assert columns.shape[2] == 3 * (4 if isinstance(fn, nn.CrossEntropyLoss) else 5)
    torch.testing.assert_close(columns @ columns.mT, own, rtol=1e-10, atol=1e-14)
    # E[L ε εᵀ Lᵀ] = L Lᵀ: L from its action on unit vectors.
    eye = torch.eye(15).reshape(15, 1, 3, 5).expand(15, 4, 3, 5)
    acts = [sketch_of(seen.criterion, seen.outputs.detach(), y, e, "test").flatten(1) for e in eye]
    root = torch.stack(acts, -1)
    torch.testing.assert_close(root @ root.mT, own, rtol=1e-10, atol=1e-14)


def test_roots_too_large_to_hold_are_refused_and_the_sketch_is_not(monkeypatch):
    net, x, y, fn = problem()
    seen = seen_by(net, fn, x, y)
    monkeypatch.setattr(losses, "MOST_ENTRIES", 4 * 15 * 11)
    with pytest.raises(Refused, match=r"test: roots of 12 columns .*\(4, 3, 5\) .*columns='sketch'"):
        root_vectors(seen, None, "test")
    root_vectors(seen, torch.ones(4, 3, 5), "test")
    monkeypatch.setattr(losses, "MOST_ENTRIES", 4 * 15 * 12)
    assert len(root_vectors(seen, None, "test")) == 12


@pytest.mark.parametrize("loss", ["plain", "weighted", "squared"])
@pytest.mark.parametrize("name", zoo.TOKENS)
def test_gram_of_the_root_is_that_of_explicit_jacobians(name, loss):
    net, x, y, fn = problem(name, loss)
    seen = seen_by(net, fn, x, y)
    parts = ghost.pieces(seen, root_vectors(seen, None, "test"), "test")
    flat = oracles.Flat(net)
    rows = oracles.example_gradients(flat, oracles.of_tokens(fn, 5), x, y, oracles.trainable(flat))
    squares = ghost.squares(p.piece for p in parts)
    torch.testing.assert_close(squares.sum(1), rows.square().sum((1, 2)), rtol=1e-10, atol=1e-13)
    n, c, own = 4, rows.shape[1], squares.shape[1]
    mine = ghost.gram(p.piece for p in parts).reshape(n, own, n, own).square().sum((1, 3))
    wanted = (rows.flatten(0, 1) @ rows.flatten(0, 1).T).reshape(n, c, n, c).square().sum((1, 3))
    torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-12)


def losses_of_sequences(net, fn, x, y):
    """w_i and ℓ_i of each sequence alone, by torch."""
    each = oracles.of_tokens(fn, 5)
    own = [each(net(x[i : i + 1]).flatten(1), y[i : i + 1]) for i in range(len(x))]
    return example_weights(recognise(fn), net(x), y), own


@pytest.mark.parametrize("loss", ["plain", "ignored", "weighted"])
def test_slopes_are_the_gradients_of_sequences_and_make_up_that_of_the_loss(loss):
    net, x, y, fn = problem(loss=loss)
    seen = seen_by(net, fn, x, y)
    v = example_slopes(seen.criterion, seen.loss, seen.outputs, y)
    squares = ghost.squares(p.piece for p in ghost.pieces(seen, [v], "test"))[:, 0]
    w, own = losses_of_sequences(net, fn, x, y)
    assert loss == "plain" or len(set(w.tolist())) > 1
    live = list(net.parameters())
    gradients = [torch.cat([g.flatten() for g in torch.autograd.grad(value, live)]) for value in own]
    wanted = [w[i] * g.square().sum() * len(x) / w.sum() for i, g in enumerate(gradients)]
    torch.testing.assert_close(squares, torch.stack(wanted), rtol=1e-10, atol=0)
    whole = torch.cat([g.flatten() for g in torch.autograd.grad(seen.loss, live)])
    mean = sum(w[i] * g for i, g in enumerate(gradients)) / w.sum()
    torch.testing.assert_close(whole, mean, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("loss", ["ignored", "squared"])
@pytest.mark.parametrize("name", zoo.TOKENS)
def test_per_example_sam_ascends_sequence_by_sequence(name, loss):
    net, x, y, fn = problem(name, loss)
    w, _ = losses_of_sequences(net, fn, x, y)
    total, value = [torch.zeros_like(p) for p in net.parameters()], 0.0
    each = oracles.of_tokens(fn, 5)
    for i in range(len(x)):
        other = copy.deepcopy(net)
        params, row, target = list(other.parameters()), x[i : i + 1], y[i : i + 1]
        g = torch.autograd.grad(each(other(row).flatten(1), target), params)
        size = torch.stack([v.square().sum() for v in g]).sum().sqrt()
        with torch.no_grad():
            for p, v in zip(params, g, strict=True):
                p += 0.3 * v / size
        ascended = each(other(row).flatten(1), target) * w[i] / w.sum()
        total = [t + g for t, g in zip(total, torch.autograd.grad(ascended, params), strict=True)]
        value += float(ascended.detach())
    found = per_example_sam(net, recognise(fn), x, y, rho=0.3)
    assert float(found.loss) == pytest.approx(value, rel=1e-11)
    for mine, wanted in zip(torch.autograd.grad(found.loss, list(net.parameters())), total, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-12)


def same(operator, wanted):
    """The operator is the matrix, by its products with three vectors."""
    for z in torch.randn(3, operator.dim, generator=stream(7)):
        torch.testing.assert_close(operator(z), wanted @ z, rtol=1e-9, atol=1e-12)


def ragged(fn):
    """Batches of sequences of different lengths, and one more without a label that counts."""
    generator = stream(5)
    sizes = ((3, 2), (2, 4))
    batches = [
        [torch.randint(5, size, generator=generator), torch.randint(5, size, generator=generator)]
        for size in sizes
    ]
    if fn.ignore_index >= 0:
        batches.append((torch.zeros(2, 3, dtype=torch.long), torch.full((2, 3), fn.ignore_index)))
    return batches


@pytest.mark.parametrize("loss", ["plain", "ignored", "weighted"])
def test_gauss_newton_of_ragged_batches_is_the_mean_over_all_tokens(loss):
    net, fn = zoo.build("gpt")[0], LOSSES[loss]
    criterion = recognise(fn)
    params = oracles.trainable(net)

    def run(p, x):
        return torch.func.functional_call(net, p, (x,))

    batches = ragged(fn)
    flat = oracles.Flat(net)
    named = {f"net.{k}": v for k, v in params.items()}
    w = [float(criterion.weights(y).sum()) for _, y in batches]
    wanted = sum(
        size * oracles.fisher(flat, oracles.of_tokens(fn, 5), x, y, named)
        for size, (x, y) in zip(w, batches, strict=True)
        if size
    ) / sum(w)
    same(gauss_newton(run, criterion, params, batches), wanted)


def test_the_other_fisher_matrices_have_a_label_per_token():
    net, x, y, fn = problem(loss="ignored")
    criterion, params = recognise(fn), oracles.trainable(net)

    def run(p, x):
        return torch.func.functional_call(net, p, (x,))

    rows = []
    kept = y != fn.ignore_index
    for i, t in kept.nonzero().tolist():
        value = F.cross_entropy(net(x[i : i + 1])[:, t], y[i : i + 1, t])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, list(net.parameters()))]))
    wanted = torch.stack(rows).T @ torch.stack(rows) / len(rows)
    same(fisher(run, criterion, params, [(x, y)], kind="empirical"), wanted)
    z, generator = torch.ones(len(wanted)), stream(0)
    whole = z @ gauss_newton(run, criterion, params, [(x, y)])(z)
    operators = (fisher(run, criterion, params, [(x, y)], kind="mc", generator=generator) for _ in range(150))
    drawn = torch.stack([z @ operator(z) for operator in operators])
    assert abs(drawn.mean() - whole) < 4 * drawn.std() / 150**0.5 < 0.4 * whole
