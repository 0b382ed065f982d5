"""ESAM and functional SAM: parts of the ascent, of the batch and of the chain rule, each by hand."""

from __future__ import annotations

import oracles
import pytest
import torch
from explicit import Explicit, close, far

from flattrain.core.losses import cross_entropy, recognise, squared_error
from flattrain.measures.norms import weight_norm
from flattrain.ranges import Refused
from flattrain.rules.compose import compose
from flattrain.rules.esam import esam
from flattrain.rules.functional_sam import functional_sam
from flattrain.rules.noise import label_noise
from flattrain.rules.sam import m_sam, sam
from flattrain.training.objective import Penalty, build

RHO = 0.3
NOISE = {"hidden1.weight": 0.9, "hidden1.bias": -0.2, "head.weight": -1.0, "head.bias": 1.5}


def noise(values=NOISE):
    return {f"rule.{k}": torch.tensor(v) for k, v in values.items()}


def regression():
    torch.manual_seed(3)
    return Explicit(
        oracles.small_net(sizes=(4, 5, 2)), squared_error, (torch.randn(12, 4), torch.randn(12, 2))
    )


@pytest.mark.parametrize("make", [Explicit, regression], ids=["cross entropy", "squared error"])
@pytest.mark.parametrize("gamma", [0.0, 0.25, 0.5])
def test_esam_is_its_formula(make, gamma):
    it = make()
    beta = 0.5  # Φ(z) <= ½ where z <= 0
    mask = it.mask(lambda name: NOISE[name] <= 0)
    assert 0 < mask.sum() < len(mask)
    g = it.gradient(it.at)
    up = it.at + RHO / beta * mask * g / (mask * g).norm()

    def losses(v):
        return torch.stack([it.value(v, torch.tensor([i])) for i in range(12)])

    rows = (losses(up) - losses(it.at)).argsort(descending=True)[: max(1, int(12 * gamma))]
    mine = it.ruled(esam(rho=RHO, beta=beta, gamma=gamma, losses=it.objective.losses), noise=noise())
    close(mine, it.gradient(up, rows))
    far(mine, it.gradient(up))
    worst = (losses(up) - losses(it.at)).argsort()[: len(rows)]
    far(mine, it.gradient(up, worst))


def test_esam_with_everything_is_sam():
    it = Explicit()
    mine = it.ruled(esam(rho=RHO, beta=1.0, gamma=1.0, losses=it.objective.losses), noise=noise())
    close(mine, it.ruled(sam(rho=RHO)), rtol=1e-15)
    plain = oracles.flat(it.grad_fn(it.params, it.batch())[0])
    assert torch.equal(it.ruled(esam(rho=0.0, losses=it.objective.losses), noise=noise()), plain)
    nothing = {k: 5.0 for k in NOISE}
    mine = it.ruled(esam(rho=RHO, gamma=1.0, losses=it.objective.losses), noise=noise(nothing))
    assert torch.equal(mine, plain)


def test_esam_chooses_a_tensor_with_probability_beta():
    it = Explicit()
    rule = esam(beta=0.3, losses=it.objective.losses)
    wanted = rule.draws(it.params, it.batch())
    assert list(wanted) == [f"rule.{k}" for k in it.params] and {w.kind for w in wanted.values()} == {
        "normal"
    }
    chosen = torch.special.ndtr(torch.randn(20_000, generator=torch.Generator().manual_seed(0))) <= 0.3
    assert float(chosen.double().mean()) == pytest.approx(0.3, abs=0.013)  # four standard errors


def test_losses_of_examples():
    for it in (Explicit(), regression()):
        mine = it.objective.losses(it.params, it.batch())
        wanted = torch.stack([it.value(it.at, torch.tensor([i])) for i in range(12)])
        close(mine, wanted, rtol=1e-14)
        assert mine.std() > 0.1
    weighted = recognise(torch.nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0])))
    it = Explicit(loss=weighted)
    mine = it.objective.losses(it.params, it.batch())
    torch.testing.assert_close(mine.mean(), it.value(it.at))
    by_hand = torch.nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0]), reduction="none")
    scaled = by_hand(it.outputs(it.at), it.y)
    torch.testing.assert_close(mine / mine.sum(), scaled / scaled.sum())


