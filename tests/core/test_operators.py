"""Products against dense matrices assembled from per-example Jacobians and Hessians."""

from __future__ import annotations

import oracles
import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian, jacrev
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, TensorDataset

from flattrain.core.eager import LayerNorm
from flattrain.core.losses import mean_squared_error
from flattrain.core.operators import adaptive, block, of_matrix, to_scipy
from flattrain.core.probes import stream
from flattrain.ranges import Refused
from flattrain.training.curvature import curvature

SMOOTHED = nn.CrossEntropyLoss(label_smoothing=0.2)
LOSSES = {"ce": F.cross_entropy, "smoothed": SMOOTHED, "mse": nn.MSELoss()}


def dense(operator):
    return torch.stack([operator(e) for e in torch.eye(operator.dim, dtype=operator.dtype)])


def batches(x, y, size=5):
    return DataLoader(TensorDataset(x, y), batch_size=size)


def per_example(net, loss, x, y, square):
    """mean_i J_iᵀ S_i J_i with S_i = square(f_i, y_i), by loops over examples."""
    like = {k: p.detach() for k, p in net.named_parameters() if p.requires_grad}
    total = 0
    for i in range(len(x)):

        def outputs(v, i=i):
            return functional_call(net, oracles.rebuild(v, like), (x[i : i + 1],))[0]

        at = oracles.flat(like)
        j = jacrev(outputs)(at)
        total = total + j.T @ square(outputs(at), y[i]) @ j / len(x)
    return total


def case(kind, loss):
    net, (x, y) = oracles.small_net(kind, (4, 4, 3)), oracles.data()
    return net, x, F.one_hot(y, 3).double() if loss == "mse" else y


