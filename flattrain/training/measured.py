"""Any measure of your own model, on your own data.

measured(model, F.cross_entropy, loader, relative_flatness(layer="head"))
Estimate(value=…, standard_error=0.0)
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from flattrain.core.functional import Forward, call
from flattrain.core.losses import recognise
from flattrain.core.operators import Batches
from flattrain.training.evaluate import evaluate_on
from flattrain.types import Estimate, Loss, Measure, Network, Params, Spectral


def measured(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor] | Loss,
    batches: Batches,
    measure: Measure | Spectral,
    *,
    forward: Forward = call,
    seed: int = 0,
) -> Estimate:
    """The measure over all examples of `batches`, with its standard error (0 where it is exact).

    batches : (x, y) pairs that can be read more than once, e.g. a list or a DataLoader without shuffling;
              of any sizes, since they are weighted by their counts.
    seed    : names the stream of the measure's probes.

    In evaluation mode, over the trainable parameters; the model is left as it was found.
    """
    return evaluate_on(measure, network_of(model, loss_fn, forward), batches, (seed, measure.name))


def network_of(
    model: nn.Module, loss_fn: Callable[[Tensor, Tensor], Tensor] | Loss, forward: Forward
) -> Network:
    """The model at its values now, over its trainable parameters."""
    params: Params = {k: p.detach() for k, p in model.named_parameters() if p.requires_grad}
    buffers: Params = {k: b.detach().clone() for k, b in model.named_buffers()}
    return Network(model, recognise(loss_fn), params, buffers, forward)
