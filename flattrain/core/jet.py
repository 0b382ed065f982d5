"""Tensors that carry their first two derivatives along a line: truncated Taylor arithmetic.

A `Jet` (c₀, c₁, c₂) stands for the curve c₀ + ε c₁ + ½ ε² c₂ + O(ε³). Every torch function takes one:

    sums and reshapes   act on each coefficient
    products            Leibniz: (W h)'' = W₀ h₂ + 2 W₁ h₁ + W₂ h₀, all that W₀ multiplies in one call
    normalisations      are taken apart into primitives
    everything else     `torch.func.jvp` of `jvp`, for that operation alone

Run a network on θ + ε z: the second coefficient of the loss is zᵀ∇²L z, and that of the outputs zᵀ∇²f z.
Coefficients that vanish identically are None. They may be live, so that a reverse sweep differentiates them,
and batched by `torch.func.vmap`. (Griewank & Walther 2008, chapter 13.)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp
from torch.utils import _pytree as pytree

from flattrain.types import Params

Coefficient = Tensor | None
_IN_PLACE = re.compile(r"__i(add|sub|mul|truediv|pow|matmul)__|[a-z]\w*[a-z0-9]_")


class Jet(torch.Tensor):
    """A tensor c₀ with its derivatives c₁ and c₂ along a line; None where they vanish."""

    c0: Tensor
    c1: Coefficient
    c2: Coefficient

    @staticmethod
    def __new__(cls, c0: Tensor, c1: Coefficient = None, c2: Coefficient = None) -> Jet:
        make: Callable[..., Jet] = torch.Tensor._make_wrapper_subclass
        self = make(cls, c0.shape, dtype=c0.dtype, device=c0.device)
        self.c0, self.c1, self.c2 = c0, c1, c2
        return self

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given: dict[str, Any] = dict(kwargs or {})
        name: str = func.__name__
        if name == "__get__":
            return _property(func, args)
        if not _in_place(func, name, args, given):
            return _apply(func, name, args, given)
        target = args[0]
        if name == "__setitem__" or not isinstance(target, Jet):
            raise NotImplementedError(f"{name} writes into a tensor that carries no derivatives")

        def on_a_copy(first: Tensor, *rest: Any, **options: Any) -> Any:
            return func(first.clone(), *rest, **options)

        out = _apply(on_a_copy, name, args, given)
        target.c0, target.c1, target.c2 = out.c0, out.c1, out.c2
        return target

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]  # torch has no stubs for it
        raise NotImplementedError(f"{func} was reached past the functions that know derivatives")

    def coefficients(self) -> tuple[Tensor, Tensor, Tensor]:
        """(c₀, c₁, c₂), with zeros written out."""
        zero = torch.zeros_like(self.c0)
        return self.c0, zero if self.c1 is None else self.c1, zero if self.c2 is None else self.c2


def along(params: Params, direction: Params) -> Params:
    """θ + ε z, as jets."""
    return {name: Jet(p, direction[name]) for name, p in params.items()}


def second(value: Tensor) -> Tensor:
    """c₂ of a result, zeros where it does not bend."""
    return value.coefficients()[2] if isinstance(value, Jet) else torch.zeros_like(value)


def _apply(func: Any, name: str, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
    from flattrain.core.jet_rules import RULES, constant  # the rules are written with jets

    rule = RULES.get(name)
    if rule is not constant and not torch.is_grad_enabled() and _live((args, given)):
        # The forward of an autograd.Function runs so: its own backward, and the graph, would be lost.
        raise NotImplementedError(f"{name} runs without gradients, in an autograd.Function or under no_grad")
    out = NotImplemented if rule is None else rule(func, *args, **given)
    return _by_jvp(func, args, given) if out is NotImplemented else out


def _by_jvp(func: Any, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
    # c₁ = Df[a₁] and c₂ = D²f[a₁, a₁] + Df[a₂]: the derivative of (a, a') ↦ Df(a)[a'] along (a₁, a₂).
    leaves, spec = pytree.tree_flatten((args, given))
    where = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Jet)]
    form: list[Any] = []

    def value(*moving: Tensor) -> tuple[Tensor, ...]:
        filled = list(leaves)
        for k, v in zip(where, moving, strict=True):
            filled[k] = v
        positional, named = pytree.tree_unflatten(filled, spec)
        flat, out_spec = pytree.tree_flatten(func(*positional, **named))
        smooth = [isinstance(v, Tensor) and v.is_floating_point() for v in flat]
        form[:] = [out_spec, smooth]
        return tuple(v for v, ok in zip(flat, smooth, strict=True) if ok)

    def slope(at: tuple[Tensor, ...], along: tuple[Tensor, ...]) -> Any:
        return jvp(value, at, along)

    a0, a1, a2 = zip(*(leaves[k].coefficients() for k in where), strict=True)
    (c0, c1), (_, c2) = jvp(slope, (a0, a1), (a1, a2))  # type: ignore[misc]  # jvp is typed for flat outputs
    from flattrain.core.jet_rules import constant

    out_spec, smooth = form
    jets = iter([Jet(*c) for c in zip(c0, c1, c2, strict=True)])
    rest = [None] * len(smooth) if all(smooth) else pytree.tree_leaves(constant(func, *args, **given))
    return pytree.tree_unflatten(
        [next(jets) if ok else v for ok, v in zip(smooth, rest, strict=True)], out_spec
    )


def _live(values: Any) -> bool:
    return any(isinstance(v, Jet) and v.c0.requires_grad for v in pytree.tree_leaves(values))


def _property(func: Any, args: tuple[Any, ...]) -> Any:
    def read(value: Tensor) -> Any:
        return func(value, *args[1:])

    value: Jet = args[0]
    name = func.__self__.__name__
    if name in ("T", "mT"):
        return Jet(*(None if c is None else read(c) for c in (value.c0, value.c1, value.c2)))  # type: ignore[arg-type]  # c₀ is never None
    if name in ("grad", "data"):
        raise NotImplementedError(f".{name} of a differentiated tensor")
    return read(value.c0)


def _in_place(func: Any, name: str, args: tuple[Any, ...], given: dict[str, Any]) -> bool:
    if name == "__setitem__" or _IN_PLACE.fullmatch(name):
        return True
    code = getattr(func, "__code__", None)
    names = code.co_varnames[: code.co_argcount] if code else ()
    if "inplace" not in names:
        return False
    index = names.index("inplace")
    return bool(args[index] if len(args) > index else given.pop("inplace", False))
