"""The toys: their losses and curvatures by explicit Hessians, and their landmarks by search."""

from __future__ import annotations

import pytest
import torch

from flattrain.core.losses import squared_error
from flattrain.lab import catalog
from flattrain.measures.landmarks import distance_to_logarithmic, distance_to_top, distance_to_trace
from flattrain.problems import toys
from flattrain.problems.toys import exponential_pair, logarithmic_minimiser, quadratic, unit_vectors, valley
from flattrain.ranges import Refused
from flattrain.training.evaluate import evaluate
from flattrain.types import Network


def built(model, examples=2, **params):
    split = unit_vectors(train=examples)(0)
    module = model.build(split).double()
    start = model.start(module, split.each(torch.Tensor.double), torch.Generator().manual_seed(4))
    assert {k: v.shape for k, v in start.items()} == {k: p.shape for k, p in module.named_parameters()}
    return module, split.each(torch.Tensor.double), start | {k: torch.tensor(v) for k, v in params.items()}


def loss_of(module, split, params):
    def loss(params, rows=slice(None)):
        f = torch.func.functional_call(module, params, (split.train_x[rows],))
        return squared_error.mean(f, split.train_y[rows])

    return loss, loss(params)


def eigenvalues(module, split, params):
    loss, _ = loss_of(module, split, params)
    names, leaves = list(params), list(params.values())
    sizes = [v.numel() for v in leaves]

    def flat(vector):
        parts = (p.view(v.shape) for p, v in zip(vector.split(sizes), leaves, strict=True))
        return loss(dict(zip(names, parts, strict=True)))

    at = torch.cat([v.flatten() for v in leaves])
    return torch.linalg.eigvalsh(torch.func.hessian(flat)(at))


def test_the_valley_is_what_its_docstring_says():
    module, split, params = built(valley(), z=[0.4, -1.3], x=[0.3, -0.7])
    f1, f2 = 7 + 0.6**2 + 1.3**2, 1 + (1.4**2 + 2.3**2) / 2
    loss, value = loss_of(module, split, params)
    assert float(value) == pytest.approx(f1 * 0.09 + f2 * 0.49, rel=1e-12)
    assert float(loss(params, slice(0, 1))) == pytest.approx(2 * f1 * 0.09, rel=1e-12)
    found = eigenvalues(module, split, params | {"x": torch.zeros(2)})
    torch.testing.assert_close(found, torch.tensor([0, 0, 2 * f2, 2 * f1]))


def test_the_valleys_landmarks_are_minimisers_and_its_order_never_turns():
    module, _, _ = built(valley())
    z = torch.cartesian_prod(*[torch.linspace(-4, 4, 161)] * 2)
    f1, f2 = torch.func.vmap(toys.curvatures)(z)
    assert float((f1 - f2).min()) >= 1
    for name, value in (("top", f1), ("smallest", f2), ("trace", f1 + f2)):
        assert float((z[value.argmin()] - module.landmarks[name]["z"]).norm()) < 0.05
    assert min(float(f.min()) for f in (f1, f2)) > 0


def test_the_quadratic():
    module, split, params = built(quadratic(eigenvalues=(2.0, 0.5, 3.0)), 3, x=[1.0, 2.0, -1.0])
    assert float(loss_of(module, split, params)[1]) == pytest.approx((2 + 2 + 3) / 2, rel=1e-12)
    torch.testing.assert_close(eigenvalues(module, split, params), torch.tensor([0.5, 2.0, 3.0]))


def test_the_pair_and_its_two_minimisers():
    module, split, params = built(exponential_pair(), z=0.2, a=[0.3, -0.1])
    first, second = torch.tensor(0.2).exp(), toys.C * torch.tensor(-0.4).exp()
    wanted = (first * 0.09 + second * 0.01) / 2
    torch.testing.assert_close(loss_of(module, split, params)[1], wanted)
    z = torch.linspace(-0.5, 0.68, 118_001)
    one, two = z.exp(), toys.C * (-2 * z).exp()
    logarithmic = -(torch.log(1 - one / 2) + torch.log(1 - two / 2))
    assert float(z[logarithmic.nan_to_num(torch.inf).argmin()]) == pytest.approx(
        logarithmic_minimiser(1.0), abs=2e-5
    )
    assert float(z[(one + two).argmin()]) == pytest.approx(float(module.landmarks["trace"]["z"]), abs=2e-5)
    # As the learning rate falls the logarithm is its linear part.
    assert logarithmic_minimiser(1e-6) == pytest.approx(float(module.landmarks["trace"]["z"]), abs=1e-5)


def test_distances_to_landmarks():
    module, split, params = built(valley(), z=[1.0, 2.0], x=[9.0, 9.0])
    network = Network(module, squared_error, params, {})
    found = evaluate(distance_to_top(landmarks=module.landmarks), network, split.train_x, split.train_y, ())
    assert float(found.value) == pytest.approx(2, rel=1e-12)
    choice = catalog.choose(catalog.MEASURES, "distance_to_smallest", "test")
    measure = catalog.build(choice, landmarks=module.landmarks)
    found = evaluate(measure, network, split.train_x, split.train_y, ())
    assert float(found.value) == pytest.approx(5**0.5, rel=1e-12)
    with pytest.raises(Refused, match="distance_to_logarithmic: the model names no such point"):
        distance_to_logarithmic(landmarks=module.landmarks)
    with pytest.raises(Refused, match="distance_to_trace: the model names no such point"):
        distance_to_trace()


def test_refusals():
    with pytest.raises(Refused, match=r"takes 2 unit vectors \(unit_vectors: \{train: 2\}\)"):
        valley().build(unit_vectors(train=3)(0))
    with pytest.raises(Refused, match="eigenvalues must be a list of numbers > 0"):
        quadratic(eigenvalues=(1.0, 0.0))
    with pytest.raises(Refused, match="lr must leave both eigenvalues below 2/lr somewhere, got 2"):
        exponential_pair(lr=2.0).build(unit_vectors()(0))
