"""Rules one inside the other, as one rule with one memory.

    compose([a, b])(grad_fn) = a(b(grad_fn))        the first is the outermost

What the ascent sees is the order: `[sam, weight_decay]` ascends the decayed objective, `[weight_decay, sam]`
adds the decay after the ascent; `[clip, sam]` clips the ascended gradient, `[sam, clip]` both gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from flattrain.types import Batch, Draw, GradFn, Logs, Memory, MindfulGradFn, Params, Rule, StatefulRule

T = TypeVar("T")


def compose(rules: Sequence[Rule | StatefulRule]) -> StatefulRule:
    """The rules as one. Each finds its own draws and its own memory, under names of its own."""

    def init(params: Params) -> Memory:
        return {
            _name(k, key): value
            for k, rule in enumerate(rules)
            if isinstance(rule, StatefulRule)
            for key, value in rule.init(params).items()
        }

    def wrap(grad_fn: GradFn) -> MindfulGradFn:
        def gradient(params: Params, batch: Batch, memory: Memory) -> tuple[Params, Logs, Memory]:
            kept, taken = dict(memory), grad_fn
            for k, rule in reversed(list(enumerate(rules))):
                taken = _around(taken, k, rule, kept)
            grads, logs = taken(params, batch)
            return grads, logs, kept

        return gradient

    def draws(params: Params, batch: Batch) -> dict[str, Draw]:
        return {
            _name(k, key): want
            for k, rule in enumerate(rules)
            for key, want in rule.draws(params, batch).items()
        }

    def moved(before: Params, after: Params, memory: Memory) -> Params:
        for k, rule in reversed(list(enumerate(rules))):
            if isinstance(rule, StatefulRule):
                after = rule.moved(before, after, _own(k, memory))
        return after

    return StatefulRule(init, wrap, draws, moved)


def _around(inner: GradFn, k: int, rule: Rule | StatefulRule, kept: Memory) -> GradFn:
    """Rule k around `inner`; `kept` takes what it remembers."""

    def taken(params: Params, batch: Batch) -> tuple[Params, Logs]:
        mine = batch._replace(noise={**batch.noise, **_own(k, batch.noise)})
        if isinstance(rule, Rule):
            return rule(inner)(params, mine)
        grads, logs, memory = rule(inner)(params, mine, _own(k, kept))
        kept.update({_name(k, key): value for key, value in memory.items()})
        return grads, logs

    return taken


def _name(k: int, key: str) -> str:
    return f"rule {k}:{key}"


def _own(k: int, named: dict[str, T]) -> dict[str, T]:
    prefix = _name(k, "")
    return {key.removeprefix(prefix): value for key, value in named.items() if key.startswith(prefix)}
