"""Ghost norms and Gram matrices against per-example Jacobians, on every kind of layer."""

from __future__ import annotations

import oracles
import pytest
import torch
import zoo
from torch import nn

from flattrain.core import ghost
from flattrain.core.functional import see
from flattrain.core.layers import covered_layers
from flattrain.core.losses import recognise, root_vectors
from flattrain.ranges import Refused


def parts_of(net, loss, x, y, uncovered="refuse"):
    seen = see(net, recognise(loss), x, y, layers=covered_layers(net))
    return ghost.pieces(seen, root_vectors(seen, None, "test"), "test", uncovered)


@pytest.mark.parametrize("loss", zoo.LOSSES)
@pytest.mark.parametrize("name", zoo.BUILD)
def test_norms_and_inner_products_are_those_of_explicit_gradients(name, loss):
    net, x = zoo.build(name)
    criterion = zoo.LOSSES[loss]
    y = zoo.targets(net, x, criterion)
    parts = parts_of(net, criterion, x, y)
    rows = oracles.example_gradients(net, criterion, x, y, oracles.trainable(net))
    squares = ghost.squares(p.piece for p in parts)
    torch.testing.assert_close(squares.sum(1), rows.square().sum((1, 2)), rtol=1e-10, atol=1e-13)
    # A root is unique up to rotations and zeros among an example's columns: compare what sees neither.
    n, c = rows.shape[:2]
    own = squares.shape[1]
    mine = ghost.gram(p.piece for p in parts).reshape(n, own, n, own).square().sum((1, 3))
    flat = rows.flatten(0, 1)
    wanted = (flat @ flat.T).reshape(n, c, n, c).square().sum((1, 3))
    torch.testing.assert_close(mine, wanted, rtol=1e-9, atol=1e-12)
    count = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert sum(part.value().numel() for part in parts) == count


@pytest.mark.parametrize("name", zoo.BUILD)
def test_formed_gradients_have_the_same_norms_and_the_layout_of_their_parameter(name):
    net, x = zoo.build(name)
    y = zoo.targets(net, x, nn.CrossEntropyLoss())
    for part in parts_of(net, nn.CrossEntropyLoss(), x, y):
        formed = ghost.matrix(part.piece)
        torch.testing.assert_close(
            ghost.squares([part.piece]), formed.square().sum(-1), rtol=1e-10, atol=1e-14
        )
        assert formed.shape[-1] == part.value().numel()
    # ⟨θ, ∂(vᵀf)/∂θ⟩ summed over parameters needs the layouts to agree.
    parts = parts_of(net, nn.CrossEntropyLoss(), x, y)
    mine = torch.stack([(ghost.matrix(p.piece) * p.value()).sum(-1) for p in parts]).sum(0)
    params = oracles.trainable(net)
    rows = oracles.example_gradients(net, nn.CrossEntropyLoss(), x, y, params)
    wanted = rows @ torch.cat([p.flatten() for p in params.values()])
    torch.testing.assert_close(mine.square().sum(1), wanted.square().sum(1), rtol=1e-9, atol=1e-12)


def test_what_no_layer_explains_is_refused_left_out_or_taken_densely():
    net, x = zoo.build("transformer")
    loss = nn.CrossEntropyLoss()
    y = zoo.targets(net, x, loss)
    with pytest.raises(Refused, match=r"place\.weight \(\d+% of the parameters\)"):
        parts_of(net, loss, x, y)
    rows = oracles.example_gradients(net, loss, x, y, oracles.trainable(net))
    dense = parts_of(net, loss, x, y, "dense")
    torch.testing.assert_close(
        ghost.squares(p.piece for p in dense).sum(1), rows.square().sum((1, 2)), rtol=1e-10, atol=0
    )
    kept = ghost.squares(p.piece for p in parts_of(net, loss, x, y, "ignore")).sum(1)
    assert torch.all(kept < rows.square().sum((1, 2)))


def test_class_weights_scale_the_curvature_of_each_example():
    net, x = zoo.build("mlp")
    loss = zoo.class_weights(net, x)
    y = torch.tensor([0, 1, 2, 2, 1, 0, 0])
    rows = oracles.example_gradients(net, loss, x, y, oracles.trainable(net))
    mine = ghost.squares(p.piece for p in parts_of(net, loss, x, y)).sum(1)
    torch.testing.assert_close(mine, rows.square().sum((1, 2)), rtol=1e-10, atol=0)
    assert mine.std() > 0


def test_outputs_changed_in_place_are_refused_and_examples_come_first():
    x, y = oracles.data()
    net = zoo.Functional(lambda m, x: m.b(m.a(x).relu_()), a=nn.Linear(4, 5), b=nn.Linear(5, 3))
    with pytest.raises(Refused, match="'a' is changed in place"):
        see(net, recognise(nn.CrossEntropyLoss()), x, y, layers=("a",))
    turned = zoo.Functional(lambda m, x: m.b(m.a(x.T).T), a=nn.Linear(12, 12), b=nn.Linear(4, 3))
    with pytest.raises(Refused, match="examples must be its first dimension"):
        parts_of(turned, nn.CrossEntropyLoss(), x, y)
