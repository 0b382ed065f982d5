"""Attention: what is covered, what is not, and positions that are embedded once for all examples."""

from __future__ import annotations

import oracles
import pytest
import torch
import zoo
from laws import value_of
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from flattrain import coverage
from flattrain.core.functional import see
from flattrain.core.ghost_sam import per_example_sam
from flattrain.core.layers import covered_layers
from flattrain.core.losses import recognise
from flattrain.measures.gauss_newton_trace import gauss_newton_trace
from flattrain.measures.soft_rank import soft_rank
from flattrain.ranges import Refused

LOSS = nn.CrossEntropyLoss()


class Fused(nn.Module):
    """A block of torch's own attention on tokens, with a causal mask."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(5, 4), nn.Linear(4, 5)
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        h, mask = self.table(x), torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return self.head(h + self.attend(h, h, h, attn_mask=mask, need_weights=False)[0])


class Positions(zoo.GPT):
    """The same language model with its positions embedded once, (T, D), as they are often written."""

    def forward(self, x):
        h = self.table(x) + self.place(torch.arange(x.shape[1], device=x.device))
        h = h + self.attend(self.first(h))
        return self.head(self.last(h + self.down(F.gelu(self.up(self.second(h))))))


def build(kind, n, t):
    torch.manual_seed(0)
    net = kind()
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(std=0.6)
    return net, torch.randint(5, (n, t)), torch.randint(5, (n, t))


def exact_trace(net, x, y):
    flat = oracles.Flat(net)
    with sdpa_kernel(SDPBackend.MATH):
        return oracles.fisher(flat, oracles.of_tokens(LOSS, 5), x, y, oracles.trainable(flat)).trace()


def test_projections_written_as_linear_layers_are_covered():
    assert coverage(zoo.GPT()).share == 1
    assert {"attend.q", "attend.k", "attend.v", "attend.out"} <= set(covered_layers(zoo.GPT()))


def test_fused_attention_is_refused_with_the_mend_and_exact_when_taken_densely():
    net, x, y = build(Fused, 3, 4)
    with pytest.raises(Refused, match=r"attend\.in_proj_weight.*'dense'.*written as nn\.Linear they are"):
        value_of(gauss_newton_trace(), net, recognise(LOSS), x, y)
    found = value_of(gauss_newton_trace(uncovered="dense"), net, recognise(LOSS), x, y)
    torch.testing.assert_close(found.detach(), exact_trace(net, x, y), rtol=1e-9, atol=0)
    # No such hint where no attention is left out.
    other, inputs = zoo.build("transformer")
    with pytest.raises(Refused) as refused:
        value_of(gauss_newton_trace(), other, recognise(LOSS), inputs, torch.zeros(7, dtype=torch.long))
    assert "Multihead" not in str(refused.value)


@pytest.mark.parametrize(("n", "t"), [(2, 3), (3, 3)])  # in the second the shape of the layer tells nothing
def test_positions_embedded_once_for_all_examples_are_refused_or_taken_densely(n, t):
    net, x, y = build(Positions, n, t)
    with pytest.raises(
        Refused, match=rf"'place' gives \({t}, 4\) for {n} examples.*expand\(n, -1\).*'dense'"
    ):
        value_of(gauss_newton_trace(), net, recognise(LOSS), x, y)
    with pytest.raises(Refused, match="'place' gives"):
        value_of(soft_rank(layers=("place",)), net, recognise(LOSS), x, y)
    with pytest.raises(Refused, match="per-example SAM: layer 'place' gives"):
        per_example_sam(net, recognise(LOSS), x, y, rho=0.1)
    found = value_of(gauss_newton_trace(uncovered="dense"), net, recognise(LOSS), x, y)
    torch.testing.assert_close(found.detach(), exact_trace(net, x, y), rtol=1e-9, atol=0)
    same = zoo.GPT()
    same.load_state_dict(net.state_dict())
    mended = value_of(gauss_newton_trace(), same, recognise(LOSS), x, y)
    torch.testing.assert_close(mended.detach(), found.detach(), rtol=1e-9, atol=0)


def test_attention_alone_can_be_taken_densely():
    torch.manual_seed(0)
    attend = nn.MultiheadAttention(4, 2, batch_first=True)
    net = zoo.Functional(lambda m, x: m.attend(x, x, x, need_weights=False)[0], attend=attend)
    x, y = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    flat, loss = oracles.Flat(net), nn.MSELoss()
    with sdpa_kernel(SDPBackend.MATH):
        wanted = oracles.fisher(flat, oracles.of_tokens(loss, 4), x, y, oracles.trainable(flat)).trace()
    found = value_of(gauss_newton_trace(uncovered="dense"), net, recognise(loss), x, y)
    torch.testing.assert_close(found.detach(), wanted, rtol=1e-9, atol=0)


def test_a_model_that_gives_its_tokens_in_a_line_is_refused():
    net, x = zoo.build("gpt")
    lined = zoo.Functional(lambda m, x: m.net(x).flatten(0, 1), net=net)
    with pytest.raises(Refused, match=r"return outputs \(n, tokens, K\), not all tokens in a line"):
        value_of(gauss_newton_trace(), lined, recognise(LOSS), x, zoo.targets(net, x, LOSS).flatten())


def test_one_index_for_each_example_is_no_position():
    """An embedding of one label per example, beside features of any width."""

    class Labelled(nn.Module):
        def __init__(self):
            super().__init__()
            self.label, self.up, self.head = nn.Embedding(3, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head((self.up(x) + self.label(x[:, 0].long().clamp(0, 2))).tanh())

    torch.manual_seed(0)
    net, x, y = Labelled(), torch.randn(4, 4), torch.tensor([0, 1, 2, 1])
    seen = see(net, recognise(LOSS), x, y, layers=covered_layers(net))
    assert len(seen.taps) == 3
    found = value_of(gauss_newton_trace(), net, recognise(LOSS), x, y)
    wanted = oracles.fisher(net, LOSS, x, y, oracles.trainable(net)).trace()
    torch.testing.assert_close(found.detach(), wanted, rtol=1e-9, atol=0)
