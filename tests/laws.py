"""Properties that every part of a kind must have. A test of a part is a call to a law."""

from __future__ import annotations

import oracles
import torch

from flattrain.core import trees
from flattrain.core.functional import see
from flattrain.core.losses import cross_entropy
from flattrain.core.probes import draw, stream
from flattrain.rules.compose import compose
from flattrain.training.objective import Penalty, build, layers_of
from flattrain.types import Batch, Moment


def value_of(measure, module, criterion, x, y, params=None, noise=None):
    """The measure's value on a live graph, with its own probes or the given ones."""
    live = params or {k: p for k, p in module.named_parameters() if p.requires_grad}
    seen = see(module, criterion, x, y, layers=layers_of(module, measure), params=live)
    noise = draw(measure.draws(seen), stream(0, "law"), seen.loss.dtype) if noise is None else noise
    return measure.reduce(measure.statistic(seen, noise)).value


def one_batch_is_many(measure, module, x, y, criterion=cross_entropy, noise=None):
    """Statistics of uneven batches, by their counts or row after row, reduce to the whole set's value."""
    noise = noise or {}
    whole = value_of(measure, module, criterion, x, y, noise=noise)
    total = {}
    count = len if measure.combine == "examples" or criterion.weights is None else _weight_in(criterion)
    for part in torch.split(torch.arange(len(x)), 5):
        seen = see(module, criterion, x[part], y[part], layers=layers_of(module, measure))
        for name, v in measure.statistic(seen, noise).items():
            if measure.combine == "rows":
                total[name] = torch.cat([total[name], v.detach()]) if name in total else v.detach()
            else:
                total[name] = total.get(name, 0) + v.detach() * count(y[part]) / count(y)
    torch.testing.assert_close(
        torch.as_tensor(measure.reduce(total).value), torch.as_tensor(whole).detach(), rtol=1e-12, atol=0
    )


def _weight_in(criterion):
    return lambda y: criterion.weights(y).sum()


def on_batch_is_reduce(measure, module, x, y, criterion=cross_entropy):
    """The cheaper way to one batch's value and gradient is the same value and gradient."""
    found = []
    for way in (lambda seen, noise: measure.reduce(measure.statistic(seen, noise)).value, measure.on_batch):
        live = {k: p.detach().clone().requires_grad_() for k, p in module.named_parameters()}
        seen = see(module, criterion, x, y, layers=layers_of(module, measure), params=live)
        value = way(seen, draw(measure.draws(seen), stream(0, "law"), seen.loss.dtype))
        grads = torch.autograd.grad(value, list(live.values()), materialize_grads=True)
        found.append([value.detach(), *grads])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def vmap_is_loop(measure, module, x, y, criterion=cross_entropy, seeds=3):
    """Gradients stacked under vmap equal a loop over seeds, for a penalised objective."""
    objective = build(module, criterion, [Penalty(measure, 0.7)])
    grad_fn = objective.gradient()
    trees, noises = [], []
    for s in range(seeds):
        generator = torch.Generator().manual_seed(s)
        trees.append(
            {
                k: p.detach() + 0.3 * torch.randn(p.shape, generator=generator)
                for k, p in module.named_parameters()
            }
        )
        live = {k: v.clone().requires_grad_() for k, v in trees[-1].items()}
        noises.append(
            draw(objective.draws(objective.see(x, y, live)), stream(s, "law"), torch.get_default_dtype())
        )
    stack = {k: torch.stack([t[k] for t in trees]) for k in trees[0]}
    noise = {k: torch.stack([n[k] for n in noises]) for k in noises[0]}
    batch = Batch(x.expand(seeds, *x.shape), y.expand(seeds, *y.shape), noise)
    stacked, _ = torch.func.vmap(grad_fn)(stack, batch)
    for s in range(seeds):
        alone, _ = grad_fn(trees[s], Batch(x, y, noises[s]))
        for k in alone:
            torch.testing.assert_close(stacked[k][s], alone[k], rtol=1e-9, atol=1e-12)


def rule_is_identity(rule, grad_fn, params, batch):
    """The rule at strength zero is the plain gradient."""
    plain, _ = grad_fn(params, batch)
    ruled, _ = rule(grad_fn)(params, batch)
    for k in plain:
        torch.testing.assert_close(ruled[k], plain[k], rtol=0, atol=0)


def drawn(rule, params, batch, *key):
    """The batch with the noise that the rule wants."""
    return batch._replace(noise=draw(rule.draws(params, batch), stream("law", *key), torch.float64))


def rule_over_seeds_is_a_loop(rule, grad_fn, params, batch, seeds=3, steps=4, lr=0.1):
    """Steps of seeds stacked under vmap, memory and all, are those of each seed alone; the rule does act."""
    whole = compose([rule])

    def step(params, batch, memory):
        g, _, memory = whole(grad_fn)(params, batch, memory)
        return whole.moved(params, trees.axpy(-lr, g, params), memory), memory

    def start(seed):
        return {k: v + 0.1 * seed for k, v in params.items()}

    stacked = trees.stack([start(s) for s in range(seeds)])
    memories = trees.stack([whole.init(start(s)) for s in range(seeds)])
    alone = [(start(s), whole.init(start(s))) for s in range(seeds)]
    plain = start(0)
    for k in range(steps):
        noises = [drawn(whole, params, batch, s, k).noise for s in range(seeds)]
        many = Batch(
            batch.x.expand(seeds, *batch.x.shape),
            batch.y.expand(seeds, *batch.y.shape),
            trees.stack(noises),
            Moment(k),
        )
        stacked, memories = torch.func.vmap(step)(stacked, many, memories)
        alone = [
            step(theta, Batch(batch.x, batch.y, noise, Moment(k)), memory)
            for (theta, memory), noise in zip(alone, noises, strict=True)
        ]
        plain = trees.axpy(-lr, grad_fn(plain, batch)[0], plain)
    for s, (theta, memory) in enumerate(alone):
        for mine, wanted in ((stacked, theta), (memories, memory)):
            for name, value in wanted.items():
                torch.testing.assert_close(mine[name][s], value, rtol=1e-9, atol=1e-12)
    assert trees.norm(trees.axpy(-1, plain, alone[0][0])) > 1e-6


def gradient_is_that_of(definition, measure, net, x, y, criterion=cross_entropy, noise=None):
    """The value is the definition's, and the gradient that of the definition by finite differences."""
    value, gradient, wanted, slope = oracles.value_and_gradient(
        lambda live: value_of(measure, net, criterion, x, y, live, noise), net, definition
    )
    torch.testing.assert_close(value, wanted, rtol=1e-9, atol=0)
    torch.testing.assert_close(gradient, slope, rtol=1e-6, atol=1e-8 * float(slope.norm()))
    assert slope.norm() > 1e-3 * abs(wanted)
