"""How torch's functions act on jets: the table that `core.jet` reads.

A rule is `(func, *arguments) -> Jet`, or NotImplemented where it does not hold; a function without a rule is
differentiated by `jvp` of `jvp`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from flattrain.core.eager import standardised
from flattrain.core.jet import Coefficient, Jet


def primal(value: Any) -> Any:
    return value.c0 if isinstance(value, Jet) else value


def _jet(value: Any) -> Jet:
    return value if isinstance(value, Jet) else Jet(value)


def each(func: Callable[[Tensor], Any], value: Jet) -> Any:
    """A linear function, of one or of several results, on each coefficient."""
    out: list[Any] = [None if c is None else func(c) for c in (value.c0, value.c1, value.c2)]
    if isinstance(out[0], Tensor):
        return Jet(*out)
    return tuple(Jet(*parts) for parts in zip(*(o or [None] * len(out[0]) for o in out), strict=True))


def _plus(a: Coefficient, b: Coefficient, scale: float = 1) -> Coefficient:
    if b is None:
        return a
    if a is None:
        return b if scale == 1 else scale * b
    return torch.add(a, b, alpha=scale)


def constant(func: Any, *args: Any, **given: Any) -> Any:
    """The answer at c₀ alone: sizes, comparisons, constants."""
    values, options = pytree.tree_map(primal, (args, given))
    return func(*values, **options)


def _linear_in_first(func: Any, first: Any, *rest: Any, **given: Any) -> Any:
    if not isinstance(first, Jet) or any(isinstance(v, Jet) for v in pytree.tree_leaves((rest, given))):
        return NotImplemented
    return each(lambda c: func(c, *rest, **given), first)


def _joined(func: Any, parts: Sequence[Any], *rest: Any, **given: Any) -> Any:
    if not isinstance(parts, list | tuple):
        return NotImplemented
    columns = list(zip(*(_jet(p).coefficients() for p in parts), strict=True))
    return Jet(*(func(column, *rest, **given) for column in columns))


def _sum(sign: int) -> Callable[..., Any]:
    def rule(func: Any, a: Any, b: Any, **given: Any) -> Any:
        if given or not (isinstance(a, Tensor) and isinstance(b, Tensor)):
            return NotImplemented
        x, y = _jet(a), _jet(b)
        c0 = torch.add(x.c0, y.c0, alpha=sign)
        if x.c0.shape != y.c0.shape:  # a lone coefficient takes the shape of the sum
            x, y = (each(lambda c: c.expand_as(c0), v) for v in (x, y))
        return Jet(c0, _plus(x.c1, y.c1, sign), _plus(x.c2, y.c2, sign))

    return rule


def _product(times: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    def rule(func: Any, a: Any, b: Any, **given: Any) -> Any:
        if given:
            return NotImplemented
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)):  # a number
            return each(lambda c: c * _other(a, b), a if isinstance(a, Jet) else b)
        x, y = _jet(a), _jet(b)
        ways = (((0, 0, 1),), ((1, 0, 1), (0, 1, 1)), ((2, 0, 1), (1, 1, 2), (0, 2, 1)))
        return Jet(*(_terms(times, x, y, way) for way in ways))  # type: ignore[arg-type]  # the first is never None

    return rule


def _other(a: Any, b: Any) -> Any:
    return b if isinstance(a, Jet) else a


def _terms(times: Any, x: Jet, y: Jet, way: tuple[tuple[int, int, int], ...]) -> Coefficient:
    total: Coefficient = None
    for i, j, scale in way:
        left, right = (x.c0, x.c1, x.c2)[i], (y.c0, y.c1, y.c2)[j]
        if left is not None and right is not None:
            total = _plus(total, times(left, right), scale)
    return total


def _layer(dims: int) -> Callable[..., Any]:
    """h ↦ B(h, W) + b, with the coefficients of h stacked over the examples: one call for each of W's."""

    def rule(func: Any, input: Any, weight: Any, bias: Any = None, *rest: Any, **given: Any) -> Any:
        h, w, b = _jet(input), _jet(weight), None if bias is None else _jet(bias)
        if h.c0.ndim < dims:
            return NotImplemented
        held: tuple[Coefficient, ...] = (h.c0, h.c1, h.c2)
        out: list[Any] = [None, None, None]
        for i, kernel in enumerate((w.c0, w.c1, w.c2)):
            orders = [j for j in range(3 - i) if held[j] is not None]
            if kernel is None:
                continue
            stacked = torch.cat([c for j in orders if (c := held[j]) is not None])
            parts = func(stacked, kernel, None, *rest, **given).chunk(len(orders))
            for j, part in zip(orders, parts, strict=True):
                out[i + j] = _plus(out[i + j], part, 2 if i == j == 1 else 1)
        if b is not None:
            rows = each(lambda c: c.reshape(-1, *(1,) * (dims - 2)).expand_as(out[0]), b)
            out = [_plus(c, row) for c, row in zip(out, (rows.c0, rows.c1, rows.c2), strict=True)]
        return Jet(*out)

    return rule


