"""Randomness as a pure function of (seed, purpose, position): nothing to save, nothing to lose on resume.

A stream is a fresh generator keyed by a hash of its name, so the noise of step 1,000 of seed 3 is the
same whether the run was interrupted, stacked with other seeds, or started on another machine.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Generator, Tensor

from flattrain.types import Draw, Params

MANY = 4096  # from here on, 32 signs are taken from each random word: five times faster


def stream(*key: int | str) -> Generator:
    """The generator named by `key`, e.g. stream(seed, "batches", block)."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def draw(
    wanted: dict[str, Draw], generator: Generator, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Draw every tensor that is wanted, in the order of the dict."""
    return {name: sample(want, generator, dtype) for name, want in wanted.items()}


def sample(want: Draw, generator: Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """One tensor: ±1 with equal probability, or standard normal."""
    if want.kind == "normal":
        return torch.randn(want.shape, generator=generator, dtype=dtype)
    count = math.prod(want.shape)
    if count < MANY:
        return torch.randint(0, 2, want.shape, generator=generator).to(dtype) * 2 - 1
    words = torch.randint(-(2**31), 2**31, (-(-count // 32),), generator=generator).to(torch.int32)
    bits = (words[:, None] >> torch.arange(32, dtype=torch.int32)) & 1
    return (bits.reshape(-1)[:count].to(dtype) * 2 - 1).reshape(want.shape)


def over_parameters(params: Params, kind: Literal["rademacher", "normal"], count: int) -> dict[str, Draw]:
    """`count` directions in the space of the parameters; `direction` reads them out of the noise."""
    return {f"{k}.{name}": Draw(kind, tuple(p.shape)) for k in range(count) for name, p in params.items()}


def direction(noise: Mapping[str, Tensor], number: int, params: Params) -> Params:
    """One of the directions that `over_parameters` asked for."""
    return {name: noise[f"{number}.{name}"] for name in params}


def over_outputs(outputs: Tensor) -> Draw:
    """Signs for every output of every example."""
    return Draw("rademacher", tuple(outputs.shape), per_example=True)