@pytest.mark.parametrize("kind", ["tanh", "relu", "softplus"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("size", [12, 5])
def test_hessian_gauss_newton_and_fishers_are_the_dense_matrices(kind, loss, size):
    net, x, y = case(kind, loss)
    criterion = LOSSES[loss]
    data = batches(x, y, size)

    def mean(z, t):
        return criterion(z[None], t[None])

    def second(z, t):
        return hessian(mean)(z, t)

    def outer(z, t):
        r = torch.func.grad(mean)(z, t)
        return torch.outer(r, r)

    wanted = {
        "hessian": oracles.full_hessian(net, criterion, x, y),
        "gauss_newton": per_example(net, criterion, x, y, second),
        "type-2": per_example(net, criterion, x, y, second),
        "empirical": per_example(net, criterion, x, y, outer),
    }
    for name, matrix in wanted.items():
        mine = dense(curvature(net, criterion, data, kind=name))
        torch.testing.assert_close(mine, matrix, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(mine, mine.T, rtol=1e-9, atol=1e-12)
    assert (wanted["hessian"] - wanted["gauss_newton"]).abs().max() > 1e-3
    assert (wanted["empirical"] - wanted["type-2"]).abs().max() > 1e-3


@pytest.mark.parametrize("loss", ["ce", "mse"])
def test_drawn_labels_give_the_fisher_on_average_and_the_same_matrix_for_every_product(loss):
    net, x, y = case("tanh", loss)
    exact = dense(curvature(net, LOSSES[loss], batches(x, y), kind="type-2"))
    draws = []
    for k in range(150):
        op = curvature(net, LOSSES[loss], batches(x, y, 7), kind="mc", generator=stream(k))
        v = torch.ones(op.dim)
        assert torch.equal(op(v), op(v))
        draws.append(op(v))
    draws = torch.stack(draws)
    error = draws.std(0) / 150**0.5
    assert torch.all((draws.mean(0) - exact.sum(1)).abs() < 4.5 * error + 1e-12) and torch.all(error > 0)
    one = dense(curvature(net, LOSSES[loss], batches(x, y, 7), kind="mc", generator=stream(0)))
    torch.testing.assert_close(one, one.T, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(one.sum(1), draws[0], rtol=1e-9, atol=1e-12)
    assert torch.linalg.matrix_rank(one) <= len(x) and torch.linalg.eigvalsh(one)[0] > -1e-12


def test_blocks_adaptive_and_scipy():
    net, (x, y) = oracles.small_net(), oracles.data()
    op, h = curvature(net, F.cross_entropy, batches(x, y)), oracles.full_hessian(net, F.cross_entropy, x, y)
    weight = dense(block(op, ["head.weight"]))
    torch.testing.assert_close(weight, oracles.block(net, h, "head.weight"), rtol=1e-9, atol=1e-12)
    layer = block(op, ["head"])
    assert list(layer.sizes) == ["head.weight", "head.bias"]
    torch.testing.assert_close(dense(layer), h[-layer.dim :, -layer.dim :], rtol=1e-9, atol=1e-12)
    params = dict(net.named_parameters())
    d = oracles.flat(params).detach().abs()
    scaled = adaptive(op, params)
    torch.testing.assert_close(dense(scaled), d[:, None] * h * d, rtol=1e-9, atol=1e-12)
    part = adaptive(layer, params)
    torch.testing.assert_close(dense(part), dense(scaled)[-layer.dim :, -layer.dim :], rtol=1e-9, atol=1e-12)
    from scipy.sparse.linalg import eigsh

    top = eigsh(to_scipy(op), k=1, which="LA", return_eigenvectors=False)
    assert top[0] == pytest.approx(float(torch.linalg.eigvalsh(h)[-1]), rel=1e-9)
    with pytest.raises(Refused, match="no parameter or layer 'heads'"):
        block(op, ["heads"])


class Odd(nn.Module):
    """Tied weights, a frozen layer, a part that is never used."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.b.weight = self.a.weight
        self.frozen, self.unused = nn.Linear(4, 4), nn.Linear(2, 2)
        self.frozen.requires_grad_(False)

    def forward(self, x):
        return self.c(torch.tanh(self.b(self.frozen(torch.tanh(self.a(x))))))


def test_tied_parameters_count_once_frozen_are_left_out_unused_are_zero():
    torch.manual_seed(0)
    net, (x, y) = Odd(), oracles.data()
    like = {k: p.detach() for k, p in net.named_parameters() if p.requires_grad}
    h = hessian(
        lambda v: F.cross_entropy(functional_call(net, oracles.rebuild(v, like), (x,)), y)
    )(oracles.flat(like))  # fmt: skip
    op = curvature(net, F.cross_entropy, batches(x, y))
    assert list(op.sizes) == list(like) and "b.weight" not in op.sizes
    torch.testing.assert_close(dense(op), h, rtol=1e-9, atol=1e-12)
    g = dense(curvature(net, F.cross_entropy, batches(x, y), kind="gauss_newton"))
    assert torch.all(dense(block(op, ["unused"])) == 0)
    assert torch.all(g[-6:] == 0) and g.abs().max() > 0.01


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(6, 4), LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.norm(self.embed(x)).mean(1))


class Attends(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part, self.head = part, nn.Linear(4, 3)

    def forward(self, x):
        h = self.part(x, x, x)[0] if isinstance(self.part, nn.MultiheadAttention) else self.part(x)
        return self.head(h.mean(1))


@pytest.mark.parametrize("name", ["tokens", "attention", "transformer"])
def test_embeddings_norms_and_attention(name):
    torch.manual_seed(0)
    y = torch.arange(6) % 3
    if name == "tokens":
        net, x = Tokens(), torch.randint(6, (6, 3))
    else:
        part = (
            nn.MultiheadAttention(4, 2, batch_first=True)
            if name == "attention"
            else nn.TransformerEncoderLayer(4, 2, 5, batch_first=True, activation="gelu")
        )
        net, x = Attends(part), torch.randn(6, 3, 4)
    net.eval()
    op = curvature(net, F.cross_entropy, batches(x, y, 4))
    with sdpa_kernel(SDPBackend.MATH):
        value, at = oracles.loss_of_vector(net, F.cross_entropy, x, y)
        gradient = torch.func.grad(value)
        for k in range(3):
            v = torch.randn(op.dim, generator=torch.Generator().manual_seed(k))
            step = 1e-4
            near, far = (gradient(at + s * v) - gradient(at - s * v) for s in (step, 2 * step))
            torch.testing.assert_close(op(v), (8 * near - far) / (12 * step), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_left_as_it_was_found_also_after_an_exception(fails):
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Tanh(), nn.Linear(5, 3))
    net.train()
    net[1].eval()
    net[0].bias.requires_grad_(False)
    x, y = oracles.data()
    net(x).sum().backward()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    grads = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    modes, chance = [m.training for m in net.modules()], torch.get_rng_state()
    ran, weight, head, running = [], net[0].weight, net[4].weight, net[1].running_mean

    def spoil(model, inputs):
        out = model(inputs)
        ran.append(model.training)
        model.train()
        running.add_(1)
        head.requires_grad_(False)
        head.grad = None
        if weight.grad is not None:
            weight.grad.mul_(2)
        torch.rand(3)
        if fails:
            raise RuntimeError("no")
        return out

    loader = DataLoader(TensorDataset(x, y), batch_size=5)
    op = curvature(net, F.cross_entropy, loader, forward=spoil)
    if fails:
        with pytest.raises(RuntimeError, match="no"):
            op(torch.ones(op.dim))
    else:
        op(torch.ones(op.dim))
    assert ran and ran[0] is False
    assert [m.training for m in net.modules()] == modes and torch.equal(torch.get_rng_state(), chance)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert [p.requires_grad for p in net.parameters()] == [True, False, True, True, True, True]
    for p, g in zip(net.parameters(), grads, strict=True):
        assert p.grad is None if g is None else torch.equal(p.grad, g)


def test_gauss_newton_takes_any_loss_that_is_smooth_in_the_outputs():
    """Poisson counts, S = diag(exp z)/K, and a loss that ties the rows together, S = 11ᵀ."""
    net, (x, _) = oracles.small_net(), oracles.data()
    y = torch.arange(len(x) * 3.0).reshape(len(x), 3)
    with torch.no_grad():
        z = net(x)
    like = {k: p.detach() for k, p in net.named_parameters()}
    jacobian = jacrev(lambda v: functional_call(net, oracles.rebuild(v, like), (x,)))(oracles.flat(like))
    wanted = torch.einsum("nkp,nk,nkq->pq", jacobian, z.exp(), jacobian) / z.numel()
    torch.testing.assert_close(
        dense(curvature(net, F.poisson_nll_loss, [(x, y)], kind="gauss_newton")), wanted
    )
    tied = jacobian.sum((0, 1))
    op = curvature(net, lambda z, y: z.sum().square() / 2, [(x, y)], kind="gauss_newton")
    torch.testing.assert_close(dense(op), torch.outer(tied, tied))


def test_gauss_newton_forms_no_matrix_of_outputs_by_outputs():
    torch.manual_seed(0)
    net, x = nn.Linear(3, 30_000, bias=False), torch.randn(5, 3)  # 36 GB, were it formed
    op = curvature(net, F.cross_entropy, [(x, torch.arange(5))], kind="gauss_newton")
    v = torch.randn(op.dim)
    p, moved = net(x).detach().softmax(-1), x @ v.reshape(-1, 3).T
    wanted = ((p * moved.square()).sum(-1) - (p * moved).sum(-1).square()).mean()
    torch.testing.assert_close(v @ op(v), wanted)


def test_a_single_batch_is_run_once_for_all_products():
    net, (x, y) = oracles.small_net(), oracles.data()
    runs = []

    def counted(model, inputs):
        runs.append(1)
        return model(inputs)

    for kind in ("hessian", "gauss_newton"):
        op = curvature(net, F.cross_entropy, [(x, y)], kind=kind, forward=counted)
        before = len(runs)
        dense(op)
        assert len(runs) - before == 1


def test_refusals():
    net, (x, y) = oracles.small_net(), oracles.data()
    with pytest.raises(Refused, match="can be read only once"):
        curvature(net, F.cross_entropy, iter([(x, y)]))
    with pytest.raises(Refused, match="no examples"):
        curvature(net, F.cross_entropy, [])
    with pytest.raises(Refused, match="output Hessian of the loss"):
        curvature(net, F.l1_loss, [(x, y)], kind="type-2")
    with pytest.raises(Refused, match="needs a generator"):
        curvature(net, F.cross_entropy, [(x, y)], kind="mc")
    with pytest.raises(Refused, match="kind must be one of"):
        curvature(net, F.cross_entropy, [(x, y)], kind="fisher")
    with pytest.raises(Refused, match=r"vector of shape \(3,\) for an operator of"):
        curvature(net, F.cross_entropy, [(x, y)])(torch.ones(3))
    net.requires_grad_(False)
    with pytest.raises(Refused, match="no trainable parameters"):
        curvature(net, F.cross_entropy, [(x, y)])
    assert of_matrix(torch.eye(3)).dim == 3 and mean_squared_error.factor is not None


def test_class_weights_scale_curvature_and_count_batches():
    import zoo

    from flattrain.training.curvature import curvature

    net, x = zoo.build("mlp")
    y = torch.tensor([0, 1, 2, 2, 1, 0, 0])
    loss = zoo.class_weights(net, x)
    params = oracles.trainable(net)
    wanted = {
        "hessian": oracles.full_hessian(net, loss, x, y),
        "gauss_newton": oracles.fisher(net, loss, x, y, params),
    }
    ragged = [(x[:3], y[:3]), (x[3:], y[3:])]
    for kind, dense in wanted.items():
        for batches in ([(x, y)], ragged):
            operator = curvature(net, loss, batches, kind=kind)
            mine = torch.stack([operator(e) for e in torch.eye(len(dense))])
            torch.testing.assert_close(mine, dense, rtol=1e-9, atol=1e-11)
