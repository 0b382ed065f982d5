"""The largest eigenvalue of the Gauss–Newton matrix against the explicit matrix, and its gradient."""

from __future__ import annotations

import oracles
import pytest
import torch
from laws import value_of
from torch.func import functional_call, jacrev

from flattrain.core.losses import cross_entropy
from flattrain.measures.gauss_newton_top_eigenvalue import gauss_newton_top_eigenvalue
from flattrain.ranges import Refused
from flattrain.training.evaluate import evaluate
from flattrain.types import Network


def explicit(net, x, params):
    """G = mean Jᵀ (diag p − ppᵀ) J, formed."""
    rows = jacrev(lambda p: functional_call(net, p, (x,)))(params)
    jacobian = torch.cat([rows[k].reshape(len(x), -1, params[k].numel()) for k in params], -1)
    p = functional_call(net, params, (x,)).softmax(-1)
    s = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("nka,nkl,nlb->ab", jacobian, s, jacobian) / len(x)


def network():
    net, (x, y) = oracles.small_net(), oracles.data()
    return net, x, y, {k: p.detach() for k, p in net.named_parameters()}


def test_it_is_that_of_the_explicit_matrix():
    net, x, y, params = network()
    wanted = float(torch.linalg.eigvalsh(explicit(net, x, params))[-1])
    found = evaluate(
        gauss_newton_top_eigenvalue(products=40), Network(net, cross_entropy, params, {}), x, y, (1,)
    )
    assert found.value == pytest.approx(wanted, rel=1e-9)
    few = evaluate(
        gauss_newton_top_eigenvalue(products=2), Network(net, cross_entropy, params, {}), x, y, (1,)
    )
    assert few.value < wanted and abs(few.value - wanted) <= few.standard_error


def test_its_gradient_is_that_of_the_eigenvalue():
    net, x, y, params = network()
    live = {k: p.clone().requires_grad_() for k, p in params.items()}
    wanted = torch.autograd.grad(torch.linalg.eigvalsh(explicit(net, x, live))[-1], list(live.values()))
    live = {k: p.clone().requires_grad_() for k, p in params.items()}
    value = value_of(gauss_newton_top_eigenvalue(products=60), net, cross_entropy, x, y, live)
    mine = torch.autograd.grad(value, list(live.values()))
    torch.testing.assert_close(
        oracles.flat(dict(enumerate(mine))), oracles.flat(dict(enumerate(wanted))), rtol=1e-6, atol=1e-9
    )


def test_layers_are_chosen_and_products_counted():
    net, x, y, params = network()
    whole = explicit(net, x, params)
    names = list(params)
    sizes = [params[k].numel() for k in names]
    layer = names[0].rsplit(".", 1)[0]
    keep = torch.cat([torch.full((s,), k.startswith(f"{layer}.")) for k, s in zip(names, sizes, strict=True)])
    wanted = float(torch.linalg.eigvalsh(whole[keep][:, keep])[-1])
    measure = gauss_newton_top_eigenvalue(products=40, layers=(layer,))
    found = evaluate(measure, Network(net, cross_entropy, params, {}), x, y, (1,))
    assert found.value == pytest.approx(wanted, rel=1e-9)
    with pytest.raises(Refused):
        gauss_newton_top_eigenvalue(products=0)