def test_esam_refuses_what_it_cannot_take_apart():
    it = Explicit()
    with pytest.raises(Refused, match="needs losses"):
        esam()
    with pytest.raises(Refused, match="losses must be a function"):
        esam(losses=3)
    with pytest.raises(Refused, match="beta must be above 0"):
        esam(beta=0.0, losses=it.objective.losses)
    rows = noise() | {"0:signs": torch.ones(12, 3)}
    with pytest.raises(Refused, match="'0:signs' of a penalty has a row per example"):
        it.ruled(esam(losses=it.objective.losses), noise=rows)
    assert torch.isfinite(it.ruled(esam(gamma=1.0, losses=it.objective.losses), noise=rows)).all()
    it = regression()
    for splitting in (esam(losses=it.objective.losses), m_sam(m=1)):
        rule = compose([splitting, label_noise()])
        drawn = {k: torch.ones(w.shape) for k, w in rule.draws(it.params, it.batch()).items()}
        with pytest.raises(Refused, match="put it outside"):
            rule(it.grad_fn)(it.params, it.batch(noise=drawn), {})


@pytest.mark.parametrize("make", [Explicit, regression], ids=["cross entropy", "squared error"])
def test_functional_sam_is_its_formula(make):
    it = make()
    g = it.gradient(it.at)
    up = it.at + RHO * g / g.norm()
    outputs = it.outputs(it.at)
    if it.loss is squared_error:
        residual = 2 * (outputs - it.y) / 12
    else:
        residual = (outputs.softmax(-1) - torch.nn.functional.one_hot(it.y, 3)) / 12
    jacobian = torch.func.jacrev(it.outputs)(up)
    wanted = torch.einsum("nk,nkp->p", residual, jacobian)
    rule = functional_sam(rho=RHO, outputs=it.objective.outputs, criterion=it.loss)
    mine = it.ruled(rule)
    close(mine, wanted)
    far(mine, g)
    far(mine, it.ruled(sam(rho=RHO)))
    still = functional_sam(rho=0.0, outputs=it.objective.outputs, criterion=it.loss)
    assert torch.equal(it.ruled(still), oracles.flat(it.grad_fn(it.params, it.batch())[0]))


def test_at_interpolation_functional_sam_stands_still_and_sam_does_not():
    it = regression()
    it.y = it.outputs(it.at) + 1e-9
    rule = functional_sam(rho=RHO, outputs=it.objective.outputs, criterion=squared_error)
    assert it.ruled(rule).norm() < 1e-7 and it.ruled(sam(rho=RHO)).norm() > 0.1


def test_functional_sam_ascends_a_penalty_as_sam_does():
    it = Explicit()
    penalised = build(it.net, cross_entropy, [Penalty(weight_norm(), 0.5)])
    rule = functional_sam(rho=RHO, outputs=penalised.outputs, criterion=cross_entropy)
    mine, _ = rule(penalised.gradient())(it.params, it.batch())
    g = it.gradient(it.at) + it.at
    up = it.at + RHO * g / g.norm()
    residual = (it.outputs(it.at).softmax(-1) - torch.nn.functional.one_hot(it.y, 3)) / 12
    wanted = torch.einsum("nk,nkp->p", residual, torch.func.jacrev(it.outputs)(up)) + up
    close(oracles.flat(mine), wanted)


def test_functional_sam_needs_the_network():
    with pytest.raises(Refused, match="needs outputs"):
        functional_sam()
    with pytest.raises(Refused, match="criterion must be a"):
        functional_sam(outputs=lambda p, b: p, criterion="cross_entropy")
