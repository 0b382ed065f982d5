"""Small nets with every kind of layer, and losses, for tests against explicit matrices in float64."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from flattrain.core.eager import LayerNorm


class Functional(nn.Module):
    """A net of named parts with a forward of its own."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


def _convolution():
    return Functional(
        lambda m, x: m.head(m.two(F.softplus(m.one(x))).tanh().flatten(1)),
        one=nn.Conv2d(2, 4, 3, stride=2, padding=1),
        two=nn.Conv2d(4, 4, 2, groups=2, dilation=2, padding=1, bias=False),
        head=nn.Linear(36, 3),
    )


def _padded():
    return Functional(
        lambda m, x: m.head(m.two(m.one(x).tanh()).tanh().flatten(1)),
        one=nn.Conv2d(2, 3, 3, padding=1),
        two=nn.Conv2d(3, 2, 2, padding=(1, 0), bias=False),
        head=nn.Linear(24, 3),
    )


def _residual():
    return Functional(
        lambda m, x: m.head((m.two(m.act(m.bn(m.one(x)))) + m.one(x)).flatten(2).mean(2)),
        one=nn.Conv2d(2, 2, 3, padding="same", padding_mode="circular"),
        bn=nn.BatchNorm2d(2),
        act=nn.ReLU(inplace=True),
        two=nn.Conv2d(2, 2, 1),
        head=nn.Linear(2, 3),
    )


def _groups():
    return Functional(
        lambda m, x: m.head(F.elu(m.norm(m.one(x))).flatten(1)),
        one=nn.Conv1d(2, 4, 3),
        norm=nn.GroupNorm(2, 4),
        head=nn.Linear(12, 3),
    )


def _tied():
    def forward(m, x):
        h = m.norm(m.mix(m.table(x)).tanh() + m.table(x))
        return m.out(h.mean(1))

    net = Functional(
        forward,
        table=nn.Embedding(6, 4, padding_idx=0),
        mix=nn.Linear(4, 4),
        norm=LayerNorm(4),
        out=nn.Linear(4, 6, bias=False),
    )
    net.out.weight = net.table.weight
    return net


class _Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.out = nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x):
        q, k, v = self.mix(x).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v))


def _transformer():
    def forward(m, x):
        h = m.table(x) + m.place.weight
        h = h + m.attend(m.norm(h))
        return m.head((h + m.down(F.gelu(m.up(h)))).mean(1))

    return Functional(
        forward,
        table=nn.Embedding(5, 4),
        place=nn.Embedding(3, 4),
        norm=LayerNorm(4),
        attend=_Attention(),
        up=nn.Linear(4, 5),
        down=nn.Linear(5, 4),
        head=nn.Linear(4, 3),
    )


def _recurrent():
    def forward(m, x):
        h = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            h = m.step(h + x[:, t]).tanh()
        return m.head(h)

    return Functional(forward, step=nn.Linear(3, 3), head=nn.Linear(3, 3))


def _frozen():
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.Softplus(), nn.Linear(4, 3))
    net[0].requires_grad_(False)
    net[2].bias.requires_grad_(False)
    net[4].weight.requires_grad_(False)
    return net


BUILD = {
    "mlp": lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)),
    "convolution": _convolution,
    "padded": _padded,
    "residual": _residual,
    "groups": _groups,
    "tied": _tied,
    "recurrent": _recurrent,
    "frozen": _frozen,
}


class _CausalAttention(nn.Module):
    """One head, as people write it: linear projections, a mask of −∞, a softmax."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        scores = self.q(x) @ self.k(x).transpose(-2, -1) / 2
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        return self.out(scores.masked_fill(later, float("-inf")).softmax(-1) @ self.v(x))


class GPT(nn.Module):
    """A language model with one block: tokens (n, T) to logits (n, T, 5), T at most 4."""

    def __init__(self, tied=False):
        super().__init__()
        self.table, self.place = nn.Embedding(5, 4), nn.Embedding(4, 4)
        self.first, self.second, self.last = LayerNorm(4), LayerNorm(4), LayerNorm(4)
        self.attend = _CausalAttention()
        self.up, self.down = nn.Linear(4, 5), nn.Linear(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, x):
        positions = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        h = self.table(x) + self.place(positions)
        h = h + self.attend(self.first(h))
        return self.head(self.last(h + self.down(F.gelu(self.up(self.second(h))))))


TOKENS = {"gpt": GPT, "tied gpt": lambda: GPT(tied=True)}  # outputs (n, T, K)
UNCOVERED = {"transformer": _transformer}  # `place` is used through its weight alone
SHAPES = {
    "convolution": (2, 5, 5),
    "padded": (2, 3, 4),
    "residual": (2, 3, 3),
    "groups": (2, 5),
    "recurrent": (2, 3),
}

LOSSES = {
    "cross entropy": nn.CrossEntropyLoss(),
    "smoothed": nn.CrossEntropyLoss(label_smoothing=0.2),
    "squared": nn.MSELoss(),
}


def build(name, seed=0):
    """The net with random parameters, in evaluation mode, and its inputs."""
    torch.manual_seed(seed)
    net = {**BUILD, **TOKENS, **UNCOVERED}[name]()
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(std=0.6)
        for part in net.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2)
    generator = torch.Generator().manual_seed(seed + 1)
    if name in TOKENS:
        x = torch.randint(0, 5, (4, 3), generator=generator)
    elif name in ("tied", "transformer"):
        x = torch.randint(0, 5, (7, 3), generator=generator)
    else:
        x = torch.randn(7, *SHAPES.get(name, (4,)), generator=generator)
    return net.eval(), x


def targets(net, x, loss, seed=2):
    """Labels, or real targets for squared error."""
    generator = torch.Generator().manual_seed(seed)
    outputs = net(x)
    if isinstance(loss, nn.MSELoss):
        return torch.randn(outputs.shape, generator=generator)
    return torch.randint(outputs.shape[-1], outputs.shape[:-1], generator=generator)


def class_weights(net, x, smoothing=0.1):
    """Cross entropy with class weights and label smoothing for this net."""
    count = net(x).shape[-1]
    return nn.CrossEntropyLoss(weight=torch.linspace(0.3, 2, count), label_smoothing=smoothing)
