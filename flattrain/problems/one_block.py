"""A transformer of one block on sequences of one-hot tokens, without normalisation and without positions.

    h = E x                                              (n, T, D)
    h ← h + O attention(Q h, K h, V h)                   causal: position t sees 1 … t; scale 1/√(D / heads)
    h ← h + B relu(A h + a) + b
    z = head(h)                                          at the last positions, as many as there are classes

Without positions the sequence up to t is a set: enough for sums, which do not depend on the order, and where
"=" tells the question from the answer. Attention is written out, so that it can be differentiated any number
of times.
"""

from __future__ import annotations

import torch
from einops import einsum, rearrange
from torch import Tensor, nn

from flattrain.problems import start
from flattrain.problems.split import Model, Split
from flattrain.ranges import Count, Refused, checked


class OneBlock(nn.Module):
    """The network above; `answers` is the number of last positions that it answers at."""

    def __init__(self, tokens: int, dim: int, heads: int, width: int, outputs: int, answers: int) -> None:
        super().__init__()
        self.heads, self.answers = heads, answers
        self.embed = nn.Linear(tokens, dim, bias=False)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.mix = nn.Linear(dim, dim, bias=False)
        self.hidden = nn.Linear(dim, width)
        self.back = nn.Linear(width, dim)
        self.head = nn.Linear(dim, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        every = self.embed(x)
        h = every[:, -self.answers :]  # the rest of the block is position by position: no other is asked for
        h = h + self.mix(self._attention(h, every))
        h = h + self.back(self.hidden(h).relu())
        z: Tensor = self.head(h[:, 0] if self.answers == 1 else h)
        return z

    def _attention(self, h: Tensor, every: Tensor) -> Tensor:
        """What the last positions h (n, A, D) take from those up to their own, of `every` (n, T, D)."""
        q, k, v = (
            rearrange(part(of), "n t (g d) -> n g t d", g=self.heads)
            for part, of in ((self.query, h), (self.key, every), (self.value, every))
        )
        score = einsum(q, k, "n g t d, n g s d -> n g t s") * q.shape[-1] ** -0.5
        later = torch.ones_like(score[0, 0]).triu(score.shape[-1] - score.shape[-2] + 1) > 0
        weight = score.masked_fill(later, -torch.inf).softmax(-1)
        return rearrange(einsum(weight, v, "n g t s, n g s d -> n g t d"), "n g t d -> n t (g d)")


@checked
def one_block(*, dim: Count = 64, heads: Count = 4, width: Count = 256) -> Model:
    """One block: `heads` heads of attention and a ReLU layer of `width` units, on tokens of `dim` numbers."""
    if dim % heads:
        raise Refused(f"one_block: dim must be a multiple of heads, got {dim} and {heads}")

    def build(split: Split) -> nn.Module:
        if split.train_x.ndim != 3:
            raise Refused(
                f"one_block takes one-hot tokens (positions, tokens), the data set gives "
                f"{tuple(split.train_x.shape[1:])}"
            )
        answers = 1 if split.train_y.ndim == 1 else split.train_y.shape[1]
        return OneBlock(split.train_x.shape[2], dim, heads, width, split.outputs, answers)

    return Model(build, start.default)
