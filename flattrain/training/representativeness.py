"""The representativeness of a layer's features in your own model, from training and held-out data.

representativeness(model, F.cross_entropy, train_loader, held_out_loader, layer="head", delta=0.01)
Estimate(value=…, standard_error=…)
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from flattrain.core.functional import Forward, call
from flattrain.core.operators import Batches
from flattrain.measures import representativeness as definition
from flattrain.training.evaluate import contrast_on
from flattrain.training.measured import network_of
from flattrain.types import Estimate, Loss


def representativeness(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor] | Loss,
    train: Batches,
    held_out: Batches,
    *,
    layer: str,
    delta: float = 0.01,
    probes: int = 20,
    forward: Forward = call,
    seed: int = 0,
) -> Estimate:
    """Rep(δ) = risk − mean_i E_ξ ℓ(tail(φ_i + ξ), y_i), φ_i the training features that enter `layer`.

    train    : (x, y) pairs that can be read more than once, as for `measured`; the kernels are centred there.
    held_out : the same, of examples that the model was not fitted to. Their mean loss estimates the risk,
               and its standard error is in the estimate's.
    delta, probes : of the kernel ξ = δAφ, as in `measures.feature_robustness`. With the same seed

        held-out loss − training loss = representativeness + measured(…, train, feature_robustness(…))

    After Petzka et al. 2021, from memory of the definition (`measures.representativeness`). In evaluation
    mode; the model is left as it was found.
    """
    wanted = definition.representativeness(layer=layer, delta=delta, probes=probes)
    return contrast_on(
        wanted, network_of(model, loss_fn, forward), train, held_out, (seed, wanted.train.name)
    )
