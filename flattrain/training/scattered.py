"""Gradients for parameters gathered from shards, of which no process holds more than one layer's whole.

Autograd adds up what a weight gets from every operation that reads it before anything is done with the sum.
In a derivative through a backward pass the first layer's weight gets something first and last, and every
other weight in between: the whole of one gradient would wait. Here each term is summed over the processes and
cut up as soon as it is there, by a hook of the operation that it comes from, and only shards are added up.

Sent: one reduce-scatter for each operation that read the weight, where a sum of them would take one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flattrain.types import Params

# The same numbers in another shape: what reads these reads the weight. A linear layer reads its transpose.
_SHAPES = ("T", "Transpose", "Permute", "View", "UnsafeView", "Unsqueeze", "Squeeze", "Alias")
_VIEWS = {f"{name}Backward{n}" for name in _SHAPES for n in range(3)}


def scattered_gradient(
    outputs: Sequence[Tensor],
    whole: Params,
    params: Params,
    cotangents: Sequence[Tensor] | None = None,
    *,
    create_graph: bool = False,
) -> Params:
    """Σ_k ⟨cotangents_k, outputs_k⟩ differentiated with respect to `params`, and sharded like them.

    `whole` are the parameters as `training.gathered` gives them, from which the outputs were computed.
    Cotangents are 1 where none are given, as for scalars. With `create_graph` the result can be
    differentiated again, by this function.
    """
    sums: Params = {}
    names = {w.grad_fn: name for name, w in whole.items() if w.grad_fn is not None}
    handles = []
    for node in list(_nodes([out.grad_fn for out in outputs])):
        if type(node).__name__ in _VIEWS:
            continue
        reads = {k: read for k, (to, _) in enumerate(node.next_functions) if (read := _read(to, names))}
        if reads:
            handles.append(node.register_hook(partial(_scatter, sums, params, reads)))
    try:
        torch.autograd.grad(
            outputs, list(whole.values()), cotangents, create_graph=create_graph, allow_unused=True
        )
    finally:
        for handle in handles:
            handle.remove()
    return {name: sums[name] if name in sums else torch.zeros_like(p) for name, p in params.items()}


def _nodes(roots: Sequence[Any]) -> Iterator[Any]:
    seen, waiting = set(roots) - {None}, [root for root in roots if root is not None]
    while waiting:
        node = waiting.pop()
        yield node
        for to, _ in node.next_functions:
            if to is not None and to not in seen:
                seen.add(to)
                waiting.append(to)


def _read(node: Any, names: dict[Any, str]) -> tuple[str, list[Any]] | None:
    """The gathered weight that this node is, by name, or is a view of; and those views, the last first."""
    views = []
    while node not in names:
        if type(node).__name__ not in _VIEWS:
            return None
        views.append(node)
        node = node.next_functions[0][0]
    return names[node], views


def _scatter(
    sums: Params,
    params: Params,
    reads: dict[int, tuple[str, list[Any]]],
    found: tuple[Tensor | None, ...],
    _: Any,
) -> tuple[Tensor | None, ...]:
    """Add the terms for weights to `sums`, and let autograd go on with the others."""
    for k, (name, views) in reads.items():
        term = found[k]
        if term is not None:
            for view in views:
                term = view(term)
            part = _cut(term, params[name])
            sums[name] = sums[name] + part if name in sums else part
    return tuple(None if k in reads else term for k, term in enumerate(found))


def _cut(term: Tensor, p: Any) -> Tensor:
    """The sum of the processes' terms, of which each keeps its own part."""
    from torch.distributed.tensor import DTensor, Partial  # costs half a second to import

    each = [Partial("sum")] * p.device_mesh.ndim
    return DTensor.from_local(term, p.device_mesh, each, run_check=False).redistribute(
        placements=p.placements
    )
