"""The second moment of a convolution's patches without the patches: its input's autocorrelation.

The moment of patches φ_s (C k²) is Σ_s x_c'(s + o') x_c(s + o), o, o' the offsets in the kernel. For stride 1
it depends on the lag o − o' alone, but for which positions t = s + o' count:

    Σ_t x_c'(t) x_c(t + o − o'),    t in the image, less rows and columns that the window at o' never reaches

so one correlation of the image with itself at all (2k − 1)² lags, which is the weight gradient of a
convolution, and thin corrections at its borders (inclusion and exclusion). With 16 channels it takes a tenth
of the time of unfolding.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

Region = tuple[slice, slice]


def has_autocorrelation(layer: nn.Module) -> bool:
    """Whether the layer is such a convolution: 2-d, stride and dilation 1, one group, zero padding."""
    return (
        isinstance(layer, nn.Conv2d)
        and layer.stride == layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def patch_moment(layer: Any, x: Tensor, ones: int, weights: Tensor | None = None) -> tuple[Tensor, int]:
    """Σ over examples and positions of w φ φᵀ (D, D), φ with a last entry of 1 if `ones`; and S.

    weights : w (n,) of the examples, 1 if None.
    """
    kernel, size = layer.kernel_size, x.shape[2:]
    out = [length + 2 * p - k + 1 for length, p, k in zip(size, layer.padding, kernel, strict=True)]
    wide = F.pad(x, (kernel[1] - 1, kernel[1] - 1, kernel[0] - 1, kernel[0] - 1))
    weighed = x if weights is None else x * weights[:, None, None, None]
    known: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def over(rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """Correlation at all lags (C, C, 2k − 1, 2k − 1), and sums (C,), with t in a rectangle."""
        key = (rows.start, rows.stop, columns.start, columns.stop)
        if key not in known:
            at = weighed[:, :, rows, columns]
            near = wide[
                :,
                :,
                rows.start : rows.stop + 2 * kernel[0] - 2,
                columns.start : columns.stop + 2 * kernel[1] - 2,
            ]
            shape = (x.shape[1], x.shape[1], 2 * kernel[0] - 1, 2 * kernel[1] - 1)
            known[key] = (conv2d_weight(near, shape, at), at.sum((0, 2, 3)))
        return known[key]

    blocks, sums = [], []
    for offset in product(*map(range, kernel)):
        reached = [_reached(*args) for args in zip(offset, layer.padding, kernel, size, strict=True)]
        signed = [(a * b, over(rows, columns)) for (a, rows), (b, columns) in product(*reached)]
        moment = torch.stack([sign * found[0] for sign, found in signed]).sum(0)
        sums.append(torch.stack([sign * found[1] for sign, found in signed]).sum(0))
        lags = [slice(k - 1 - o, 2 * k - 1 - o) for o, k in zip(offset, kernel, strict=True)]
        blocks.append(moment[:, :, lags[0], lags[1]])
    whole = rearrange(torch.stack(blocks), "o a c y x -> (a o) (c y x)")
    if ones:
        edge = rearrange(torch.stack(sums), "o c -> (c o)")
        total = edge.new_full((1,), len(x)) if weights is None else weights.sum()[None]
        corner = total * (out[0] * out[1])
        whole = torch.cat([torch.cat([whole, edge[:, None]], 1), torch.cat([edge, corner])[None]])
    return whole, out[0] * out[1]


def _reached(offset: int, padding: int, kernel: int, size: int) -> list[tuple[int, slice]]:
    """The positions that the window's offset reaches, as signed intervals: all, less the two ends."""
    before = min(max(0, offset - padding), size)
    after = min(max(0, kernel - 1 - padding - offset), size)
    found = [(1, slice(0, size))]
    if before:
        found.append((-1, slice(0, before)))
    if after:
        found.append((-1, slice(size - after, size)))
    return found
