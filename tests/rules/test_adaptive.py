"""ASAM and SAM-ON against their formulas, ASAM's invariance, and what counts as a normalisation."""

from __future__ import annotations

import oracles
import pytest
import torch
from explicit import Explicit, close, far
from torch import nn

from flattrain.core import trees
from flattrain.core.eager import BatchNorm2d, LayerNorm
from flattrain.core.layers import normalisation_parameters
from flattrain.problems.two_layer import BatchNormed
from flattrain.ranges import Refused
from flattrain.rules.adaptive import adaptive, asam
from flattrain.rules.friendly import friendly
from flattrain.rules.norm_only import only, sam_on
from flattrain.rules.sam import SAM, sam
from flattrain.rules.two_pass import as_rule
from flattrain.types import Batch


def scales(it, eta, scale, biases):
    """T as a vector."""
    parts = []
    for name, p in it.params.items():
        if biases == "identity" and name.endswith(".bias"):
            parts.append(torch.ones(p.numel()))
        elif scale == "elementwise":
            parts.append(p.reshape(-1).abs() + eta)
        else:
            parts.append(torch.full((p.numel(),), float(p.square().sum().sqrt()) + eta))
    return torch.cat(parts)


@pytest.mark.parametrize("biases", ["identity", "scaled"])
@pytest.mark.parametrize("scale", ["elementwise", "layerwise"])
@pytest.mark.parametrize("eta", [0.0, 0.3])
def test_asam_is_its_formula(eta, scale, biases):
    it = Explicit()
    t, g = scales(it, eta, scale, biases), it.gradient(it.at)
    wanted = it.gradient(it.at + 0.4 * t**2 * g / (t * g).norm())
    mine = it.ruled(asam(rho=0.4, eta=eta, scale=scale, biases=biases))
    close(mine, wanted)
    far(mine, g)
    far(mine, it.ruled(sam(rho=0.4)))


def perturbed(it, member, rho):
    g, _ = it.grad_fn(it.params, it.batch())
    d, _ = member.direction(it.params, g, trees.norm(g), {})
    return {k: v + rho * d.scale * d.along[k] for k, v in it.params.items()}


@pytest.mark.parametrize("bias", [False, True])
def test_asam_does_not_see_the_layers_scales(bias):
    """Layers by (a, 1/a): the perturbed *function* is the same; with SAM it is another one."""
    net = oracles.small_net("relu", bias=bias)
    plain = Explicit(net)
    scaled = Explicit(net)
    a = 7.0
    for name in scaled.params:
        factor = {"hidden1.weight": a, "hidden1.bias": a, "head.weight": 1 / a}.get(name, 1.0)
        scaled.params[name] = factor * scaled.params[name]

    def outputs(it, member):
        return it.outputs(oracles.flat(perturbed(it, member, 0.3)))

    x = plain.outputs(plain.at)
    close(scaled.outputs(oracles.flat(scaled.params)), x)
    for scale in ("elementwise", "layerwise"):
        member = adaptive(eta=0.0, scale=scale, biases="scaled")
        close(outputs(scaled, member), outputs(plain, member), rtol=1e-9)
        far(outputs(plain, member), x)
        if bias:  # the identity on biases gives the invariance up, and so does any η
            far(outputs(scaled, adaptive(eta=0.0)), outputs(plain, adaptive(eta=0.0)))
        far(outputs(scaled, adaptive(eta=0.1)), outputs(plain, adaptive(eta=0.1)))
    far(outputs(scaled, SAM), outputs(plain, SAM))


def test_a_network_of_zeros_has_nowhere_to_go():
    it = Explicit()
    it.params = {k: torch.zeros_like(v) for k, v in it.params.items()}
    assert torch.equal(
        it.ruled(asam(eta=0.0, biases="scaled")), oracles.flat(it.grad_fn(it.params, it.batch())[0])
    )


def normed_net():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), LayerNorm(6), nn.Tanh(), nn.Linear(6, 3))
    for p in net.parameters():
        nn.init.normal_(p, std=0.7)
    return net


