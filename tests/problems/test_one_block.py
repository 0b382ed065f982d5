"""The block against torch's attention on the whole sequence, and what a position may see."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from flattrain.core.probes import stream
from flattrain.problems.modular_addition import modular_addition
from flattrain.problems.one_block import one_block
from flattrain.problems.parity import parity
from flattrain.ranges import Refused


def made(answer):
    split = modular_addition(p=5, train=9, answer=answer)(0)
    split = split.each(lambda t: t.double() if t.is_floating_point() else t)
    model = one_block(dim=12, heads=3, width=7)
    net = model.build(split).double()
    for name, value in model.start(net, split, stream(1)).items():
        net.get_parameter(name).data = 3 * value.double()
    return net, split.train_x


def whole_sequence(net, x):
    """Every position, by torch's own attention; `net` gives the weights alone."""
    h = x @ net.embed.weight.T

    def heads(layer):
        return (h @ layer.weight.T).reshape(*h.shape[:2], 3, 4).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(heads(net.query), heads(net.key), heads(net.value), is_causal=True)
    h = h + mixed.transpose(1, 2).flatten(2) @ net.mix.weight.T
    hidden = (h @ net.hidden.weight.T + net.hidden.bias).clamp(min=0)
    return (h + hidden @ net.back.weight.T + net.back.bias) @ net.head.weight.T


@pytest.mark.parametrize(("answer", "answers"), [("sum", 1), ("sum_and_end", 2)])
def test_it_is_the_end_of_a_whole_sequence(answer, answers):
    net, x = made(answer)
    wanted = whole_sequence(net, x)[:, -answers:]
    torch.testing.assert_close(net(x), wanted[:, 0] if answers == 1 else wanted, rtol=1e-11, atol=1e-12)


def test_the_sum_is_not_seen_where_it_is_asked_for_and_the_order_says_nothing():
    net, x = made("sum_and_end")
    other = torch.cat([x[:, :3], x[:, 3:].roll(1, 2)], 1)
    torch.testing.assert_close(net(other)[:, 0], net(x)[:, 0], rtol=0, atol=0)
    assert (net(other)[:, 1] - net(x)[:, 1]).abs().max() > 1e-3
    net, x = made("sum")
    torch.testing.assert_close(net(x[:, [1, 0, 2]]), net(x), rtol=1e-12, atol=1e-13)


def test_what_does_not_fit_is_refused():
    with pytest.raises(Refused, match="dim must be a multiple of heads, got 10 and 4"):
        one_block(dim=10, heads=4)
    with pytest.raises(Refused, match="one-hot tokens"):
        one_block().build(parity(dim=5, train=9, test=9)(0))