def _embedding(func: Any, input: Tensor, weight: Any, *rest: Any, **given: Any) -> Any:
    out = each(lambda w: func(input, w, *rest, **given), _jet(weight))
    padding = rest[0] if rest else given.get("padding_idx")
    if padding is None:
        return out
    # torch takes no derivative in the padding row, though the forward reads it.
    kept = (input != padding % len(_jet(weight).c0)).unsqueeze(-1)
    return Jet(out.c0, *(None if c is None else c * kept for c in (out.c1, out.c2)))


def _relu(func: Any, input: Any, *rest: Any, **given: Any) -> Any:
    kept = input.c0 > 0
    return Jet(F.relu(input.c0), *(None if c is None else c * kept for c in (input.c1, input.c2)))


def _batch_norm(
    func: Any,
    input: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    shape = (1, -1) + (1,) * (input.c0.ndim - 2)
    if training or running_mean is None:
        dims = [k for k in range(input.c0.ndim) if k != 1]
        out = standardised(input, dims, eps)
    else:
        out = (input - running_mean.reshape(shape)) * (running_var + eps).rsqrt().reshape(shape)
    return _affine(out, None if weight is None else weight.reshape(shape), bias, shape)


def _layer_norm(
    func: Any, input: Any, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    dims = list(range(-len(normalized_shape), 0))
    return _affine(standardised(_jet(input), dims, eps), weight, bias, tuple(normalized_shape))


def _affine(out: Tensor, weight: Any, bias: Any, shape: tuple[int, ...]) -> Tensor:
    out = out if weight is None else out * weight
    return out if bias is None else out + bias.reshape(shape)


def _rules() -> dict[str, Callable[..., Any]]:
    table: dict[str, Callable[..., Any]] = {}
    for names, rule in (
        (
            "size dim numel stride is_floating_point is_complex is_contiguous item tolist detach argmax "
            "argmin isnan isinf isfinite gt lt ge le eq ne new_zeros new_ones new_empty new_full zeros_like "
            "ones_like empty_like full_like get_device __len__ __bool__ __float__ __int__ __gt__ __lt__ "
            "__ge__ __le__ __eq__ __ne__ __repr__ __format__ __hash__",
            constant,
        ),
        (
            "view reshape flatten unflatten transpose t permute mean sum expand squeeze unsqueeze contiguous "
            "__getitem__ avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d pad neg __neg__ to "
            "float double chunk split unbind narrow select movedim clone repeat roll flip cumsum div "
            "__truediv__",
            _linear_in_first,
        ),
        ("cat concat stack", _joined),
        ("add __add__ __radd__ __iadd__ add_", _sum(1)),
        ("sub __sub__", _sum(-1)),
        ("mul __mul__ __rmul__ multiply", _product(torch.mul)),
        ("matmul __matmul__ bmm mm", _product(torch.matmul)),
        ("linear", _layer(2)),
        ("conv1d", _layer(3)),
        ("conv2d", _layer(4)),
        ("conv3d", _layer(5)),
        ("embedding", _embedding),
        ("relu relu_", _relu),
        ("batch_norm", _batch_norm),
        ("layer_norm", _layer_norm),
    ):
        table |= dict.fromkeys(names.split(), rule)
    return table


RULES = _rules()
