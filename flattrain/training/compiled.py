"""A training step as one compiled function: traced to a graph of tensor operations, and that made into C++.

The trace (`make_fx`) sees what the tensors see, so hooks, vmap, derivatives and the optimizer's Python are
all gone from it; Inductor fuses the rest. The graph is that of every step: a rule that reads the number of
the step cannot be in it, and is found out when it is traced (`Timeless`).

The compiled step agrees with the eager one to rounding, and with itself to the bit: the same graph gives the
same code. Whether to compile is a function of the spec alone, so a resumed run takes the path that it left.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterable
from math import ceil
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from flattrain.types import Moment

STEPS_WORTH_COMPILING = 5_000  # compiling takes about as long as 2,000 eager steps
NUMBERS_AT_ONCE = 2**17  # of the weights or inputs of the seeds that step together: what a cache holds

Step = Callable[[Any, Any, Any], Any]  # (state, data, chance) -> state
Steps = Callable[[Any, Any, Iterable[Any]], Any]  # the same for as many steps as there are chances


class NotCompiled(Exception):
    """Why a step runs eagerly, in one line."""


class Timeless(Moment):
    """The moment of every step: its strength is 1, and who asks for its number cannot be compiled."""

    def __init__(self) -> None:
        object.__setattr__(self, "strength", 1.0)

    @property
    def step(self) -> NoReturn:
        raise NotCompiled("the rule reads the number of the step")

    def __eq__(self, other: object) -> bool:
        return type(other) is Timeless

    def __hash__(self) -> int:
        return 0


pytree.register_constant(Timeless)


def too_few(steps: int) -> str | None:
    """Why so many steps are not worth compiling, or None."""
    return None if steps >= STEPS_WORTH_COMPILING else f"fewer than {STEPS_WORTH_COMPILING:,} steps"


def groups_of(seeds: int, numbers: int) -> list[list[int]]:
    """The seeds in groups of one size that step together; the last one is filled up with its last seed.

    `numbers` is what one seed brings along.
    """
    at_once = max(1, NUMBERS_AT_ONCE // max(1, numbers))
    size = ceil(seeds / ceil(seeds / at_once))
    return [[min(k, seeds - 1) for k in range(first, first + size)] for first in range(0, seeds, size)]


def eager(step: Step) -> Steps:
    """Step after step as Python goes."""

    def steps(state: Any, data: Any, chances: Iterable[Any]) -> Any:
        for chance in chances:
            state = step(state, data, chance)
        return state

    return steps


def compiled(step: Step, state: Any, data: Any, chance: Any) -> Steps:
    """Step after step on one compiled graph, for trees of the shapes given; raises NotCompiled."""
    _need_compiler()
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(True)  # the compiler too
    leaves, given = pytree.tree_flatten((state, data, chance))
    structure = pytree.tree_structure(state)

    def flat(*tensors: Tensor) -> list[Tensor]:
        after = step(*pytree.tree_unflatten(list(tensors), given))
        if pytree.tree_structure(after) != structure:
            raise NotCompiled("the step changes what it remembers")
        # Row-major, as it came in: the layout that the graph is compiled for, and that checkpoints keep.
        return [tensor.contiguous() for tensor in pytree.tree_leaves(after)]

    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Inductor's, about itself
            graph = make_fx(flat)(*leaves)
            # In this process: a pool of compilers would outlive a worker that is killed.
            run = torch._inductor.compile(graph, leaves, options={"compile_threads": 1})
            run(*leaves)
    except NotCompiled:
        raise
    except Exception as error:  # whatever the compiler cannot do, the eager step can
        raise NotCompiled(f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}") from error

    def steps(state: Any, data: Any, chances: Iterable[Any]) -> Any:
        now, fixed = pytree.tree_leaves(state), pytree.tree_leaves(data)
        with torch.no_grad():
            for chance in chances:
                now = run(*now, *fixed, *pytree.tree_leaves(chance))
        return pytree.tree_unflatten(list(now), structure)

    return steps


def _need_compiler() -> None:
    from torch._inductor import config

    named = config.cpp.cxx
    names = [name for name in (named if isinstance(named, tuple | list) else (named,)) if name]
    if not any(shutil.which(name) for name in names):
        raise NotCompiled(f"no C++ compiler ({', '.join(names)})")
