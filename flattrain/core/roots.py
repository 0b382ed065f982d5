"""Square roots that can be differentiated where they vanish."""

from __future__ import annotations

import torch
from torch import Tensor


def root(x: Tensor) -> Tensor:
    """√max(x, 0), elementwise, with gradient 0 where x <= 0.

    The eigenvalues of a Gram matrix and means of squares may be 0, or −ε by rounding; the gradient of a plain
    root is infinite there and turns into nan one multiplication later.
    """
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, torch.ones_like(x)).sqrt(), torch.zeros_like(x))