@pytest.mark.parametrize(
    ("options", "t"),
    [
        ({}, lambda p, bias: torch.ones_like(p)),
        ({"ascent": "elementwise", "eta": 0.1, "biases": "scaled"}, lambda p, bias: p.abs() + 0.1),
        ({"ascent": "elementwise"}, lambda p, bias: torch.ones_like(p) if bias else p.abs()),
        ({"ascent": "layerwise"}, lambda p, bias: torch.ones_like(p) * (1 if bias else p.norm())),
    ],
)
def test_sam_on_perturbs_the_normalisation_alone_and_moves_everything(options, t):
    it = Explicit(normed_net())
    names = normalisation_parameters(it.net)
    assert names == ("1.weight", "1.bias")
    mask = it.mask(lambda name: name in names)
    scale = torch.cat([t(v, k.endswith("bias")).reshape(-1) for k, v in it.params.items()])
    g = it.gradient(it.at)
    some = mask * g
    wanted = it.gradient(it.at + 0.5 * scale**2 * some / (scale * some).norm())
    mine = it.ruled(sam_on(rho=0.5, parameters=names, **options))
    close(mine, wanted)
    far(mine, g)
    far((1 - mask) * mine, (1 - mask) * g)  # the weights' own gradient is that at the perturbed point


def test_any_member_may_be_restricted_also_one_that_remembers():
    it = Explicit()
    rule = as_rule(only(["head.weight"], friendly(lam=0.5)), 0.3)
    mask, memory, mean = it.mask(lambda name: name == "head.weight"), rule.init(it.params), None
    for rows in torch.arange(12).split(4):
        g, _, memory = rule(it.grad_fn)(it.params, it.batch(rows=rows), memory)
        plain = mask * it.gradient(it.at, rows)
        d = plain if mean is None else plain - mean
        mean = plain if mean is None else 0.5 * mean + 0.5 * plain
        close(oracles.flat(g), it.gradient(it.at + 0.3 * d / d.norm(), rows))


def test_refusals_of_parts():
    with pytest.raises(Refused, match="no normalisation layer"):
        sam_on(parameters=())
    with pytest.raises(Refused, match="no normalisation layer"):
        sam_on()
    it = Explicit()
    with pytest.raises(Refused, match=r"no trainable parameter 'head\.wieght'; did you mean 'head\.weight'"):
        it.ruled(sam_on(parameters=("head.wieght",)))
    with pytest.raises(Refused, match="parameters must be a list of texts"):
        sam_on(parameters=(1,))


def test_normalisations_are_known_by_type():
    class Custom(nn.Module):
        normalises = True

        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(2))

    net = nn.ModuleDict(
        {
            "normal": nn.Linear(2, 2),  # a name that holds "norm" and is none
            "a": nn.BatchNorm1d(2),
            "b": BatchNorm2d(2),
            "c": nn.LayerNorm(2, bias=False),
            "d": nn.GroupNorm(1, 2),
            "e": nn.InstanceNorm2d(2, affine=True),
            "f": nn.RMSNorm(2),
            "g": nn.SyncBatchNorm(2),
            "h": nn.LayerNorm(2, elementwise_affine=False),
            "i": Custom(),
        }
    )
    net["a"].bias.requires_grad_(False)
    assert normalisation_parameters(net) == (
        *("a.weight", "b.weight", "b.bias", "c.weight", "d.weight", "d.bias", "e.weight", "e.bias"),
        *("f.weight", "g.weight", "g.bias", "i.gain"),
    )
    assert normalisation_parameters(nn.LayerNorm(2)) == ("weight", "bias")
    assert normalisation_parameters(BatchNormed(3, 4, True, 5)) == ("norm.gamma",)
    assert normalisation_parameters(oracles.small_net()) == ()


def test_radius_zero_is_the_plain_gradient():
    it = Explicit(normed_net())
    plain = oracles.flat(it.grad_fn(it.params, it.batch())[0])
    assert torch.equal(it.ruled(asam(rho=0.0)), plain)
    assert torch.equal(it.ruled(sam_on(rho=0.0, parameters=("1.weight",))), plain)
    faded = Batch(it.x, it.y, {}, it.batch(strength=0.0).moment)
    assert torch.equal(oracles.flat(asam(rho=1.0)(it.grad_fn)(it.params, faded)[0]), plain)
